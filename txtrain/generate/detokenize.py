"""Text of tokens that come one at a time."""

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of the first bytes of a character


class Detokenizer:
    """Tells the new text of each token, once its characters are whole.

    A token's text may depend on the token before it, and a character may be spread over several tokens. So what is
    decoded each time are the tokens since the last but one that gave text: neither one token alone, nor all of them.

    Args:
        decode: ids to text.
        context: ids of the text that comes before.
    """

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        self.decode = decode
        self.tokens = list(context)
        self.told = len(self.tokens)  # tokens whose text has been told
        self.before = 0  # from here on tokens are decoded

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self.tokens.append(token)
        return self._tell(whole=True)

    def flush(self) -> str:
        """The rest, with a character that was cut off."""
        return self._tell(whole=False)

    def _tell(self, *, whole: bool) -> str:
        old = self.decode(self.tokens[self.before : self.told])
        now = self.decode(self.tokens[self.before :])
        if len(now) <= len(old) or (whole and now.endswith(UNFINISHED)):
            return ""
        self.before, self.told = self.told, len(self.tokens)
        return now[len(old) :]
