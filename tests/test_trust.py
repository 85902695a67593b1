"""No code from data: what a run, a folder or a file names is called only if it is listed, or trusted as typed."""

import importlib
import json
import pkgutil
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from txtrain import trust
from txtrain.arguments import Parser
from txtrain.callbacks.summary import command_to_go_on
from txtrain.cli import COMMANDS, main
from txtrain.config import check, instantiate, literal, saved_config, to_plain
from txtrain.errors import UserError
from txtrain.generate.options import new_parser
from txtrain.records import GROUPS

TEXT = Path(__file__).parent / "golden" / "text.txt"
TINY = ["model.dim=32", "model.num_layers=1", "data=text", "data.path=text.txt", "tokenizer=byte", "data.seq_len=32"]
TINY += ["logger=none", "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.limit_val_batches=1"]
TINY += ["samples.length=0"]
PACKAGE = """\
from pathlib import Path
from txtrain.model.norm.pre import PreNorm
Path("imported").touch()
class Mine(PreNorm):
    pass
"""
CODE = {"_target_": "lightning.pytorch.cli.instantiate_class", "args": [], "init": {"class_path": "os.mkdir"}}
SHELL = {"_target_": "os.system", "command": "touch ran"}
SNEAKED = "${oc.decode:'{_target_: os.mkdir, path: ran}'}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder with a run, a run of a package's class, and the package."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "text.txt").write_bytes(TEXT.read_bytes())
    (folder / "others_package.py").write_text(PACKAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("TXTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert main(["train", *TINY, "run_dir=run"]) == 0
        typed = ["norm._target_=others_package.Mine", "run_dir=theirs", "trust=[others_package]"]
        assert main(["train", *TINY, *typed]) == 0
        sys.modules.pop("others_package")
        yield folder


@pytest.fixture
def home(folder, tmp_path, monkeypatch):
    """A folder with copies of these."""
    for name in ("run", "theirs"):
        shutil.copytree(folder / name, tmp_path / name, symlinks=True)
    shutil.copy(folder / "text.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["txtrain"])
    return tmp_path


def refusal(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 1, arguments
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


USES = [
    ["generate", "run", "a", "--max-new-tokens", "1", "--device", "cpu"],
    ["eval", "run", "trainer.accelerator=cpu"],
    ["export", "run", "out"],
    ["predict", "run", "text.txt"],
    ["audit", "run", "1"],
    ["train", "resume=run"],
    ["train", *TINY, "init_from=run"],
]


MORE = [
    ["eval", "run", "trainer.accelerator=cpu", "--plots", "--layers", "0", "--heads", "0"],
    ["export", "run", "out", "--adapter"],
    ["eval", "run/checkpoints/last", "trainer.accelerator=cpu"],
]
REFUSED = ("export", "predict")  # which have no use for a decoder with a class of the user's, even if it is trusted


def test_every_command_is_tried():
    """A new one needs its line in USES."""
    assert {use[0] for use in USES} == set(COMMANDS)


def places() -> dict[str, Any]:
    """Ways to put a node into a run's config, by how they change it."""

    def at(*keys: str, value: Any) -> Any:
        def change(config: dict[str, Any]) -> None:
            for key in keys[:-1]:
                config = config.setdefault(key, {})
            config[keys[-1]] = value

        return change

    found = {f"{group} is shell": at(group, value=SHELL) for group in ("norm", "lora", "logger", "task", "data")}
    found |= {f"{group} names another's": at(group, "_target_", value=CODE["_target_"]) for group in GROUPS}
    found |= {
        "within a node": at("norm", "eps", value=SHELL),
        "in a list": at("optimizer", "betas", value=[[SHELL]]),
        "in an added group": at("extra", value=SHELL),
        "positional": at("norm", "_args_", value=["touch ran"]),
        "in a class's own list": at("trainer", "callbacks", value=[CODE]),
        "another group's class": at("norm", "_target_", value="txtrain.data.text.TextFiles"),
        "an interpolation": at("norm", "eps", value=SNEAKED),
        "an escaped interpolation": at("norm", "eps", value=SNEAKED.replace("${", "\\${")),
        "an interpolated class": at("norm", "_target_", value="${oc.env:EVIL,os.system}"),
        "a class that is a list": at("norm", "_target_", value=["os.system"]),
        "trust in the file": lambda config: config.update(norm=SHELL, trust=["os"]),
    }
    return found


def made(run: Path) -> None:
    """All that the config of a run names is made."""
    trust.trust(())
    saved = to_plain(saved_config(run))
    check(saved)
    for group in GROUPS:
        instantiate(saved[group], group)


def uses_of(place: str) -> list[Any]:
    """Two uses of a run for each place, each use in turn; the others are heavy."""
    first = 2 * list(places()).index(place)
    every = [*USES, *MORE]
    quick = [(first + offset) % len(every) for offset in (0, 1)]
    return [
        pytest.param(place, use, marks=() if number in quick else pytest.mark.heavy, id=f"{place}, {' '.join(use)}")
        for number, use in enumerate(every)
    ]


@pytest.mark.parametrize("place, use", [case for place in places() for case in uses_of(place)])
def test_what_a_run_names_is_not_run(place, use, home, capsys):
    path = home / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    places()[place](config)
    path.write_text(yaml.safe_dump(config))
    refusal(capsys, *use)
    with pytest.raises(UserError):
        made(home / "run")
    assert not (home / "ran").exists()


@pytest.mark.parametrize("arguments", USES, ids=" ".join)
def test_no_use_of_a_run_loads_what_nobody_trusts(arguments, home, capsys):
    use = [
        word.replace("run", "theirs") if word in ("run", "resume=run", "init_from=run") else word for word in arguments
    ]
    told = refusal(capsys, *use)
    typed = "trust=[others_package]" if arguments[0] == "train" else "--trust others_package"
    assert told.endswith(f"if you trust that code, type {typed}")
    assert not (home / "imported").exists()
    extra = ["trainer.max_steps=3"] if "resume=run" in arguments else []
    for words in {tuple(typed.split()), ("trust=[others_package]",)}:
        assert main([*use, *words, *extra]) == (1 if arguments[0] in REFUSED else 0)
        assert (home / "imported").exists()
        (home / "imported").unlink()
        sys.modules.pop("others_package")


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "typed, packages",
    [
        (["trust=[others_package]"], {"others_package"}),
        (["+trust=others_package,more.of.it"], {"others_package", "more.of.it"}),
        (["--trust", "others_package", "trust=[more]"], {"others_package", "more"}),
    ],
)
def test_trust_typed_as_for_train_is_trusted_by_the_other_commands(typed, packages, first):
    words = ["run", "a"]
    for new in (new_parser, lambda: Parser(prog="txtrain eval", usage="", description="")):
        trust.trust(())
        parser = new()
        if new is not new_parser:
            parser.add_argument("words", nargs="*")
        for parse in (parser.parse_intermixed_args, parser.parse_args):
            trust.trust(())
            options = parse([*typed, *words] if first else [*words, *typed])
            found = options.words if new is not new_parser else [options.model, options.prompt]
            assert found == words
            assert set(trust.trusted()) == packages
    trust.trust(())


def test_a_text_is_no_trust():
    for words in (["run", "trust=me, it works"], ["run", "--stop", "trust=[a]", "b"], ["run", "--", "trust=[a]"]):
        trust.trust(())
        options = new_parser().parse_intermixed_args(words)
        assert trust.trusted() == [] and (options.prompt, *options.stop) in ((words[-1],), ("b", "trust=[a]"))
    with pytest.raises(UserError, match=r"trust names Python packages, got 'os\.system\(\)'"):
        new_parser().parse_intermixed_args(["run", "a", "trust=[os.system()]"])


def test_the_command_that_goes_on_trusts_what_was_typed():
    trust.trust(["others_package", "more"])
    try:
        told = shlex.split(command_to_go_on(Path("run"), "trainer.max_steps=9"))
    finally:
        trust.trust(())
    assert told[-3:] == ["resume=run", "trainer.max_steps=9", "trust=[others_package,more]"]


def test_what_was_trusted_is_written_down_and_never_read(home, capsys):
    assert yaml.safe_load((home / "theirs" / "config.yaml").read_text())["trust"] == ["others_package"]
    assert yaml.safe_load((home / "run" / "config.yaml").read_text())["trust"] == []
    assert "trust=[others_package]" in (home / "theirs" / "overrides.txt").read_text()
    refusal(capsys, "train", "resume=theirs", "trust=[]")


HYDRA = {
    "callbacks": {"callbacks": {"mine": SHELL}},
    "logging": {"job_logging": {"handlers": {"a": {"()": "os.mkdir", "path": "ran"}}, "root": {"handlers": ["a"]}}},
    "hydra's logging": {
        "hydra_logging": {"handlers": {"a": {"()": "os.mkdir", "path": "ran"}}, "root": {"handlers": ["a"]}}
    },
    "launcher": {"launcher": {"_target_": "os.system"}},
    "node in a launcher": {"launcher": {"parallel_jobs": SHELL}},
    "interpolated node": {"launcher": {"parallel_jobs": SNEAKED}},
    "sweeper": {"sweeper": {"_target_": "os.system"}},
    "trust by a sweeper": {"sweeper": {"params": {"trust": "[os]", "seed": "1,2"}}},
    "search path by a sweeper": {"sweeper": {"params": {"hydra.searchpath": "[pkg://others_package]", "seed": "1,2"}}},
    "overrides": {"overrides": {"hydra": ["hydra.searchpath=[pkg://others_package]"]}},
    "variables": {"job": {"env_set": {"LD_PRELOAD": "x"}}},
    "folder": {"run": {"dir": "ran"}},
}


@pytest.mark.parametrize("setting", HYDRA)
@pytest.mark.parametrize("sweep", [False, True])
def test_hydras_settings_in_a_file_run_nothing(setting, sweep, home, capsys):
    (home / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\n" + yaml.safe_dump({"hydra": HYDRA[setting]})
    (home / "mine" / "experiment" / "evil.yaml").write_text(text)
    flags = ["-m", "seed=3,4"] if sweep else []
    refusal(capsys, "train", *TINY, "--config-dir", "mine", "experiment=evil", "trainer.max_steps=1", *flags)
    assert not (home / "ran").exists() and not (home / "imported").exists() and not (home / "runs").exists()


def test_a_file_of_options_names_listed_classes_only_unless_the_command_line_trusts(home, capsys):
    (home / "mine" / "norm").mkdir(parents=True)
    (home / "mine" / "norm" / "own.yaml").write_text(
        "{_target_: others_package.Mine, _partial_: true, layer: layernorm}"
    )
    (home / "mine" / "norm" / "listed.yaml").write_text("{_target_: txtrain.model.norm.pre.PreNorm, _partial_: true}")
    (home / "mine" / "experiment").mkdir()
    (home / "mine" / "experiment" / "sly.yaml").write_text("# @package _global_\ntrust: [others_package]\n")
    typed = ["train", *TINY, "--config-dir", "mine", "dry_run=true"]
    assert main([*typed, "norm=listed"]) == 0
    assert "type trust=[others_package]" in refusal(capsys, *typed, "norm=own")
    assert "type trust=[others_package]" in refusal(capsys, *typed, "norm=own", "experiment=sly")
    assert not (home / "imported").exists()
    assert main([*typed, "norm=own", "trust=[others_package]"]) == 0
    assert main([*typed, "norm=own", "trust=others_package"]) == 0


def test_a_trusted_package_lends_nothing_that_it_has_imported(monkeypatch):
    trust.trust(["json"])
    try:
        for name in ("json.codecs", "json.codecs.open"):
            with pytest.raises(UserError):
                trust.locate("norm", {"_target_": name})
        assert trust.locate("norm", {"_target_": "json.JSONEncoder"}) is json.JSONEncoder
        with pytest.raises(UserError):
            trust.locate("norm", {"_target_": "jsonx.JSONEncoder"})
    finally:
        trust.trust(())


def reachable(prefix: str) -> set[str]:
    """Every callable that a dotted path under a prefix leads to, by paths of modules and their attributes."""
    found = set()
    root = importlib.import_module(prefix)
    names = [
        prefix,
        *(module.name for module in pkgutil.walk_packages(root.__path__, f"{prefix}.", onerror=lambda _: None)),
    ]
    for name in names:
        if module := sys.modules.get(name):
            found |= {f"{name}.{key}" for key, value in vars(module).items() if callable(value)}
    return found


@pytest.mark.parametrize("prefix", ["txtrain", "lightning", "torch.optim", "torch.nn"])
def test_every_callable_under_the_old_prefixes_is_refused_but_those_listed(prefix, monkeypatch):
    trust.trust(())
    monkeypatch.setattr(trust, "nearest", lambda *_: None)  # advice takes long
    groups, found = trust.listed(), reachable(prefix)
    assert len(found) > 100
    for name in found:
        for group, listed in groups.items():
            for path, names in ((group, listed.own), (f"{group}.a.0.b", listed.within)):
                if trust.RENAMED.get(name, name) not in names:
                    with pytest.raises(UserError):
                        trust.check_target(path, {"_target_": name})
    every = {name for listed in groups.values() for name in (*listed.own, *listed.within)}
    assert {name for name in every if not name.startswith("txtrain.")} == {
        "lightning.Trainer",
        "lightning.pytorch.callbacks.LearningRateMonitor",
    }


def test_no_listed_class_imports_what_a_text_names():
    """The modules of the listed classes import by name only what is written there."""
    for listed in trust.listed().values():
        for name in {*listed.own, *listed.within}:
            if name.startswith("txtrain."):
                module = importlib.import_module(name.rpartition(".")[0])
                source = Path(str(module.__file__)).read_text()
                assert not re.search(r"import_module\((?!\")|__import__\(|\beval\((?=\w)|\bexec\(", source), name


def test_moved_classes_are_found_by_their_old_names():
    for old, new in trust.RENAMED.items():
        group = new.split(".")[2]
        assert new in trust.listed()[group].own, "the table names what is there"
        assert trust.locate(group, {"_target_": old}) is trust.locate(group, {"_target_": new})
        assert trust.renamed({"a": [{"_target_": old}]}) == {"a": [{"_target_": new}]}


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", "a\\${b}", "\\\\${c}", "${", "$${x}", "${oc.decode:'{a: 1}'}", "x\\"]
)
def test_a_text_of_a_run_stays_as_it_is(text):
    assert to_plain(literal({"a": text, "b": [text, {"c": text}]})) == {"a": text, "b": [text, {"c": text}]}


def test_the_one_way_to_make_a_node():
    """Nothing in the package lets Hydra instantiate, which would resolve texts once more."""
    root = Path(trust.__file__).parent
    for file in root.rglob("*.py"):
        assert "hydra.utils" not in file.read_text(), file
