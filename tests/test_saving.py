"""What is on the disk: names, links, what is kept, what is taken for whole, and that reading it runs no code."""

import json
from pathlib import Path

import pytest
import torch

from txtrain.errors import UserError
from txtrain.saving import (
    BEST,
    Reader,
    Save,
    check_complete,
    checkpoint_name,
    damage,
    find_checkpoint,
    list_checkpoints,
    pack_state,
    point,
    prune,
    publish,
    read_manifest,
    read_state,
    resume_point,
    share_out,
    write_manifest,
    write_part,
)

TENSORS = "tensors_00000.safetensors"


def write(folder: Path, step: int, *, ranks: int = 1, name: str | None = None) -> Path:
    """A checkpoint as `ranks` processes would write it."""
    path = folder / (name or checkpoint_name(step))
    whole = {f"model/{letter}": torch.arange(500.0) + step for letter in "abc"}
    parts = []
    for rank in range(ranks):
        tensors = share_out(whole.items(), rank=rank, ranks=ranks)
        parts += write_part(path, rank=rank, tensors=tensors, state=pack_state({"step": step}) if rank == 0 else None)
    write_manifest(path, step=step, ranks=ranks, strategy="ddp", parts=parts)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("every, steps, seconds", [(5, 5, None), ("30min", None, 1800.0), ("0.5min", None, 30.0)])
def test_every_is_steps_or_minutes(every: int | str, steps: int | None, seconds: float | None) -> None:
    save = Save(every=every)
    assert (save.steps, save.seconds) == (steps, seconds)


@pytest.mark.parametrize("wrong", [0, -3, "30", "30x", "min", "0min"])
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


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_processes_write_what_one_reads(folder: Path, ranks: int) -> None:
    path = write(folder, 7, ranks=ranks)
    assert damage(path) is None
    reader = Reader(path)
    assert sorted(reader.names()) == ["model/a", "model/b", "model/c"]
    assert all(torch.equal(reader[name], torch.arange(500.0) + 7) for name in reader.names())
    assert read_state(path) == {"step": 7}
    sizes = [part.bytes for part in read_manifest(path)["files"] if part.name.startswith("tensors")]
    assert len(sizes) == ranks


def test_copies_are_shared_out_by_size() -> None:
    tensors = [("large", torch.zeros(100)), *((f"small {number}", torch.zeros(10)) for number in range(10))]
    shares = [share_out(tensors, rank=rank, ranks=2) for rank in (0, 1)]
    assert [sum(tensor.numel() for tensor in share.values()) for share in shares] == [100, 100]
    assert shares[0].keys() | shares[1].keys() == {name for name, _ in tensors}


def test_a_copy_is_no_view_of_what_goes_on_changing() -> None:
    weight = torch.zeros(3)
    copy = share_out([("weight", weight)], rank=0, ranks=1)["weight"]
    weight += 1
    assert copy.tolist() == [0, 0, 0]


def test_a_lost_or_empty_weight_is_noticed(folder: Path) -> None:
    """As a shard would leave it, or one tied to another."""
    path = write(folder, 1)
    check_complete(path, {"model/a": (500,), "model/b": (500,)})
    with pytest.raises(OSError, match=r"^model/d was not written$"):
        check_complete(path, {"model/d": (500,)})
    with pytest.raises(OSError, match=r"^model/a was written as \(500,\) instead of \(250, 2\)$"):
        check_complete(path, {"model/a": (250, 2)})


@pytest.mark.parametrize("file", [TENSORS, "state.pt", "manifest.json"])
@pytest.mark.parametrize("bytes_kept", [0, 100, -1])
def test_a_truncated_checkpoint_is_named_and_skipped_for_the_one_before(
    folder: Path, file: str, bytes_kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = write(folder, 1), write(folder, 2)
    content = (new / file).read_bytes()
    (new / file).write_bytes(content[: bytes_kept - (file == "manifest.json" and bytes_kept < 0)])
    assert find_checkpoint(folder.parent) == old
    assert resume_point(folder.parent) == old
    assert str(new) in caplog.text
    assert file in caplog.text


def test_a_missing_file_is_noticed(folder: Path) -> None:
    path = write(folder, 1, ranks=2)
    (path / "tensors_00001.safetensors").unlink()
    assert damage(path) == "tensors_00001.safetensors is missing"
    (path / "manifest.json").unlink()
    assert damage(path) == "it has no manifest.json"


def test_one_altered_byte_of_a_weight_is_noticed(folder: Path) -> None:
    path = write(folder, 1)
    content = bytearray((path / TENSORS).read_bytes())
    content[-1] ^= 1
    (path / TENSORS).write_bytes(content)
    assert damage(path, contents=False) is None
    assert damage(path) == f"{TENSORS} was altered (SHA-256)"
    with pytest.raises(UserError, match=r"^resume=.* has no whole checkpoint \(none of them can be used: .+\): .*$"):
        resume_point(folder.parent)


def test_a_later_format_is_told(folder: Path) -> None:
    manifest = write(folder, 1) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    assert damage(manifest.parent) == "its format is 2, this version reads 1"


def test_a_run_without_checkpoints_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it has none"):
        resume_point(tmp_path)


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


def test_a_checkpoint_is_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One from elsewhere runs nothing, though its manifest fits."""
    monkeypatch.chdir(folder)
    path = write(folder, 1)
    torch.save({"step": Code()}, path / "state.pt")
    with pytest.raises(UserError, match="it is no state of a run"):
        read_state(path)
    assert not Path("ran").exists()
    torch.load(path / "state.pt", weights_only=False)  # it would have
    assert Path("ran").exists()


def test_what_is_being_written_is_no_checkpoint(folder: Path) -> None:
    partial = write(folder, 4, name=checkpoint_name(4) + ".partial")
    assert list_checkpoints(folder) == []
    publish(partial, folder / checkpoint_name(4))
    assert find_checkpoint(folder.parent) == folder / checkpoint_name(4)
    assert not partial.exists()


def test_a_folder_replaces_an_older_one_of_its_name(folder: Path) -> None:
    path, partial = write(folder, 4), write(folder, 5, name=checkpoint_name(4) + ".partial")
    publish(partial, path)
    assert read_state(path) == {"step": 5}
    assert sorted(file.name for file in folder.iterdir()) == [path.name]


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
        assert read_state(folder / BEST) == {"step": step}
    assert (folder / BEST).readlink() == Path(checkpoint_name(2))  # relative: the run directory may be moved
