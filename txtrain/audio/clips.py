"""Clips on the disk: every waveform decoded and resampled once, in one file that processes map into memory.

waveforms.bin       samples of 16 bits, one clip after the other
clips.jsonl         for each clip: where it begins, its length, what is said, where it comes from, which split
notes.json          what was left out or changed on the way, in words
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from txtrain.audio.files import Waveform


class Recording(NamedTuple):
    """A clip that is to be kept."""

    waveform: Waveform
    said: str  # its label, or its transcript
    source: str
    held_out: bool


class Clip(NamedTuple):
    """A clip that is kept, without its sound."""

    start: int
    samples: int
    said: str
    source: str
    held_out: bool


def write_clips(folder: Path, recordings: Iterable[Recording]) -> None:
    """Fill a folder."""
    start = 0
    with (folder / "waveforms.bin").open("wb") as sound, (folder / "clips.jsonl").open("w", encoding="utf-8") as rows:
        for waveform, said, source, held_out in recordings:
            waveform.tofile(sound)
            rows.write(json.dumps([start, len(waveform), said, source, held_out], ensure_ascii=False) + "\n")
            start += len(waveform)


def read_clips(folder: Path) -> list[Clip]:
    with (folder / "clips.jsonl").open(encoding="utf-8") as rows:
        return [Clip(*json.loads(row)) for row in rows]


def check_clips(folder: Path) -> None:
    """Refuses a folder in which something cannot be.

    Raises:
        Exception: whatever reading it raises.
    """
    end = 0
    for clip in read_clips(folder):
        if not isinstance(clip.said, str) or not isinstance(clip.source, str) or not isinstance(clip.held_out, bool):
            raise ValueError(f"clips.jsonl has a clip of another form: {clip}")
        if clip.start != end or clip.samples < 0:
            raise ValueError(f"clips.jsonl has a clip at {clip.start}, not {end}")
        end += clip.samples
    if (size := (folder / "waveforms.bin").stat().st_size) != 2 * end:
        raise ValueError(f"waveforms.bin has {size} bytes, not {end} samples of 2")
    notes = read_notes(folder)
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError("notes.json has another form")


def write_notes(folder: Path, notes: dict[str, str]) -> None:
    (folder / "notes.json").write_text(json.dumps(notes, ensure_ascii=False), encoding="utf-8")


def read_notes(folder: Path) -> dict[str, str]:
    notes: dict[str, str] = json.loads((folder / "notes.json").read_text(encoding="utf-8"))
    return notes


@dataclass
class Waveforms:
    """The sound of some clips of a folder."""

    path: Path
    clips: Sequence[Clip]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> NDArray[np.int16]:
        clip = self.clips[index]
        return self._all[clip.start : clip.start + clip.samples]

    @cached_property
    def _all(self) -> NDArray[np.int16]:
        return np.memmap(self.path, dtype=np.int16, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        # A memory map that travels to a worker by pickling would take the whole file along.
        return {name: value for name, value in self.__dict__.items() if name != "_all"}
