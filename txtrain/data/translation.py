"""Parallel text: pairs of a text and its translation, tokenized once, in batches of about one length."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt
from tokenizers import processors

from txtrain.data import cache
from txtrain.data.base import Data, Origin, check_least
from txtrain.data.buckets import Buckets
from txtrain.data.memory import FILE as MEMORY
from txtrain.data.memory import Memory
from txtrain.data.order import permute
from txtrain.data.parallel import SIDES, Pair, ParallelSamples, ParallelWriter
from txtrain.data.seal import Damaged, read_record
from txtrain.data.special import DecoderTokens
from txtrain.data.split import Split, letters, linked
from txtrain.data.tokenizer import TARGET_FILE, Tokenizer
from txtrain.errors import UserError
from txtrain.printable import short

CHUNK = 20_000  # pairs that are encoded at a time, on all cores
VERSION = 1  # raise it when the same fingerprint would give other files
NAMES = {"source": "tokenizer.json", "target": TARGET_FILE}


class PairsRecord(BaseModel):
    """`pairs.json`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    dtype: Literal["uint16", "uint32"]
    empty: NonNegativeInt  # pairs with nothing on one side


class TranslationData(Data):
    """Pairs of texts for encoder-decoders; a subclass says where they come from.

    Every text ends with its tokenizer's end of text. A training pair with a longer side than `seq_len` is left out;
    of a pair to validate on, the first `seq_len` tokens are scored, and its translation is compared with all of it.

    Args:
        seq_len: most tokens of a source or target.
        vocabulary: `shared` by source and target, or a tokenizer for each (`separate`).
        batch_tokens: tokens of a step's sources, and of its targets, at most, padding included; over all devices.
        micro_batch_tokens: of those about how many go through a device at a time. Default: all of its share.
        memory: whether the encoder also reads the target of the training pair whose source is most like the text.
        practice: the share of training pairs that have, in its place, their own target with words missing or wrong.
        validation_fraction: of the messages that is held out: pairs that share a source or a target are one.
        base: as in `Data`, but for `batch_size` and `micro_batch_size`.
    """

    content = "translations"
    alike = ("seq_len", "vocabulary", "batch_tokens", "micro_batch_tokens")
    language, repeat = "", 1  # of the targets; how often an epoch has their pairs, where others are trained on too

    def __init__(
        self,
        *,
        seq_len: int = 128,
        vocabulary: Literal["shared", "separate"] = "shared",
        batch_tokens: int = 4096,
        micro_batch_tokens: int | None = None,
        memory: bool = False,
        practice: float = 0.0,
        validation_fraction: float = 0.1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        check_least(
            {"seq_len": seq_len, "batch_tokens": batch_tokens, "micro_batch_tokens": micro_batch_tokens}, least=1
        )
        if not 0 < validation_fraction < 1:
            raise UserError(
                f"data.validation_fraction={validation_fraction} is not between 0 and 1: "
                "set data.validation_fraction=0.1"
            )
        if {"batch_size", "micro_batch_size"} & base.keys():
            raise UserError("translations are batched by tokens: set data.batch_tokens, and no data.batch_size")
        self.seq_len, self.vocabulary, self.validation_fraction = seq_len, vocabulary, validation_fraction
        self.batch_tokens, self.micro_batch_tokens = batch_tokens, micro_batch_tokens
        self.target_tokenizer = self.tokenizer.of_targets() if vocabulary == "shared" else self.tokenizer.twin()
        self._samples: dict[str, ParallelSamples] = {}
        if not 0 <= practice < 1 or (practice and not memory):
            raise UserError(
                f"data.practice={practice} is to be a share below 1 of what is read with data.memory=true: set both"
            )
        self.with_memory, self.practice = memory, practice
        self.memory: Memory | None = None  # how sources are read, if not as they are
        self._recalled: Path | None = None

    @abstractmethod
    def identity(self) -> Any:
        """What tells these pairs from any other, cheaply and as plain JSON: paths, sizes and times, or names."""

    @abstractmethod
    def pairs(self) -> Iterator[Pair]:
        """The pairs, in the same order whenever it is called."""

    def validation_pairs(self) -> Iterator[Pair] | None:
        """Pairs to validate on, where the user gave them apart."""
        return None

    def others(self) -> dict[str, list[Pair]]:
        """Pairs in other languages that are trained on too, by language."""
        return {}

    # What is known of them

    @property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """By side; one where they cut text alike."""
        one = {"source": self.tokenizer}
        return one if self.target_tokenizer is self.tokenizer else one | {"target": self.target_tokenizer}

    @property
    def decoder_tokens(self) -> DecoderTokens:
        """What the decoder begins with, and what ends a translation."""
        return self.target_tokenizer.decoder_tokens()

    def fingerprint(self) -> str:
        memory: dict[str, Any] = {"memory": [1, self.practice]} if self.with_memory else {}
        if self._recalled:
            memory["recalled"] = hashlib.sha256((self._recalled / MEMORY).read_bytes()).hexdigest()
        return cache.fingerprint(
            translation=VERSION,
            source=self.identity(),
            tokenizer=[tokenizer.fingerprint() for tokenizer in self.tokenizers.values()],
            validation_fraction=self.validation_fraction,
            **memory,
        )

    def sizes(self) -> dict[str, int]:
        known = {"vocab_size": self.tokenizer}
        if self.vocabulary == "separate":
            known["target_vocab_size"] = self.target_tokenizer
        sizes = {name: tokenizer.vocab_size if self._samples else 1 for name, tokenizer in known.items()}
        return sizes | {"max_len": self.seq_len}

    def samples(self, split: Literal["train", "validation"]) -> ParallelSamples:
        return self._samples[split]

    def references(self, index: Iterable[int]) -> list[tuple[str, str]]:
        """Validation pairs as they were given: source and target."""
        return [self._texts[number] for number in index]

    def source_ids(self, text: str) -> list[int]:
        """A text as the encoder reads it."""
        return self.tokenizer.read_batch([self.memory.asked(text) if self.memory else text])[0][: self.seq_len]

    def description(self) -> str:
        train, validation = self._samples["train"], self._samples["validation"]
        counts = " and ".join(short(count) for count in train.lengths.sum(axis=0).tolist())
        separate = self.vocabulary == "separate"
        sizes = " and ".join(str(size) for name, size in self.sizes().items() if "vocab" in name)
        told = f"{len(train)} pairs to train on, of {counts} tokens, {len(validation)} to validate; "
        return told + f"{'vocabularies' if separate else 'shared vocabulary'} of {sizes}"

    def left_out(self) -> dict[str, str]:
        found = {}
        if too_long := self._samples["train"].too_long:
            found["too long"] = f"{too_long} training pairs of more than data.seq_len={self.seq_len} tokens, left out"
        if self._empty:
            found["empty"] = f"{self._empty} pairs with nothing on one side, left out"
        return found

    @property
    def padded(self) -> bool:
        return True

    def unit(self) -> str:
        return f"pairs of at most {self.seq_len} tokens"

    def batch_told(self, devices: int) -> str:
        share = -(-self.batch_tokens // (devices * self.accumulation(devices)))
        return f"{self.batch_tokens} tokens a step, of pairs of about one length: micro-batches of {share}"

    def origin(self, index: int) -> Origin:
        train = self._samples["train"]
        texts = [
            tokenizer.decode(ids)
            for tokenizer, ids in zip((self.tokenizer, self.target_tokenizer), train.ids(index), strict=True)
        ]
        return Origin(token=int(train.starts[index][0]), places=[train.place(index)], text=" | ".join(texts))

    # Batches

    def order(self, samples: Sized, *, seed: int) -> Buckets:
        if not isinstance(samples, ParallelSamples):
            raise UserError("which pairs a step saw follows from their lengths, and the pairs are gone: put them back")
        return Buckets(samples.lengths.max(axis=1), batch_tokens=self.batch_tokens, seed=seed)

    def micro(self, devices: int) -> None:
        return None

    def accumulation(self, devices: int) -> int:
        return -(-self.batch_tokens // (devices * (self.micro_batch_tokens or self.batch_tokens)))

    # Making and opening them

    def prepare(self) -> None:
        self.tokenize()
        for split, missing in (("train", "training"), ("validation", "validation")):
            if not len(self._samples[split]):
                raise UserError(
                    f"{self._named()} leaves no pair for {missing}: give more, or set data.validation_fraction or "
                    "data.seq_len"
                )

    def prepare_evaluation(self) -> None:
        self.tokenize()
        if not len(self._samples["validation"]):
            raise UserError(
                f"{self._named()} leaves no pair to evaluate on: give more, or set data.validation_fraction"
            )

    def hold_out_all(self) -> None:
        """Leave nothing to train on: all is for evaluation. Before `tokenize`."""
        self.validation_fraction = 1.0

    def recall(self, run_dir: Path) -> None:
        if (run_dir / MEMORY).is_file():
            self._recalled = run_dir

    def tokenize(self) -> None:
        """Make or find the tokens; safe to call from any number of processes at once."""
        self.open(cache.entry(self.cache_dir, self.fingerprint(), self._write, self.check_entry))

    def check_entry(self, folder: Path) -> None:
        """Reads an entry of the cache.

        Raises:
            Exception: something in it cannot be.
        """
        self.open(folder)
        if self.with_memory and self.memory is None:
            raise Damaged(f"{MEMORY} is gone")
        dtype, tokenizers = read_record(folder / "pairs.json", PairsRecord).dtype, [*self.tokenizers.values()]
        pairs = [pair for pair in self._texts if len(pair) == 2 and all(isinstance(text, str) for text in pair)]
        if len(pairs) != len(self._texts) or len(pairs) != len(self._samples["validation"]):
            raise Damaged("validation.jsonl has other pairs than were encoded")
        for split in self._samples:
            starts = np.load(folder / f"{split}.npy")
            cache.check_places(folder / f"{split}.places.txt", len(starts) - 1)
            for column, side in enumerate(SIDES):
                tokens = int(starts[-1, column])
                cache.check_ends(f"{split}.npy", starts[:, column], last=tokens)
                path, tokenizer = folder / f"{split}.{side}.bin", tokenizers[column % len(tokenizers)]
                cache.check_tokens(path, dtype, tokenizer, tokens=tokens)

    def open(self, folder: Path) -> None:
        for side, tokenizer in self.tokenizers.items():
            tokenizer.load(folder / NAMES[side])
        record = read_record(folder / "pairs.json", PairsRecord)
        self.memory = Memory.load(folder)
        self._empty, texts = record.empty, folder / "validation.jsonl"
        self._texts = [tuple(json.loads(line)) for line in texts.read_text(encoding="utf-8").split("\n") if line]
        options: dict[str, Any] = {
            "folder": folder,
            "dtype": record.dtype,
            "seq_len": self.seq_len,
            "start": self.decoder_tokens.start,
        }
        self._samples = {
            split: ParallelSamples(split=split, longer=split == "validation", **options)
            for split in ("train", "validation")
        }

    def save(self, run_dir: Path) -> None:
        for side, tokenizer in self.tokenizers.items():
            tokenizer.save(run_dir / NAMES[side])
        self.decoder_tokens.save(run_dir)
        if self.memory:
            self.memory.save(run_dir)

    def check_saved(self, run_dir: Path) -> None:
        for side, tokenizer in self.tokenizers.items():
            if not tokenizer.is_in(run_dir / NAMES[side]):
                raise UserError(
                    f"resume={run_dir}: the data have changed since the run began and make another tokenizer: "
                    "put them back, or start a new run"
                )

    def _write(self, folder: Path) -> None:
        given, apart = list(self.pairs()), self.validation_pairs()
        pairs = [pair for pair in given if pair.source.strip() and pair.target.strip()]
        if not pairs:
            raise UserError(f"{self._named()} has no pair of texts: give some")
        if apart is None:
            held = held_out(pairs, self.validation_fraction)
            split = {"train": [pair for pair, out in zip(pairs, held, strict=True) if not out]}
            split["validation"] = [pair for pair, out in zip(pairs, held, strict=True) if out]
        else:
            split = {"train": pairs, "validation": [pair for pair in apart if pair.source.strip()]}
            if not split["validation"]:
                raise UserError("data.validation_path has no pair to validate on: name other files, or leave it out")
        lines = [json.dumps([pair.source, pair.target], ensure_ascii=False) for pair in split["validation"]]
        (folder / "validation.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if memory := self._remember(split):
            memory.save(folder)
        self._fit(split["train"])
        for side, tokenizer in self.tokenizers.items():
            end_texts(tokenizer)
            tokenizer.save(folder / NAMES[side])
        dtype = max(cache.token_type(tokenizer) for tokenizer in self.tokenizers.values())
        for name, chosen in split.items():
            with ParallelWriter(folder, name, dtype) as writer:
                for first in range(0, len(chosen), CHUNK):
                    self._encode(chosen[first : first + CHUNK], writer)
        (folder / "pairs.json").write_text(json.dumps({"dtype": dtype, "empty": len(given) - len(pairs)}))

    def _remember(self, split: dict[str, list[Pair]]) -> Memory | None:
        """How sources are read, if not as they are; then the split's are so, and its training pairs have the others."""
        if self._recalled:
            memory = Memory.load(self._recalled)
            assert memory is not None, "what is recalled is there"
            split |= {name: [pair._replace(source=memory.asked(pair.source)) for pair in split[name]] for name in split}
            return memory
        others = self.others()
        if not (others or self.with_memory):
            return None
        memory = Memory(split["train"], language=self.language if others else "", matches=self.with_memory)
        split["train"] = memory.own(repeat=self.repeat, practice=self.practice)
        for language, pairs in others.items():
            kept = apart(pairs, split["validation"])
            split["train"] += Memory(kept, language=language, matches=self.with_memory).own(practice=self.practice)
        split["validation"] = [pair._replace(source=memory.asked(pair.source)) for pair in split["validation"]]
        return memory

    def _fit(self, pairs: list[Pair]) -> None:
        """Tokenizers learn from pairs in a random but fixed order."""
        order = permute(np.arange(len(pairs)), size=max(1, len(pairs)), seed=0, epoch=0).tolist()
        if self.vocabulary == "separate":
            self.tokenizer.fit(pairs[number].source for number in order)
            self.target_tokenizer.fit(pairs[number].target for number in order)
        else:
            for tokenizer in self.tokenizers.values():
                tokenizer.fit(text for number in order for text in pairs[number][:2])

    def _encode(self, pairs: list[Pair], writer: ParallelWriter) -> None:
        sides = [
            tokenizer.read_batch([pair[side] for pair in pairs])
            for side, tokenizer in enumerate((self.tokenizer, self.target_tokenizer))
        ]
        for source, target, pair in zip(*sides, pairs, strict=True):
            writer.write(source, target, pair.place)

    def _named(self) -> str:
        """The source in the words of the command line."""
        return "the data"


def held_out(pairs: list[Pair], fraction: float) -> list[bool]:
    """Which pairs are for validation: none of them has a source or a target that one of the others has."""
    groups = linked((pair.source, pair.target) for pair in pairs)
    names = list(dict.fromkeys(groups))
    chosen = Split.of(((name, name) for name in names), fraction).held_out
    held = dict(zip(names, chosen.tolist(), strict=True))
    return [held[group] for group in groups]


def apart(pairs: Iterable[Pair], held: Iterable[Pair]) -> list[Pair]:
    """The pairs that have neither a source nor a target of those held out, be it with other case or punctuation."""
    known = [{letters(text) for text in side} for side in zip(*(pair[:2] for pair in held), strict=True)]
    return [pair for pair in pairs if not any(letters(pair[side]) in texts for side, texts in enumerate(known))]


def end_texts(tokenizer: Tokenizer) -> None:
    """Makes the tokenizer put the end of text after each text, as those of Hugging Face's encoder-decoders do."""
    core, end = tokenizer.core, tokenizer.end_of_text
    if core.encode("a").ids[-1:] == [end]:
        return
    name = str(core.id_to_token(end))
    ending = processors.TemplateProcessing(single=f"$A {name}", special_tokens=[(name, end)])
    before = core.post_processor
    core.post_processor = ending if before is None else processors.Sequence([before, ending])
