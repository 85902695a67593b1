"""Optimizers: what decays, and that Muon is torch's Muon and AdamW in one."""

import copy

import pytest
import torch
from torch import nn

from txtrain.model import Decoder, Shape
from txtrain.model.attention import Attention
from txtrain.model.block import Block
from txtrain.model.embed import Embedding
from txtrain.model.encoding import Learned, NoEncoding
from txtrain.model.ffn import GatedFeedForward
from txtrain.model.head import Head
from txtrain.model.norm import PreNorm
from txtrain.optim import Muon, adamw, sgd
from txtrain.optim.groups import decay_groups, trainable

VOCAB, LENGTH = 19, 8


def new_model(encoding=NoEncoding, **changes):
    torch.manual_seed(0)
    return Decoder(
        vocab_size=VOCAB,
        max_len=LENGTH,
        shape=Shape(dim=16, num_layers=2, num_heads=2),
        **{"embedding": Embedding, "head": Head, "encoding": encoding, "norm": PreNorm, "attention": Attention}
        | {"ffn": GatedFeedForward}
        | changes,
    )


def train(model, *optimizers, steps=4, start=0):
    """Some steps on random tokens with a learning rate that changes."""
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, VOCAB, (3, LENGTH), generator=generator)
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def decaying(model):
    groups = decay_groups(model, trainable(model), 0.1)
    chosen = {parameter for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(trainable(model))
    return {name for name, parameter in model.named_parameters() if parameter in chosen}


def test_only_matrices_that_multiply_decay():
    model = new_model(encoding=Learned)
    projections = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".blocks." in name
    }
    assert len(projections) == 2 * 7
    assert decaying(model) == projections  # not the norms, the positions, nor the head, which is the embedding


def test_a_head_of_its_own_decays():
    model = new_model(embedding=lambda **sizes: Embedding(tied=False, **sizes))
    assert "head.linear.weight" in decaying(model)
    assert "embedding.tokens.weight" not in decaying(model)


@pytest.mark.parametrize("new_optimizer", [adamw, sgd, Muon])
def test_frozen_parameters_are_left_out(new_optimizer):
    model = new_model()
    model.embedding.tokens.weight.requires_grad_(False)
    optimizer = new_optimizer(model)
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {parameter for parameter in model.parameters() if parameter.requires_grad}
    before = model.embedding.tokens.weight.clone()
    train(model, optimizer)
    assert torch.equal(model.embedding.tokens.weight, before)


def test_fused_adamw_is_adamw():
    fused, plain = new_model(), new_model()
    optimizer = adamw(fused, lr=1e-2, eps=1e-6)
    assert optimizer.defaults["fused"]
    reference = torch.optim.AdamW(
        decay_groups(plain, trainable(plain), 0.1), lr=1e-2, betas=(0.9, 0.95), eps=1e-6, foreach=False, fused=False
    )
    for ours, theirs in zip(train(fused, optimizer), train(plain, reference), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_muon_is_torchs_muon_and_adamw(adjust):
    one, two = new_model(encoding=Learned), new_model(encoding=Learned)
    optimizer = Muon(one, lr=0.02, weight_decay=0.05, adjust_lr_fn=adjust, adamw_lr=1e-3)
    matrices = [p for module in two.modules() if isinstance(module, Block) for p in module.parameters() if p.ndim == 2]
    rest = [p for p in two.parameters() if all(p is not matrix for matrix in matrices)]  # none of them decays here
    references = (
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.05, momentum=0.95, adjust_lr_fn=adjust),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    )
    for ours, theirs in zip(train(one, optimizer), train(two, *references), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("new_optimizer", [adamw, sgd, Muon])
def test_a_restored_optimizer_goes_on_exactly(new_optimizer):
    model = new_model()
    optimizer = new_optimizer(model)
    train(model, optimizer)
    twin, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    restored = new_optimizer(twin)
    restored.load_state_dict(state)
    for ours, theirs in zip(train(model, optimizer, start=4), train(twin, restored, start=4), strict=True):
        assert torch.equal(ours, theirs)


def test_muon_takes_one_schedule_for_both_parts():
    optimizer = Muon(new_model(), lr=0.02, adamw_lr=0.001)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01, 0.0005}
    assert {group["lr"] for part in optimizer._parts for group in part.param_groups} == {0.01, 0.0005}
    assert schedule.get_last_lr() == [group["lr"] for group in optimizer.param_groups]


def test_muon_without_matrices_says_so():
    model = new_model()
    for block in model.stack.blocks:
        block.requires_grad_(False)
    with pytest.raises(ValueError, match="use optimizer=adamw"):
        Muon(model)


@pytest.mark.parametrize("new_optimizer", [adamw, sgd, Muon])
def test_optimizers_can_be_tried_without_memory(new_optimizer):
    with torch.device("meta"):
        model = new_model()
    assert new_optimizer(model).param_groups


@pytest.mark.parametrize(
    "new_optimizer, settings, words",
    [
        (adamw, {"lr": -1.0}, r"optimizer\.lr is -1\.0: .* optimizer\.lr=1\.0"),
        (adamw, {"betas": [0.9, 1.5]}, r"optimizer\.betas is \[0\.9, 1\.5\]: .* optimizer\.betas="),
        (Muon, {"betas": [0.9]}, r"optimizer\.betas is \[0\.9\]"),
        (Muon, {"adamw_lr": -0.1}, r"optimizer\.adamw_lr is -0\.1"),
        (sgd, {"momentum": -0.5}, r"optimizer\.momentum is -0\.5"),
    ],
)
def test_nonsense_names_the_override(new_optimizer, settings, words):
    with pytest.raises(ValueError, match=words):
        new_optimizer(new_model(), **settings)
