"""The check of a composed config, and what a resumed run may change."""

import os
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.types import RunMode
from omegaconf import OmegaConf
from torch import nn

from txtrain.compose import compose as compose_typed
from txtrain.config import check, config_directory, find_run, groups, options, resume_config, to_plain
from txtrain.errors import UserError
from txtrain.schema import arguments, check_value

SHAPE = {"_target_": "txtrain.model.shape.Shape", "dim": 8, "num_layers": 1, "num_heads": 2, "dropout": 0.0}


def refusal(function: Any, *args: Any) -> str:
    with pytest.raises(UserError) as error:
        function(*args)
    return str(error.value)


@pytest.mark.parametrize(
    "value, annotation",
    [(3, int), (3, float), (0.5, float), (None, int | None), ("a", Literal["a", "b"]), ([1], int | list[int])],
)
def test_values_of_the_right_type_pass(value: Any, annotation: Any) -> None:
    check_value("group.key", value, annotation)


@pytest.mark.parametrize(
    "value, annotation, message",
    [
        ("eight", int, "lora.rank must be an int, got 'eight': type lora.rank=8"),
        (True, int, "lora.rank must be an int, got true: type lora.rank=8"),
        (0.5, int | None, "lora.rank must be an int or null, got 0.5: type lora.rank=8"),
        (None, float, "lora.rank must be a number, got null: type lora.rank=0.1"),
        (1, bool, "lora.rank must be true or false, got 1: type lora.rank=true"),
        ("doraa", Literal["lora", "dora"], "lora.rank must be one of lora, dora, got 'doraa': type lora.rank=dora"),
        ("x", Literal["a", 2] | None, "lora.rank must be one of a, 2 or null, got 'x': type lora.rank=a"),
        ([1, "b"], list[int], "lora.rank must be a list, got [1, 'b']: type lora.rank=[A,B]"),
    ],
)
def test_values_of_another_type_are_refused_in_words(value: Any, annotation: Any, message: str) -> None:
    assert refusal(check_value, "lora.rank", value, annotation) == message


def test_the_example_is_the_default_where_there_is_a_useful_one() -> None:
    assert refusal(check_value, "lora.alpha", "x", int, 16).endswith("type lora.alpha=16")
    assert refusal(check_value, "trainer.max_steps", "x", int, -1).endswith("type trainer.max_steps=8")


def test_a_command_line_is_composed_once_unless_files_may_set_the_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra would compose the whole config a second time, to look for hydra.mode in it."""
    modes: list[RunMode] = []
    load = ConfigLoaderImpl.load_configuration

    def counted(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> Any:
        modes.append(kwargs["run_mode"])
        return load(self, *args, **kwargs)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    assert compose_typed(["norm=post", "seed=3"]).config.seed == 3
    assert modes == [RunMode.RUN]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "swept.yaml").write_text("# @package _global_\nhydra: {mode: MULTIRUN}\n")
    for typed in (["hydra.mode=MULTIRUN"], ["--config-dir", str(tmp_path), "experiment=swept"]):
        modes.clear()
        assert "-m has nothing to sweep over" in refusal(compose_typed, typed)
        assert modes == [RunMode.MULTIRUN] * 2


class Base:
    def __init__(self, *, eps: float = 1e-5, bias: bool = False) -> None: ...


class PassesOn(Base):
    def __init__(self, *, depth: int, **base: Any) -> None: ...


class PassesAllOn(PassesOn):
    def __init__(self, **base: Any) -> None: ...


class Module(nn.Module):
    def __init__(self, *, width: int, **base: Any) -> None: ...


def test_arguments_are_merged_along_the_classes_that_pass_them_on() -> None:
    for cls in (PassesOn, PassesAllOn):
        found, takes_others = arguments(cls)
        assert {name: parameter.annotation for name, parameter in found.items()} == {
            "depth": int,
            "eps": float,
            "bias": bool,
        }
        assert not takes_others


def test_a_module_takes_no_other_arguments() -> None:
    found, takes_others = arguments(Module)
    assert (list(found), takes_others) == (["width"], False)
    assert arguments(nn.Identity)[1] is False


def test_a_function_with_keywords_takes_any() -> None:
    def function(a: int, **others: Any) -> None: ...

    assert arguments(function)[1] is True


def test_a_good_config_passes() -> None:
    check({"name": "gpt", "seed": 0, "model": SHAPE, "trainer": {"_target_": "lightning.Trainer", "devices": 2}})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dim": "wide"}, "model.dim must be an int, got 'wide': type model.dim=8"),
        ({"num_kv_heads": 1.5}, "model.num_kv_heads must be an int or null, got 1.5: type model.num_kv_heads=8"),
        ({"dropuot": 0.1}, "model.dropuot is no key of this config: did you mean model.dropout?"),
        ({"zzz": 1}, "model.zzz is no key of this config: model has dim, num_layers, num_heads, num_kv_heads, "),
        ({"dim": "???"}, "model.dim is needed and has no default: type model.dim=VALUE"),
    ],
)
def test_a_bad_node_is_refused(changes: dict[str, Any], message: str) -> None:
    assert refusal(check, {"model": SHAPE | changes}).startswith(message)


def test_a_missing_argument_is_named_unless_code_supplies_it() -> None:
    node = {key: value for key, value in SHAPE.items() if key != "dim"}
    assert refusal(check, {"model": node}) == "model.dim is missing: type +model.dim=VALUE"
    check({"model": node | {"_partial_": True}})


def test_nodes_within_nodes_and_lists_are_checked() -> None:
    inner = {"_target_": "txtrain.data.masked.Masking", "rate": "much"}
    outer = {"_target_": "txtrain.data.stdlib.StandardLibrary", "_partial_": True, "masking": inner}
    assert "data.masking.rate must be a number" in refusal(check, {"data": outer})
    listed = outer | {"masking": [{"_target_": "txtrain.data.masked.Masking", "a": 1}]}
    assert refusal(check, {"data": listed}).startswith("data.masking.0.a is no key")


def test_scalars_are_checked_and_others_refused() -> None:
    assert refusal(check, {"seed": "one"}) == "seed must be an int, got 'one': type seed=8"
    assert refusal(check, {"seed": 1, "sede": 1}) == "sede is no key of this config: did you mean seed?"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "txtrain.cli.sys.exit",
        "txtrain.config.copy",
        "txtrain.nothing.A",
        "x",
        5,
    ],
)
def test_only_trusted_classes_are_loaded(target: Any) -> None:
    told = refusal(check, {"model": {"_target_": target}})
    assert told.startswith(f"model._target_ is {target}, which is no class of txtrain for this place")


def test_an_unresolvable_value_is_named() -> None:
    assert refusal(to_plain, OmegaConf.create({"seed": "${lora.rnk}"})).startswith("seed cannot be resolved: ")


def test_the_packed_tree_goes_before_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "txtrain"
    package.mkdir()
    (tmp_path / "conf").mkdir()
    monkeypatch.setattr("txtrain.config.__file__", str(package / "config.py"))
    assert config_directory() == tmp_path / "conf"
    (package / "conf").mkdir()
    assert config_directory() == package / "conf"


@pytest.mark.parametrize(
    "choice",
    [f"{group}={option}" for group in groups(config_directory()) for option in options(config_directory(), group)],
)
def test_every_option_passes_its_own_check(choice: str) -> None:
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = compose("train", [choice])
    for key in OmegaConf.missing_keys(config):  # what the user has to give, such as data.path
        OmegaConf.update(config, key, "given")
    check(to_plain(config))


SAVED = {
    "name": "gpt",
    "run_dir": "runs/gpt/1",
    "resume": None,
    "norm": {"eps": 1e-5},
    "data": {"path": "a.txt", "micro_batch_size": None},
    "schedule": {"warmup": 0.1, "end": 0.1},
    "strategy": {"_target_": "a"},
    "trainer": {"max_steps": 10, "devices": 1},
}


def resumed(overrides: list[str], **changes: Any) -> dict[str, Any]:
    composed = OmegaConf.merge(
        SAVED, {"run_dir": None}, OmegaConf.from_dotlist([f"{k}={v}" for k, v in changes.items()])
    )
    OmegaConf.set_struct(composed, True)
    return to_plain(resume_config(OmegaConf.create(SAVED), composed, overrides))


def test_a_resumed_run_takes_the_allowed_overrides() -> None:
    changes = {"trainer.max_steps": 20, "strategy._target_": "b", "schedule.end": 0.0, "data.micro_batch_size": 2}
    config = resumed(
        ["trainer.max_steps=20", "strategy=b", "schedule.end=0", "data.micro_batch_size=2", "resume=auto"], **changes
    )
    assert config["trainer"] == {"max_steps": 20, "devices": 1}
    assert (config["strategy"]["_target_"], config["schedule"]["end"], config["data"]["micro_batch_size"]) == (
        "b",
        0.0,
        2,
    )


def test_what_the_user_did_not_type_stays_as_saved() -> None:
    config = resumed(["resume=auto"], **{"trainer.max_steps": 99, "norm.eps": 0.5})
    assert config["trainer"]["max_steps"] == 10
    assert config["norm"]["eps"] == 1e-5
    assert config["run_dir"] == "runs/gpt/1"


def test_other_overrides_are_refused_by_name_and_nothing_else_is() -> None:
    changes = {"norm.eps": 0.5, "data.path": "b.txt", "trainer.devices": 2}
    message = refusal(lambda: resumed(["norm.eps=0.5", "name=gpt", "data.path=b.txt", "trainer.devices=2"], **changes))
    assert message.startswith("norm.eps=0.5, data.path=b.txt would change what the resumed run trains")


def test_the_same_command_line_resumes() -> None:
    assert resumed(["norm.eps=1e-5", "data.path=a.txt", "experiment=recipe", "resume=auto"]) == SAVED


def test_an_experiment_that_differs_is_refused() -> None:
    assert refusal(lambda: resumed(["experiment=recipe"], **{"norm.eps": 0.5})).startswith("experiment=recipe would")


def test_auto_is_the_run_with_the_newest_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "txtrain.saving.find_checkpoint", lambda run: run / "whole" if (run / "whole").exists() else None
    )
    assert refusal(find_run, "auto", "gpt").startswith("resume=auto finds no run with a whole checkpoint in runs/gpt")
    for number, (name, whole) in enumerate({"old": True, "new": True, "newer_but_broken": False}.items()):
        run = tmp_path / "runs" / "gpt" / name
        checkpoint = run / "checkpoints" / "step_00000001.ckpt"
        checkpoint.mkdir(parents=True)
        (run / "config.yaml").touch()
        os.utime(checkpoint, (number, number))
        if whole:
            (run / "whole").touch()
    assert find_run("auto", "gpt") == Path("runs/gpt/new")
    assert find_run("runs/gpt/old", "gpt") == Path("runs/gpt/old")
    assert refusal(find_run, "runs/nowhere", "gpt").startswith("resume=runs/nowhere is no run directory")
