"""Operations of a step, which `train/mfu` is made of, against PyTorch's own count."""

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.task.every import TASKS, build, write_all
from tests.task.examples import TEXT, new_task
from txtrain.model.lora import LoRA

CAUSAL = ["task=causal_lm", "data=text", f"data.path={TEXT}", "tokenizer.vocab_size=300", "data.seq_len=24"]
CAUSAL += ["data.batch_size=4", "model.dim=24", "model.num_layers=3", "model.num_heads=2"]
ADAPTED = ["lora.rank=3", "lora.targets=[q_proj,v_proj]"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        folder = write_all(tmp_path_factory.mktemp("flops"))
        patch.chdir(folder)
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        yield


def compare(data, task) -> None:
    samples = data.samples("train")
    batch = samples.batch(data.order(samples, seed=0).samples(0, 0).samples)
    batch.pop("num_tokens", None)
    task.model.train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task.losses(batch)[0].backward()
    assert float(task.flops(batch)) == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("name", TASKS)
def test_of_every_task(name: str) -> None:
    compare(*build(name))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["ffn=gelu", "norm=post", "encoding=alibi", "model.num_kv_heads=1", "embedding.tied=false"],
        ["norm=parallel", "model.head_dim=20", "head.bias=true"],
        ADAPTED,
        [*ADAPTED, "lora.variant=dora"],
        ["checkpointing=none", "attention=sliding", "attention.window=64"],
    ],
    ids=" ".join,
)
def test_of_options(overrides: list[str]) -> None:
    compare(*new_task(*CAUSAL, *overrides))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj"], ["all"]], ids=",".join)
def test_of_frozen_weights(targets: list[str]) -> None:
    """What lies below the first adapter needs no gradient."""
    data, task = new_task(*CAUSAL)
    LoRA(rank=3, targets=targets).apply(task.model, adapt_only=True)
    compare(data, task)


def test_of_convolutions_before_a_transcript() -> None:
    data, task = build("speech_recognition", "embedding=convolutions")
    compare(data, task)
