"""DeepSpeed's ZeRO: optimizer state, gradients and weights in shards, on CPUs as well as on GPUs."""

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from filelock import FileLock
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.cpp_extension import _get_build_directory

from txtrain.errors import UserError
from txtrain.saving import AVERAGE
from txtrain.strategy import shards
from txtrain.strategy.portable import Portable

log = logging.getLogger(__name__)


class DeepSpeed(Portable, DeepSpeedStrategy):
    """ZeRO (https://arxiv.org/abs/1910.02054). Stage 1 shards the optimizer state, 2 gradients too, 3 weights too.

    Args:
        zero_optimization: DeepSpeed's section of this name (https://www.deepspeed.ai/docs/config-json/).
        aio: DeepSpeed's section for NVMe offload.
    """

    flattens_parameters: ClassVar[bool] = True
    keeps_masters: ClassVar[bool] = True  # in float32, of all weights that train

    def __init__(self, *, zero_optimization: dict[str, Any], aio: dict[str, Any] | None = None) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            do = "pip install deepspeed" if sys.platform == "linux" else "strategy=fsdp (DeepSpeed is for Linux only)"
            raise UserError(f"strategy=deepspeed_* needs DeepSpeed, which is not installed: type {do}")
        _add_ninja_to_path()
        with _quiet():
            check_section(zero_optimization)
            check_operations(zero_optimization)
            config = {"zero_optimization": zero_optimization, "zero_allow_untested_optimizer": True}
            config["train_micro_batch_size_per_gpu"] = 1  # serves only DeepSpeed's own report of throughput
            super().__init__(config=config | ({"aio": aio} if aio else {}), logging_level=logging.ERROR)

    # On CPUs: Lightning refuses them, and three overrides are all that is needed.

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0) if self._on_cpu else super().root_device

    def setup_environment(self) -> None:
        # DeepSpeed still calls collectives by names that torch has replaced.
        warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
        DDPStrategy.setup_environment(self)  # passes over the refusal

    def setup_distributed(self) -> None:
        if not self._on_cpu:
            super().setup_distributed()
            return
        import deepspeed

        # This op would need a C++ compiler and a minute at the first run, for what gloo does too.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    # The model is built whole (on each machine once), then cut up by DeepSpeed.

    @contextlib.contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        yield

    def init_deepspeed(self) -> None:
        """As in Lightning, without the warning that DeepSpeed clips by itself: the task's hook leaves it to it."""
        if self.lightning_module.trainer.training:
            self._initialize_deepspeed_train(self.model)
        else:
            with _quiet():
                self._cut(self.model)
                self._initialize_deepspeed_inference(self.model)

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: LambdaLR | None = None
    ) -> tuple[Any, Optimizer]:
        if self._offloads_optimizer:
            # Without a DeepSpeed optimizer for CPUs DeepSpeed refuses to go on unless told.
            self.config["zero_force_ds_cpu_optimizer"] = False
            if type(optimizer) is torch.optim.AdamW and (cpu_adam := load_cpu_adam()):
                optimizer = cpu_adam(_without_torchs_own(optimizer.param_groups), **_adam_defaults(optimizer))
                lr_scheduler = LambdaLR(optimizer, lr_scheduler.lr_lambdas) if lr_scheduler else None
        with _quiet():
            self._cut(model)  # after the optimizer is made, which looks at shapes
            return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)

    def _cut(self, model: nn.Module) -> None:
        if self.cuts_weights:
            shards.cut(model, self.config)

    # Checkpoints

    @property
    def option(self) -> str:
        stage = self.config["zero_optimization"]["stage"]
        return f"deepspeed_zero{stage}" + ("_offload" if self._offloads_optimizer else "")

    @property
    def cuts_weights(self) -> bool:
        return self.config["zero_optimization"]["stage"] == 3

    @property
    def _offloads_optimizer(self) -> bool:
        offload = self.config["zero_optimization"].get("offload_optimizer") or {}
        return offload.get("device", "none") != "none"

    def _whole_weight(self, parameter: nn.Parameter) -> Tensor:
        return shards.whole_weight(parameter)

    def _whole_moments(self, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        return shards.whole_moments(self.optimizers[0], parameter)

    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        shards.set_weight(parameter, value)

    def _set_moments(self, moments: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        shards.set_moments(self.optimizers[0], moments)

    def held_moments(self) -> Iterator[Tensor]:
        zero: Any = self.optimizers[0]
        for state in zero.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def forget_moments(self, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            moments = {key: value for key, value in self._whole_moments(parameter) if value.dim()}
            zeros = {key: torch.zeros_like(value) for key, value in moments.items()}
            self._set_moments({parameter: zeros})

    def exchange_averages(self) -> None:
        for parameter in self.trained().values():
            average = dict(self._whole_moments(parameter)).get(AVERAGE)
            if average is None:
                return
            average, weight = average.clone(), self._whole_weight(parameter).clone()
            self._set_weight(parameter, average)
            self._set_moments({parameter: {AVERAGE: weight}})
        self.averaged = not self.averaged

    def _averageable(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        zero: Any = self.optimizers[0]
        for flat in shards.flat_pieces(zero):
            yield zero.optimizer.state[flat], flat

    # Gradients

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        # Lightning has divided the loss by the number of micro-batches already; DeepSpeed would a second time.
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        norm = self.deepspeed_engine.get_global_grad_norm()
        self.lightning_module.grad_norm = None if norm is None else torch.as_tensor(norm)
        return output


def check_section(zero_optimization: dict[str, Any]) -> None:
    """Refuses a key or value that DeepSpeed does not know, by its own schema."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**zero_optimization)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, ("strategy.zero_optimization", *first["loc"])))
        raise UserError(
            f"{path} is {first['input']}, which DeepSpeed refuses ({first['msg']}): "
            "see zero_optimization in https://www.deepspeed.ai/docs/config-json/"
        ) from error


def check_operations(zero_optimization: dict[str, Any]) -> None:
    """Refuses what needs a compiled operation that there is not here, or a folder that is not named."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops.op_builder import AsyncIOBuilder

    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"):
        if zero_optimization.get(key) and get_accelerator().device_name() == "cpu":
            typed = f"strategy.zero_optimization.{key}"
            raise UserError(f"{typed}=true needs GPUs, since DeepSpeed quantises on them only: type {typed}=false")
    for key in ("offload_optimizer", "offload_param"):
        offload, typed = zero_optimization.get(key) or {}, f"strategy.zero_optimization.{key}"
        if offload.get("device") != "nvme":
            continue
        if not offload.get("nvme_path"):
            raise UserError(f"{typed}.device=nvme has no folder: type {typed}.nvme_path=FOLDER")
        if not AsyncIOBuilder().is_compatible():
            raise UserError(f"{typed}.device=nvme needs libaio and a C++ compiler: type apt install libaio-dev g++")


def load_cpu_adam() -> Callable[..., Optimizer] | None:
    """DeepSpeed's Adam for CPUs, compiled at its first use; None, with one line that says so, where that fails."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import CPUAdamBuilder

    log.info("Optimizer: DeepSpeed's AdamW for CPUs, compiled when it is first used here, in a minute or two")
    try:
        with _quiet(), _no_lock_left("cpu_adam"):
            CPUAdamBuilder().load(verbose=False)
    except Exception as error:  # whatever a compiler may say
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.info("Optimizer: torch's AdamW, since DeepSpeed's for CPUs cannot be compiled (%s)", reason)
        return None
    return DeepSpeedCPUAdam


@contextlib.contextmanager
def _no_lock_left(operation: str) -> Iterator[None]:
    """Around the load of a compiled operation, which torch locks by a file: a process killed meanwhile leaves it, and
    all later ones would wait for it for ever. The system's lock ends with its process; who has it may remove the file.
    """
    folder = Path(_get_build_directory(operation, verbose=False))
    with FileLock(folder / "txtrain.lock"):
        (folder / "lock").unlink(missing_ok=True)
        yield


def _without_torchs_own(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups with what any Adam has, and the peak learning rate under the schedule."""
    kept = ("params", "lr", "initial_lr", "betas", "eps", "weight_decay")
    return [{key: group[key] for key in kept if key in group} for group in groups]


def _adam_defaults(optimizer: torch.optim.AdamW) -> dict[str, Any]:
    return {key: optimizer.defaults[key] for key in ("lr", "betas", "eps", "weight_decay")}


def _add_ninja_to_path() -> None:
    """DeepSpeed compiles with ninja, which the environment has but does not show unless it is activated."""
    folder = Path(sys.executable).parent
    if shutil.which("ninja") is None and (folder / "ninja").exists():
        os.environ["PATH"] += os.pathsep + str(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what DeepSpeed prints and warns of at import and set-up."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
