"""`init_from=FOLDER`: training goes on from a Hugging Face model, and what is wrong with a folder is told in a line."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.interop.random_folders import read, write_folder, write_tokenizer
from txtrain.cli import main
from txtrain.errors import UserError
from txtrain.interop import read_folder
from txtrain.trained import load_trained

TEXT = Path(__file__).parent.parent / "golden" / "text.txt"
LLAMA = {
    "vocab_size": 264,  # more rows than tokens, as many models have
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
RUN = ["data=text", f"data.path={TEXT}", "data.seq_len=32", "data.batch_size=4", "logger=none"]
RUN += [
    "trainer.accelerator=cpu",
    "trainer.max_steps=2",
    "trainer.limit_val_batches=1",
    "optimizer=sgd",
    "init_from=base",
]
STILL = ["optimizer.lr=0.0"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder and its model in transformers."""
    path = tmp_path_factory.mktemp("base")
    model = write_folder(path, "llama", **LLAMA)
    write_tokenizer(path)
    return path, model


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, theirs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    shutil.copytree(theirs[0], "base")


def error_of(capsys, *overrides):
    """The one line that is told, after which nothing has been written."""
    before = sorted(Path().glob("*"))
    assert main(["train", *RUN, "run_dir=refused", *overrides]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert set(Path().glob("*")) - set(before) <= {Path("cache")}
    return error


@pytest.mark.parametrize(
    "words",
    ["lora.rank=0", "lora.rank=2", "strategy=fsdp lora.rank=2", "strategy=deepspeed_zero3 lora.rank=2"],
)
@torch.no_grad()
def test_a_run_from_a_folder_begins_with_its_model(theirs, words):
    assert main(["train", *RUN, *STILL, "run_dir=run", *words.split()]) == 0
    tokens = torch.randint(0, 257, (2, 48), generator=torch.Generator().manual_seed(0))
    run = load_trained("run")
    torch.testing.assert_close(run.model(tokens), theirs[1](tokens).logits, rtol=1e-4, atol=1e-4)
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["model"]["vocab_size"] == 264
    assert config["attention"]["bias"] is False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps of memory are Linux's")
def test_weights_that_need_no_change_stay_in_the_file(theirs):
    """So that all processes of a machine share them."""
    model = read(theirs[0])
    mapped = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(theirs[0] / "model.safetensors"))
    ]
    for name, parameter in model.named_parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in mapped), name


def test_only_adapters_train_and_the_base_is_found_again(capsys):
    assert main(["train", *RUN, "run_dir=run", "lora.rank=2", "optimizer.lr=0.1"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    width, values, inner = 32, 16, 48  # of two blocks; two of four heads have keys and values
    assert summary["trainable_parameters"] == 2 * 2 * (2 * 2 * width + 2 * (width + values) + 3 * (width + inner))
    assert main(["train", "resume=run", "trainer.max_steps=3"]) == 0

    weights = load_file("base/model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, "base/model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert main(["train", "resume=run", "trainer.max_steps=4"]) == 1
    assert "are not those that the adapters were trained on" in capsys.readouterr().err
    shutil.rmtree("base")
    assert main(["train", "resume=run", "trainer.max_steps=4"]) == 1
    assert "base cannot be read" in capsys.readouterr().err


def test_what_is_typed_goes_before_what_the_folder_says():
    assert main(["train", *RUN, *STILL, "run_dir=run", "encoding.theta=5000", "attention.window=8"]) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (config["encoding"]["theta"], config["attention"]["window"]) == (5000, 8)


def test_a_folder_that_is_none_is_refused(capsys):
    Path("base/config.json").unlink()
    assert "no Hugging Face folder (it has no config.json)" in error_of(capsys)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "mamba"}, "is a mamba model: txtrain reads "),
        ({"hidden_act": "relu6"}, "its hidden_act is relu6, and txtrain knows gelu"),
        ({"num_hidden_layers": None}, "lacks the weight model.layers.2"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "which encoding.scaling does not express"),
        ({"rope_interleaved": True}, "its rope_interleaved is True, which no axis expresses"),
        ({"quantization_config": {"bits": 4}}, "has quantized weights"),
        ({"intermediate_size": 64}, "is [48, 32], and the config makes"),
        ({"num_hidden_layers": 1}, "has weights for which its config.json has no place, such as model.layers.1"),
        ({"num_hidden_layers": 3}, "lacks the weight model.layers.2"),
        ({"vocab_size": 300}, "is [264, 32], and the config makes"),
        ({"vocab_size": "x"}, "its vocab_size is x, and must be of type int"),
        ({"max_position_embeddings": "many"}, "its max_position_embeddings is many, and must be of type int"),
        ({"rope_parameters": "x"}, "its rope_parameters is x, and must be of type dict"),
        ({"hidden_size": "abc"}, "cannot be expressed: its hidden_size is abc, and must be of type int"),
        ({"hidden_size": 0}, "cannot be expressed: model.dim is 0: give at least 1"),
        ({"num_attention_heads": 3}, "cannot be expressed: model.num_heads=3 is no multiple of"),
        ({"rms_norm_eps": "tiny"}, "cannot be expressed: its rms_norm_eps is tiny, and must be of type float"),
        ({"model_type": ["llama"]}, "is a ['llama'] model: txtrain reads "),
        ({"vocab_size": 10**30}, "config.json makes 3.2e+31 weights or more, and its files have"),
        ({"num_hidden_layers": 10**6}, "weights or more, and its files have"),
        ({"intermediate_size": 10**12}, "weights or more, and its files have"),
        ({"num_attention_heads": 10**30}, "weights or more, and its files have"),
        ({"head_dim": 10**30}, "weights or more, and its files have"),
        ({"num_key_value_heads": 10**15}, "num_kv_heads"),
        ({"rms_norm_eps": float("inf")}, "its rms_norm_eps is inf, and must be of type float"),
        ({"problem_type": "x"}, "its problem_type is x, and may be"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_told(change, message):
    change_config(change)
    with pytest.raises(UserError, match=re.escape(message)):
        read("base")


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1]", "Input should be a valid dictionary, got [1]"),
        ('{"eos_token_id": "x"}', "says eos_token_id=x, which is no"),
    ],
)
def test_settings_of_generation_that_are_none_are_told(content, message):
    Path("base/generation_config.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        load_trained("base")


def test_a_type_that_weights_cannot_have_is_told():
    change_config({"dtype": "int7"})
    with pytest.raises(UserError, match="has dtype=int7, which is no type of numbers"):
        _ = read_folder("base").dtype


def test_a_tokenizer_of_more_tokens_than_the_embedding_has_is_refused(capsys):
    change_config({"vocab_size": 200})
    assert "the tokenizer has 257 tokens and the model vectors for model.vocab_size=200" in error_of(capsys)


def change_config(change):
    config = json.loads(Path("base/config.json").read_text()) | change
    config = {key: value for key, value in config.items() if value is not None}
    Path("base/config.json").write_text(json.dumps(config))


def test_a_missing_shard_is_named(capsys):
    Path("base/model.safetensors").rename("base/model-00001-of-00002.safetensors")
    places = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    Path("base/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert "lacks model-00002-of-00002.safetensors" in error_of(capsys)


def test_other_files_are_told(capsys):
    Path("base/model.safetensors").rename("base/pytorch_model.bin")
    assert "has only pytorch_model.bin, which can run code" in error_of(capsys)
    Path("base/pytorch_model.bin").unlink()
    assert "needs model.safetensors" in error_of(capsys)
    Path("base/model.safetensors").write_bytes(b"damaged")
    assert "model.safetensors cannot be read" in error_of(capsys)


def test_another_tokenizer_is_refused(capsys):
    assert "is [264, 32], and the config makes" in error_of(capsys, "tokenizer=byte")
    Path("base/tokenizer.json").unlink()
    assert "base has no tokenizer.json: put it there, or type tokenizer=pretrained" in error_of(capsys)


@pytest.mark.parametrize(
    "index", ['{"weight_map": [1, 2]}', '{"weight_map": {"x": 3}}', "[]", "{" * 9, "[" * 100000, ""], ids=range(6)
)
def test_a_damaged_index_is_told(index):
    Path("base/model.safetensors").unlink()
    Path("base/model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=re.escape("index.json cannot be read")):
        read("base")


DAMAGED = ("", "[", "[1]", "3", "null", "[" * 100000, "\x00", '{"model_type": null}')


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_config_is_told(capsys, content):
    Path("base/config.json").write_text(content)
    assert main(["generate", "base", "hi", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_name_of_the_hub_says_how_to_download_it(capsys):
    told = error_of(capsys, "init_from=HuggingFaceTB/SmolLM-135M")
    assert "type hf download HuggingFaceTB/SmolLM-135M --local-dir FOLDER" in told
    assert "hf download" not in error_of(capsys, "init_from=nothing")


@pytest.mark.parametrize(
    "typed, message",
    [("experiment=lora_chat data=chat", "init_from is missing"), ("init_from=", "init_from= has no value")],
)
def test_a_missing_init_from_is_told_first(capsys, typed, message):
    assert main(["train", "data=text", f"data.path={TEXT}", "logger=none", *typed.split()]) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_folder_of_runs_means_its_newest(capsys):
    for number in (1, 2):
        assert main(["train", *RUN, *STILL, f"run_dir=all/{number}"]) == 0
    assert main(["train", *RUN, *STILL, "init_from=all", "run_dir=last"]) == 0
    assert "init_from=all: its newest run is 2" in capsys.readouterr().err
    assert yaml.safe_load(Path("last/config.yaml").read_text())["init_from"] == "all/2"


SCRATCH = [word for word in RUN if word != "init_from=base"]
SCRATCH += ["tokenizer=byte", "model.dim=32", "model.num_layers=1", "model.num_heads=2"]


def test_the_summary_says_what_a_model_exports_as(capsys):
    assert main(["train", *SCRATCH, "dry_run=true"]) == 0
    assert "exports as llama" in capsys.readouterr().out
    assert main(["train", *SCRATCH, "norm=residual", "dry_run=true"]) == 0
    assert "has no Hugging Face family: llama, the nearest, lacks norm=residual" in capsys.readouterr().out


def test_an_export_is_refused_at_the_start(capsys):
    assert "has no Hugging Face family: llama" in error_of(capsys, "export=true", "norm=residual")
    assert main(["train", *SCRATCH, "export=true", "embedding.scale=true", "run_dir=scaled"]) == 1
    assert "export=true, and the model has no Hugging Face family" in capsys.readouterr().err
    assert not Path("scaled").exists()


@pytest.mark.parametrize("adapted", [[], ["lora.rank=2", "lora.targets=[embedding.tokens]", "embedding.tied=true"]])
def test_a_run_exports_itself_at_its_end(capsys, adapted):
    assert main(["train", *SCRATCH, *adapted, "export=true", "run_dir=run"]) == 0
    told = capsys.readouterr().out
    assert "exports as llama, into hugging_face of the run at its end" in told
    assert "run/hugging_face: llama" in told
    expected = load_trained("run").model.state_dict()
    for name, weight in read("run/hugging_face").state_dict().items():
        assert torch.equal(weight, expected[name])
    assert main(["train", "resume=run", "trainer.max_steps=3"]) == 1
    assert "hugging_face exists: move it away, or type export=false" in capsys.readouterr().err
    assert main(["train", "resume=run", "trainer.max_steps=3", "export=false"]) == 0
