"""Attention kernels: each against one oracle written out in float64, and which of them runs where."""

import math
import shutil
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from txtrain.model import Shape, Stack
from txtrain.model.encoding import T5, Alibi, Encoding
from txtrain.model.kernels import SDPA, Demands, Eager, Flex, Kernel, Scores, choose_kernel
from txtrain.model.mask import Mask

B, H, KV, T, WIDTH = 2, 4, 2, 16, 16
# The CPU's kernel of FlexAttention does not train, so there the rule that GPUs compile is run forward and unfused.
UNFUSED = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
# PyTorch's own compiler warns.
COMPILED = pytest.mark.filterwarnings("ignore")


def new_stack(causal: bool = True, dropout: float = 0.0, **shape: int) -> Stack:
    sizes = {"dim": H * WIDTH, "num_layers": 1, "num_heads": H, "num_kv_heads": KV} | shape
    return Stack(shape=Shape(**sizes, dropout=dropout), causal=causal, max_len=T)


def oracle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    documents: Tensor | None = None,
    padding: Tensor | None = None,
    bias: Tensor | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """One query at a time over a list of the keys that it sees, in float64. Queries are the last; bias is (H, Q, K)."""
    q, k, v = q.double(), k.double(), v.double()
    batch, heads, num_queries, _ = q.shape
    num_keys, group = k.size(2), heads // k.size(1)
    out = torch.zeros(batch, heads, num_queries, v.size(3), dtype=torch.float64)
    for b, h, i in product(range(batch), range(heads), range(num_queries)):
        at, seen = num_keys - num_queries + i, []
        for j in range(num_keys):
            hidden = causal and j > at
            hidden |= window is not None and abs(at - j) >= window
            hidden |= documents is not None and documents[b, at].item() != documents[b, j].item()
            hidden |= padding is not None and not padding[b, j].item()
            seen += [] if hidden else [j]
        if seen:
            logits = k[b, h // group, seen] @ q[b, h, i] * scale
            logits = logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
            logits = logits if bias is None else logits + bias[h, i, seen]
            out[b, h, i] = logits.softmax(0) @ v[b, h // group, seen]
    return out


def documents() -> Tensor:
    return torch.stack([torch.arange(T) // 9, torch.arange(T) // 5])


def padding() -> Tensor:
    """Real tokens from the start; the second sequence has ends at both sides, so that some queries see no key."""
    real = torch.arange(T) < 13
    return torch.stack([real, real & (torch.arange(T) >= 3)])


CASES = {
    "causal": {"causal": True},
    "both sides": {},
    "window": {"causal": True, "window": 5},
    "window both sides": {"window": 5},
    "window longer than the sequence": {"causal": True, "window": T},
    "documents": {"causal": True, "documents": documents()},
    "padding": {"padding": padding()},
    "padding, causal": {"causal": True, "padding": padding()},
    "alibi": {"causal": True, "encoding": Alibi},
    "alibi both sides": {"encoding": Alibi},
    "t5": {"causal": True, "encoding": T5},
    "t5 both sides": {"encoding": T5},
    "soft cap": {"causal": True, "soft_cap": 0.7},
    "scale": {"causal": True, "scale": 0.4},
    "last queries": {"causal": True, "num_queries": 6},
    "last query": {"causal": True, "num_queries": 1},
    "last queries, window, alibi": {"causal": True, "num_queries": 6, "window": 5, "encoding": Alibi},
    "everything": {
        "causal": True,
        "window": 6,
        "documents": documents(),
        "padding": padding(),
        "encoding": T5,
        "soft_cap": 0.7,
        "scale": 0.5,
    },
    "everything, both sides": {"window": 6, "documents": documents(), "padding": padding(), "encoding": Alibi},
}


def run(kernel: Kernel, case: dict, *, heads: int = H, kv_heads: int = KV) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A kernel's result, the oracle's, and the kernel's inputs."""
    torch.manual_seed(0)
    case = dict(case)
    num_queries, scale = case.pop("num_queries", T), case.pop("scale", WIDTH**-0.5)
    causal, window, soft_cap = case.pop("causal", False), case.pop("window", None), case.pop("soft_cap", None)
    encoding: Encoding | None = None
    if make := case.pop("encoding", None):
        encoding = make(stack=new_stack(causal, num_heads=heads, num_kv_heads=kv_heads))
        nn.init.normal_(next(encoding.parameters()), std=2.0) if list(encoding.parameters()) else None
    q = torch.randn(B, heads, num_queries, WIDTH)
    k, v = torch.randn(B, kv_heads, T, WIDTH), torch.randn(B, kv_heads, T, WIDTH)
    positions = torch.arange(T)[None]
    mask = Mask(causal=causal, **case)
    scores = Scores(mask=mask, encoding=encoding, q_positions=positions[:, T - num_queries :], k_positions=positions)
    bias = None
    if encoding is not None:
        pairs = [
            encoding.bias_rule(torch.tensor(h), *torch.meshgrid(scores.q_positions[0], positions[0], indexing="ij"))
            for h in range(heads)
        ]
        bias = torch.stack(pairs).double()
    inputs = [q, k, v]
    if not isinstance(kernel, Flex):
        inputs = [x.requires_grad_() for x in inputs]
    prepared = kernel.prepare(scores, {window}, q.dtype)[window]
    out = kernel.attend(q, k, v, prepared, scale=scale, soft_cap=soft_cap, dropout=0.0)
    expected = oracle(q, k, v, scale=scale, causal=causal, window=window, bias=bias, soft_cap=soft_cap, **case)
    return out, expected, inputs


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (4, 1)], ids=["multi-head", "grouped", "multi-query"])
@pytest.mark.parametrize("kernel", [SDPA(), Eager()], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_oracle(case: str, kernel: Kernel, heads: int, kv_heads: int) -> None:
    if type(kernel) is SDPA and "soft_cap" in CASES[case]:
        pytest.skip("scaled_dot_product_attention has no soft cap")
    out, expected, inputs = run(kernel, CASES[case], heads=heads, kv_heads=kv_heads)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)
    weights = torch.randn_like(out)
    ours = torch.autograd.grad((out * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


@UNFUSED
@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("case", CASES)
def test_flex_rule_agrees_with_oracle(case: str, kv_heads: int) -> None:
    out, expected, _ = run(Flex(compiled=False), CASES[case], kv_heads=kv_heads)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)


@COMPILED
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@torch.no_grad()
def test_flex_compiles() -> None:
    """Once for all layers and steps. The length is whole blocks of 128: for others PyTorch 2.13 is wrong on a CPU."""
    torch._dynamo.reset()
    stack, length = new_stack(), 128
    encoding, positions = Alibi(stack=stack), torch.arange(length)[None]
    kernel, results = Flex(), []
    for step in range(3):
        mask = Mask(causal=True, documents=(torch.arange(length) // (30 + step))[None].expand(B, -1).contiguous())
        scores = Scores(mask=mask, encoding=encoding, q_positions=positions, k_positions=positions)
        prepared = kernel.prepare(scores, {40}, torch.float32)[40]
        q, k, v = torch.randn(3, B, H, length, WIDTH).unbind()
        settings = {"scale": WIDTH**-0.5, "dropout": 0.0}
        expected = Eager().attend(q, k, v, Eager().prepare(scores, {40}, q.dtype)[40], soft_cap=5.0, **settings)
        for _ in range(2):
            results.append((kernel.attend(q, k, v, prepared, soft_cap=5.0, **settings), expected))
        with torch.compiler.set_stance("fail_on_recompile"):
            kernel.prepare(scores, {40}, torch.float32)
            kernel.attend(q, k, v, prepared, soft_cap=5.0, **settings)
    for out, expected in results:
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", [SDPA(), Eager()], ids=lambda kernel: kernel.name)
def test_dropout_zeroes_that_share_of_the_weights(kernel: Kernel) -> None:
    """Over values that are unit vectors the output is the weights themselves."""
    torch.manual_seed(0)
    q = torch.zeros(1, 1, 64, 64)
    scores = Scores(
        mask=Mask(causal=False), encoding=None, q_positions=torch.zeros(1, 64), k_positions=torch.zeros(1, 64)
    )
    prepared = kernel.prepare(scores, {None}, q.dtype)[None]
    weights = kernel.attend(q, q, torch.eye(64)[None, None], prepared, scale=1.0, soft_cap=None, dropout=0.25)
    kept = weights != 0
    torch.testing.assert_close(weights[kept], torch.full_like(weights[kept], 1 / 64 / 0.75))
    assert abs(kept.float().mean().item() - 0.75) < 4 * math.sqrt(0.25 * 0.75 / 64**2)


# Which kernel runs


HALF = torch.bfloat16
CHOICES = [
    # On a CPU PyTorch's flash kernel takes masks and fixed biases; it has no dropout and no gradient of a bias.
    (Demands(device="cpu"), "sdpa (flash)"),
    (Demands(device="cpu", masks=("a window of 8",)), "sdpa (flash)"),
    (Demands(device="cpu", bias="fixed"), "sdpa (flash)"),
    (Demands(device="cpu", bias="learned"), "sdpa (math)"),
    (Demands(device="cpu", dropout=0.1), "sdpa (math)"),
    (Demands(device="cpu", soft_cap=30.0), "eager (all scores held)"),
    (Demands(device="cuda", dtype=HALF), "sdpa (flash)"),
    (Demands(device="cuda", dtype=HALF, dropout=0.1), "sdpa (flash)"),
    (Demands(device="cuda", dtype=HALF, head_dim=512), "sdpa (efficient)"),
    (Demands(device="cuda"), "sdpa (efficient)"),
    (Demands(device="cuda", dtype=HALF, masks=("a window of 8",)), "flex (compiled)"),
    (Demands(device="cuda", dtype=HALF, masks=("separate documents", "padding")), "flex (compiled)"),
    (Demands(device="cuda", dtype=HALF, bias="fixed"), "flex (compiled)"),
    (Demands(device="cuda", dtype=HALF, soft_cap=30.0), "flex (compiled)"),
    # What keeps FlexAttention away.
    (Demands(device="cuda", dtype=HALF, bias="learned"), "sdpa (efficient)"),
    (Demands(device="cuda", dtype=HALF, bias="fixed", bias_rule=False), "sdpa (efficient)"),
    (Demands(device="cuda", dtype=HALF, bias="fixed", dropout=0.1), "sdpa (efficient)"),
    (Demands(device="cuda", dtype=HALF, bias="fixed", cached=True), "sdpa (efficient)"),
    (Demands(device="cuda", dtype=HALF, bias="fixed", head_dim=8), "sdpa (efficient)"),
    (Demands(device="cuda", dtype=HALF, bias="learned", head_dim=12), "sdpa (math)"),
    (Demands(device="cuda", dtype=HALF, soft_cap=30.0, dropout=0.1), "eager (all scores held)"),
    (Demands(device="cuda", dtype=HALF, soft_cap=30.0, bias="learned"), "eager (all scores held)"),
]


@pytest.mark.parametrize("demands, expected", CHOICES, ids=str)
def test_choice(demands: Demands, expected: str) -> None:
    choice = choose_kernel(demands)
    assert str(choice).startswith(expected + ": ")
    for word in (*demands.masks, *(["bias"] if demands.bias != "none" and not demands.dropout else [])):
        assert word in choice.why
