"""The modules of the default data: the same text on every machine, whatever else lies in its standard library."""

import os
import shutil

import pytest

from txtrain.data import stdlib
from txtrain.data.functions import PackageOfFunction
from txtrain.data.names import NamesInFunctions
from txtrain.data.stdlib import LISTS, StandardLibrary, library_files, name_in_library
from txtrain.data.tokenizer import Byte
from txtrain.errors import UserError

KINDS = [StandardLibrary, PackageOfFunction, NamesInFunctions]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The library of another machine: other times, files that it generates, and no tkinter."""
    root = tmp_path / "python"
    for file in library_files("common"):
        copy = root / name_in_library(file)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    (root / "_sysconfigdata__linux_x86_64-linux-gnu.py").write_text("build_time_vars = {}\n" * 1000)
    (root / "sitecustomize.py").write_text("import os\n")
    (root / "config-3.11").mkdir()
    (root / "config-3.11" / "python-config.py").write_text("def generated(x):\n    a = x\n    b = a\n    return b\n")

    def move():
        monkeypatch.setattr(stdlib, "_root", lambda: root)
        stdlib._digest.cache_clear()
        return root

    yield move
    monkeypatch.undo()
    stdlib._digest.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_another_machine_has_the_same_text(kind, tmp_path, elsewhere, monkeypatch):
    # Of a part of the list: reading all of it takes a minute.
    monkeypatch.setitem(LISTS, "common", [name for name in LISTS["common"] if name[0] in "ab"])

    def new(**options):
        return kind(tokenizer=Byte(), cache_dir=str(tmp_path), **options)

    def read():
        made = new(modules="common")
        found = {StandardLibrary: "documents", PackageOfFunction: "examples", NamesInFunctions: "sentences"}[kind]
        return made.fingerprint(), list(getattr(made, found)())

    here, whole = read(), new().fingerprint()
    root = elsewhere()
    assert read() == here and here[1]
    assert new().fingerprint() != whole
    (root / "abc.py").write_text((root / "abc.py").read_text() + "# patched\n")
    stdlib._digest.cache_clear()
    assert new(modules="common").fingerprint() != here[0]


def test_a_config_that_does_not_say_has_all_files_as_before():
    made = StandardLibrary(tokenizer=Byte())
    names = {name for name, _ in made.documents()}
    walked = {
        os.path.relpath(os.path.join(folder, file), stdlib._root())
        for folder, _, files in os.walk(stdlib._root())
        for file in files
        if file.endswith(".py") and not stdlib.LEFT_OUT & set(os.path.relpath(folder, stdlib._root()).split(os.sep))
    }
    assert names == walked
    assert any("_sysconfigdata" in name for name in names)


def test_the_list_has_nothing_generated_and_no_module_twice():
    names = [name_in_library(file) for file in library_files("common")]
    assert names == sorted(set(names), key=lambda name: name.split("/"))
    assert not [name for name in names if "_sysconfigdata" in name or name.split("/")[0] in ("site.py", "sysconfig.py")]
    assert len(set(LISTS["common"])) == len(LISTS["common"])


def test_what_is_missing_or_misnamed_is_one_line(elsewhere):
    root = elsewhere()
    (root / "argparse.py").unlink()
    with pytest.raises(UserError, match=r"has no argparse: .* data\.modules=null"):
        library_files("common")
    with pytest.raises(UserError, match=r"data\.modules=commun is no list of modules: set data\.modules=common"):
        StandardLibrary(tokenizer=Byte(), modules="commun")
