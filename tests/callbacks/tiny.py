"""A task and its data that are as small as can be, with what the callbacks ask of the real ones."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from txtrain.callbacks import new_callbacks
from txtrain.callbacks.averaging import Averaging
from txtrain.callbacks.samples import Samples
from txtrain.data.loader import EvaluationLoader, StepLoader
from txtrain.data.order import Shuffled
from txtrain.model import Decoder
from txtrain.model.lora import LoRA
from txtrain.saving import Save
from txtrain.strategy import OneDevice
from txtrain.train import watch

VOCABULARY, LENGTH = 11, 8


class TinyTask(LightningModule):
    """Scores each next token from the token itself, with dropout."""

    model_class = Decoder
    writes_text = True
    between = ""
    unit = "tokens"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Embedding(VOCABULARY, 16), nn.Dropout(0.3), nn.Linear(16, VOCABULARY))
        self.model.max_len = LENGTH
        self.lora = LoRA()
        self.tokens_seen = 0
        self.grad_norm: Tensor | None = None

    @property
    def data(self) -> Any:
        return self.trainer.datamodule

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.grad_norm = nn.utils.get_total_norm([weight.grad for weight in self.model.parameters()])

    def length(self, batch: dict[str, Tensor]) -> int:
        return LENGTH

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.model(batch["tokens"]).transpose(1, 2), batch["targets"], reduction="sum")

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        accumulation = self.trainer.accumulate_grad_batches
        if index % accumulation == 0:
            self.step_sum, self.step_tokens = 0.0, int(batch["step_tokens"])
        loss = self.loss(batch)
        self.step_sum += loss.item()
        if (index + 1) % accumulation == 0:
            self.tokens_seen += self.step_tokens
        return loss * accumulation / self.step_tokens

    def step_sums(self) -> tuple[float, int]:
        return self.step_sum, self.step_tokens

    def mean_losses(self, steps: list[tuple[float, int]]) -> list[float]:
        return [total / tokens for total, tokens in steps]

    def step_loss(self) -> float:
        return self.step_sum / self.step_tokens

    def flops(self, batch: dict[str, Tensor]) -> float:
        return 6.0 * batch["tokens"].numel()

    def on_validation_epoch_start(self) -> None:
        self.losses = torch.zeros(0)

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        torch.rand(3)  # validation may draw random numbers: training must not feel it
        self.losses = torch.cat([self.losses, self.loss(batch)[None] / 11 / LENGTH])

    def on_validation_epoch_end(self) -> None:
        loss = self.losses.mean()
        self.validation = {"validation/loss": loss.item(), "validation/accuracy": (-loss).exp().item()}
        self.trainer.callback_metrics.update({name: torch.tensor(self.validation[name]) for name in self.validation})

    def report(self) -> dict[str, Any]:
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tokens_seen"] = self.tokens_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.tokens_seen = checkpoint["tokens_seen"]


class Windows:
    """Arithmetic sequences modulo the vocabulary."""

    def __len__(self) -> int:
        return 22

    def batch(self, index: Any, epoch: int = 0) -> dict[str, Tensor]:
        rows = torch.as_tensor(index)[:, None]
        tokens = (rows + torch.arange(LENGTH + 1) * (1 + rows % 3)) % VOCABULARY
        targets = torch.where(rows >= 0, tokens[:, 1:], -100)
        return {"tokens": tokens[:, :-1], "targets": targets, "index": rows[:, 0]}


class Letters:
    end_of_text = VOCABULARY - 1
    vocab_size = VOCABULARY
    opening: tuple[int, ...] = ()

    def decode(self, tokens: list[int]) -> str:
        return "".join("abcdefghij\n"[token] for token in tokens)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [["abcdefghij\n".index(letter) for letter in text] for text in texts]


class TinyData(LightningDataModule):
    """Four steps an epoch, the last of them cut short."""

    seq_len, batch_size, end_tokens = LENGTH, 6, frozenset({Letters.end_of_text})
    documents_apart = padded = False

    def __init__(self, accumulation: int = 1) -> None:
        super().__init__()
        self.steps_of = accumulation
        self.tokenizer = Letters()

    def prompt(self, text: str | None) -> list[int]:
        return (
            self.tokenizer.encode_batch([text])[0] if text else next(iter(self.val_dataloader()))["tokens"][0].tolist()
        )

    def shown_prompt(self, prompt: list[int]) -> str:
        return self.tokenizer.decode(prompt)

    def description(self) -> str:
        return "22 sequences"

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": VOCABULARY, "max_len": LENGTH}

    def details(self) -> dict[str, str]:
        return {}

    def planned(self, steps: float) -> dict[str, str]:
        return {}

    def locate(self, index: int) -> tuple[str | None, int]:
        return None, index

    def accumulation(self, devices: int) -> int:
        return self.steps_of

    def batch_told(self, devices: int) -> str:
        return f"6 sequences of {LENGTH} a step: micro-batches of {6 // self.steps_of}"

    def train_dataloader(self) -> StepLoader:
        order = Shuffled(size=len(Windows()), batch_size=6, seed=0)
        return StepLoader(Windows(), order=order, micro=6 // self.steps_of, accumulation=self.steps_of)

    def val_dataloader(self) -> EvaluationLoader:
        order = Shuffled(size=len(Windows()), batch_size=11, seed=0)
        return EvaluationLoader(Windows(), order=order, micro=11, accumulation=1)


CONFIG = {
    "on_spike": "warn",
    "model": {"num_layers": 1, "dim": 16, "num_heads": 1},
    "encoding": {"_target_": "txtrain.model.encoding.none.NoEncoding"},
}


class Run:
    """One process's worth of a run: a trainer with all callbacks, and what it trained."""

    def __init__(
        self,
        run_dir: Path,
        *,
        max_steps: int = 10,
        accumulation: int = 1,
        every: int | str = 100,
        keep: int = 2,
        validate: int | None = None,
        loggers: list[Any] | None = None,
        samples: dict[str, Any] | None = None,
        extra: Any = (),
        averaging: Averaging | None = None,
        max_time: str | None = None,
        others: Any = (),
        best: str = "loss",
        **trainer: Any,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir, self.task, self.data = run_dir, TinyTask(), TinyData(accumulation)
        callbacks, self.summary = new_callbacks(
            run_dir=run_dir,
            config=CONFIG | {"trainer": {"max_time": max_time}},
            save=Save(every=every, keep=keep, best=best),
            samples=partial(Samples, **samples or {"length": 4}),
            averaging=averaging,
            others=others,
        )
        self.trainer = Trainer(
            strategy=OneDevice(device=torch.device("cpu")),
            accelerator="cpu",
            max_steps=max_steps,
            accumulate_grad_batches=accumulation,
            val_check_interval=validate * accumulation if validate else None,
            limit_val_batches=1.0 if validate else 0,
            check_val_every_n_epoch=None,
            callbacks=[*callbacks, *extra],
            logger=loggers or [],
            log_every_n_steps=trainer.pop("log_every_n_steps", 1),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=run_dir,
            **trainer,
        )

        watch(self.trainer, ["loss", "accuracy"])

    @property
    def checkpoints(self) -> Any:
        return self.trainer.checkpoint_callback

    def fit(self, checkpoint: Path | None = None) -> "Run":
        self.trainer.fit(self.task, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        return self

    def weights(self) -> list[Tensor]:
        return [weight.detach() for weight in self.task.model.parameters()]

    def optimizer(self) -> list[Tensor]:
        states = self.trainer.optimizers[0].state_dict()["state"].values()
        return [state[key] for state in states for key in sorted(state)]
