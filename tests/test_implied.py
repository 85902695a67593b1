"""What an option decides where nothing is typed."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from txtrain.cli import configure, main
from txtrain.compose import compose
from txtrain.config import config_directory, options, saved_config

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


@pytest.mark.parametrize(
    "typed, said, filled",
    [
        ([], {}, ("gpt", None, [])),
        ([], {"PROJECT": "p", "ENTITY": "e", "TAGS": "a,b"}, ("p", "e", ["a", "b"])),
        (["logger.project=mine", "logger.tags=[c]"], {"PROJECT": "p", "TAGS": "a"}, ("mine", None, ["c"])),
        (["logger.project=gpt"], {"PROJECT": "p"}, ("gpt", None, [])),
        (["logger=[csv,wandb]", "name=x"], {"PROJECT": ""}, ("x", None, [])),
    ],
)
def test_where_a_run_goes_in_wandb(
    typed: list[str], said: dict[str, str], filled: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PROJECT", "ENTITY", "TAGS"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name, value in said.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    composed = compose(typed)
    assert composed.config is not None
    logger = configure(composed.config, composed.overrides).logger
    assert (logger.project, logger.entity, logger.tags) == filled


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "none"])
def test_a_run_from_before_keeps_its_logger(name: str, tmp_path: Path) -> None:
    """Each had a function of its own."""
    composed = compose([*SMALL, "data.path=text.txt"]).config
    assert composed is not None
    composed.logger = {"_target_": f"txtrain.logger.{name}", "_partial_": True}
    OmegaConf.save(composed, tmp_path / "config.yaml")
    logger = saved_config(tmp_path).logger
    assert logger._target_ == "txtrain.logger.chosen"
    assert [key for key in logger if not key.startswith("_")] == ([] if name == "none" else [name])
