"""Several data sets in one training, by weight, each validated by itself."""

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from txtrain.config import saved_config
from txtrain.data import cache
from txtrain.data.agreement import check_alike, check_names, checked_weights
from txtrain.data.base import Data, Origin
from txtrain.data.interleave import Alternating, Interleaved, Together, Turns, Weighted
from txtrain.data.joined import JoinedSamples
from txtrain.data.loader import EvaluationLoader
from txtrain.data.order import Order, Shuffled
from txtrain.data.tokenizer import Tokenizer
from txtrain.data.vocabulary import Listener, learn, learned
from txtrain.errors import UserError
from txtrain.trust import locate

SEEDS = 1_000_000_007  # between the seeds of sets, so that none is that of a neighbour plus a small number

NewData = Callable[..., Data]


class Mixture(Data):
    """Samples of several data sets of one kind; what they are is up to the sets.

    A step's samples come from the sets by weight, evenly (`txtrain.data.interleave`); of sets whose steps hold so many
    tokens, each step comes from one set. Every set is shuffled by itself, and begins anew when all of it was seen. A
    set of weight 0 is not trained on, and all of it is for validation.

    Args:
        sets: makes each data set, by its name, which has no dots.
        weights: of each set; only their ratios matter. Default: each sample of each set once in an epoch.
        batch_size: samples per optimizer step, over all devices. Not for sets whose steps hold so many tokens.
        micro_batch_size, num_workers, cache_dir: as in `Data`.
        shared: what is said of all sets and known to them already.
    """

    open_ended: ClassVar[bool] = True  # its config also has what is said of all its sets

    def __init__(
        self,
        *,
        sets: Mapping[str, NewData],
        weights: Mapping[str, float] | None = None,
        tokenizer: Tokenizer,
        batch_size: int | None = None,
        micro_batch_size: int | None = None,
        num_workers: int | None = None,
        cache_dir: str = "~/.cache/txtrain",
        seed: int = 0,
        **shared: Any,
    ) -> None:
        base: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
        given = {key: value for key, value in base.items() if value is not None}
        super().__init__(
            tokenizer=tokenizer, seed=seed, micro_batch_size=micro_batch_size, cache_dir=cache_dir, **given
        )
        check_names(sets)
        self.weights = checked_weights(sets, weights)
        self._new = dict(sets)
        self._given = self._make(copy.deepcopy(tokenizer) for _ in sets)  # as they are named: what prepares is others
        self._parts = self._given
        check_alike(self._given, sets)
        self._adopted: Sequence[str] = ()
        self._held_out = False
        self._joined: JoinedSamples | None = None

    def _make(self, tokenizers: Iterator[Tokenizer], names: Sequence[str] | None = None) -> dict[str, Data]:
        """The data sets, not prepared."""
        made = {}
        for number, (name, new) in enumerate(self._new.items()):
            if names is not None and name not in names:
                continue
            with self._telling(name):
                made[name] = new(tokenizer=next(tokenizers), seed=self.seed + SEEDS * number)
                if made[name].sampling:
                    raise UserError(
                        f"data.sampling={made[name].sampling} is for one data set, and a mixture has weights: leave it "
                        "out, or type loss.class_weights=balanced"
                    )
        return made

    @property
    def content(self) -> str:  # type: ignore[override]
        return next(iter(self._given.values())).content

    @property
    def parts(self) -> dict[str, Data]:
        return self._parts

    @property
    def trained(self) -> dict[str, Data]:
        """The sets that are trained on."""
        return {name: part for name, part in self._parts.items() if self.weights is None or self.weights[name]}

    @property
    def _by_steps(self) -> bool:
        """Whether a step comes from one set."""
        return self.first_part.micro(1) is None

    # Making and finding the samples

    def prepare(self) -> None:
        self._prepare(lambda name, part: part.prepare() if name in self.trained else part.prepare_evaluation())
        joined = self.samples("train")
        if not self._by_steps:
            joined.check()

    def prepare_evaluation(self) -> None:
        self._prepare(lambda name, part: part.prepare_evaluation())

    def _prepare(self, prepare: Callable[[str, Data], None]) -> None:
        parts = self._with_tokenizer()
        self._joined, self._parts = None, parts
        for name, part in parts.items():
            if self._adopted:
                part.adopt(self._adopted)
            if self._held_out or name not in self.trained:
                part.hold_out_all()
        trained = self.trained
        labels: Sequence[str] = self._adopted
        for name in [*trained, *(name for name in parts if name not in trained)]:
            if name not in trained and labels:
                parts[name].adopt(labels)
            with self._telling(name):
                prepare(name, parts[name])
            if name in trained and not self._adopted:
                labels = sorted({*labels, *parts[name].labels})
        if any(getattr(part, "memory", None) for part in parts.values()):
            raise UserError("data=mixture has no memory that all sets share: leave out data.memory and data.also")
        for name, part in trained.items():
            if part.labels and list(part.labels) != list(labels):
                part.adopt(labels)
                with self._telling(name):
                    prepare(name, part)
        self.labels, self.tokenizer = self.first_part.labels, self.first_part.tokenizer

    def _with_tokenizer(self) -> dict[str, Data]:
        """The sets with one tokenizer, which has learned from all that are trained on."""
        if not (self.tokenizer.learns and self.tokenized):
            return self._make(copy.deepcopy(self.tokenizer) for _ in self._new)
        names = list(self.trained)
        weights = {name: 1.0 if self.weights is None else self.weights[name] for name in names}
        total = sum(weights.values())
        listeners = {name: Listener(copy.deepcopy(self.tokenizer), weights[name] / total) for name in names}
        listening = self._make(iter(listeners.values()), names)
        folder = learn(copy.deepcopy(self.tokenizer), listening, listeners, self._telling, self.cache_dir)
        return self._make(learned(folder) for _ in self._new)

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """What a set says of its keys is said of those that are the user's."""
        try:
            yield
        except UserError as error:
            new = self._new[name]
            keys = {*(new.keywords if isinstance(new, partial) else ())} - {"batch_size", "num_workers", "cache_dir"}
            own = re.compile(rf"\bdata\.(?=({'|'.join(map(re.escape, sorted(keys)))})\b)") if keys else re.compile("$^")
            found = own.sub(f"data.sets.{name}.", str(error))
            raise UserError(found if found != str(error) else f"data.sets.{name}: {found}") from error

    def label_counts(self) -> list[int]:
        """Of all sets that are trained on, each sample once, whatever the weight of its set."""
        return [sum(counts) for counts in zip(*(part.label_counts() for part in self.trained.values()), strict=True)]

    def adopt(self, labels: Sequence[str]) -> None:
        self._adopted = labels

    def hold_out_all(self) -> None:
        self._held_out = True

    # What is known of them

    def samples(self, split: Literal["train", "validation"]) -> JoinedSamples:
        """Those of all sets that are trained on; validation is of each set by itself."""
        assert split == "train", "sets are validated one after the other"
        if self._joined is None:
            self._joined = JoinedSamples({name: part.samples("train") for name, part in self.trained.items()})
        return self._joined

    def fingerprint(self) -> str:
        sets = []
        for name, part in self._given.items():
            with self._telling(name):
                sets.append([name, part.fingerprint()])
        return cache.fingerprint(sets=sets, weights=self.weights)

    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for part in self._parts.values():
            for name, size in part.sizes().items():
                found[name] = max(size, found.get(name, 0))
        return found

    @property
    def tokenized(self) -> bool:
        return self.first_part.tokenized

    @property
    def documents_apart(self) -> bool:
        return any(part.documents_apart for part in self._parts.values())

    @property
    def padded(self) -> bool:
        return any(part.padded for part in self._parts.values())

    def unit(self) -> str:
        return self.first_part.unit()

    def description(self) -> str:
        samples, steps = self.samples("train"), self.steps_in_epoch
        return f"{len(self._parts)} sets, {len(samples)} samples to train on; an epoch is as many, {steps} steps"

    def left_out(self) -> dict[str, str]:
        return self._of_each(lambda part: part.left_out())

    def details(self) -> dict[str, str]:
        return self._of_each(lambda part: part.details())

    def _of_each(self, tell: Callable[[Data], Mapping[str, str]]) -> dict[str, str]:
        return {f"{name}: {key}": text for name, part in self._parts.items() for key, text in tell(part).items()}

    def shares(self) -> dict[str, float]:
        """What part of the samples, or steps, comes from each set that is trained on."""
        if isinstance(turns := self._turns(), Weighted):
            return {name: part / turns.period for name, part in zip(self.trained, turns.parts, strict=True)}
        assert isinstance(turns, Together)
        return {name: size / turns.sizes.sum() for name, size in zip(self.trained, turns.sizes, strict=True)}

    def planned(self, steps: float) -> dict[str, str]:
        """Each set, its weight, and how often it will be seen."""
        shares, told = self.shares(), {}
        sizes = dict(zip(self.trained, self._lengths(), strict=True))
        turns = sum(sizes.values()) * steps / self.steps_in_epoch
        for name, part in self._parts.items():
            if name in shares:
                share = f"{shares[name]:.4g} of the {'steps' if self._by_steps else 'samples'}"
                passes = f", {shares[name] * turns / sizes[name]:.3g} passes" if math.isfinite(turns) else ""
                told[f"set {name}"] = f"{share}{passes}; {part.description()}"
            else:
                told[f"set {name}"] = f"weight 0: {len(part.samples('validation'))} samples, for validation only"
        return told

    def save(self, run_dir: Path) -> None:
        for part in reversed(self._parts.values()):  # where they write the same file, the first set's stays
            part.save(run_dir)

    @classmethod
    def reader(cls, run_dir: Path, tokenizer: Tokenizer) -> Any:
        name, node = next(iter(saved_config(run_dir).data.sets.items()))
        return locate(f"data.sets.{name}", node).reader(run_dir, tokenizer)

    def check_saved(self, run_dir: Path) -> None:
        for part in self._parts.values():
            part.check_saved(run_dir)

    def locate(self, index: int) -> tuple[str | None, int]:
        samples = self.samples("train")
        sets, _, own = samples.numbers.split(np.array([index]))
        return samples.names[int(sets[0])], int(own[0])

    def origin(self, index: int) -> Origin:
        name, own = self.locate(index)
        return self._parts[str(name)].origin(own)

    # Loaders

    def order(self, samples: Sized, *, seed: int) -> Order:
        if not isinstance(samples, JoinedSamples):
            raise UserError(
                "which samples a step saw follows from the sizes of the sets, and they are gone: restore them"
            )
        turns = self._turns()
        if self._by_steps:
            return Alternating(turns, samples.numbers, orders=self._orders(samples))
        seeds = [part.seed for part in self.trained.values()]
        return Interleaved(turns, samples.numbers, batch_size=self.batch_size, seeds=seeds)

    def _turns(self) -> Turns:
        if self.weights is None:
            return Together(self._lengths(), seed=self.seed)
        return Weighted([self.weights[name] for name in self.trained])

    def _lengths(self) -> list[int]:
        """How many turns each set has in a pass over it: samples, or steps."""
        samples = self.samples("train")
        return [order.steps for order in self._orders(samples)] if self._by_steps else samples.numbers.sizes.tolist()

    def _orders(self, samples: JoinedSamples) -> list[Order]:
        pairs = zip(self.trained.values(), samples.sets, strict=True)
        return [part.order(own, seed=part.seed) for part, own in pairs]

    def batch_told(self, devices: int) -> str:
        if not self._by_steps:
            return super().batch_told(devices)
        return f"{self.first_part.batch_told(devices)}; each step is of one set"

    def micro(self, devices: int) -> int | None:
        return None if self._by_steps else super().micro(devices)

    def accumulation(self, devices: int) -> int:
        return self.first_part.accumulation(devices) if self._by_steps else super().accumulation(devices)

    def val_dataloader(self) -> list[EvaluationLoader]:  # type: ignore[override]
        """One for each set."""
        loaders = []
        for part in self._parts.values():
            samples = part.samples("validation")
            size = {"size": len(samples), "batch_size": self.batch_size}
            order = part.order(samples, seed=0) if self._by_steps else Shuffled(seed=0, **size)
            loaders.append(EvaluationLoader(samples, order=order, **self._placement()))
        return loaders
