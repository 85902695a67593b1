"""What an option decides where nothing is typed."""

from pathlib import Path

import pytest
import yaml

from txtrain.cli import configure, main
from txtrain.compose import compose
from txtrain.config import config_directory, options

SMALL = ["data=text", "tokenizer=char", "model.dim=16", "model.num_layers=1", "model.num_heads=2", "data.seq_len=16"]
SMALL += ["data.batch_size=4", "logger=none", "trainer.accelerator=cpu", "samples.length=0"]


def scale(*overrides: str) -> bool:
    composed = compose(list(overrides))
    assert composed.config is not None
    return configure(composed.config, composed.overrides).embedding.scale


@pytest.mark.parametrize("encoding", options(config_directory(), "encoding"))
def test_token_vectors_are_scaled_as_in_the_paper_of_the_encoding(encoding: str) -> None:
    assert scale(f"encoding={encoding}") is (encoding == "sinusoidal")


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("encoding", ["sinusoidal", "rope"])
def test_what_is_typed_wins(encoding: str, typed: bool) -> None:
    assert scale(f"encoding={encoding}", f"embedding.scale={str(typed).lower()}") is typed


def test_an_embedding_without_that_key_is_left_alone() -> None:
    composed = compose(["task=image_classification", "data=digits", "encoding=sinusoidal"])
    assert composed.config is not None
    assert "scale" not in configure(composed.config, composed.overrides).embedding


def test_a_run_from_before_keeps_what_its_config_has(tmp_path: Path) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("a quick brown fox jumps over the lazy dog\n" * 40)
    command = [*SMALL, f"data.path={text}", "encoding=sinusoidal", f"run_dir={run}", "trainer.max_steps=1"]
    assert main(["train", *command]) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["embedding"]["scale"] is True
    config["embedding"]["scale"] = False
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", f"resume={run}", "encoding=sinusoidal", "trainer.max_steps=2"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["embedding"]["scale"] is False
