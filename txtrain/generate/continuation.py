"""What comes after one prompt: its tokens, their text, and why it ended."""

from collections.abc import Callable, Sequence, Set
from typing import Literal

from txtrain.generate.detokenize import Detokenizer
from txtrain.generate.stop import StopStrings

End = Literal["end", "stop", "length"]


class Continuation:
    """Takes tokens until one of them ends the text.

    Args:
        prompt: ids of what the model reads first.
        decode: ids to text.
        context: ids that stand before in the same sequence: the prompt, or where an encoder reads that, what a decoder
            begins with.
        limit: most tokens.
        end_tokens: any of these ends the text, and is no part of it.
        stop: any of these strings ends the text, and is no part of it.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        decode: Callable[[list[int]], str],
        context: Sequence[int] | None = None,
        limit: int,
        end_tokens: Set[int] = frozenset(),
        stop: Sequence[str] = (),
    ) -> None:
        self.prompt, self.limit, self.end_tokens = list(prompt), limit, end_tokens
        self.context = self.prompt if context is None else list(context)
        self.tokens: list[int] = []
        self.text = ""
        self.ended: End | None = None
        self._detokenizer = Detokenizer(decode, self.context)
        self._stop = StopStrings(stop)

    def add(self, token: int) -> str:
        """The text that is certain now: none of it will be taken back."""
        assert self.ended is None, f"it ended: {self.ended}"
        told = ""
        if token in self.end_tokens:
            self.ended = "end"
        else:
            self.tokens.append(token)
            told = self._stop.add(self._detokenizer.add(token))
            self.ended = "stop" if self._stop.met else "length" if len(self.tokens) == self.limit else None
        if self.ended in ("end", "length"):
            told += self._stop.add(self._detokenizer.flush()) + self._stop.flush()
        self.text += told
        return told
