"""Conversations: lines of JSON, written by the model's chat template, of which the assistant's tokens are learned."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from txtrain.data import cache, files
from txtrain.data.conversation import MAPPINGS, Conversation, read_conversations
from txtrain.data.language import LanguageData
from txtrain.data.rows import RowWindows, RowWriter
from txtrain.data.split import Document, Split
from txtrain.data.template import ChatTemplate
from txtrain.data.turns import TurnEncoder, telling_place
from txtrain.errors import UserError

FORMS = "forms.json"  # how many lines had each form
CHUNK = 2000  # conversations encoded at a time, on all cores


class ChatData(LanguageData):
    """Windows of whole conversations; a token sees its own conversation only.

    Args:
        path: .jsonl files, a folder or a glob of them, or a list: a conversation in each line.
        validation_path: files to validate on. Default: `validation_fraction` of the conversations in `path`.
        template: a file with a Jinja template. Default: that of the tokenizer's folder, else a plain one.
        too_long: what to do with a conversation of more than `seq_len + 1` tokens.
        packing: rows are documents always.
        base: as in `LanguageData`, without masking.
    """

    between = " → "  # a question and its answer

    def __init__(
        self,
        *,
        path: str | list[str],
        validation_path: str | list[str] | None = None,
        template: str | None = None,
        too_long: Literal["truncate", "drop"] = "truncate",
        packing: Literal["documents"] = "documents",
        **base: Any,
    ) -> None:
        super().__init__(packing=packing, **base)
        if self.masking is not None:
            raise UserError("data=chat is learned by writing answers, and this task masks text: choose data=text")
        self.path, self.validation_path, self.template, self.too_long = path, validation_path, template, too_long
        self._windows: dict[str, RowWindows] = {}
        self._encoder: TurnEncoder | None = None

    def identity(self) -> Any:
        template = self.chat_template()
        found: dict[str, Any] = {"files": files.state(self._files("path"))}
        if self.validation_path is not None:
            found["validation_files"] = files.state(self._files("validation_path"))
        # The end of text is part of the tokenizer's own fingerprint, and known only once it is there.
        tokens = {name: token for name, token in template.special_tokens.items() if name != "eos_token"}
        return found | {"template": template.source, "special_tokens": tokens}

    def chat_template(self) -> ChatTemplate:
        tokens = self.tokenizer.named_tokens()
        if self.template is not None:
            return ChatTemplate.of_file(Path(self.template).expanduser(), tokens)
        if template := self.tokenizer.chat_template():
            return template
        opening = "".join(str(self.tokenizer.core.id_to_token(token)) for token in self.tokenizer.opening)
        return ChatTemplate.plain(tokens, opening)

    def conversations(self, option: Literal["path", "validation_path"] = "path") -> Iterator[Conversation]:
        """All that the files hold, in the same order whenever it is called."""
        for file in self._files(option):
            yield from read_conversations(file)

    def documents(self) -> Iterator[Document]:
        """Conversations as text, for a tokenizer that learns from it: without the tokens that it has anyway."""
        template = replace(self.chat_template(), special_tokens={"eos_token": ""})
        for conversation in self.conversations():
            with telling_place(conversation):
                yield conversation.key, template.render(conversation.messages, tools=conversation.tools)

    def open(self, folder: Path) -> None:
        self.folder, self._encoder = folder, None
        self.tokenizer.load(folder / "tokenizer.json")
        self._windows = {split: self._open(split) for split in ("train", "validation")}
        self.train_tokens = self._windows["train"].targets
        self.validation_tokens = self._windows["validation"].targets
        self.validation_bytes = self._windows["validation"].bytes

    def prepare(self) -> None:
        self.tokenize()
        for split, windows in self._windows.items():
            told = windows.told
            if told.rows and told.left_out == told.rows:
                if not told.too_long:
                    raise UserError(
                        f"the chat template ({self.chat_template().origin}) writes nothing of the assistant in any "
                        f"conversation of {self._named()}: set data.template=FILE"
                    )
                raise UserError(
                    f"data.seq_len={self.seq_len} is too short for all conversations to {split} on, of up to "
                    f"{told.longest} tokens: set data.seq_len={told.longest - 1}"
                )
        if not (self.train_tokens and self.validation_bytes):
            raise UserError(
                f"{self._named()} has too few conversations to train and to validate on: give more, or set "
                "data.validation_path=FILE"
            )

    def windows(self, split: Literal["train", "validation"]) -> RowWindows:
        return self._windows[split]

    def prompt(self, text: str | None) -> list[int]:
        if text:
            return self.encoder.prompt([{"role": "user", "content": text}])
        batch = self._first_validation()
        answer = int(np.flatnonzero(batch["targets"][0] >= 0)[0])
        return batch["tokens"][0, : answer + 1].tolist()

    def shown_prompt(self, prompt: Sequence[int]) -> str:
        return self.encoder.question(prompt)

    @property
    def end_tokens(self) -> frozenset[int]:
        return super().end_tokens | self.encoder.end_tokens

    @property
    def encoder(self) -> TurnEncoder:
        """What writes conversations for the model."""
        if self._encoder is None:
            self._encoder = TurnEncoder(self.chat_template(), self.tokenizer)
        return self._encoder

    def details(self) -> dict[str, str]:
        train, validation = self._windows["train"].told, self._windows["validation"].told
        too_long = train.too_long + validation.too_long
        cut = {"truncate": "cut there", "drop": "left out"}[self.too_long]
        left_out = train.left_out + validation.left_out - (too_long if self.too_long == "drop" else 0)
        return {
            "conversations": f"{train.rows} to train on, {validation.rows} to validate; "
            f"{train.median} tokens (median), 95% at most {train.long}, longest {train.longest}",
            "too long": f"{too_long} of more than data.seq_len={self.seq_len} tokens, {cut}"
            + (f"; {left_out} left out, with no token of the assistant" if left_out else ""),
            **self._told_forms(),
            "windows": f"{len(self.windows('train'))} to train on, {train.filled:.0%} full",
            "chat template": self.chat_template().origin,
        }

    def _told_forms(self) -> dict[str, str]:
        """How lines became messages, where they were none as they stand."""
        file = self.folder / FORMS
        found: dict[str, int] = json.loads(file.read_text()) if file.is_file() else {}  # entries from before have none
        if not set(found) - {"messages"}:
            return {}
        return {"form": "; ".join(f"{count} of {form}: {MAPPINGS[form]}" for form, count in found.items())}

    def _write(self, folder: Path) -> None:
        apart = self.validation_path is not None
        keys = ((conversation.key, conversation.key) for conversation in self.conversations())
        split = Split.of(keys, fraction=0.0 if apart else self.validation_fraction)
        if not len(split.lengths):
            raise UserError(f"{self._named()} holds no conversation: give some")
        self.tokenizer.fit(split.sample(self.documents(), self.tokenizer.sample_characters))
        encoder, token_type = self.encoder, cache.token_type(self.tokenizer)
        forms: Counter[str] = Counter()
        with ExitStack() as stack:
            train, validation = (
                stack.enter_context(RowWriter(folder, name, token_type)) for name in ("train", "validation")
            )
            for number, (conversation, turns) in enumerate(_encoded(encoder, self.conversations())):
                forms[conversation.form] += 1
                (validation if split.held_out[number] else train).write(turns, conversation.place)
            if apart:
                for conversation, turns in _encoded(encoder, self.conversations("validation_path")):
                    forms[conversation.form] += 1
                    validation.write(turns, conversation.place)
        (folder / FORMS).write_text(json.dumps(forms))
        self.tokenizer.save(folder / "tokenizer.json")

    def check_entry(self, folder: Path) -> None:
        self.open(folder)
        for split, windows in self._windows.items():
            tokens = windows.path.stat().st_size // windows.record.itemsize
            cache.check_ends(f"{split}.rows.npy", np.load(folder / f"{split}.rows.npy")["start"], last=tokens)
            cache.check_places(windows.places, windows.told.rows)
            cache.check_tokens(windows.path, windows.record, self.tokenizer, tokens=tokens, field="token")

    def _open(self, split: str) -> RowWindows:
        return RowWindows(
            folder=self.folder,
            split=split,
            token_type=cache.token_type(self.tokenizer),
            seq_len=self.seq_len,
            too_long=self.too_long,
            end_of_text=self.tokenizer.end_of_text,
        )

    def _files(self, option: str) -> list[Path]:
        chosen = getattr(self, option)
        found = files.find_files(chosen, key=f"data.{option}")
        places = [Path(path).expanduser() for path in ([chosen] if isinstance(chosen, str) else chosen)]
        folders = [place for place in places if place.is_dir()]
        lines = [file for file in found if files.kind(file) == ".jsonl"]
        others = [file for file in found if file not in lines and not any(map(file.is_relative_to, folders))]
        if others or not lines:
            raise UserError(f"data.{option}: {(others or [chosen])[0]} is no .jsonl: give one JSON object per line")
        return lines

    def _named(self) -> str:
        return f"data.path={self.path}"


def _encoded(encoder: TurnEncoder, conversations: Iterator[Conversation]) -> Iterator[tuple[Conversation, Any]]:
    while chunk := list(islice(conversations, CHUNK)):
        yield from zip(chunk, encoder.encode(chunk), strict=True)
