"""Conversations as tokens, of which the assistant's are known."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from txtrain.data.conversation import Conversation
from txtrain.data.template import ChatTemplate, Message, Span, TemplateRefusal
from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError

# Private characters around what a message must not make a token of, until the text is cut there.
STAND_INS = ("question 1", "answer 1", "question 2")  # messages of no meaning
OPEN, CLOSE = "\U000f0000", "\U000f0001"

Ids = NDArray[np.int64]
Placed = tuple[Ids, Ids, Ids]
"""Ids of tokens, and at which character of a text each begins and ends."""


@dataclass(frozen=True, kw_only=True)
class Turns:
    """A conversation's tokens.

    Args:
        tokens: ids (T,).
        assistant: which of them the assistant has written, (T,) of bool.
        sizes: bytes of text in each of the assistant's tokens, (T,); 0 for special tokens and for all others' tokens.
    """

    tokens: Ids
    assistant: NDArray[np.bool_]
    sizes: Ids


class TurnEncoder:
    """Renders conversations by a template and encodes them as `transformers` does.

    Special tokens come from the template only. In a message they are spelt out, as is in all messages but the
    assistant's any other added token that the template writes, such as `<tool_call>`: what a user types neither ends a
    turn nor begins one. It is what `apply_chat_template(sanitize_control_tokens=True)` does, which spells out the
    assistant's too.

    Args:
        template: of the chat.
        tokenizer: loaded.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self.template = template
        self.core = tokenizers.Tokenizer.from_str(tokenizer.core.to_str())
        self.core.encode_special_tokens = False  # the template writes them
        added = self.core.get_added_tokens_decoder()
        special = [token.content for token in added.values() if token.special]
        written = [token.content for token in added.values() if self._writes(token.content)]
        self._special_ids = np.array([number for number, token in added.items() if token.special], dtype=np.int64)
        self._special, self._control = _any_of(special), _any_of([*special, *written])
        anything = _any_of([token.content for token in added.values()]).pattern
        self._marked = re.compile(f"{OPEN}({anything}){CLOSE}|[{OPEN}{CLOSE}]")  # templates may part the marks

    def _writes(self, token: str) -> bool:
        return token in self.template.literals and not token.isspace()

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """The special tokens with which the assistant ends its turn; none where the template has none."""
        probe = Conversation(messages=[{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}])
        try:
            turns = self.encode([probe])[0]
        except UserError:  # the template takes no such conversation
            return frozenset()
        return frozenset(turns.tokens[turns.assistant & np.isin(turns.tokens, self._special_ids)].tolist())

    def prompt(self, messages: Sequence[Message], tools: list[Any] | None = None) -> list[int]:
        """The tokens after which the assistant answers."""
        marked = [self._mark_message(message) for message in messages]
        text = self.template.render(marked, tools=_mark(tools, self._control), add_generation_prompt=True)
        return self._encode_texts([text])[0][0].tolist()

    def question(self, prompt: Sequence[int]) -> str:
        """What the user says last in a prompt; all of the prompt where the template does not tell."""
        text = self.core.decode(list(prompt), skip_special_tokens=False)
        opening, closing = self._around_questions
        if not opening or opening not in text:
            return text
        question = text.rpartition(opening)[2]
        return (question.partition(closing)[0] if closing else question).strip()

    @cached_property
    def _around_questions(self) -> tuple[str, str]:
        """What the template writes before each message of the user, and between the last one and the answer."""
        roles = ("user", "assistant", "user")
        messages = [{"role": role, "content": text} for role, text in zip(roles, STAND_INS, strict=True)]
        try:
            text = self.template.render(messages, add_generation_prompt=True)
        except TemplateRefusal:
            return "", ""
        parts = re.split("|".join(STAND_INS), text)
        if len(parts) != len(STAND_INS) + 1:
            return "", ""
        first, _, again, closing = parts
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(first), reversed(again), strict=False))
        opening = "".join(letter for letter, _ in pairs)[::-1]
        return opening, closing.rstrip()

    def encode(self, conversations: Sequence[Conversation]) -> list[Turns]:
        """Each conversation's tokens.

        Raises:
            UserError: the template refuses one.
        """
        rendered = [self._render(conversation) for conversation in conversations]
        placed = self._encode_texts([text for text, _ in rendered])
        return [self._turns(*tokens, text, spans) for tokens, (text, spans) in zip(placed, rendered, strict=True)]

    def _render(self, conversation: Conversation) -> tuple[str, list[Span]]:
        messages = [self._mark_message(message) for message in conversation.messages]
        tools = _mark(conversation.tools, self._control)
        with telling_place(conversation):
            text, spans = self.template.render_spans(messages, tools)
            if conversation.given:
                prompt = self.template.render(messages[: conversation.given], tools=tools, add_generation_prompt=True)
                if not text.startswith(prompt):
                    raise TemplateRefusal("the completion is not written after the prompt: give messages instead")
                spans = [(max(start, len(prompt)), end) for start, end in spans if end > len(prompt)]
        return text, spans

    def _turns(self, tokens: Ids, starts: Ids, ends: Ids, text: str, spans: list[Span]) -> Turns:
        """Tokens at these characters of a text with the assistant's spans: one is the assistant's if any of it is."""
        bounds = np.array(spans, dtype=np.int64).reshape(-1, 2)
        which = np.searchsorted(bounds[:, 1], starts, side="right")
        assistant = np.append(bounds[:, 0], len(text) + 1)[which] < ends
        bytes_of = _bytes_of_characters(text)
        said = np.zeros_like(bytes_of)
        for start, end in spans:  # a token may begin before its span does, of which no byte counts there
            said[start:end] = bytes_of[start:end]
        edges = np.append(0, np.cumsum(said))
        reached = np.append(0, np.maximum.accumulate(ends)[:-1]) if len(ends) else ends  # a character of several tokens
        sizes = np.maximum(0, edges[ends] - edges[np.maximum(starts, reached)])
        sizes[~assistant | np.isin(tokens, self._special_ids)] = 0
        return Turns(tokens=tokens, assistant=assistant, sizes=sizes)

    def _encode_texts(self, texts: Sequence[str]) -> list[Placed]:
        """The ids of each text's tokens, and at which characters each begins and ends."""
        plain = [text for text in texts if OPEN not in text and CLOSE not in text]
        encodings = iter(self.core.encode_batch(plain, add_special_tokens=False))
        return [
            self._encode_marked(text) if OPEN in text or CLOSE in text else _placed(next(encodings)) for text in texts
        ]

    def _encode_marked(self, text: str) -> Placed:
        """Piece by piece: what is marked is spelt out, and no token reaches over a mark."""
        found, done = [], 0
        for mark in self._marked.finditer(text):
            found.append(self._encode_piece(text[done : mark.start()], done))
            if mark[1]:
                found.append(self._spell(mark[1], mark.start(1)))
            done = mark.end()
        found.append(self._encode_piece(text[done:], done))
        tokens, starts, ends = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return tokens, starts, ends

    def _encode_piece(self, piece: str, start: int) -> Placed:
        if not start:
            return _placed(self._encode(piece))
        tokens, starts, ends = self._after_line_end(piece, lambda text: _placed(self._encode(text)))
        return tokens, starts + start, ends + start

    def _spell(self, piece: str, start: int) -> Placed:
        """As plain text, though it reads like an added token."""
        tokens, starts, ends = self._after_line_end(piece, self._encode_without_added_tokens)
        if self.core.token_to_id(piece) in tokens:
            raise UserError(f"a message has {piece}, which the tokenizer makes of plain text too: remove it")
        return tokens, np.full_like(starts, start), np.full_like(ends, start + len(piece))

    def _after_line_end(self, piece: str, encode: Callable[[str], Placed]) -> Placed:
        """A piece's tokens after others: SentencePiece sets a space before the first word of a text."""
        line_end = self._encode("\n").ids
        tokens, starts, ends = encode("\n" + piece)
        if tokens[: len(line_end)].tolist() != line_end:
            return encode(piece)
        rest = slice(len(line_end), None)
        return tokens[rest], starts[rest] - 1, ends[rest] - 1

    def _encode(self, text: str) -> Any:
        return self.core.encode(text, add_special_tokens=False)

    def _encode_without_added_tokens(self, text: str) -> Placed:
        core = self.core
        if core.normalizer is not None:
            text = core.normalizer.normalize_str(text)
        words = [text]
        if core.pre_tokenizer is not None:
            words = [word for word, _ in core.pre_tokenizer.pre_tokenize_str(text)]
        tokens = np.array([token.id for word in words for token in core.model.tokenize(word)], dtype=np.int64)
        return tokens, np.zeros_like(tokens), np.zeros_like(tokens)

    def _mark_message(self, message: Message) -> Message:
        tokens = self._special if message["role"] == "assistant" else self._control
        return {name: value if name == "role" else _mark(value, tokens) for name, value in message.items()}


@contextmanager
def telling_place(conversation: Conversation) -> Iterator[None]:
    """Around the rendering of a conversation: what the template refuses is told with file and line."""
    try:
        yield
    except TemplateRefusal as refusal:
        raise UserError(f"{conversation.place}: {refusal}" if conversation.place else str(refusal)) from refusal


def _mark(value: Any, tokens: re.Pattern[str]) -> Any:
    """The same with marks around these tokens in each text of it; marks that it has already are left out."""
    if isinstance(value, str):
        return tokens.sub(rf"{OPEN}\g<0>{CLOSE}", value.replace(OPEN, "").replace(CLOSE, ""))
    if isinstance(value, dict):
        return {name: _mark(item, tokens) for name, item in value.items()}
    return [_mark(item, tokens) for item in value] if isinstance(value, list) else value


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """The longest of them at a place; none where there are none."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _placed(encoding: Any) -> Placed:
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    return np.array(encoding.ids, dtype=np.int64), offsets[:, 0], offsets[:, 1]


def _bytes_of_characters(text: str) -> Ids:
    """How many bytes of UTF-8 each character takes; marks take none."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    sizes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    sizes[(codes == ord(OPEN)) | (codes == ord(CLOSE))] = 0
    return sizes
