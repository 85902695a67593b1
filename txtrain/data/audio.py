"""Clips of sound with a label or a transcript each: decoded once, spectrograms made as they are read."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from txtrain.audio.augment import Augment
from txtrain.audio.batch import Fill
from txtrain.audio.clips import (
    Clip,
    Recording,
    Waveforms,
    check_clips,
    read_clips,
    read_notes,
    write_clips,
    write_notes,
)
from txtrain.audio.ctc import frames_needed
from txtrain.audio.mel import LogMel
from txtrain.audio.spectrograms import Spectrograms
from txtrain.data import cache
from txtrain.data.audio_samples import AudioSamples
from txtrain.data.base import Data, Origin
from txtrain.data.buckets import Buckets
from txtrain.data.labels import balance, check_known, find_labels, read_labels, write_labels
from txtrain.data.order import Order
from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError
from txtrain.printable import duration, short

FRAMES_PER_VECTOR = 2  # of embedding=convolutions

Split = Literal["train", "validation"]


class AudioData(Data):
    """Clips as log-mel spectrograms; a subclass says where they come from and whether each has a label or a transcript.

    A clip longer than `max_seconds` is cropped if it has a label, anywhere in training and in the middle for
    validation; one with a transcript is left out, since nobody knows which words a part holds.

    Args:
        features: makes spectrograms.
        augment: changes training clips.
        max_seconds: of the longest clip that a model reads.
        fill: shorter clips are filled up to the longest of their batch and what fills them is hidden from the model
            (`mask`), or to `max_seconds` with what it hears: silence (`silence`, as Whisper was trained) or frames of
            log-energy 0 (`zeros`, as AST was).
        batch_seconds: of a step at most, over all devices, padding included; its clips, at most `batch_size`, are about
            equally long. Default: steps of `batch_size` clips of any length.
        base: those of all data.
    """

    transcribed: bool  # whether clips have a transcript rather than a label
    alike = ("features", "max_seconds", "fill", "batch_seconds")

    def __init__(
        self,
        *,
        features: LogMel,
        augment: Augment,
        max_seconds: float = 10.0,
        fill: Fill = "mask",
        batch_seconds: float | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        for name, seconds in {"max_seconds": max_seconds, "batch_seconds": batch_seconds}.items():
            if seconds is not None and seconds < 0.1:
                raise UserError(f"data.{name}={seconds} is too short: set data.{name}=0.1 or more")
        self.batch_seconds = batch_seconds
        self.features, self.augment, self.fill = features, augment, fill
        self.max_samples = round(max_seconds * features.sample_rate)
        self.max_seconds = max_seconds
        self.labels: Sequence[str] = []
        self._known: Sequence[str] | None = None  # labels of a trained model
        self._for_evaluation = False
        self.clips: dict[Split, list[Clip]] = {}
        self._unfit: Counter[str] = Counter()  # clips that are left out, by the reason

    @property
    def content(self) -> str:  # type: ignore[override]
        return "transcribed sound" if self.transcribed else "labelled sound"

    # What a subclass says

    @abstractmethod
    def identity(self) -> Any:
        """What tells these clips from any other, cheaply and as plain JSON."""

    @abstractmethod
    def recordings(self, notes: dict[str, str]) -> Iterator[Recording]:
        """All clips, at the sample rate of `features`; `notes` takes what the user is to be told, by name."""

    # Making and finding them

    def fingerprint(self) -> str:
        text = self.tokenizer.fingerprint() if self.transcribed else None
        return cache.fingerprint(clips=self._clips_fingerprint(), text=text, max_samples=self.max_samples)

    def _clips_fingerprint(self) -> str:
        return cache.fingerprint(sound=self.identity(), sample_rate=self.features.sample_rate)

    def adopt(self, labels: Sequence[str]) -> None:
        self._known = list(labels) or None

    def hold_out_all(self) -> None:
        self._for_evaluation = True

    def prepare(self) -> None:
        self.open(cache.entry(self.cache_dir, self._clips_fingerprint(), self._write, check_clips))
        if self.transcribed:
            self._prepare_transcripts()
        else:
            self._prepare_labels()
        for clips, aim in ((self.clips["train"], "train on"), (self.clips["validation"], "validate on")):
            if not clips and not self._for_evaluation:
                reason = f" ({', '.join(self._unfit)})" if self._unfit else ""
                raise UserError(f"{self._named()} leaves no clip to {aim}{reason}: give more, or others")

    def open(self, folder: Path) -> None:
        self.folder = folder
        self.clips = {"train": [], "validation": []}
        for clip in read_clips(folder):
            self.clips["validation" if clip.held_out or self._for_evaluation else "train"].append(clip)

    def _write(self, folder: Path) -> None:
        notes: dict[str, str] = {}
        write_clips(folder, self.recordings(notes))
        write_notes(folder, notes)

    def _prepare_labels(self) -> None:
        train, validation = self.clips["train"], self.clips["validation"]
        self.labels = self._known or find_labels([clip.said for clip in train], self._named())
        check_known([(clip.said, clip.source) for clip in (*train, *validation)], self.labels)

    def _prepare_transcripts(self) -> None:
        name = cache.fingerprint(clips=self._clips_fingerprint(), tokenizer=self.tokenizer.fingerprint())
        texts = [clip.said for clip in self.clips["train"]]

        def write(folder: Path) -> None:
            self.tokenizer.fit(texts)
            self.tokenizer.save(folder / "tokenizer.json")

        self.tokenizer.load(cache.entry(self.cache_dir, name, write, self._check_tokenizer) / "tokenizer.json")
        self._unfit.clear()
        self.clips = {split: self._whole(clips) for split, clips in self.clips.items()}

    def _check_tokenizer(self, folder: Path) -> None:
        self.tokenizer.load(folder / "tokenizer.json")

    def _whole(self, clips: list[Clip]) -> list[Clip]:
        """Those that can be recognised as a whole."""
        whole = []
        encoded = self.tokenizer.encode_batch([clip.said for clip in clips])
        for clip, ids in zip(clips, encoded, strict=True):
            frames = self.features.num_frames(self.augment.shortest(clip.samples))
            if clip.samples > self.max_samples:
                self._unfit[f"longer than data.max_seconds={self.max_seconds:g}"] += 1
            elif frames < FRAMES_PER_VECTOR * frames_needed(ids):
                self._unfit["with more text than anybody says in their time"] += 1
            else:
                whole.append(clip)
        return whole

    def samples(self, split: Split) -> "AudioSamples":
        clips = self.clips[split]
        if self.transcribed:
            targets = [np.array(ids, dtype=np.int64) for ids in self.tokenizer.encode_batch([c.said for c in clips])]
        else:
            number = {name: i for i, name in enumerate(self.labels)}
            targets = [np.array(number[clip.said], dtype=np.int64) for clip in clips]
        return AudioSamples(
            waveforms=Waveforms(self.folder / "waveforms.bin", clips),
            targets=targets,
            features=self.features,
            augment=self.augment if split == "train" else None,
            seed=self.seed,
            max_samples=self.max_samples,
            fill=self.fill,
        )

    # Batches

    def order(self, samples: Sized, *, seed: int) -> Order:
        if self.batch_seconds is None:
            return super().order(samples, seed=seed)
        if not isinstance(samples, AudioSamples):
            raise UserError("which clips a step saw follows from their lengths, and the clips are gone: put them back")
        most = self.features.num_frames(round(self.batch_seconds * self.features.sample_rate))
        return Buckets(samples.widths(), batch_tokens=most, batch_size=self.batch_size, seed=seed)

    def micro(self, devices: int) -> int | None:
        return super().micro(devices) if self.batch_seconds is None else None

    def batch_told(self, devices: int) -> str:
        if self.batch_seconds is None:
            return super().batch_told(devices)
        clips = f"at most {self.batch_size} clips and {self.batch_seconds:g} s a step, of about one length"
        return f"{clips}: micro-batches of at most {self._micro(devices)}"

    def said(self, split: Split, index: Sequence[int]) -> list[str]:
        """The labels or transcripts of some clips, as they were given."""
        return [self.clips[split][i].said for i in index]

    # What is told of them

    def sizes(self) -> dict[str, int]:
        sizes = {"num_mels": self.features.num_mels, "max_frames": self.features.num_frames(self.max_samples)}
        if self.transcribed:
            return sizes | {"vocab_size": self.tokenizer.vocab_size if self.clips else 1}
        return sizes | {"num_labels": len(self.labels) or 1}

    def description(self) -> str:
        parts = []
        for aim, clips in (("to train on", self.clips["train"]), ("to validate", self.clips["validation"])):
            seconds = sum(clip.samples for clip in clips) / self.features.sample_rate
            parts.append(f"{short(len(clips))} clips ({duration(seconds)}) {aim}")
        what = f"vocabulary of {self.tokenizer.vocab_size}" if self.transcribed else f"{len(self.labels)} classes"
        return f"{', '.join(parts)}; {what}"

    @property
    def padded(self) -> bool:
        return True

    @property
    def tokenized(self) -> bool:
        return self.transcribed

    def unit(self) -> str:
        return f"clips of up to {self.max_seconds:g} s"

    def left_out(self) -> dict[str, str]:
        told = dict(read_notes(self.folder))
        if self._unfit:
            told["left out"] = ", ".join(f"{count} clips {reason}" for reason, count in self._unfit.items())
        return told

    def details(self) -> dict[str, str]:
        if self.transcribed:
            return self.left_out()
        told = self.left_out()
        for name, clips in (("classes", self.clips["train"]), ("validation", self.clips["validation"])):
            told[name] = balance(self._counts(clips), self.labels)
        return told

    def label_counts(self) -> list[int]:
        return super().label_counts() if self.transcribed else self._counts(self.clips["train"])

    def label_numbers(self) -> NDArray[np.int64]:
        if self.transcribed:
            return super().label_numbers()
        if self.batch_seconds is not None:
            raise UserError(
                f"data.batch_seconds={self.batch_seconds:g} puts clips of one length into a step, and "
                "data.sampling=balanced those of all labels: leave out one of them, such as data.batch_seconds=null"
            )
        numbers = {label: number for number, label in enumerate(self.labels)}
        return np.array([numbers[clip.said] for clip in self.clips["train"]], dtype=np.int64)

    def _counts(self, clips: Sequence[Clip]) -> list[int]:
        counts = Counter(clip.said for clip in clips)
        return [counts[label] for label in self.labels]

    def save(self, run_dir: Path) -> None:
        if self.transcribed:
            self.tokenizer.save(run_dir / "tokenizer.json")
        else:
            write_labels(run_dir, self.labels)

    @classmethod
    def reader(cls, run_dir: Path, tokenizer: Tokenizer) -> Any:
        """The tokenizer of transcripts, where there are any, else how labelled sound becomes the model's input."""
        transcribed = (run_dir / "tokenizer.json").is_file()
        return super().reader(run_dir, tokenizer) if transcribed else Spectrograms.of_run(run_dir)

    def check_saved(self, run_dir: Path) -> None:
        if self.transcribed:
            same = self.tokenizer.is_in(run_dir / "tokenizer.json")
        else:
            same = read_labels(run_dir) == self.labels
        if not same:
            raise UserError(
                f"resume={run_dir}: the data have changed since the run began and have other "
                f"{'characters' if self.transcribed else 'labels'}: put them back, or start a new run"
            )

    def origin(self, index: int) -> Origin:
        clip = self.clips["train"][index]
        return Origin(places=[clip.source], text=clip.said)

    def _named(self) -> str:
        """The source in the words of the command line."""
        return "the data"
