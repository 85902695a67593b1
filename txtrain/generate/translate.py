"""Translations of a batch of texts by an encoder-decoder, be it trained or in training."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from txtrain.data.special import DecoderTokens
from txtrain.generate.beams import Beams, search
from txtrain.generate.continuation import Continuation
from txtrain.generate.decode import Reader, decode
from txtrain.generate.reader import EncoderDecoderReader
from txtrain.generate.sampling import Sampling
from txtrain.model import EncoderDecoder

LONGER = 50  # tokens that a translation may have more than its source, as in https://arxiv.org/abs/1706.03762


class Translator:
    """Translates greedily or by beam search; each token is read once.

    Args:
        model: in evaluation mode.
        decode: ids of targets to text.
        tokens: what the decoder begins with, and what ends its text.
        max_len: most tokens that the decoder reads.
        beams: hypotheses of beam search; 1 takes the likeliest token each time.
        length_penalty: of beam search; above 0 favours long texts, below 0 short ones.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        *,
        decode: Callable[[list[int]], str],
        tokens: DecoderTokens,
        max_len: int,
        beams: int = 1,
        length_penalty: float = 1.0,
    ) -> None:
        self.model, self.decode, self.tokens, self.max_len = model, decode, tokens, max_len
        self.beams, self.length_penalty = beams, length_penalty

    def new_text(self, source: Sequence[int]) -> Continuation:
        """An empty translation of these ids."""
        return Continuation(
            source,
            context=self.tokens.begin,
            decode=lambda ids: "",  # all at once, at the end
            limit=max(1, min(self.max_len - len(self.tokens.begin), len(source) + LONGER)),
            end_tokens=self.tokens.ends,
        )

    def translate(
        self, sources: Sequence[Sequence[int]], among: "Callable[[Reader], Reader] | None" = None
    ) -> list[str]:
        """The translation of each of the sources (ids), which go through the model together.

        Args:
            sources: none of them empty.
            among: puts something around the reader of the model.
        """
        texts = [self.new_text(source) for source in sources]
        room = max(text.limit for text in texts)
        reader: Reader = EncoderDecoderReader(self.model, room=room, start=self.tokens.begin)
        reader = among(reader) if among else reader
        if self.beams == 1:
            for _ in decode(reader, texts, sampling=Sampling()):
                pass
            return [self.decode(text.tokens) for text in texts]
        beams = [self._new_beams(text) for text in texts]
        found = search(reader, texts, beams, Sampling())
        ended = [tokens[:-1] if tokens[-1] in self.tokens.ends else tokens for tokens in found]
        return [self.decode(list(tokens)) for tokens in ended]

    def _new_beams(self, text: Continuation) -> Beams:
        return Beams(
            width=self.beams,
            limit=text.limit,
            ends=lambda tokens: tokens[-1] in text.end_tokens,
            num_ends=len(text.end_tokens),
            length_penalty=self.length_penalty,
        )


class InStep:
    """A reader of a model that is shared by processes, which all make the same calls of it.

    A model may be sharded, and then no process can go on without the others; so one whose texts have ended reads on
    until all have. A model that has diverged writes anything.

    Args:
        reader: of the model.
        anyone: whether any process says True; every process has to ask.
    """

    def __init__(self, reader: Reader, anyone: Callable[[bool], bool]) -> None:
        self.reader, self.anyone = reader, anyone

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        logits = self.reader.start(prompts)
        self._idle = torch.zeros(len(prompts), dtype=torch.int64, device=logits.device)
        return logits.nan_to_num()

    def read(self, tokens: Tensor) -> Tensor:
        self.anyone(True)
        return self.reader.read(tokens).nan_to_num()

    def select(self, rows: Tensor) -> None:
        self._idle = self._idle[:1].expand(len(rows))
        self.reader.select(rows)

    @torch.inference_mode()
    def finish(self) -> None:
        """To be called when the texts of this process have ended."""
        while self.anyone(False):
            self.reader.read(self._idle)
