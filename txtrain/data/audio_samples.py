"""Spectrograms of clips as they are read, with what training changes in them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from txtrain.audio.augment import Augment
from txtrain.audio.batch import Fill, crop, fill_up, lengthen, padded_width, stack
from txtrain.audio.clips import Waveforms
from txtrain.audio.files import to_floats
from txtrain.audio.mel import LogMel
from txtrain.data.order import sample_generator
from txtrain.data.packing import IGNORED, PADDING


class AudioSamples:
    """Spectrograms and targets of one split.

    Args:
        waveforms: of its clips.
        targets: of each clip, a label () or tokens (L,).
        features: makes spectrograms.
        augment: changes clips; None for validation.
        seed: of what is random.
        max_samples: of the longest clip.
        fill: as in `AudioData`.
    """

    def __init__(
        self,
        *,
        waveforms: Waveforms,
        targets: Sequence[NDArray[np.int64]],
        features: LogMel,
        augment: Augment | None,
        seed: int,
        max_samples: int,
        fill: Fill,
    ) -> None:
        self.waveforms, self.targets, self.features, self.augment = waveforms, targets, features, augment
        self.seed, self.max_samples, self.fill = seed, max_samples, fill
        self.max_frames = features.num_frames(max_samples)
        self.filled = {"frames": 0.0, "targets": IGNORED}

    def __len__(self) -> int:
        return len(self.targets)

    def widths(self) -> NDArray[np.int64]:
        """How many frames each clip takes at most, with what fills it up to the next of few widths."""
        longest = [clip.samples for clip in self.waveforms.clips]
        if self.augment is not None:
            longest = [self.augment.longest(samples) for samples in longest]
        if self.fill != "mask":
            longest = [self.max_samples] * len(longest)
        frames = [self.features.num_frames(min(samples, self.max_samples)) for samples in longest]
        return np.array([padded_width(count, self.max_frames) for count in frames], dtype=np.int64)

    def batch(self, index: NDArray[np.int64], epoch: int = 0) -> dict[str, Tensor]:
        """frames (B, F, M), lengths (B,) in frames, targets (B,) of labels or (B, L) of tokens, index (B,).

        A row for `PADDING` has one silent frame and no target.
        """
        rows = [row for row, i in enumerate(index.tolist()) if i != PADDING]
        randoms = [sample_generator(self.seed, epoch, int(index[row])) for row in rows]
        spectrograms = self.features(
            [self._waveform(int(index[r]), random) for r, random in zip(rows, randoms, strict=True)]
        )
        if self.augment is not None:
            spectrograms = list(map(self.augment.spectrogram, spectrograms, randoms))
        if self.fill == "zeros":
            spectrograms = [lengthen(clip, self.max_frames, self.features.zero) for clip in spectrograms]
        clips = dict(zip(rows, spectrograms, strict=True))
        batch = stack(
            [clips.get(row) for row in range(len(index))], num_mels=self.features.num_mels, max_frames=self.max_frames
        )
        number = torch.from_numpy(index)
        read = batch["lengths"] * (number != PADDING)
        return batch | {"targets": self._targets(index), "index": number, "num_tokens": read}

    def _waveform(self, index: int, random: np.random.Generator) -> Tensor:
        waveform, place = to_floats(self.waveforms[index]), 0.5
        if self.augment is not None:
            waveform, place = self.augment.waveform(waveform, random, self.max_samples), random.uniform()
        waveform = crop(waveform, self.max_samples, place)
        return fill_up(waveform, self.max_samples) if self.fill == "silence" else waveform

    def _targets(self, index: NDArray[np.int64]) -> Tensor:
        words = self.targets[0].ndim == 1
        none = np.full(1 if words else (), IGNORED, dtype=np.int64)
        rows = [torch.from_numpy(none if i == PADDING else self.targets[i]) for i in index]
        return pad_sequence(rows, batch_first=True, padding_value=IGNORED) if words else torch.stack(rows)
