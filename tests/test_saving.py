"""What is on the disk: names, links, what is kept, and what is taken for whole."""

from pathlib import Path

import pytest
import torch

from txtrain.errors import UserError
from txtrain.saving import (
    BEST,
    Save,
    checkpoint_name,
    damage,
    find_checkpoint,
    list_checkpoints,
    point,
    prune,
    publish,
    resume_point,
)


def write(folder: Path, step: int) -> Path:
    path = folder / checkpoint_name(step)
    torch.save({"weight": torch.arange(5000.0) + step}, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("every, steps, seconds", [(5, 5, None), ("30min", None, 1800.0), ("0.5min", None, 30.0)])
def test_every_is_steps_or_minutes(every: int | str, steps: int | None, seconds: float | None) -> None:
    save = Save(every=every)
    assert (save.steps, save.seconds) == (steps, seconds)


@pytest.mark.parametrize("wrong", [0, -3, "30", "30s", "min", "0min"])
def test_any_other_every_is_refused_with_what_to_type(wrong: int | str) -> None:
    with pytest.raises(ValueError, match=rf"^save\.every is {wrong}: .*save\.every=100.*save\.every=30min"):
        Save(every=wrong)


def test_keeping_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"save\.keep=2"):
        Save(keep=0)


def test_the_newest_whole_checkpoint_is_found(folder: Path) -> None:
    assert find_checkpoint(folder.parent) is None
    paths = [write(folder, step) for step in (9, 10, 100)]
    assert find_checkpoint(folder.parent) == paths[2]


@pytest.mark.parametrize("bytes_kept", [0, 100, -1])
def test_a_truncated_checkpoint_is_skipped_for_the_one_before(
    folder: Path, bytes_kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = write(folder, 1), write(folder, 2)
    new.write_bytes(new.read_bytes()[:bytes_kept])
    assert find_checkpoint(folder.parent) == old
    assert resume_point(folder.parent) == old
    assert str(new) in caplog.text


def test_one_altered_byte_of_a_weight_is_noticed(folder: Path) -> None:
    path = write(folder, 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "corrupted" in str(damage(path))
    with pytest.raises(UserError, match=r"^resume=.* has no whole checkpoint \(none of them can be read\): .*$"):
        resume_point(folder.parent)


def test_a_run_without_checkpoints_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it has none"):
        resume_point(tmp_path)


def test_a_folder_is_whole_when_each_of_its_files_is(folder: Path) -> None:
    path = folder / checkpoint_name(3)
    path.mkdir()
    assert damage(path) == "it is empty"
    torch.save({}, path / "rank_0.pt")
    assert damage(path) is None
    (path / "rank_1.pt").write_bytes((path / "rank_0.pt").read_bytes()[:50])
    assert str(damage(path)).startswith("rank_1.pt: ")


def test_what_is_being_written_is_no_checkpoint(folder: Path) -> None:
    partial = folder / (checkpoint_name(4) + ".partial")
    torch.save({}, partial)
    assert list_checkpoints(folder) == []
    publish(partial, folder / checkpoint_name(4))
    assert find_checkpoint(folder.parent) == folder / checkpoint_name(4)
    assert not partial.exists()


def test_a_folder_replaces_an_older_one_of_its_name(folder: Path) -> None:
    path, partial = folder / checkpoint_name(4), folder / (checkpoint_name(4) + ".partial")
    for file in (path / "old.pt", partial / "new.pt"):
        file.parent.mkdir()
        torch.save({}, file)
    publish(partial, path)
    assert [file.name for file in path.iterdir()] == ["new.pt"]


def test_pruning_keeps_the_newest_and_the_best(folder: Path) -> None:
    paths = [write(folder, step) for step in (1, 2, 3, 4, 5)]
    point(folder / BEST, paths[0])
    prune(folder, keep=2, newest=5)
    assert list_checkpoints(folder) == [paths[4], paths[3], paths[0]]
    assert (folder / BEST).resolve() == paths[0].resolve()


def test_pruning_removes_what_is_newer_than_the_step_that_the_run_is_at(folder: Path) -> None:
    paths = [write(folder, step) for step in (1, 2, 9)]
    prune(folder, keep=2, newest=2)
    assert list_checkpoints(folder) == [paths[1], paths[0]]


def test_a_link_moves_on(folder: Path) -> None:
    for step in (1, 2):
        point(folder / BEST, write(folder, step))
        assert torch.load(folder / BEST, weights_only=True)["weight"][0] == step
    assert (folder / BEST).readlink() == Path(checkpoint_name(2))  # relative: the run directory may be moved
