"""The only LightningModule: builds the model, counts the loss exactly, and validates exactly."""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from txtrain.base_hash import base_hash, frozen_hash, is_base
from txtrain.data.loader import WEIGHT_UNITS
from txtrain.data.order import fair_sample
from txtrain.errors import UserError
from txtrain.model.block import Block
from txtrain.model.checkpointing import CheckpointingPolicy
from txtrain.model.flops import Flow, embedding_flops, head_flops, stack_flops
from txtrain.model.head import IGNORED, Loss, widest_float
from txtrain.model.lora import LoRA, adapters
from txtrain.optim import in_float32
from txtrain.plots.view import View
from txtrain.predict.predictor import Predictor
from txtrain.rules import RULES, UNITS_READ, warn_of_new_rules
from txtrain.schedule import Schedule
from txtrain.strategy import clip_gradients, drop_step, made_once, shard

Batch = dict[str, Tensor]

UNKNOWN = 10**6  # steps, for the schedule at the first step of a run that only a budget of time ends

log = logging.getLogger(__name__)


class Example(NamedTuple):
    """A sample of validation, in words: what is given (nothing where that is no text), what is right, what is said."""

    given: str
    reference: str
    said: str
    words: Sequence[tuple[str, str, str]] = ()  # of a text each word, its right tag and what the model says


class Task(LightningModule):
    """A model, its loss and its optimizer. A task is a subclass that says which model and how to compute the loss.

    The loss of an optimizer step is the sum over all valid targets of all micro-batches on all ranks, divided by their
    number. Every micro-batch knows how many targets its rank has in the step, so one integer all-reduce a step gives
    the divisor; engines then average over ranks and micro-batches, and the loss is scaled up by just that.

    Args:
        build_model: makes the model, on whatever device is current; without memory (meta) it reads no weights.
        lora: adapters to add.
        trained: where the weights were taken from, if they are trained already: then only adapters train.
        checkpointing: which activations to keep.
        optimizer: makes the optimizer from the model.
        schedule: factor on the learning rate, by step.
        loss: what to minimise.
        compile_blocks: whether to `torch.compile` each block.
        seed: of the initial weights.
    """

    model_class: ClassVar[type[nn.Module]]  # made from a shape, parts by the names of `model_groups`, and sizes of data
    model_groups: ClassVar[tuple[str, ...]] = ("embedding", "head", "encoding", "norm", "attention", "ffn")
    content: ClassVar[str] = "text"  # of the samples that it reads
    targets: ClassVar[str] = "tokens"  # what is counted of them, in words
    counts_targets: ClassVar[bool] = False  # whether it reads as many units as it has targets, or data count them
    weighs_classes: ClassVar[bool] = False  # whether loss.class_weights has labels to weigh
    unit: ClassVar[str] = "tokens"  # what the model reads, as speeds and totals count it
    writes_text: ClassVar[bool] = False  # token by token
    takes_prompt: ClassVar[bool] = False  # for the samples that it writes in training
    between = "|"  # what is given or right and what the model makes of it, where both stand in a line
    told: ClassVar[int] = 1  # samples that a line of the log has room for
    predictor: ClassVar[type[Predictor] | None] = None  # what `txtrain predict` does with its models
    view: ClassVar[type[View]]  # how its samples are shown in pictures

    def __init__(
        self,
        *,
        build_model: Callable[[], nn.Module],
        lora: LoRA,
        checkpointing: CheckpointingPolicy,
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Schedule,
        loss: Loss,
        trained: Path | None = None,
        compile_blocks: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.build_model, self.lora, self.trained, self.checkpointing = build_model, lora, trained, checkpointing
        self.new_optimizer, self.schedule, self.loss = optimizer, schedule, loss
        self.compile_blocks, self.seed = compile_blocks, seed
        self.model: nn.Module = None  # type: ignore[assignment]  # until `configure_model`
        self.steps_in_time: Callable[[], float] = lambda: math.inf  # that a budget of time is enough for
        self.accepts: Callable[[], bool] | None = None  # asked before each optimizer step, if set
        self.base: dict[str, str | None] | None = None
        self.merged: Set[str] = frozenset()  # names of frozen weights that change as adapters are merged into them
        self.grad_norm: Tensor | None = None
        self.tokens_seen: int | Tensor = 0  # or images or frames, by `unit`
        self.validation: dict[str, float] = {}
        self._part: int | None = None  # the data set that is validated, by its number
        self.validation_targets = 0

    @classmethod
    def check_settings(cls, **settings: Any) -> None:
        """Refuses values of the `task` group that it cannot work with, before any data are read."""

    def write_sample(self, prompt: str | None) -> tuple[str, str]:
        """What the model is given and what it makes of it, if that is no text that goes on token by token.

        Unless a task says otherwise, it is what is right of a few samples of validation, and what the model says.

        Args:
            prompt: to be given; None takes something of the validation set.

        Every rank must call it.
        """
        found = self.examples(fair_sample(len(self.data.samples("validation")), self.told))
        right = [f"{given} → {reference}" if given else reference for given, reference, *_ in found]
        return " · ".join(right), " · ".join(example.said for example in found)

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """The scores that the model gives in a pass over a batch."""

    @abstractmethod
    def examples(self, index: Sequence[int]) -> list[Example]:
        """Samples of validation and what the model says of them. Every rank must call it, with the same samples."""

    def validation_batch(self, index: Sequence[int]) -> Batch:
        """Samples of validation by their numbers, on the device and in the type that the model takes."""
        batch = self.data.samples("validation").batch(np.asarray(index, dtype=np.int64))
        converted = self.trainer.precision_plugin.convert_input(batch)
        return self.trainer.strategy.batch_to_device(converted)

    @abstractmethod
    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What to minimise and the plain cross-entropy, each summed over the batch's valid targets."""

    # The model

    def configure_model(self) -> None:
        """Builds, adapts, checkpoints, compiles, shards: in this order, whatever the strategy."""
        if self.model is not None:
            return
        self.model = made_once(self.trainer.strategy, self._new_model)
        self.checkpointing.apply(self.model)
        if self.compile_blocks:
            for module in self.model.modules():
                if isinstance(module, Block):
                    module.compile()
        shard(self.trainer.strategy, self.model)

    def _new_model(self, device: torch.device) -> nn.Module:
        # Every rank and strategy starts from the same weights, drawn on the CPU (in bfloat16 with bf16-true).
        with torch.random.fork_rng(devices=[]), device:
            torch.manual_seed(self.seed)
            model = self.build_model()
            self.lora.apply(model, adapt_only=self.trained is not None)
            if self.lora.merge_every:
                self.merged = {f"{name}.weight" for name, _ in adapters(model)}
            self._identify_base(model)
            self.lora.quantise(model)
        return model

    def _identify_base(self, model: nn.Module) -> None:
        """Notes where the frozen weights are, and what they are, of which checkpoints hold none."""
        if self.trained is None or not self.lora.rank or not self.lora.keeps_base:
            return
        same = None
        if self.global_rank == 0:
            as_stored = torch.get_default_dtype() == torch.float32
            same = frozen_hash(model) if as_stored else base_hash(self.build_model, self.lora)
        self.base = {"path": str(self.trained), "sha256": same}

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.new_optimizer(self.model)
        if not getattr(self.trainer.strategy, "keeps_masters", False):
            optimizer = in_float32(optimizer, self.model, seed=self.seed, step=lambda: self.trainer.global_step)
        total = self._total_steps()
        scheduler = LambdaLR(optimizer, lambda step: self._scale(step, total) * self.lora.rewarm(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _scale(self, step: int, total: float) -> float:
        """The schedule's factor, by whichever of steps and time is expected to end training first."""
        end = min(total, self.steps_in_time())
        return self.schedule.scale(step, max(round(end), 1) if end < math.inf else UNKNOWN)

    def _total_steps(self) -> float:
        """Of the run; Lightning's estimate makes loaders before they can be told where a resumed run goes on."""
        trainer: Any = self.trainer
        ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            ends.append(trainer.max_epochs * trainer.datamodule.steps_in_epoch)
        return min(ends, default=math.inf)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        self.grad_norm = clip_gradients(self, gradient_clip_val)

    def length(self, batch: Batch) -> int:
        """Of the sequences that the model reads."""
        return batch["tokens"].size(1)

    def flops(self, batch: Batch) -> Tensor | float:
        """Operations of forward and backward for a micro-batch, padding included (`txtrain.model.flops`)."""
        model: Any = self.model
        flow = Flow(rows=len(batch["targets"]), length=self.length(batch))
        frames = batch["frames"].size(1) if "frames" in batch else 0
        total = embedding_flops(model.embedding, flow, frames) + stack_flops(model.stack, flow)
        return total + self.scored(batch) * head_flops(model.head, 1, trained=flow.trained)

    def scored(self, batch: Batch) -> Tensor | int:
        """How many vectors the head reads."""
        return batch["tokens"].numel()

    # One optimizer step

    def on_fit_start(self) -> None:
        # Ranks draw different dropout masks; a resumed run's generators are restored after this.
        torch.manual_seed(self.seed + 1 + self.global_rank)

    def on_train_start(self) -> None:
        # A restored optimizer has the learning rate of the schedule that it was saved with, whose end may have moved.
        scheduler = self.lr_schedulers()
        for group, peak, scale in zip(
            scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = peak * scale(scheduler.last_epoch)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        accumulation = self.trainer.accumulate_grad_batches
        if batch_index % accumulation == 0:
            counts = torch.stack([batch["step_tokens"], batch["step_read"]])
            self._step_targets, self._step_read = self._sum_over_ranks(counts).unbind()
            self._step_weight = self._step_targets.clamp(min=1)
            if "step_weight" in batch:
                weighed = self._sum_over_ranks(batch["step_weight"]).clamp(min=1)
                self._step_weight = weighed.to(widest_float(self.device)) / WEIGHT_UNITS
            self._step_entropy = torch.zeros((), dtype=widest_float(self.device), device=self.device)
        objective, entropy = self.losses(batch)
        self._step_entropy += entropy
        if (batch_index + 1) % accumulation == 0:
            self.tokens_seen = self.tokens_seen + self._step_read
        divisor = self._step_weight
        if divisor.is_floating_point():
            divisor = divisor.to(objective.dtype)
        return objective * (accumulation * self.trainer.world_size) / divisor

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        if self.accepts is None or optimizer_closure is None or (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        loss = optimizer_closure()  # forward and backward
        if self.accepts():
            super().optimizer_step(epoch, batch_idx, optimizer, lambda: loss)
        else:
            drop_step(self, optimizer)

    def step_sums(self) -> tuple[Tensor, Tensor]:
        """Of the latest optimizer step: the cross-entropy on this rank, and the valid targets on all of them."""
        return self._step_entropy, self._step_targets

    def mean_losses(self, steps: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
        """Mean cross-entropy over all ranks of each of the steps that `step_sums` told. Every rank must call it."""
        entropies, targets = (torch.stack(parts) for parts in zip(*steps, strict=True))
        return (self._sum_over_ranks(entropies) / targets.clamp(min=1)).tolist()

    def step_loss(self) -> float:
        """Mean cross-entropy of the latest optimizer step over all ranks. Every rank must call it."""
        return self.mean_losses([self.step_sums()])[0]

    # Validation

    @property
    def data(self) -> Any:
        """The data set that is read: in validation the one that the batch is of, else the first or only one."""
        return self.validated[0]

    @property
    def validated(self) -> Sequence[Any]:
        """The data sets that `metrics` are of."""
        parts = list(self.trainer.datamodule.parts.values())
        return parts if self._part is None else [parts[self._part]]

    def on_validation_epoch_start(self) -> None:
        self._sums: list[dict[str, Tensor]] = [{} for _ in self.validated]

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        self._part, before = dataloader_idx, self._sums[dataloader_idx]
        found = self.sums(batch)
        self._sums[dataloader_idx] = {name: before[name] + found[name] for name in found} if before else found

    def on_validation_epoch_end(self) -> None:
        each = [{name: self._sum_over_ranks(value).cpu() for name, value in sums.items()} for sums in self._sums]
        names: list[str] = list(self.trainer.datamodule.parts)
        of_sets: dict[str, float] = {}
        for part in range(len(names)) if len(names) > 1 else ():
            self._part = part
            found = self.metrics(each[part])
            of_sets |= {f"validation/{names[part]}/{name}": value for name, value in found.items()}
        self._part = None
        whole = {name: torch.stack([sums[name] for sums in each]).sum(0) for name in each[0]}
        self.validation_targets = int(whole["targets"])
        self.validation = {f"validation/{name}": value for name, value in self.metrics(whole).items()} | of_sets
        # For Lightning's callbacks, on the CPU and exact: `self.log` would round to float32 and average over batches.
        exact = {name: torch.tensor(value, dtype=torch.float64) for name, value in self.validation.items()}
        self.trainer.callback_metrics.update(exact)

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """What is counted of a batch of validation, to be added up over all batches and ranks: float64 or int64."""
        _, entropy = self.losses(batch)
        return {"entropy": entropy, "targets": (batch["targets"] != IGNORED).sum()}

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """What validation reports, from what `sums` has counted: among others the mean `loss`, in nats."""
        return {"loss": (sums["entropy"] / sums["targets"]).item()}

    @classmethod
    def measured(cls, data: Any) -> tuple[str, ...]:
        """The names of what `metrics` reports, once the data are prepared."""
        return ("loss",)

    def report(self) -> dict[str, Any]:
        """What summary.json says besides of the last validation, plain."""
        return {}

    # What goes on

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tokens_seen"] = int(self.tokens_seen)
        checkpoint["base"] = self.base
        checkpoint["rules"] = list(RULES)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.tokens_seen = self._recount(checkpoint)
        if self.global_rank == 0:
            warn_of_new_rules(checkpoint.get("rules", ()), self.model)
        if self.base is None or self.global_rank:
            return
        assert self.base["sha256"], "the first process has taken it"
        if not is_base(checkpoint["base"]["sha256"], self.base["sha256"], self.build_model, self.lora):
            raise UserError(
                f"the weights in {self.base['path']} are not those that the adapters were trained on (their SHA-256 "
                "differs): put these back, or start a new run"
            )

    def _recount(self, checkpoint: dict[str, Any]) -> int:
        """How much the model has read, which checkpoints of some tasks once counted by targets."""
        counted: int = checkpoint["tokens_seen"]
        if UNITS_READ in checkpoint.get("rules", ()) or self.counts_targets:
            return counted
        counted = self.trainer.datamodule.units_read(checkpoint["global_step"])
        if self.global_rank == 0:
            log.warning(
                "train/%s now counts all that the model reads but padding, and this run counted targets: "
                "it goes on from %d, which is what was read so far.",
                self.unit,
                counted,
            )
        return counted

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(value.clone(), reduce_op="sum")
