"""A trained model that continues prompts, one or a batch of them, sampled or by beam search."""

from collections.abc import Iterator, Sequence, Set
from functools import partial

import torch

from txtrain.errors import UserError
from txtrain.generate.beams import Beams, search
from txtrain.generate.continuation import Continuation
from txtrain.generate.decode import Reader, decode
from txtrain.generate.reader import new_reader
from txtrain.generate.sampling import Sampling
from txtrain.model import Decoder, EncoderDecoder
from txtrain.trained import Trained


class Writer:
    """Continues prompts with one model in one way.

    Args:
        trained: a decoder, or an encoder-decoder, whose encoder then reads the prompt.
        sampling: how tokens are taken.
        max_new_tokens: most tokens that are added.
        context: most tokens of prompt and text together. Default: the longest sequence in training.
        beams: hypotheses of beam search; 1 takes token by token.
        length_penalty: of beam search; above 0 favours long texts, below 0 short ones.
        stop: strings that end a text.
        seed: of the first text's random numbers; the second one has the next, and so on.
    """

    def __init__(
        self,
        trained: Trained,
        *,
        sampling: Sampling,
        max_new_tokens: int = 128,
        context: int | None = None,
        beams: int = 1,
        length_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        if not isinstance(trained.model, Decoder | EncoderDecoder):
            raise UserError(f"{trained.folder} is an encoder, which writes no text: name a model with a decoder")
        if beams > trained.tokenizer.vocab_size:
            raise UserError(f"--beams {beams} is more than the {trained.tokenizer.vocab_size} tokens that there are")
        encoding = trained.axes["encoding"]
        table = (encoding["max_len"] or trained.max_len) if "max_len" in encoding else None
        if context is not None and table is not None and context > table:
            raise UserError(f"--context {context} is more than the {table} positions that the model's table has")
        self.table = table
        self.trained, self.model, self.sampling, self.stop, self.seed = trained, trained.model, sampling, stop, seed
        self.max_new_tokens, self.context = max_new_tokens, context or trained.max_len
        self.beams, self.length_penalty = beams, length_penalty

    def new_text(self, prompt: Sequence[int], end_tokens: Set[int] = frozenset()) -> Continuation:
        """An empty continuation of these ids, which these tokens end beside the model's own."""
        if not prompt:
            raise UserError("the prompt is empty: give some text")
        context = self.trained.begin if isinstance(self.model, EncoderDecoder) else prompt
        if len(prompt) > self.context or len(context) == self.context:
            more = f", or type --context {len(prompt) + self.max_new_tokens}" if self.context != self.table else ""
            raise UserError(
                f"the prompt has {len(prompt)} tokens, which leaves no room in the context of {self.context}: "
                f"shorten it{more}"
            )
        return Continuation(
            prompt,
            context=context,
            decode=self.trained.written.decode,
            limit=min(self.max_new_tokens, self.context - len(context)),
            end_tokens=self.trained.end_tokens | end_tokens,
            stop=self.stop,
        )

    def why_full(self, text: Continuation) -> str | None:
        """What to say of a text that the context has ended; None if something else has."""
        if text.ended != "length" or text.limit == self.max_new_tokens:
            return None
        more = "all positions that the model has" if self.context == self.table else "--context N allows more"
        return f"length: the context of {self.context} is full, {more}"

    def write(self, texts: Sequence[Continuation], first: int = 0) -> Iterator[list[tuple[Continuation, str]]]:
        """Writes the texts to their ends, as a batch; tells what each got as soon as that is certain.

        Args:
            texts: new ones.
            first: number of the first, by which its seed is chosen.
        """
        if self.beams > 1:
            yield self._search(texts)
            return
        generators = [self._generator(first + number) for number in range(len(texts))]
        reader = self._reader(texts)
        yield from decode(reader, texts, sampling=self.sampling, generators=generators)

    def _search(self, texts: Sequence[Continuation]) -> list[tuple[Continuation, str]]:
        beams = [
            Beams(
                width=self.beams,
                limit=text.limit,
                ends=partial(self._ends, text),
                num_ends=len(text.end_tokens),
                length_penalty=self.length_penalty,
            )
            for text in texts
        ]
        reader = self._reader(texts)
        found = search(reader, texts, beams, self.sampling)
        return [(text, "".join(map(text.add, tokens))) for text, tokens in zip(texts, found, strict=True)]

    def _reader(self, texts: Sequence[Continuation]) -> Reader:
        room = max(text.limit for text in texts)
        return new_reader(self.model, room=room, start=self.trained.begin, barred=self.trained.barred)

    def _ends(self, text: Continuation, tokens: tuple[int, ...]) -> bool:
        if tokens[-1] in text.end_tokens:
            return True
        written = self.trained.written.decode(list(tokens)) if self.stop else ""
        return any(string in written for string in self.stop)

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator(self.trained.device).manual_seed(self.seed + number)
