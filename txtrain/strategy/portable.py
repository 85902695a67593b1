"""Checkpoints that any number of devices under any strategy can go on from: every strategy here writes the same files.

Each weight and each of its optimizer's moments is gathered whole, under its name, by one process, which writes it. To
read, each process takes of each tensor what it holds. A copy is exact, so nothing is lost on the way.
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from txtrain.errors import UserError
from txtrain.logger import LOG_ONLY
from txtrain.model.finite import is_finite
from txtrain.optim import HalfOptimizer
from txtrain.saving import (
    AVERAGE,
    BASE,
    MOMENT,
    WEIGHT,
    Part,
    Reader,
    check_checkpoint,
    pack_state,
    read_manifest,
    read_state,
    share_out,
    write_part,
)

log = logging.getLogger(__name__)


class Portable(Strategy):
    """Mixed into a strategy: what it saves and restores. Writing goes on in a thread when `save_checkpoint` returns.

    Attributes:
        writing: this process's files of the latest checkpoint; its result may be an OSError.
        averaged: whether the model has the averages of its weights now, and they have its weights.
    """

    restore_checkpoint_after_setup = True  # into the weights and the optimizer that are really used
    lightning_restore_optimizer = True
    writing: "Future[list[Part]] | None" = None
    averaged = False

    @property
    @abstractmethod
    def option(self) -> str:
        """The strategy's name on the command line."""

    # Lightning asks for these; all tensors are in files of their own instead.

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return {"lr": [group["lr"] for group in optimizer.param_groups]}

    # Out

    def save_checkpoint(self, checkpoint: Mapping[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Copies all that belongs to the checkpoint to the CPU's memory and begins to write it, on all ranks."""
        averaged = self.averaged
        if averaged:  # within a validation
            self.exchange_averages()
        self._begin_to_write(Path(filepath), self._whole_tensors(), checkpoint)
        if averaged:
            self.exchange_averages()

    def save_frozen(self, folder: Path) -> None:
        """The same for the weights that never change, of which checkpoints hold none."""
        frozen = ((WEIGHT + name, self._whole_weight(parameter)) for name, parameter in self.frozen().items())
        self._begin_to_write(folder, frozen, {})

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimizer changes."""
        return {name: parameter for name, parameter in self._weights() if parameter.requires_grad}

    def changing(self) -> dict[str, nn.Parameter]:
        """The parameters that a checkpoint holds: those that train, and those that adapters are merged into."""
        merged = getattr(self.lightning_module, "merged", ())
        return {name: parameter for name, parameter in self._weights() if parameter.requires_grad or name in merged}

    def frozen(self) -> dict[str, nn.Parameter]:
        """The parameters that stay as they are, unless they are those of a model that was trained before."""
        if getattr(self.lightning_module, "base", None) is not None:
            return {}
        changing = self.changing()
        return {name: parameter for name, parameter in self._weights() if name not in changing}

    def _begin_to_write(self, folder: Path, tensors: Iterable[tuple[str, Tensor]], state: Mapping[str, Any]) -> None:
        mine = share_out(tensors, rank=self._rank, ranks=self._ranks)
        packed = pack_state(state) if self._rank == 0 else None
        writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.writing = writer.submit(write_part, folder, rank=self._rank, tensors=mine, state=packed)
        writer.shutdown(wait=False)

    def _whole_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that changes, in the same order on all ranks."""
        for name, parameter in self.changing().items():
            yield WEIGHT + name, self._whole_weight(parameter)
        for name, parameter in self.trained().items():
            for key, value in self._whole_moments(parameter):
                yield f"{MOMENT}{name}/{key}", value

    def _weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        task: Any = self.lightning_module
        return task.model.named_parameters()

    # In

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """What Lightning restores; the first process's choice of the checkpoint counts."""
        self._since, path = time.monotonic(), Path(self.broadcast(str(checkpoint_path)))
        frozen = self.frozen()
        if frozen and self._rank == 0:
            check_checkpoint(path.parent / BASE)
        self._reader = Reader(path, *([path.parent / BASE] if frozen else []))
        self._tell_change(read_manifest(path))
        return read_state(path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        parameters = self.changing() | self.frozen()
        saved = {name.removeprefix(WEIGHT) for name in self._reader.names(WEIGHT)}
        if saved != parameters.keys():
            name = min(saved ^ parameters.keys())
            raise UserError(f"the checkpoint is of another model ({name} is in one of them only): start a new run")
        for name, parameter in parameters.items():
            value = self._reader[WEIGHT + name]
            if not is_finite(value):
                raise UserError(f"the checkpoint's weights are not finite ({name}): start a new run")
            self._set_weight(parameter, value)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        self._tell_widened()
        moments = self._reader.moments()
        self._set_moments({parameter: moments[name] for name, parameter in self.trained().items()})
        for group, rate in zip(self.optimizers[0].param_groups, checkpoint["optimizer_states"][0]["lr"], strict=True):
            group["lr"] = rate
        del self._reader
        if self._rank == 0:
            log.info("Weights and optimizer restored in %.2f s", time.monotonic() - self._since, extra=LOG_ONLY)

    # What is changed besides by the optimizer

    def whole_weight(self, parameter: nn.Parameter) -> Tensor:
        """A weight as the optimizer has it, whole on all ranks; each must call it."""
        return self._whole_weight(parameter)

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Puts a whole weight, the same on all ranks, into the model and the optimizer."""
        self._set_weight(parameter, value)

    def held_moments(self) -> Iterator[Tensor]:
        """What this process holds of the optimizer's moments, whole or in pieces."""
        for state in self.optimizers[0].state.values():
            yield from (_held(value) for value in state.values() if isinstance(value, Tensor))

    def whole_moments(self, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        """A weight's moments by key, whole on all ranks; each must call it."""
        return self._whole_moments(parameter)

    @torch.no_grad()
    def follow_weights(self, share: float) -> None:
        """Moves the average of each weight that trains by a share of the way towards it; the first is the weight."""
        for state, weight in self._averageable():
            if AVERAGE in state:
                _held(state[AVERAGE]).lerp_(_held(weight), share)
            else:
                state[AVERAGE] = weight.detach().clone()

    @torch.no_grad()
    def exchange_averages(self) -> None:
        """Gives the model the averages of its weights, or its weights back; nothing if there are none yet."""
        pairs = [(_held(weight), _held(state[AVERAGE])) for state, weight in self._averageable() if AVERAGE in state]
        for weight, average in pairs:
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)
        self.averaged = bool(pairs) and not self.averaged

    def _averageable(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """What the optimizer remembers of a tensor that it works on, and the tensor."""
        for parameter in self.trained().values():
            yield self.optimizers[0].state[parameter], parameter

    def forget_moments(self, parameters: Iterable[nn.Parameter]) -> None:
        """Zeroes what the optimizer remembers of the gradients of these; it has made a step before."""
        for parameter in parameters:
            for moment in self.optimizers[0].state[parameter].values():
                if isinstance(moment, Tensor) and moment.dim():
                    moment.zero_()

    def _tell_change(self, manifest: Mapping[str, Any]) -> None:
        before, now = (manifest["ranks"], manifest["strategy"]), (self._ranks, self.option)
        if before != now and self._rank == 0:
            other_masks = "; dropout draws other masks than it would have" if before[0] != now[0] else ""
            log.info(
                "Checkpoint of strategy=%s on %d devices: shared out anew for strategy=%s on %d%s.",
                *before[::-1],
                *now[::-1],
                other_masks,
            )

    def _tell_widened(self) -> None:
        """Of a checkpoint from before moments were in float32."""
        names = [
            *self._reader.names(MOMENT),
            *(WEIGHT + name for name, p in self.trained().items() if p in self._masters),
        ]
        if self._rank == 0 and any(self._reader.has_16_bits(name) for name in names):
            log.warning(
                "The checkpoint is of an earlier version, which with trainer.precision=bf16-true kept the optimizer's "
                "moments and norms in 16 bits only: moments go on in float32, small weights get float32 masters, and "
                "losses differ from what they would have been."
            )

    # How a process holds a tensor: whole, or as torch's shards. DeepSpeed holds it otherwise.

    def _whole_weight(self, parameter: nn.Parameter) -> Tensor:
        return _whole(self._masters.get(parameter, parameter))

    def _whole_moments(self, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        for key, value in sorted(self.optimizers[0].state.get(parameter, {}).items()):
            if value is not None:
                yield key, _whole(torch.as_tensor(value))

    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        held = _held_like(parameter, value)
        with torch.no_grad():
            parameter.copy_(held)
            if parameter in self._masters:
                self._masters[parameter].copy_(held)

    def _set_moments(self, moments: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        optimizer = self.optimizers[0]
        order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {
            number: {key: _held_like(parameter, value) for key, value in moments[parameter].items()}
            for number, parameter in enumerate(order)
        }
        state = {number: held for number, held in state.items() if held}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    @property
    def _masters(self) -> Mapping[nn.Parameter, Tensor]:
        """Float32 copies that the optimizer keeps of weights in 16 bits."""
        return next((optimizer.masters for optimizer in self.optimizers if isinstance(optimizer, HalfOptimizer)), {})

    @property
    def _rank(self) -> int:
        return getattr(self, "global_rank", 0)

    @property
    def _ranks(self) -> int:
        return getattr(self, "world_size", 1)


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor on every rank; each must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _held(tensor: Tensor) -> Tensor:
    """The memory in which this process holds a tensor or its shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _held_like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Of a whole tensor, what this rank holds of a parameter of its shape; a count of steps is held by all."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
