"""Labels and transcripts of files of sound."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from txtrain.audio.batch import crop, fill_up, lengthen, stack
from txtrain.audio.ctc import beam_search, greedy
from txtrain.audio.files import EXTENSIONS, UnreadableError, read_audio, to_floats
from txtrain.audio.spectrograms import Spectrograms
from txtrain.errors import UserError
from txtrain.predict.labels import label_records
from txtrain.predict.predictor import Given, Predictor, path_beside

if TYPE_CHECKING:
    from txtrain.trained import Trained


class Listener(Predictor):
    """Reads files of sound as in training. A line of standard input names one, as does the field `file` of an object.

    Args:
        trained: a model of spectrograms.
    """

    suffixes: ClassVar[frozenset[str]] = frozenset(EXTENSIONS)

    def __init__(self, trained: "Trained") -> None:
        super().__init__(trained)
        inputs = trained.inputs
        heard = inputs if isinstance(inputs, Spectrograms) else Spectrograms.of_run(trained.folder)
        self.features, self.max_samples, self.fill = heard.features, heard.max_samples, heard.fill

    def beside(self, given: Given, folder: Path) -> Given:
        return path_beside(given, folder, "file")

    def read(self, given: Given) -> Tensor:
        file = given.get("file") if isinstance(given, Mapping) else given
        if not isinstance(file, str | Path) or not str(file):
            raise UserError("it names no file of sound: give it as file")
        path = Path(file).expanduser()
        try:
            waveform, _ = read_audio(path, self.features.sample_rate)
        except UnreadableError as error:
            raise UserError(f"{path} cannot be read ({error})") from None
        return self._fitted(to_floats(waveform), path)

    @abstractmethod
    def _fitted(self, waveform: Tensor, path: Path) -> Tensor:
        """A waveform no longer than the model reads."""

    def _scores(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What the model says of waveforms, and how many frames each has."""
        if self.fill == "silence":
            inputs = [fill_up(waveform, self.max_samples) for waveform in inputs]
        most = self.features.num_frames(self.max_samples)
        clips = self.features(inputs)
        if self.fill == "zeros":
            clips = [lengthen(clip, most, self.features.zero) for clip in clips]
        batch = stack(clips, num_mels=self.features.num_mels, max_frames=most)
        weight = next(self.trained.model.parameters())
        frames, lengths = batch["frames"].to(weight.device, weight.dtype), batch["lengths"].to(weight.device)
        return self.trained.model(frames, lengths).float(), lengths


class SoundLabeller(Listener):
    """The label of each clip, and the probabilities of all labels. Longer clips are cropped in the middle.

    Args:
        trained: a classifier of sound.
        top: how many labels to tell, the likeliest first. Default: all.
    """

    def __init__(self, trained: "Trained", *, top: int | None = None) -> None:
        super().__init__(trained)
        if top is not None and top < 1:
            raise UserError(f"top={top} tells nothing: type top=1 or more")
        self.top = top

    def _fitted(self, waveform: Tensor, path: Path) -> Tensor:
        return crop(waveform, self.max_samples)

    def predict(self, inputs: Sequence[Tensor]) -> list[dict[str, Any]]:
        logits, _ = self._scores(inputs)
        return label_records(logits, self.trained, self.top)


class Transcriber(Listener):
    """What is said in each clip.

    Args:
        trained: a recogniser of speech.
        beams: prefixes that beam search keeps; 1 is greedy.
    """

    def __init__(self, trained: "Trained", *, beams: int = 1) -> None:
        super().__init__(trained)
        if beams < 1:
            raise UserError(f"beams={beams} finds nothing: type beams=1 or more")
        self.beams = beams

    def _fitted(self, waveform: Tensor, path: Path) -> Tensor:
        if len(waveform) > self.max_samples:
            seconds = self.max_samples / self.features.sample_rate
            raise UserError(f"{path} is longer than the {seconds:g} s that the model reads: cut it at a pause")
        return waveform

    def predict(self, inputs: Sequence[Tensor]) -> list[dict[str, Any]]:
        logits, lengths = self._scores(inputs)
        model: Any = self.trained.model
        tokenizer, times = self.trained.tokenizer, model.times(lengths)
        if self.beams == 1:
            ids = greedy(logits, times, tokenizer.end_of_text)
        else:
            ids = beam_search(logits, times, tokenizer.end_of_text, beams=self.beams)
        return [{"transcript": tokenizer.decode(heard)} for heard in ids]
