"""Conversations in lines of JSON: messages, or a prompt and its completion, checked."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from txtrain.data.files import read_jsonl
from txtrain.data.lines import parse_json
from txtrain.data.template import Message
from txtrain.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")
# ShareGPT's names of them.
SPEAKERS = {
    **{name: name for name in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function_response"), "tool"),
}
MAPPINGS = {
    "messages": "messages: role, content",
    "prompt and completion": "prompt → user, completion → assistant",
    "ShareGPT": "conversations: from → role (human → user, gpt → assistant), value → content",
    "Alpaca": "instruction and input → user, output → assistant",
}
"""How the forms that a line may have become messages, in words."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages, each with a role and content, as a line of a file gives them.

    Args:
        messages: in order; at least one that is learned is the assistant's.
        given: how many of them are a prompt, of which nothing is learned.
        tools: JSON schemas of functions that a template may describe.
        form: which form the line had.
        place: file and line, in words.
    """

    messages: list[Message]
    given: int = 0
    tools: list[Any] | None = None
    form: str = "messages"
    place: str = ""

    @property
    def key(self) -> str:
        """What the split goes by: the same for the same conversation, wherever it stands."""
        return json.dumps([self.messages, self.given, self.tools], ensure_ascii=False, sort_keys=True)


def read_conversations(file: Path) -> Iterator[Conversation]:
    """The conversation in each line.

    Raises:
        UserError: a line is none; it names the file and the line.
    """
    for place, row in read_jsonl(file):
        yield new_conversation(row, place)


def check_characters(text: str, place: str) -> None:
    """Refuses half of a character, as JSON may spell one, and as a command line has bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):x}"
        raise UserError(f"{place} has {code} alone, half of a character: remove it") from None


def new_conversation(row: Any, place: str) -> Conversation:
    """The conversation that an object holds, in any of the forms of `MAPPINGS`; `tools` and `system` beside them."""
    if not isinstance(row, dict):
        raise UserError(f"{place} is {type(row).__name__}, not an object: give one JSON object per line")
    form, row = mapped(row, place)
    tools = row.get("tools") or None
    if tools is not None and not isinstance(tools, list):
        raise UserError(f"{place}: tools is {type(tools).__name__}: give a list of JSON schemas, or leave it out")
    if row.get("messages") is not None:
        messages, given = read_messages(row["messages"], "messages", place), 0
    elif row.get("prompt") is not None and row.get("completion") is not None:
        prompt = read_messages(row["prompt"], "prompt", place, role="user")
        messages, given = prompt + read_messages(row["completion"], "completion", place, role="assistant"), len(prompt)
    else:
        fields = ", ".join(map(str, row)) or "no fields"
        raise UserError(
            f"{place} has {fields}: give messages, or prompt and completion (or ShareGPT's conversations, or Alpaca's "
            "instruction and output)"
        )
    if not any(message["role"] == "assistant" for message in messages[given:]):
        raise UserError(f"{place} has no message of the assistant to learn from: add one or remove the line")
    conversation = Conversation(messages=messages, given=given, tools=tools, form=form, place=place)
    check_characters(conversation.key, place)
    return conversation


def mapped(row: dict[str, Any], place: str) -> tuple[str, dict[str, Any]]:
    """The form of an object, and the same as messages, or as prompt and completion; other objects stay as they are."""
    if row.get("messages") is not None:
        return "messages", row
    if row.get("prompt") is not None and row.get("completion") is not None:
        return "prompt and completion", row
    system = row.get("system") if isinstance(row.get("system"), str) and row["system"].strip() else None
    before = [{"role": "system", "content": system}] if system else []
    if isinstance(row.get("conversations"), list):
        turns = row["conversations"]
        if turns and isinstance(turns[0], dict) and "role" in turns[0]:
            return "messages", {**row, "messages": before + turns}
        messages = [
            _spoken(turn, f"{place}: message {number} of conversations") for number, turn in enumerate(turns, 1)
        ]
        tools = row.get("tools")
        if isinstance(tools, str):  # as LLaMA-Factory's files have them
            tools = parse_json(tools, f"{place}: tools") if tools.strip() else None
        return "ShareGPT", {"messages": before + messages, "tools": tools}
    if isinstance(row.get("instruction"), str):
        more = row.get("input") if isinstance(row.get("input"), str) else None
        asked = f"{row['instruction']}\n\n{more}" if more and more.strip() else row["instruction"]
        prompt = [*before, {"role": "user", "content": asked}]
        return "Alpaca", {"prompt": prompt, "completion": row.get("output"), "tools": row.get("tools")}
    return "prompt and completion", row


def _spoken(turn: Any, place: str) -> Message:
    """A message of ShareGPT's."""
    if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or "value" not in turn:
        got = ", ".join(map(str, turn)) if isinstance(turn, dict) else type(turn).__name__
        raise UserError(f"{place} has {got}: give from and value, or role and content")
    if turn["from"].lower() not in SPEAKERS:
        raise UserError(f"{place} is from {turn['from']}: give one of {', '.join(SPEAKERS)}")
    return {"role": SPEAKERS[turn["from"].lower()], "content": turn["value"]}


def read_messages(value: Any, field: str, place: str, role: str | None = None) -> list[Message]:
    """A list of messages; a text is one of `role`, if there is one."""
    if role is not None and isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        text = "a text or " if role else ""
        raise UserError(f"{place}: {field} is {type(value).__name__}: give {text}a list of messages")
    if not value:
        raise UserError(f"{place}: {field} is empty: give at least one message or remove the line")
    return [_message(message, f"{place}: message {number} of {field}") for number, message in enumerate(value, start=1)]


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise UserError(f"{place} is {type(value).__name__}: give an object with role and content")
    message = {name: item for name, item in value.items() if item is not None}  # as transformers does
    if "role" not in message:
        raise UserError(
            f"{place} has no role: give role and content (it has {', '.join(map(str, value)) or 'nothing'})"
        )
    if message["role"] not in ROLES:
        raise UserError(f"{place} has the unknown role {message['role']}: give one of {', '.join(ROLES)}")
    if "content" not in message and "tool_calls" not in message:
        raise UserError(f"{place} has no content: give a text")
    if not isinstance(message.get("content", ""), str):
        raise UserError(f"{place}: content is {type(message['content']).__name__}, not text: give a text")
    return message
