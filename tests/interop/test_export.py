"""`txtrain export`: what is written loads in `transformers` with equal logits, tokenizer and template included."""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open

from tests.interop.random_folders import LENGTH, write_folder, write_tokenizer
from tests.interop.test_decoders import VARIANTS
from txtrain.cli import main
from txtrain.interop import export as module
from txtrain.trained import load_trained

TEXT = Path(__file__).parent.parent / "golden" / "text.txt"
RUN = ["data=text", f"data.path={TEXT}", "data.seq_len=32", "data.batch_size=4", "logger=none", "tokenizer=byte"]
RUN += ["trainer.accelerator=cpu", "trainer.max_steps=1", "trainer.limit_val_batches=1", "model.dim=32"]
RUN += ["model.num_layers=2", "model.num_heads=4"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))


def export(*words):
    assert main(["export", *words]) == 0


@torch.no_grad()
def theirs_of(path, tokens):
    return transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()(tokens).logits


# One of each family, and what config.json says in other ways; transformers does not read a steep ALiBi.
TOLD_OTHERWISE = ("llama dynamic", "llama 3", "qwen2 with windows, tied", "gemma2 without caps and windows")
QUICK = {name for name, (model_type, _) in VARIANTS.items() if name in (model_type, *TOLD_OTHERWISE)}
PASSED_ON = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.heavy) for name in VARIANTS if "steep" not in name
]


@pytest.mark.parametrize("variant", PASSED_ON)
def test_a_folder_goes_through_us_unchanged(variant, tmp_path, capsys):
    model_type, config = VARIANTS[variant]
    theirs = write_folder(tmp_path / "in", model_type, **config | {"vocab_size": 260})
    write_tokenizer(tmp_path / "in")
    export("in", "out")
    assert f"out: {model_type}, " in capsys.readouterr().out
    tokens = torch.randint(0, 257, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs_of("out", tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)
    written, read = (json.loads(Path(name, "config.json").read_text()) for name in ("out", "in"))
    assert written["architectures"] == read["architectures"]


GELU = ["ffn=gelu", "ffn.bias=true"]
OWN = {
    "llama": [],
    "llama scaled": ["encoding.scaling=yarn", "encoding.factor=2", "encoding.original_len=16", "model.num_kv_heads=2"],
    "mistral": ["attention=sliding", "attention.window=8", "embedding.tied=false"],
    "gpt2": ["encoding=learned", "norm.layer=layernorm", "norm.bias=true", "attention.bias=true", *GELU],
    "olmo2": ["norm=reordered", "attention.qk_norm=all", "norm.eps=1e-6"],
    "mpt": ["encoding=alibi", "norm.layer=layernorm", "ffn=gelu"],
}


@pytest.mark.parametrize("family", OWN)
def test_models_of_our_own_are_of_a_family(family, capsys):
    assert main(["train", *RUN, "run_dir=run", *OWN[family]]) == 0
    export("run", "out")
    assert f"out: {family.split()[0]}, " in capsys.readouterr().out
    tokens = torch.randint(0, 257, (2, 32), generator=torch.Generator().manual_seed(1))
    ours = load_trained("run")
    with torch.no_grad():
        torch.testing.assert_close(theirs_of("out", tokens), ours.model(tokens), rtol=1e-4, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    assert tokenizer.encode("héllo") == ours.tokenizer.encode("héllo")
    assert tokenizer.eos_token_id == 256
    assert transformers.GenerationConfig.from_pretrained("out").eos_token_id == 256


@pytest.mark.parametrize(
    "axes, message",
    [
        (["encoding=t5"], "no family expresses this model: "),
        (["norm=residual"], "has no counterpart of norm=residual"),
        (["encoding=xpos"], "has no counterpart of encoding=xpos"),
        (["norm=sandwich", "ffn=relu"], "llama, the nearest, has no counterpart of norm=sandwich ffn=relu\n"),
        (
            ["attention.window=8", "attention.qk_norm=all", "norm=reordered"],
            "mistral, the nearest, has no counterpart of norm=reordered",
        ),
    ],
    ids=str,
)
def test_what_no_family_has_is_named(axes, message, capsys):
    assert main(["train", *RUN, "run_dir=run", *axes]) == 0
    capsys.readouterr()
    assert main(["export", "run", "out"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(Path().glob("out*"))


LLAMA = VARIANTS["llama tied and grouped"][1] | {"vocab_size": 260}


@pytest.fixture
def base(tmp_path):
    """A folder with a chat template and settings of generation."""
    path = tmp_path / "base"
    model = write_folder(path, "llama", **LLAMA)
    write_tokenizer(path)
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    (path / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": [256, 7]}))
    return model


def test_shards_types_and_files_beside_the_weights(base):
    export("base", "out", "--shard-gb", "0.00002", "--dtype", "bfloat16")
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    files = sorted(Path("out").glob("*.safetensors"))
    assert len(files) > 2
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == 2 * sum(parameter.numel() for parameter in base.parameters())
    with safe_open(files[0], framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    loaded = transformers.AutoModelForCausalLM.from_pretrained("out", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, base.state_dict()[name].bfloat16()), name
    for name in ("chat_template.jinja", "generation_config.json"):
        assert Path("out", name).read_text() == Path("base", name).read_text()


def test_a_run_with_adapters_is_merged_and_keeps_the_length_of_its_base(base):
    adapt = ["init_from=base", "lora.rank=2", "optimizer.lr=0.1", "data.seq_len=16"]
    common = [word for word in RUN if not word.startswith(("model.", "tokenizer", "data.seq_len"))]
    assert main(["train", *common, *adapt, "run_dir=run"]) == 0
    export("run", "out")
    tokens = torch.randint(0, 257, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = load_trained("run").model(tokens)
        assert not torch.allclose(ours, base(tokens).logits, atol=1e-3)
    torch.testing.assert_close(theirs_of("out", tokens), ours, rtol=1e-4, atol=1e-4)
    config = json.loads(Path("out/config.json").read_text())
    assert (config["max_position_embeddings"], config["vocab_size"]) == (LENGTH, 260)
    assert load_trained("run").max_len == LENGTH
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert tokenizer.model_max_length == LENGTH
    assert main(["train", *common, "init_from=run", "data.seq_len=8", "run_dir=next"]) == 0
    assert load_trained("next").max_len == LENGTH, "what the run's base was trained on counts too"
    assert main(["train", *common, "init_from=run", "data.seq_len=40", "run_dir=longer"]) == 0
    assert load_trained("longer").max_len == 40


def test_files_have_the_mode_that_the_umask_leaves(base):
    before = os.umask(0o027)
    try:
        export("base", "out")
        modes = {file.name: file.stat().st_mode & 0o777 for file in Path("out").iterdir()}
        assert set(modes.values()) == {0o640}, modes
    finally:
        os.umask(before)


def test_an_export_that_computes_otherwise_is_not_kept(base, monkeypatch, capsys):
    their_tensors = module.their_tensors

    def damaged(*arguments, **rest):
        return ((name, tensor * 1.01) for name, tensor in their_tensors(*arguments, **rest))

    monkeypatch.setattr(module, "their_tensors", damaged)
    assert main(["export", "base", "out"]) == 1
    assert "computes other logits in txtrain" in capsys.readouterr().err
    assert not list(Path().glob("out*"))


def test_without_transformers_our_own_reader_checks(base, monkeypatch, capsys):
    monkeypatch.setattr("txtrain.interop.check.find_spec", lambda name: None)
    export("base", "out")
    assert "logits equal in txtrain (within" in capsys.readouterr().out


def test_mistakes_are_told(base, capsys):
    Path("there").mkdir()
    for words, message in {
        ("base", "there"): "there exists",
        ("nowhere", "out"): "does not exist",
        ("base", "out", "--family", "mamba"): "--family mamba is not known",
        ("base", "out", "--family", "gpt2"): "gpt2 has no counterpart of",
        ("base", "out", "--shard-gb", "0"): "give a positive number",
        ("base", "out", "--shard-gb", "nan"): "give a positive number",
    }.items():
        assert main(["export", *words]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("adapter", [(), ("--adapter",)], ids=["whole", "adapter"])
def test_nothing_beside_the_folder_is_removed(base, adapter):
    """A folder of the user's with a name that looks like one of ours, and none of ours stays behind."""
    common = [word for word in RUN if not word.startswith(("model.", "tokenizer"))]
    assert main(["train", *common, "init_from=base", "lora.rank=2", "data.seq_len=16", "run_dir=run"]) == 0
    Path("out.partial").mkdir()
    Path("out.partial/mine.txt").write_text("precious")
    before = set(Path().iterdir())
    export("run", "out", *adapter)
    assert Path("out.partial/mine.txt").read_text() == "precious"
    assert set(Path().iterdir()) - before == {Path("out")}


def test_checkpoints_remove_only_what_is_theirs(tmp_path):
    assert main(["train", *RUN, "run_dir=run"]) == 0
    Path("run/checkpoints/mine.partial").write_text("precious")
    Path("run/checkpoints/step_00000009.ckpt.partial").mkdir()
    assert main(["train", "resume=run", "trainer.max_steps=2"]) == 0
    assert [path.name for path in Path("run/checkpoints").glob("*.partial")] == ["mine.partial"]
