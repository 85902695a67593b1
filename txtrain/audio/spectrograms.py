"""How sound becomes the spectrograms that a trained model reads, as a run and `preprocessor_config.json` say it."""

import json
import logging
from collections.abc import Container, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from txtrain.audio.batch import Fill
from txtrain.audio.mel import AUDIOSET_MEAN, AUDIOSET_STD, LogMel, log_mel
from txtrain.config import saved_config, to_plain
from txtrain.data.pixels import FILE
from txtrain.errors import UserError
from txtrain.records import read_object

EXTRACTOR = "ASTFeatureExtractor"
DEFAULTS: dict[str, Any] = {"num_mel_bins": 128, "max_length": 1024, "mean": AUDIOSET_MEAN, "std": AUDIOSET_STD}
"""What keys that are missing in its file mean."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Spectrograms:
    """Clips of sound as spectrograms (T, M) of at most so many frames.

    Args:
        style, sample_rate, num_mels, mean, std: as in `log_mel`.
        max_seconds: of the longest clip.
        fill: what is behind the end of a shorter one, as in `AudioData`.
    """

    style: Literal["whisper", "ast"] = "ast"
    sample_rate: int = 16000
    num_mels: int = 128
    mean: float | None = None
    std: float | None = None
    max_seconds: float = 10.255
    fill: Fill = "zeros"

    @property
    def features(self) -> LogMel:
        return log_mel(**self._features())

    @property
    def max_samples(self) -> int:
        """Of the longest clip."""
        return round(self.max_seconds * self.sample_rate)

    @property
    def max_frames(self) -> int:
        """Of the longest clip."""
        return self.features.num_frames(self.max_samples)

    @property
    def normal(self) -> tuple[float, float]:
        """Mean and standard deviation of style `ast`."""
        return (AUDIOSET_MEAN if self.mean is None else self.mean, AUDIOSET_STD if self.std is None else self.std)

    @classmethod
    def of_run(cls, run: Path) -> "Spectrograms":
        """What a run trained on, the first set of a mixture."""
        data = _data_of(run)
        features = {key: value for key, value in data["features"].items() if key != "_target_"}
        return cls(max_seconds=data["max_seconds"], fill=data["fill"], **features)

    @classmethod
    def of_folder(cls, folder: Path, *, num_mels: int, max_frames: int) -> "Spectrograms":
        """What a Hugging Face folder says; without its file, AST's numbers, with a warning.

        Args:
            folder: it may have a `preprocessor_config.json`.
            num_mels, max_frames: of the model's input, which the file must have too.

        Raises:
            UserError: the file is damaged, or says what cannot be expressed.
        """
        path, said = folder / FILE, dict[str, Any]()
        if path.is_file():
            said = read_object(path, do="restore it")
            kind = said.get("feature_extractor_type", EXTRACTOR)
            if kind != EXTRACTOR:
                raise UserError(f"{path} is of a {kind}, and txtrain reads an {EXTRACTOR}: put the model's own there")
        else:
            log.warning("%s has no %s: spectrograms are normalised as AudioSet's.", folder, FILE)
        for key, wanted in (("num_mel_bins", num_mels), ("max_length", max_frames)):
            if path.is_file() and (got := said.get(key, DEFAULTS[key])) != wanted:
                raise UserError(f"{path} has {key}={got}, and its config.json {wanted}: restore the right one")
        try:
            normal = said.get("do_normalize", True)
            found = cls(
                sample_rate=int(said.get("sampling_rate", 16000)),
                num_mels=num_mels,
                mean=float(said.get("mean", DEFAULTS["mean"])) if normal else 0.0,
                std=float(said.get("std", DEFAULTS["std"])) if normal else 0.5,
            )
            features = found.features
        except (ValueError, TypeError, ArithmeticError) as error:
            raise UserError(f"{path} cannot be expressed: {error}") from error
        seconds = (features.window_len + (max_frames - 1) * features.hop) / features.sample_rate
        return cls(**{**found.__dict__, "max_seconds": seconds})

    def save(self, folder: Path) -> None:
        """Writes a `preprocessor_config.json` that `transformers` reads as we do.

        Raises:
            UserError: it knows no such spectrograms.
        """
        if self.fill != "zeros":
            log.warning(
                "transformers fills shorter clips up with zeros, and this model was trained with data.fill=%s.",
                self.fill,
            )
        mean, std = self.normal
        said = {
            "feature_extractor_type": EXTRACTOR,
            "feature_size": 1,
            "sampling_rate": self.sample_rate,
            **self.sizes(),
            "do_normalize": True,
            "mean": mean,
            "std": std,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
        }
        (folder / FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")

    def sizes(self) -> dict[str, int]:
        """The same in the words of AST's config.json, as far as that says it.

        Raises:
            UserError: AST has no such spectrograms.
        """
        if self.style != "ast":
            raise UserError(
                f"the model reads spectrograms of data.features.style={self.style}, and a folder for transformers has "
                "those of style=ast: train with data.features.style=ast"
            )
        return {"num_mel_bins": self.num_mels, "max_length": self.max_frames}

    def _features(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("style", "sample_rate", "num_mels", "mean", "std")}

    def hear(self, node: MutableMapping[str, Any], typed: Container[str], *, fixed: bool = True) -> None:
        """Has data make spectrograms as a trained model read them, but for what the user typed.

        Args:
            node: the config of the data; those of no sound stay as they are.
            typed: keys, such as `data.features.mean`.
            fixed: whether the model is made for clips of this length.

        Raises:
            UserError: what was typed is of another size than the model.
        """
        for part in (node, *node.get("sets", {}).values()):
            if "features" not in part:
                continue
            if fixed:
                self._check(part, typed)
                part["max_seconds"] = self.max_seconds
                if "data.fill" not in typed:
                    part["fill"] = self.fill
            features = part["features"]
            other = "data.features.style" in typed and features["style"] != self.style
            for key, value in self._features().items():
                if f"data.features.{key}" not in typed and not (other and key in ("mean", "std")):
                    features[key] = value

    def _check(self, part: MutableMapping[str, Any], typed: Container[str]) -> None:
        for key, got, own in (
            ("features.num_mels", part["features"]["num_mels"], self.num_mels),
            ("max_seconds", part["max_seconds"], self.max_seconds),
        ):
            if f"data.{key}" in typed and got != own:
                raise UserError(
                    f"data.{key}={got} is another size than the trained model has, which reads up to "
                    f"{self.max_seconds:g} s of {self.num_mels} mel filters: leave it out (shorter clips are filled up)"
                )


def is_of_sound(run: Path) -> bool:
    """Whether a run trained on sound."""
    return "features" in _data_of(run)


def _data_of(run: Path) -> dict[str, Any]:
    """The config of what it trained on, of a mixture the first set's."""
    data = to_plain(saved_config(run))["data"]
    return next(iter(data["sets"].values())) if data.get("sets") else data
