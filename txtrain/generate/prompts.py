"""Prompts: from the command line, a file or a conversation to ids."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from txtrain.data.conversation import check_characters, mapped, read_messages
from txtrain.data.files import READING_ERRORS, kind, open_file
from txtrain.data.lines import decode, parse_object, split_lines
from txtrain.data.template import ChatTemplate, Message, TemplateRefusal
from txtrain.data.turns import TurnEncoder
from txtrain.errors import UserError
from txtrain.model import EncoderDecoder
from txtrain.trained import Trained

Prompt = str | list[Message]


def read_prompts(path: str, *, chat: bool, system: str | None = None) -> Iterator[tuple[str, Prompt]]:
    """Where each prompt of a file stands, and the prompt: a line, or `prompt` in a line of JSON; tells of blank lines.

    For a chat each is a conversation: a line of JSON may have all its `messages`, and a text is the user's.
    """
    file = Path(path).expanduser()
    try:
        with open_file(file) as stream:
            raw = [(f"{path} line {number}", line) for number, line in split_lines(stream, path)]
    except READING_ERRORS as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--file {path} cannot be read ({reason}): give .txt or .jsonl") from None
    lines = [(place, decode(line, place)) for place, line in raw]
    blank = sum(not line.strip() for _, line in lines)
    if 0 < blank < len(lines):
        print(f"{path}: {blank} blank line{'s' * (blank > 1)} left out", file=sys.stderr)
    for place, line in lines:
        if line.strip():
            prompt = _prompt_in(line, place, chat=chat) if kind(file) == ".jsonl" else line
            yield place, conversation(prompt, system) if chat and isinstance(prompt, str) else prompt


def conversation(text: str, system: str | None) -> list[Message]:
    """What a user says first, after the system's message if there is one."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": text}]


def _prompt_in(line: str, place: str, *, chat: bool) -> Prompt:
    row = parse_object(line, place)
    if chat:
        _, row = mapped(row, place)
    if chat and row.get("messages") is not None:
        return read_messages(row["messages"], "messages", place)
    if chat and isinstance(row.get("prompt"), list):
        return read_messages(row["prompt"], "prompt", place)
    if not isinstance(row.get("prompt"), str):
        fields = ", ".join(row) or "no fields"
        wanted = "messages, or a text as prompt" if chat else "a text as prompt (with --chat messages too)"
        raise UserError(f"{place} has {fields}: give {wanted}")
    return str(row["prompt"])


class PromptEncoder:
    """Makes ids of prompts, as the model saw text in training.

    Args:
        trained: whose tokenizer serves, and whose chat template.
        chat: whether prompts are conversations, which the template renders.
    """

    def __init__(self, trained: Trained, *, chat: bool) -> None:
        self.trained = trained
        self.turns: TurnEncoder | None = None
        if chat:
            template = ChatTemplate.of_folder(trained.folder)
            if template is None:
                raise UserError(f"{trained.folder} has no chat template: leave out --chat, or train with data=chat")
            self.turns = TurnEncoder(template, trained.tokenizer)

    @property
    def end_tokens(self) -> frozenset[int]:
        """What ends an answer beside the model's own ends."""
        return frozenset() if self.turns is None else self.turns.end_tokens

    def encode(self, prompt: Prompt) -> list[int]:
        check_characters(prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False), "the prompt")
        if isinstance(prompt, str):
            return self._encode_text(prompt)
        assert self.turns is not None, "messages without a template"
        try:
            return self.turns.prompt(prompt)
        except TemplateRefusal as refusal:
            raise UserError(str(refusal)) from refusal

    def _encode_text(self, text: str) -> list[int]:
        """With the special tokens that stand in the text, and those that the tokenizer's file sets around one."""
        if not text:
            return []
        tokenizer = self.trained.tokenizer
        ids = tokenizer.read_marked(self.trained.asked(text))
        ended = ids and ids[-1] in self.trained.end_tokens
        spelled = ended and text.endswith(str(tokenizer.core.id_to_token(ids[-1])))
        return ids[:-1] if ended and not spelled and not isinstance(self.trained.model, EncoderDecoder) else ids
