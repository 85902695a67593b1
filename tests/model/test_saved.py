"""What checkpointing policies keep, move and compute again: that they do what they say, and are measured right."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.trained import LAYERS, B, T, loss_of, new_model, train
from txtrain.model import EncoderDecoder
from txtrain.model.checkpointing import (
    CheckpointingPolicy,
    KeepAll,
    Mover,
    Offload,
    Recompute,
    RecomputeEvery,
    Selective,
)
from txtrain.model.encoding import NoEncoding
from txtrain.model.norm import PreNorm, ResiDual
from txtrain.model.saved import Measured, measure


def measured(policy: CheckpointingPolicy, **model: Any) -> Measured:
    made = new_model(**model)
    policy.apply(made)
    torch.manual_seed(1)
    with measure(made) as result:
        loss_of(made, 0).backward()
    return result


@pytest.mark.parametrize(
    "policy, calls",
    [
        (KeepAll(), [1, 1, 1, 1]),
        (Recompute(), [2, 2, 2, 2]),
        (RecomputeEvery(n=1), [2, 2, 2, 2]),
        (RecomputeEvery(n=2), [2, 1, 2, 1]),
        (RecomputeEvery(n=3), [2, 1, 1, 2]),
        (Selective(save=["attention"]), [2, 2, 2, 2]),
        (Offload(), [1, 1, 1, 1]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, CheckpointingPolicy) else str(value),
)
def test_forward_calls(policy: CheckpointingPolicy, calls: list[int]) -> None:
    assert measured(policy).forward_calls == calls


def test_both_stacks_of_a_pair_are_covered() -> None:
    assert measured(Recompute(), kind=EncoderDecoder).forward_calls == [2] * 2 * LAYERS


def test_bytes_kept_drop() -> None:
    plain = {"dropout": 0.0, "encoding": NoEncoding}
    none, every = measured(KeepAll(), **plain).bytes_kept, measured(RecomputeEvery(n=2), **plain).bytes_kept
    full = measured(Recompute(), **plain).bytes_kept
    products = measured(Selective(save=["products"]), **plain).bytes_kept
    attention = measured(Selective(save=["attention"]), **plain).bytes_kept
    assert full < attention < products < none
    # Recomputing half of the blocks saves half of what recomputing all saves, but for the mask, which all blocks share.
    assert none - every == (none - full - B * T * T * 4) / 2
    # Products are q (D), k and v (D/2 each), o (D), the feed-forward's two inner ones (88) and its outer one (D).
    assert products - full == LAYERS * B * T * 4 * (4 * 32 + 2 * 88)
    # The attention's result, and the logarithm of the sum of exponentials, one for each query and head.
    assert attention - full == LAYERS * B * T * 4 * (32 + 4)


def test_full_keeps_the_input_of_each_block_only() -> None:
    model, lone = new_model(dropout=0.0, encoding=NoEncoding), new_model(dropout=0.0, encoding=NoEncoding)
    Recompute().apply(model)
    lone.stack.blocks = nn.ModuleList(list(lone.stack.blocks)[:1])
    Recompute().apply(lone)
    sizes = []
    for each in (model, lone):
        with measure(each) as result:
            loss_of(each, 0).backward()
        sizes.append(result.bytes_kept)
    assert sizes[0] - sizes[1] == (LAYERS - 1) * B * T * 32 * 4


def test_two_streams_are_both_counted() -> None:
    sizes = {"norm": ResiDual, "encoding": NoEncoding, "dropout": 0.0}
    more = measured(Recompute(), **sizes).bytes_kept - measured(Recompute(), **sizes | {"norm": PreNorm}).bytes_kept
    assert more >= (LAYERS - 1) * B * T * 32 * 4


@pytest.mark.parametrize("autocast", [False, True])
def test_offload_moves_what_blocks_keep(autocast: bool) -> None:
    results = []
    for policy in (KeepAll(), Offload()):
        model = new_model()
        policy.apply(model)
        with measure(model) as result, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss_of(model, 0).backward()
        results.append(result)
    none, offload = results
    assert none.bytes_moved == 0
    assert offload.bytes_kept < none.bytes_kept / 10
    # Tables and masks, which all blocks share, are moved once for each.
    shared = (LAYERS - 1) * (2 * T * 8 * 4 + B * T * T * 4)
    assert none.bytes_kept - offload.bytes_kept <= offload.bytes_moved <= none.bytes_kept + shared


def test_weights_are_neither_counted_nor_moved() -> None:
    model = new_model()
    with measure(model) as result:
        block = model.stack.blocks[0]
        x = torch.randn(3, 32)
        block.ffn.up_proj(x).sum().backward()
        assert result.bytes_kept == x.nbytes
    mover, weight = Mover(list(block.parameters())), block.ffn.up_proj.weight
    packed = mover.pack(weight.detach().t()[3:])
    assert not mover.moved
    with torch.no_grad():
        weight.data = weight.clone()  # as ZeRO-3 does when it gathers a weight again
    assert torch.equal(Mover.unpack(packed), weight.t()[3:])
    assert Mover.unpack(packed).data_ptr() == weight.t()[3:].data_ptr()


def test_offloaded_tensors_survive_the_originals() -> None:
    """The copies, not the originals, are what the backward pass reads."""
    model = new_model(dropout=0.0)
    _, expected = train(new_model(dropout=0.0), micro_batches=1)
    Offload().apply(model)
    kept: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.head.linear:
            module.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
    loss = loss_of(model, 0)
    with torch.no_grad():
        for tensor in kept:
            tensor.data.fill_(torch.nan)
    loss.backward()
    for name, parameter in model.named_parameters():
        if ".blocks." in name:
            assert torch.equal(parameter.grad, expected[name]), name


class CountOperations(TorchDispatchMode):
    """Counts what really runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        return function(*args, **(kwargs or {}))


def operations(policy: CheckpointingPolicy, **model: Any) -> Counter[str]:
    made = new_model(**model)
    policy.apply(made)
    with CountOperations() as mode:
        loss_of(made, 0).backward()
    return mode.counts


def test_selective_recomputes_only_what_it_does_not_save() -> None:
    flash = "_scaled_dot_product_flash_attention_for_cpu"
    none, full = operations(KeepAll(), dropout=0.0), operations(Recompute(), dropout=0.0)
    attention = operations(Selective(save=["attention"]), dropout=0.0)
    both = operations(Selective(save=["attention", "products"]), dropout=0.0)
    assert none[flash] == LAYERS
    # The last product of a block is not needed again.
    assert (full[flash] - none[flash], full["mm"] - none["mm"]) == (LAYERS, 6 * LAYERS)
    assert (attention[flash] - none[flash], attention["mm"] - none["mm"]) == (0, 6 * LAYERS)
    assert (both[flash] - none[flash], both["mm"] - none["mm"]) == (0, 0)
    assert both["silu"] - none["silu"] == LAYERS


def test_selective_computes_random_operations_again() -> None:
    """Even if they are to be kept, or the dropout after them would draw other numbers."""
    none, kept = operations(KeepAll()), operations(Selective(save=["native_dropout", "bernoulli_"]))
    names = [name for name in none if "dropout" in name or "bernoulli" in name]
    assert names
    assert all(kept[name] >= 2 * none[name] - 2 * LAYERS > 0 for name in names)


def test_what_is_measured_in_words() -> None:
    text = str(measured(RecomputeEvery(n=2)))
    assert text.startswith("2 of 4 blocks computed twice, 0.")
    assert text.endswith("MiB kept for the backward pass")
    assert "moved to the CPU's memory" in str(measured(Offload()))


def test_measuring_leaves_no_trace() -> None:
    model = new_model()
    with measure(model):
        loss_of(model, 0).backward()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    with pytest.raises(RuntimeError, match="boom"), measure(model):
        raise RuntimeError("boom")
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
