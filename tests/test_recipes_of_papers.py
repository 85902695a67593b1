"""Recipes that carry a paper's name say where they differ from it."""

import pytest

from txtrain.config import config_directory

PAPERS = ("ast_base", "bert_base", "shakespeare_char", "transformer_base", "vit_s16", "whisper_encoder")


@pytest.mark.parametrize("name", PAPERS)
def test_differences_are_listed_before_the_values(name: str) -> None:
    header = (config_directory() / f"experiment/{name}.yaml").read_text().partition("defaults:")[0]
    _, found, listed = header.partition("# Differences from ")
    assert found and listed.count("\n# - ") >= 4


def test_decay_of_embeddings_is_among_them_where_the_original_has_it() -> None:
    for name in ("bert_base", "shakespeare_char"):
        header = (config_directory() / f"experiment/{name}.yaml").read_text().partition("defaults:")[0]
        assert "do not decay" in header
