"""Chat templates: conversations become text as `transformers` renders them, and which part of it is the assistant's."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from txtrain.errors import UserError
from txtrain.records import read_object

Message = dict[str, Any]
Span = tuple[int, int]

TEMPLATE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
# The names under which a template finds special tokens.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
REASONING = ("reasoning_content", "thinking", "reasoning")
STAND_IN = "\U000f0002"  # a private character
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

# Every turn ends in the end of text, which no message can forge, so a message cannot begin a turn either.
PLAIN = """\
{%- for message in messages %}
    {{- message.role | capitalize + ':' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}
"""


class TemplateRefusal(Exception):
    """A template does not take a conversation, in its own words."""


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A Jinja template over messages, in the environment of `transformers`: sandboxed, with its filters and tags.

    Args:
        source: the template.
        special_tokens: what it may write by name, such as `eos_token`.
        origin: where it comes from, in words.
    """

    source: str
    special_tokens: Mapping[str, str]
    origin: str

    @classmethod
    def of_folder(cls, folder: Path) -> "ChatTemplate | None":
        """The template beside a tokenizer: `chat_template.jinja`, or in `tokenizer_config.json`, or none."""
        config = _read_json(folder / CONFIG)
        own = config.get("chat_template")
        if isinstance(own, list):  # several by name
            own = next((one["template"] for one in own if one["name"] == "default"), None)
        file, origin = folder / TEMPLATE, folder / CONFIG
        if file.is_file():
            own, origin = _read_text(file, str(file)), file
        if own is None:
            return None
        return cls(source=own, special_tokens=named_tokens(folder), origin=str(origin))

    @classmethod
    def of_file(cls, file: Path, special_tokens: Mapping[str, str]) -> "ChatTemplate":
        return cls(source=_read_text(file, f"data.template={file}"), special_tokens=special_tokens, origin=str(file))

    @classmethod
    def plain(cls, special_tokens: Mapping[str, str], opening: str = "") -> "ChatTemplate":
        """`Role: content<end of text>`, a line each, for tokenizers that have no template.

        Args:
            special_tokens: as in the class.
            opening: what a conversation begins with, as any text of this tokenizer does.
        """
        begin = f"{{{{- {json.dumps(opening)} }}}}\n" if opening else ""
        origin = "plain (Role: text), the tokenizer has none"
        return cls(source=begin + PLAIN, special_tokens=special_tokens, origin=origin)

    def save(self, folder: Path) -> None:
        """Writes what `of_folder` and `transformers` read."""
        (folder / TEMPLATE).write_text(self.source, encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps(dict(self.special_tokens), ensure_ascii=False, indent=2) + "\n")

    @cached_property
    def literals(self) -> str:
        """The text that the template itself may write, a zero between its parts."""
        tree = self._compiled.environment.parse(self.source)
        found = {node.data for node in tree.find_all(nodes.TemplateData)}
        found |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        return "\0".join(sorted(found))

    def render(
        self, messages: Sequence[Message], *, tools: list[Any] | None = None, add_generation_prompt: bool = False
    ) -> str:
        """The conversation as text; with `add_generation_prompt` up to where the assistant answers."""
        return self._render(messages, tools, add_generation_prompt)[0]

    def render_spans(self, messages: Sequence[Message], tools: list[Any] | None = None) -> tuple[str, list[Span]]:
        """The conversation as text, and where in it the assistant speaks, as (first, last + 1) in characters.

        A template with `{% generation %}` says so itself; with any other an answer is what the text has more than the
        prompt for it.
        """
        text, spans = self._render(messages, tools, False)
        if GENERATION.search(self.source):
            return text, spans
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        return text, [self._answer(text, messages, number, tools) for number in answers]

    def _answer(self, text: str, messages: Sequence[Message], number: int, tools: list[Any] | None) -> Span:
        if number == 0:
            # No template needs to take a conversation without a message, and many write something before the first one.
            prompt = self.render([{**messages[0], "content": STAND_IN}], tools=tools).partition(STAND_IN)[0]
        else:
            prompt = self.render(messages[:number], tools=tools, add_generation_prompt=True)
        answered = self.render(messages[: number + 1], tools=tools)
        if text.startswith(answered) and answered.startswith(prompt):
            return len(prompt), len(answered)
        # An answer may be written otherwise once others follow (Qwen 3 leaves its thoughts out): what comes after it is
        # then known by another answer in its place.
        other = {**messages[number], "content": STAND_IN}
        rest = self.render([*messages[:number], other, *messages[number + 1 :]], tools=tools).rpartition(STAND_IN)[2]
        end = self.render([*messages[:number], other], tools=tools).rpartition(STAND_IN)[2]
        if text.startswith(prompt) and text.endswith(rest) and rest.startswith(end) and STAND_IN not in text:
            return len(prompt), len(text) - len(rest) + len(end)
        raise TemplateRefusal(
            f"message {number + 1} is not written after the prompt for it, so which tokens are the assistant's is "
            "unknown: set data.template to a copy of the template with {% generation %} … {% endgeneration %}"
        )

    def _render(
        self, messages: Sequence[Message], tools: list[Any] | None, add_generation_prompt: bool
    ) -> tuple[str, list[Span]]:
        blocks: list[str] = []
        spans: list[Span] = []
        names: dict[str, Any] = {"tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
        names |= {"messages": [_with_reasoning(message) for message in messages], **self.special_tokens}
        try:
            with self._compiled.environment.tracking(blocks, spans):  # type: ignore[attr-defined]  # of the extension
                for block in self._compiled.generate(names):
                    blocks.append(block)
        except Exception as error:  # whatever the template does wrong, or says itself
            raise TemplateRefusal(f"{error} (says the chat template)") from error
        return "".join(blocks), spans

    @cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return new_environment().from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"the chat template is no Jinja ({self.origin}, line {error.lineno}: {error}): set data.template=FILE"
            ) from None


class Generation(Extension):
    """`{% generation %}`: notes where in the rendered text the assistant speaks."""

    tags = {"generation"}  # noqa: RUF012 - declared by Jinja

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        environment.extend(tracking=self.tracking)
        self._tracked: tuple[list[str], list[Span]] = ([], [])

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Any) -> str:
        text: str = caller()
        blocks, spans = self._tracked
        start = sum(map(len, blocks))
        spans.append((start, start + len(text)))
        return text

    @contextmanager
    def tracking(self, blocks: list[str], spans: list[Span]) -> Iterator[None]:
        """Inside, spans are noted: after the text in `blocks`, to which the caller appends."""
        self._tracked = (blocks, spans)
        yield
        self._tracked = ([], [])


class TemplateDict:
    """`dict` without what leads out of the sandbox."""

    def __call__(self, *arguments: Any, **values: Any) -> dict[Any, Any]:
        return dict(*arguments, **values)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class TemplateNamespace(Namespace):
    """A namespace that keeps no name with an underscore, as those lead out of the sandbox."""

    def __init__(*arguments: Any, **values: Any) -> None:  # as in Jinja, so that `self` may be a name
        self, *others = arguments
        names = dict(*others, **values)
        for name in names:
            TemplateNamespace._check_name(name)  # not through self: a namespace has no attributes but names
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        TemplateNamespace._check_name(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace takes no name with an underscore, got {name!r}")


def new_environment() -> ImmutableSandboxedEnvironment:
    """That in which `transformers` compiles chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment.filters["tojson"] = to_json  # Jinja's own escapes HTML
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": TemplateDict(),
        "namespace": TemplateNamespace,
    }
    return environment


def named_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that a tokenizer's folder names."""
    named = _read_json(folder / "special_tokens_map.json") | _read_json(folder / CONFIG)
    tokens = {name: named.get(name) for name in SPECIAL_TOKENS}
    plain = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: token for name, token in plain.items() if isinstance(token, str)}


def _read_text(file: Path, named: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{named} cannot be read ({error}): give a Jinja template") from None


def _read_json(file: Path) -> dict[str, Any]:
    return read_object(file, do="restore it") if os.path.lexists(file) else {}


def _with_reasoning(message: Message) -> Message:
    """Templates read what was thought under either of two names."""
    thought = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if thought is None else {"thinking": thought, **message, "reasoning_content": thought}
