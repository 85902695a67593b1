"""What a test of several processes runs in each: small fits under the real strategies, on ragged batches.

Usage: worker.py OUTPUT CASES, where CASES is a JSON list of mappings with the arguments of `fit`.
"""

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path

import torch
import yaml
from hydra.utils import instantiate
from lightning import Callback, Trainer

from txtrain import optim
from txtrain.data.loader import StepLoader
from txtrain.model import Decoder, Shape
from txtrain.model.attention import Attention
from txtrain.model.checkpointing import KeepAll
from txtrain.model.embed import Embedding
from txtrain.model.encoding import Rope
from txtrain.model.ffn import GatedFeedForward
from txtrain.model.head import Head, Loss
from txtrain.model.lora import LoRA
from txtrain.model.norm import PreNorm
from txtrain.schedule import Cosine
from txtrain.strategy import choose_strategy
from txtrain.task.causal_lm import CausalLM

VOCAB, LENGTH, SAMPLES, BATCH, STEPS = 17, 12, 44, 8, 8
STRATEGIES = Path(__file__).parents[2] / "conf" / "strategy"


class Ragged:
    """Random tokens with a pattern to learn, of which sample i has 1 + i % LENGTH valid targets."""

    def __len__(self):
        return SAMPLES

    def batch(self, index):
        index = torch.from_numpy(index)
        start = torch.where(index < 0, 0, index)[:, None]
        sequence = (start * 3 + torch.arange(LENGTH + 1) * (1 + start % 2)) % VOCAB
        valid = (torch.arange(LENGTH) <= start % LENGTH) & (index >= 0)[:, None]
        return {"tokens": sequence[:, :-1], "targets": torch.where(valid, sequence[:, 1:], -100), "index": index}


class Record(Callback):
    """Losses, gradient norms, learning rates of every step, and the weights at the end, whole."""

    def __init__(self):
        self.losses, self.norms, self.rates = [], [], []

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.losses.append(task.step_loss())
            self.norms.append(float(task.grad_norm))
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_end(self, trainer, task):
        self.optimizer = type(getattr(trainer.optimizers[0], "optimizer", trainer.optimizers[0])).__name__
        self.held = sum(held(parameter) for parameter in task.model.parameters())
        self.weights = {name: whole(parameter) for name, parameter in task.model.named_parameters()}


def held(parameter):
    """Elements of a weight that this process keeps between steps."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.numel() + parameter.ds_tensor.numel()
    return parameter.to_local().numel() if hasattr(parameter, "to_local") else parameter.numel()


def whole(parameter):
    if hasattr(parameter, "ds_tensor"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    parameter = parameter.detach()
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).clone()


def new_strategy(name):
    node = yaml.safe_load((STRATEGIES / f"{name}.yaml").read_text())
    if name.startswith("deepspeed_zero3"):
        node["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # else weights this small stay whole
    return instantiate(node, _convert_="all")


def new_task(optimizer, arguments, rank=0):
    return CausalLM(
        build_model=partial(
            Decoder,
            vocab_size=VOCAB,
            max_len=LENGTH,
            shape=Shape(dim=16, num_layers=2, num_heads=2),
            embedding=Embedding,
            head=Head,
            encoding=Rope,
            norm=PreNorm,
            attention=Attention,
            ffn=GatedFeedForward,
        ),
        lora=LoRA(rank=rank),
        checkpointing=KeepAll(),
        optimizer=partial(getattr(optim, optimizer), **arguments),
        schedule=Cosine(warmup=2),
        loss=Loss(z_loss=1e-3),
    )


def new_trainer(*, strategy, ranks, callbacks, accumulation=1, clip=None, precision="32", alike=False):
    """A trainer, and the loader of this process: its share of each batch, or all of it in every process."""
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=choose_strategy(new_strategy(strategy), accelerator="cpu", devices=ranks),
        max_steps=STEPS,
        precision=precision,
        gradient_clip_val=clip,
        accumulate_grad_batches=accumulation,
        callbacks=callbacks,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    shares = 1 if alike else ranks
    return trainer, StepLoader(
        Ragged(),
        batch_size=BATCH,
        micro=BATCH // shares // accumulation,
        accumulation=accumulation,
        rank=0 if alike else int(os.environ.get("LOCAL_RANK", 0)),
        ranks=shares,
    )


def fit(*, optimizer, arguments, rank=0, **options):
    """Trains a few steps and returns what happened."""
    record = Record()
    trainer, loader = new_trainer(callbacks=[record], **options)
    trainer.fit(new_task(optimizer, arguments, rank), train_dataloaders=loader, val_dataloaders=loader)
    names = ("losses", "norms", "rates", "optimizer", "held", "weights")
    return {name: getattr(record, name) for name in names}


def main(output, cases):
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("txtrain").setLevel(logging.INFO)
    results = [fit(**case) for case in cases]
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        torch.save(results, output)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
