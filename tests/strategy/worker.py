"""What a test of several processes runs in each: small fits under the real strategies, on ragged batches.

Usage: worker.py OUTPUT CASES, where CASES is a JSON list of mappings with the arguments of `fit`, or of the action that
a mapping names.
"""

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path

import hydra
import torch
import yaml
from hydra.utils import instantiate
from lightning import Callback, Trainer

from txtrain import optim
from txtrain.data.loader import StepLoader
from txtrain.data.order import Shuffled
from txtrain.data.text import TextFiles
from txtrain.data.tokenizer import Byte
from txtrain.model import Decoder, Shape
from txtrain.model import encoding as encodings
from txtrain.model.attention import Attention
from txtrain.model.embed import Embedding
from txtrain.model.ffn import GatedFeedForward
from txtrain.model.head import Head, Loss
from txtrain.model.lora import LoRA
from txtrain.model.norm import PreNorm
from txtrain.schedule import Cosine
from txtrain.strategy import choose_strategy
from txtrain.task.causal_lm import CausalLM
from txtrain.trainer import divide_steps

VOCAB, LENGTH, SAMPLES, BATCH, STEPS = 17, 12, 44, 8, 20
CONF = Path(__file__).parents[2] / "conf"


class Ragged:
    """Random tokens with a pattern to learn, of which sample i has 1 + i % LENGTH valid targets.

    Positions are left to the model, or count from `first_position`.
    """

    def __init__(self, first_position=None):
        self.first_position = first_position

    def __len__(self):
        return SAMPLES

    def batch(self, index, epoch=0):
        index = torch.from_numpy(index)
        start = torch.where(index < 0, 0, index)[:, None]
        sequence = (start * 3 + torch.arange(LENGTH + 1) * (1 + start % 2)) % VOCAB
        valid = (torch.arange(LENGTH) <= start % LENGTH) & (index >= 0)[:, None]
        batch = {"tokens": sequence[:, :-1], "targets": torch.where(valid, sequence[:, 1:], -100), "index": index}
        if self.first_position is not None:
            batch["positions"] = (self.first_position + torch.arange(LENGTH)).expand(len(index), -1)
        return batch


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


class Watch(Callback):
    """What the running model's encoding was given and made of it, in the first forward pass."""

    def on_train_start(self, trainer, task):
        self.encoding, self.seen = task.model.stack.encoding, {}
        for name in ("tables", "embed", "bias"):
            setattr(self.encoding, name, partial(self.call, name, getattr(self.encoding, name)))

    def call(self, name, method, *arguments, **named):
        result = method(*arguments, **named)
        self.seen.setdefault(name, ((*arguments, *named.values()), result))
        return result


class Count(Callback):
    """The samples that were validated on this process, and the valid targets on all."""

    def __init__(self):
        self.index = []

    def on_validation_batch_end(self, trainer, task, outputs, batch, batch_idx, dataloader_idx=0):
        self.index += [number for number in batch["index"].tolist() if number >= 0]

    def on_validation_epoch_end(self, trainer, task):
        self.targets = int(trainer.strategy.reduce(task._sums[0]["targets"].clone(), reduce_op="sum"))


def new_strategy(name):
    node = yaml.safe_load((CONF / "strategy" / f"{name}.yaml").read_text())
    if name.startswith("deepspeed_zero3"):
        node["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # else weights this small stay whole
    return instantiate(node, _convert_="all")


def new_task(
    optimizer, arguments, *, lora=None, checkpointing="none", encoding="Rope", vocab_size=VOCAB, max_len=LENGTH
):
    lora = LoRA(**(lora or {}))
    return CausalLM(
        build_model=partial(
            Decoder,
            vocab_size=vocab_size,
            max_len=max_len,
            shape=Shape(dim=16, num_layers=2, num_heads=2),
            embedding=Embedding,
            head=Head,
            encoding=getattr(encodings, encoding),
            norm=PreNorm,
            attention=Attention,
            ffn=GatedFeedForward,
        ),
        lora=lora,
        trained=Path("random weights") if lora.quantises else None,
        checkpointing=instantiate(yaml.safe_load((CONF / "checkpointing" / f"{checkpointing}.yaml").read_text())),
        optimizer=partial(getattr(optim, optimizer), **arguments),
        schedule=Cosine(warmup=2),
        loss=Loss(z_loss=1e-3),
    )


def new_trainer(*, strategy, ranks, callbacks, accumulation=1, alike=False, first_position=None, **options):
    """A trainer, and the loader of this process: its share of each batch, or all of it in every process.

    The strategy is the name of an option, or makes one.
    """
    new = strategy if callable(strategy) else new_strategy(strategy)
    settings = {"max_steps": STEPS, "limit_val_batches": 0, "precision": "32"} | options
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=choose_strategy(new, accelerator="cpu", devices=ranks),
        accumulate_grad_batches=accumulation,
        callbacks=callbacks,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    shares = 1 if alike else ranks
    return trainer, StepLoader(
        Ragged(first_position),
        order=Shuffled(size=SAMPLES, batch_size=BATCH, seed=0),
        micro=-(-BATCH // (shares * accumulation)),
        accumulation=accumulation,
        rank=0 if alike else int(os.environ.get("LOCAL_RANK", 0)),
        ranks=shares,
    )


def fit(*, optimizer, arguments, lora=None, checkpointing="none", clip=None, **options):
    """Trains a few steps and returns what happened."""
    record = Record()
    trainer, loader = new_trainer(callbacks=[record], gradient_clip_val=clip, **options)
    task = new_task(optimizer, arguments, lora=lora, checkpointing=checkpointing)
    trainer.fit(task, train_dataloaders=loader, val_dataloaders=loader)
    names = ("losses", "norms", "rates", "optimizer", "held", "weights")
    return {name: getattr(record, name) for name in names}


def watch(*, encoding, **options):
    """What an encoding was given and made of it in the first forward pass, by method."""
    watching = Watch()
    trainer, loader = new_trainer(callbacks=[watching], max_steps=1, **options)
    task = new_task("sgd", {"lr": 0.1}, encoding=encoding)
    trainer.fit(task, train_dataloaders=loader, val_dataloaders=loader)
    return watching.seen


def validate(*, strategy, ranks, limit, **data):
    """Validates a model that was not trained, on text."""
    count = Count()
    trainer, _ = new_trainer(strategy=strategy, ranks=ranks, callbacks=[count], limit_val_batches=limit)
    text = TextFiles(tokenizer=Byte(), **data)
    text.prepare()
    divide_steps(trainer, text.accumulation(ranks))
    task = new_task("sgd", {"lr": 0.1}, vocab_size=text.tokenizer.vocab_size, max_len=text.seq_len)
    trainer.validate(task, datamodule=text, verbose=False)
    shares = [count.index]
    if ranks > 1:
        shares *= ranks
        torch.distributed.all_gather_object(shares, count.index)
    index = [number for share in shares for number in share]
    return {"targets": count.targets, "index": index, "metrics": task.validation}


def typed(*, overrides, ranks, **options):
    """Two steps under the strategy that is typed so; returns what the engine made of its section, and what came."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        strategy = instantiate(hydra.compose("train", overrides=overrides).strategy, _convert_="all")
    record = Record()
    trainer, loader = new_trainer(strategy=strategy, ranks=ranks, callbacks=[record], max_steps=2, **options)
    trainer.fit(new_task("adamw", {"lr": 0.01}), train_dataloaders=loader, val_dataloaders=loader)
    section = trainer.strategy.deepspeed_engine._config.zero_config.model_dump(mode="json", by_alias=True)
    return {"section": section, "losses": record.losses, "optimizer": record.optimizer}


ACTIONS = {action.__name__: action for action in (fit, watch, validate, typed)}


def main(output, cases, actions=ACTIONS):
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("txtrain").setLevel(logging.INFO)
    results = [actions[case.pop("action", "fit")](**case) for case in cases]
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        torch.save(results, output)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
