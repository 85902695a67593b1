"""Translations of new texts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from txtrain.data.special import DecoderTokens
from txtrain.errors import UserError
from txtrain.generate.translate import Translator
from txtrain.model import EncoderDecoder
from txtrain.predict.predictor import Given, Predictor, text_of

if TYPE_CHECKING:
    from txtrain.trained import Trained


class TextTranslator(Predictor):
    """A line of text, or `source` or `text` of a JSON object → its `translation`.

    Args:
        trained: an encoder-decoder.
        beams: hypotheses of beam search; 1 takes the likeliest token each time.
        length_penalty: of beam search; above 0 favours long texts, below 0 short ones.
    """

    def __init__(self, trained: "Trained", *, beams: int = 4, length_penalty: float = 1.0) -> None:
        super().__init__(trained)
        if beams < 1:
            raise UserError(f"beams is {beams}: give 1 or more, such as beams=4")
        if not isinstance(trained.model, EncoderDecoder) or not trained.begin:
            raise UserError(f"{trained.folder} names no token that its decoder begins with: it is no translator")
        start, *forced = trained.begin
        self.translator = Translator(
            trained.model,
            decode=trained.written.decode,
            tokens=DecoderTokens(start=start, forced=tuple(forced), ends=trained.end_tokens),
            max_len=trained.max_len,
            beams=beams,
            length_penalty=length_penalty,
        )

    def read(self, given: Given) -> list[int]:
        field = "source" if isinstance(given, dict) and "source" in given else "text"
        ids = self.trained.tokenizer.read_batch([self.trained.asked(text_of(given, field))])[0]
        if len(ids) > self.trained.max_len:
            raise UserError(
                f"it has {len(ids)} tokens, and the model was trained on at most {self.trained.max_len}: split it into "
                "sentences"
            )
        return ids

    def predict(self, inputs: Sequence[list[int]]) -> list[dict[str, Any]]:
        return [{"translation": text} for text in self.translator.translate(inputs)]
