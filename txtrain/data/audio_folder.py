"""The user's own sound: a folder for each class, or a table of files and what is said in them."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from txtrain.audio.clips import Recording
from txtrain.audio.files import EXTENSIONS, UnreadableError, Waveform, find_audio, is_audio, read_audio
from txtrain.data.audio import AudioData
from txtrain.data.files import state
from txtrain.data.labels import split_by_group
from txtrain.data.tables import KINDS, label_field, read_table, text_field
from txtrain.errors import UserError

AT_ONCE = 64  # files that are read ahead


class Entry(NamedTuple):
    """A file, and what is said in it."""

    file: Path
    said: str
    group: str  # entries of one group are on one side of the split


class AudioFolder(AudioData):
    """Files of wav, flac, ogg or mp3, of any sample rate and number of channels.

    A folder has a folder for each class. A table (.jsonl, .tsv, .csv) has a row for each file, named relative to the
    table, and with a column `text` it is for recognition, else with a column `label` for classification. A column
    `speaker`, if there is one, keeps all clips of a speaker on one side of the split.

    Args:
        path: the folder or table.
        validation_path: one to validate on. Default: a part of `path`.
        validation_fraction: of the files of each class, or of the speakers, to hold out.
        text: the table's column of transcripts.
        label: its column of labels.
        on_bad: whether a file that cannot be read is left out and counted, or ends it all.
        base: those of all audio data.
    """

    def __init__(
        self,
        *,
        path: str,
        validation_path: str | None = None,
        validation_fraction: float = 0.1,
        text: str | None = "text",
        label: str = "label",
        on_bad: Literal["skip", "stop"] = "skip",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if not 0 < validation_fraction < 1:
            raise UserError(
                f"data.validation_fraction={validation_fraction} is not between 0 and 1: "
                "set data.validation_fraction=0.1"
            )
        self.path, self.validation_fraction, self.on_bad = Path(path).expanduser(), validation_fraction, on_bad
        self.validation_path = Path(validation_path).expanduser() if validation_path else None
        self.text, self.label = text, label
        self.transcribed = self._has_transcripts(self.path, "data.path")
        if self.validation_path:
            other = self._has_transcripts(self.validation_path, "data.validation_path")
            if other != self.transcribed:
                raise UserError(
                    f"data.validation_path={validation_path} has {'transcripts' if other else 'labels'} and "
                    f"data.path={path} has {'labels' if other else 'transcripts'}: give two of one kind"
                )

    @cached_property
    def entries(self) -> list[tuple[Entry, bool]]:
        """All files, and whether they are held out."""
        found = self._entries(self.path)
        if self.validation_path:
            return [(entry, False) for entry in found] + [
                (entry, True) for entry in self._entries(self.validation_path)
            ]
        labels = ["" if self.transcribed else entry.said for entry in found]
        split = split_by_group([entry.group for entry in found], labels, self.validation_fraction)
        return [(entry, bool(held_out)) for entry, held_out in zip(found, split, strict=True)]

    def identity(self) -> Any:
        files = state([entry.file for entry, _ in self.entries])
        said = [(entry.said, held_out) for entry, held_out in self.entries]
        return {"files": files, "said": said, "on_bad": self.on_bad}

    def recordings(self, notes: dict[str, str]) -> Iterator[Recording]:
        bad: list[tuple[Entry, str]] = []
        rates: Counter[int] = Counter()
        found = set()  # classes
        for entry, held_out, heard in self._read():
            if isinstance(heard, UnreadableError):
                if self.on_bad == "stop":
                    raise UserError(
                        f"{entry.file} cannot be read ({heard}): repair or remove it, or set data.on_bad=skip"
                    )
                bad.append((entry, f"{entry.file} ({heard})"))
                continue
            waveform, rate = heard
            rates[rate] += 1
            found.add(entry.said)
            yield Recording(waveform, entry.said, str(entry.file), held_out)
        if not rates:
            raise UserError(f"none of the {len(bad)} files of {self._named()} can be read: the first is {bad[0][1]}")
        silent = next(((entry.said, file) for entry, file in bad if entry.said not in found), None)
        if silent and not self.transcribed:
            raise UserError(f"no file of the class {silent[0]} can be read: the first is {silent[1]}")
        if bad:
            first = ", ".join(file for _, file in bad[:3])
            notes["unreadable"] = f"{len(bad)} files are left out: {first}{', ...' if len(bad) > 3 else ''}"
        wanted = self.features.sample_rate
        if others := [f"{count} from {rate} Hz" for rate, count in sorted(rates.items()) if rate != wanted]:
            notes["resampled"] = f"to {wanted} Hz: {', '.join(others)}"

    def _read(self) -> Iterator[tuple[Entry, bool, tuple[Waveform, int] | UnreadableError]]:
        """Every file in order, whether it is held out, and what is in it; some are read ahead, at once."""
        entries = iter(self.entries)
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            while part := list(islice(entries, AT_ONCE)):
                heard = pool.map(self._hear, [entry.file for entry, _ in part])
                for (entry, held_out), waveform in zip(part, heard, strict=True):
                    yield entry, held_out, waveform

    def _hear(self, file: Path) -> tuple[Waveform, int] | UnreadableError:
        try:
            return read_audio(file, self.features.sample_rate)
        except UnreadableError as error:
            return error

    def _has_transcripts(self, path: Path, key: str) -> bool:
        if path.is_dir():
            return False
        if not path.exists():
            raise UserError(f"{key}={path} does not exist: give a folder of classes or a table (from {Path.cwd()})")
        if path.suffix.lower() not in KINDS:
            raise UserError(f"{key}={path} is no table: give one of {', '.join(KINDS)}, or a folder of classes")
        _, row = next(read_table(path), (path, None))
        if row is None:
            raise UserError(f"{key}={path} has no row: give one for each file")
        if self.text not in row and self.label not in row:
            raise UserError(
                f"{key}={path} has no {self.text} and no {self.label}: set data.text, or data.label, to one of "
                f"{', '.join(map(str, row))}"
            )
        return self.text in row

    def _entries(self, path: Path) -> list[Entry]:
        return _of_folder(path) if path.is_dir() else list(self._of_table(path))

    def _of_table(self, path: Path) -> Iterator[Entry]:
        for place, row in read_table(path):
            name = text_field(row, "file", "the column of files", place) if "file" in row else None
            if name is None:
                raise UserError(f"{place} has no file, but {', '.join(map(str, row))}: call the column of files file")
            if self.transcribed:
                said = " ".join(text_field(row, str(self.text), "data.text", place).split())
                if not said:
                    raise UserError(f"{place}: {name} has no {self.text}: give one, or remove the row")
            else:
                said = label_field(row, self.label, "data.label", place)
            file = path.parent / Path(name).expanduser()
            if not file.is_file():
                got = "is a folder" if file.is_dir() else "does not exist"
                raise UserError(f"{place}: {file} {got}: name files relative to {path.parent}")
            yield Entry(file, said, str(row.get("speaker") or name))

    def _named(self) -> str:
        return f"data.path={self.path}"


def _of_folder(path: Path) -> list[Entry]:
    """The files in a folder of folders, one for each class."""
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    loose = next((file for file in inside if file.is_file() and is_audio(file)), None)
    if loose is not None:
        raise UserError(f"{loose} has no label: put it into a folder of {path} that is named after its class")
    entries = []
    for folder in [entry for entry in inside if entry.is_dir()]:
        files = list(find_audio(folder))
        if not files:
            raise UserError(f"the class {folder} is empty: put {', '.join(EXTENSIONS)} files into it, or remove it")
        entries += [Entry(file, folder.name, str(file.relative_to(path))) for file in files]
    if not entries:
        raise UserError(f"{path} has no folders: make one for each class, with its files in it")
    return entries
