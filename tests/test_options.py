"""Every option of every axis trains, alone and in every pair with an option of another axis."""

from pathlib import Path

import hydra
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.pairwise import pairwise
from txtrain.config import config_directory, options
from txtrain.data.loader import StepLoader
from txtrain.data.order import Shuffled
from txtrain.train import model_function

TEXT = Path(__file__).parent / "golden" / "text.txt"
SIZES = ["model.dim=32", "model.num_layers=2", "model.num_heads=4", "model.num_kv_heads=2", "data.seq_len=48"]

AXES = {
    axis: [f"{axis}={option}" for option in options(config_directory(), axis)]
    for axis in ("encoding", "norm", "attention", "ffn", "checkpointing")
}
AXES["attention"] += ["attention.qk_norm=head", "attention.soft_cap=20"]
AXES["lora"] = ["lora.rank=0", *(f"lora.rank=4 lora.variant={variant}" for variant in ("lora", "rslora", "dora"))]
AXES["lora"] += [f"lora.rank=4 {word}" for word in ("lora.init=pissa", "lora.init=olora", "lora.base_dtype=bfloat16")]
AXES["data.packing"] = ["data.packing=concat", "data.packing=documents"]
ROWS = pairwise(AXES)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def compose(*overrides):
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        return hydra.compose("train", overrides=[word for override in overrides for word in override.split()])


def train(config, steps=20, learning_rate=1e-2):
    """Losses of each step, and the model."""
    parts = {group: instantiate(node, _convert_="all") for group, node in config.items() if OmegaConf.is_config(node)}
    data = parts["data"](tokenizer=parts["tokenizer"], seed=0)
    data.prepare()
    torch.manual_seed(0)
    model = model_function(parts)(vocab_size=data.tokenizer.vocab_size, max_len=data.seq_len)
    parts["lora"].apply(model)
    parts["checkpointing"].apply(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    loss, losses = parts["loss"], []
    samples = data.samples("train")
    loader = StepLoader(samples, order=Shuffled(size=len(samples), batch_size=4, seed=0), micro=4, accumulation=1)
    for _, batch in zip(range(steps), loader, strict=False):
        logits = model(batch["tokens"], batch.get("positions"), documents=batch.get("documents"))
        objective, _ = loss(logits, batch["targets"])
        optimizer.zero_grad()
        (objective / batch["step_tokens"]).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} receives no gradient"
                assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
            else:
                assert parameter.grad is None, f"{name} is frozen and has a gradient"
        optimizer.step()
        losses.append(objective.item() / batch["step_tokens"].item())
    return losses


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ",".join(row.values()).replace(" ", ","))
def test_every_pair_of_options_trains(row, cache):
    config = compose(
        *SIZES, "data=text", f"data.path={TEXT}", "tokenizer=byte", f"data.cache_dir={cache}", *row.values()
    )
    losses = train(config)
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
