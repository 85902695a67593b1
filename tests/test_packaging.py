"""The lock, the wheel and the image: that what they name exists and agrees."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import txtrain

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


UNPINNED = {"harness"}  # twenty packages for who evaluates with it


def requirements() -> list[Requirement]:
    """Everything that pyproject.toml asks for, its extras included, but for those that the lock leaves out."""
    extras = chain(*(lines for extra, lines in EXTRAS.items() if extra not in UNPINNED))
    lines = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"], *extras]
    return [requirement for line in lines if (requirement := Requirement(line)).name != "txtrain"]


def pins() -> dict[str, Version]:
    """Package → version of constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+(; sys_platform == 'linux')?", line) for line in lines)
    versions = {
        canonicalize_name(name): Version(re.match(r"[\w.]+", rest)[0])
        for name, rest in (line.split("==", 1) for line in lines)
    }
    assert len(versions) == len(lines), "a package is pinned twice"
    return versions


def installed_closure() -> dict[str, Version]:
    """Package → installed version, of all that the project's requirements lead to on this machine."""
    found: dict[str, Version] = {}
    waiting = [(requirement, extra) for requirement in requirements() for extra in ("", *requirement.extras)]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found and not extra:
            continue
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:  # not for this platform
            continue
        found[name] = Version(package.version)
        for needed in map(Requirement, package.requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(Requirement(str(needed).split(";")[0]), inner) for inner in ("", *needed.extras)]
    return found


def test_the_lock_pins_every_requirement_within_its_range() -> None:
    versions = pins()
    for requirement in requirements():
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_the_lock_pins_everything_that_the_requirements_lead_to() -> None:
    closure = installed_closure()
    assert {"torch", "antlr4-python3-runtime", "aiohttp"} <= closure.keys()
    assert closure.keys() <= pins().keys()


def test_every_import_of_the_package_is_a_requirement() -> None:
    files = [*(ROOT / "txtrain").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    modules = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"txtrain", "hydra_plugins"}
    providers = packages_distributions()
    optional = chain(*(lines for extra, lines in EXTRAS.items() if extra != "dev"))
    lines = [*PROJECT["project"]["dependencies"], *optional]
    wanted = {canonicalize_name(Requirement(line).name) for line in lines}
    missing = {name for name in modules if not wanted & set(map(canonicalize_name, providers.get(name, [name])))}
    assert {"torch", "lightning", "hydra"} <= modules
    assert missing <= {"transformers"}  # txtrain export compares with it where it is installed


def test_every_extra_that_a_message_names_exists() -> None:
    text = "".join(file.read_text() for file in (ROOT / "txtrain").rglob("*.py"))
    named = set(re.findall(r"txtrain\[(\w+)\]", text))
    assert named
    assert named <= EXTRAS.keys()


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="not in the environment that make builds")
def test_make_installed_exactly_the_lock() -> None:
    versions = pins()
    assert installed_closure().keys() >= {canonicalize_name(requirement.name) for requirement in requirements()}
    for name, version in installed_closure().items():
        assert version.public == str(versions[name]), f"{name} is {version}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `make wheel` does."""
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling, in the extra dev")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob(f"txtrain-{txtrain.__version__}-py3-none-any.whl"))


def test_the_wheel_holds_the_package_the_config_tree_and_the_launcher(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    config = {f"txtrain/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    code = {
        str(path.relative_to(ROOT)) for folder in ("txtrain", "hydra_plugins") for path in (ROOT / folder).rglob("*.py")
    }
    assert config and config <= names
    assert code and code <= names
    assert "hydra_plugins/__init__.py" not in names, "it would hide Hydra's other plugins"
    assert {name.split("/")[0] for name in names} == {
        "txtrain",
        "hydra_plugins",
        f"txtrain-{txtrain.__version__}.dist-info",
    }


def test_the_wheel_trains_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()

    def python(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(site)}
        result = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    script = (
        "import txtrain.config, hydra_plugins.txtrain_launcher.process as launcher;"
        "print(txtrain.config.config_directory(), launcher.__file__)"
    )
    conf, launcher = python("-c", script).split()
    assert Path(conf) == site / "txtrain" / "conf"
    assert Path(launcher).is_relative_to(site)

    text = [
        "data=text",
        f"data.path={ROOT / 'tests/golden/text.txt'}",
        f"data.cache_dir={tmp_path}/cache",
        "tokenizer=byte",
    ]
    python(
        "-m",
        "txtrain",
        "train",
        "trainer.max_steps=2",
        "data.seq_len=32",
        "trainer.accelerator=cpu",
        "logger=none",
        *text,
    )
    [summary] = empty.glob("runs/gpt/*/summary.json")
    assert json.loads(summary.read_text())["steps"] == 2
    assert [path.name for path in empty.iterdir()] == ["runs"]


def docker() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments)."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(name, " ".join(arguments.split())) for name, arguments in (line.split(maxsplit=1) for line in lines)]


def ignored_by_docker(path: str) -> bool:
    """Whether .dockerignore keeps a path from the builder; the last pattern that matches it or a parent decides."""
    ignored = False
    parents = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if any(fnmatch(f"/{parent}", f"/{pattern}".replace("/**/", "*/")) for parent in parents):
                ignored = not line.startswith("!")
    return ignored


def test_docker_copies_files_that_exist_and_reach_the_builder() -> None:
    sources = [source for name, arguments in docker() if name == "COPY" for source in arguments.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), f"COPY {source}"
        assert not ignored_by_docker(source), f".dockerignore excludes {source}"
    assert ignored_by_docker(".venv") and ignored_by_docker("runs/gpt") and ignored_by_docker(".git/config")
    assert ignored_by_docker("txtrain/__pycache__") and not ignored_by_docker("txtrain/model/block.py")
    packed = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    read = [PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml", "constraints.txt"]
    assert set(sources) == {*packed, *read}


def test_docker_installs_the_project_under_the_lock() -> None:
    steps = docker()
    environment = dict(pair.split("=", 1) for name, pairs in steps if name == "ENV" for pair in shlex.split(pairs))
    workdirs = [arguments for name, arguments in steps if name == "WORKDIR"]
    assert environment["PIP_CONSTRAINT"] == f"{workdirs[0]}/constraints.txt"
    copied = steps.index(("COPY", "constraints.txt ./"))
    installs = [(at, words) for at, (name, words) in enumerate(steps) if name == "RUN" and "pip install" in words]
    direct = {canonicalize_name(requirement.name) for requirement in requirements()}
    named = [
        word for _, words in installs for part in re.findall(r"pip install ([^&]+)", words) for word in part.split()
    ]
    assert min(at for at, _ in installs) > copied
    assert set(named) - direct == {'".[tasks,optuna]"'}, "only pinned packages, then the project"


def test_docker_s_cuda_is_that_of_pytorch_s_wheels() -> None:
    image = next(arguments for name, arguments in docker() if name == "FROM")
    toolkit = pins()["cuda-toolkit"]
    assert image.startswith(f"nvidia/cuda:{toolkit.major}.{toolkit.minor}.")
    assert "-devel-" in image, "DeepSpeed's operations need nvcc"


def test_docker_runs_the_train_command_as_an_ordinary_user() -> None:
    steps = docker()
    users = [arguments for name, arguments in steps if name == "USER"]
    made = [words for name, words in steps if name == "RUN" and "useradd" in words]
    assert users and users[-1] not in ("root", "0")
    assert any(users[-1] in words.split() for words in made)
    entrypoint = json.loads(next(arguments for name, arguments in steps if name == "ENTRYPOINT"))
    assert entrypoint == ["txtrain", "train"]
    assert PROJECT["project"]["scripts"][entrypoint[0]] == "txtrain.cli:start"


def test_the_docs_name_the_docker_line() -> None:
    page = (ROOT / "docs" / "docker.md").read_text()
    assert "docker run --gpus all --ipc=host" in page
