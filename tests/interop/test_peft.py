"""Adapters in the format of PEFT, against the real one: written by us and read by it, and the other way round."""

import copy
import json

import peft
import pytest
import torch
import transformers
from hydra.utils import instantiate
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn

from tests.model.adapted import randomise_adapters
from txtrain.errors import UserError
from txtrain.interop import read_folder
from txtrain.interop.adapted import read_adapted
from txtrain.interop.peft import PREFIX, TENSORS, read_adapter, shortest, write_adapter
from txtrain.interop.peft_config import CONFIG
from txtrain.model.lora import LoRA
from txtrain.model.lora.exchange import put

VOCAB = 40
CONFIGS = {
    "gpt2": transformers.GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=16, n_layer=2, n_head=2),
    "llama": transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    ),
    "gpt_neox": transformers.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
    ),
}
HEADS = {"gpt2": 2, "llama": 4, "gpt_neox": 2}
TOKENS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own: of Conv1D, of embeddings, of tied weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each family, with random weights."""
    made = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
    return made


def theirs_of(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def ours_of(imported):
    parts = {group: instantiate(node, _convert_="all") for group, node in imported.axes.items()}

    def build():
        sizes = {"shape": parts["model"], **imported.sizes}
        return imported.family.model_class(**sizes, **{group: parts[group] for group in parts if group != "model"})

    return imported.build(build).eval()


def assert_equal_logits(ours, theirs):
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=1e-4)


OURS = {
    "everything": {},
    "rslora": {"variant": "rslora"},
    "dora": {"variant": "dora"},
    "queries and values": {"targets": ["q_proj", "v_proj"]},
    "dora on keys": {"targets": ["k_proj", "down_proj"], "variant": "dora"},
    "patterns": {"rank_pattern": {"v_proj": 1, "*.ffn.*": 5}, "alpha_pattern": {"q_proj": 3, "*.blocks.1.ffn.*": 2}},
    "embedding and head": {"targets": ["embedding.tokens", "head.linear", "o_proj"], "layers": 1},
    "dora on the embedding": {"targets": ["embedding.tokens"], "variant": "dora"},
    "pissa": {"init": "pissa"},
    "olora with dora": {"init": "olora", "variant": "dora"},
}


OF_LLAMA = [("llama", "patterns"), ("llama", "rslora")]
BY_HEAD = [("gpt_neox", "queries and values"), ("gpt_neox", "dora")]


@pytest.mark.parametrize("family, settings", [*(("gpt2", name) for name in OURS), *OF_LLAMA, *BY_HEAD])
def test_adapters_of_ours_give_equal_logits_in_peft(folders, tmp_path, family, settings):
    """Merged too; a tied table with an adapter is merged by PEFT into both layers, which is another model."""
    imported = read_folder(folders[family])
    ours = ours_of(imported)
    base = ours(TOKENS)
    torch.manual_seed(1)
    LoRA(**({"rank": 3, "alpha": 5} | OURS[settings])).apply(ours, adapt_only=True)
    randomise_adapters(ours)
    write_adapter(tmp_path, ours, imported.family, heads=HEADS[family], base=folders[family])
    theirs = peft.PeftModel.from_pretrained(theirs_of(folders[family]), tmp_path).eval()
    assert not torch.allclose(ours(TOKENS), base, atol=1e-2)
    assert_equal_logits(ours, theirs)
    adapted = {name for name, layer in theirs.get_base_model().named_modules() if isinstance(layer, LoraLayer)}
    with safe_open(tmp_path / TENSORS, framework="pt") as file:
        written = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in file.keys()}  # noqa: SIM118
    assert adapted == written, "target_modules mean the same layers to PEFT"
    if "embedding" not in settings:
        assert_equal_logits(ours, theirs.merge_and_unload())


def test_target_modules_are_as_short_as_peft_itself_would_write_them(folders, tmp_path):
    imported = read_folder(folders["llama"])

    def targets(**settings):
        ours = ours_of(imported)
        LoRA(rank=2, **settings).apply(ours, adapt_only=True)
        write_adapter(tmp_path, ours, imported.family, heads=4, base=folders["llama"])
        return json.loads((tmp_path / CONFIG).read_text())["target_modules"]

    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert targets() == sorted(every)
    assert targets(layers=[1], targets=["q_proj"]) == ["1.self_attn.q_proj"]
    assert targets(targets=["*.blocks.0.attention.o_proj", "k_proj"]) == ["0.self_attn.o_proj", "k_proj"]


@pytest.mark.parametrize(
    "names, others, ends",
    [
        ({"a.10.q", "a.0.q"}, {"a.1.q"}, ["0.q", "10.q"]),
        ({"a.0.dense", "a.0.x.dense"}, {"pool.dense"}, ["0.dense", "x.dense"]),
    ],
)
def test_ends_of_names_mean_no_others(names, others, ends):
    assert shortest(names, others) == ends


THEIRS = {
    "everything": {"target_modules": "all-linear"},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"h.0.attn.c_attn": 6, "q_proj": 6},
        "alpha_pattern": {r"h\.\d+\.mlp\.c_fc": 1, "down_proj": 1},
    },
}


OTHERS = [("llama", "patterns"), ("llama", "dora"), ("gpt_neox", "everything")]


@pytest.mark.parametrize("family, settings", [*(("gpt2", name) for name in THEIRS), *OTHERS])
def test_adapters_of_peft_give_equal_logits_in_ours(folders, tmp_path, family, settings):
    """And fused ones come back as they were."""
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, lora_alpha=6, task_type="CAUSAL_LM", **THEIRS[settings])
    theirs = peft.get_peft_model(theirs_of(folders[family]), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            nn.init.normal_(parameter, mean=float("magnitude" in name), std=0.3)
    theirs.save_pretrained(tmp_path)
    imported = read_folder(folders[family])
    ours = ours_of(imported)
    adapter = read_adapter(tmp_path, ours, imported.family, heads=HEADS[family])
    put(ours, adapter)
    assert_equal_logits(ours, theirs)
    assert_equal_logits(ours_of(read_adapted(tmp_path)), theirs)

    write_adapter(tmp_path / "again", ours, imported.family, heads=HEADS[family], base=folders[family])
    again = read_adapter(tmp_path / "again", ours_of(imported), imported.family, heads=HEADS[family])
    assert all(torch.equal(change.high, again[name].high) for name, change in adapter.items())
    if family == "gpt2":
        q_proj, v_proj = (adapter[f"stack.blocks.0.attention.{part}_proj"] for part in "qv")
        assert torch.equal(q_proj.low, v_proj.low)
        assert q_proj.low.data_ptr() != v_proj.low.data_ptr()


def test_embeddings_and_head_of_peft(folders, tmp_path):
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, target_modules=["embed_tokens", "lm_head"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(theirs_of(folders["llama"]), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    assert_equal_logits(ours_of(read_adapted(tmp_path)), theirs)


@pytest.mark.parametrize("target", ["lm_head", "wte"])
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_a_tied_matrix_leaves_the_other_layer_its_own(folders, tmp_path, target, dora):
    """GPT-2's head is its table. Merging in PEFT changes both, so it is no model to compare with."""
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, target_modules=[target, "c_fc"], task_type="CAUSAL_LM", use_dora=dora)
    theirs = peft.get_peft_model(theirs_of(folders["gpt2"]), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, mean=float("magnitude" in name), std=0.3)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    adapted = read_adapted(tmp_path)
    assert adapted.axes["embedding"]["tied"] is False
    ours = ours_of(adapted)
    assert_equal_logits(ours, theirs)
    assert ours.embedding.tokens.weight.data_ptr() != ours.head.linear.weight.data_ptr()


def test_what_is_no_adapter_of_the_base_is_told_in_one_line(folders, tmp_path):
    imported = read_folder(folders["gpt2"])
    ours = ours_of(imported)
    LoRA(rank=2).apply(ours)
    write_adapter(tmp_path, ours, imported.family, heads=2, base=folders["llama"])
    saved = json.loads((tmp_path / CONFIG).read_text())

    def refusal(read, **changes):
        (tmp_path / CONFIG).write_text(json.dumps(saved | changes))
        with pytest.raises(UserError) as error:
            read()
        assert "\n" not in str(error.value)
        return str(error.value)

    llama = read_folder(folders["llama"])
    assert "adapter for another base, which has transformer.h.0" in refusal(lambda: ours_of(read_adapted(tmp_path)))
    assert "which is no folder here" in refusal(lambda: read_adapted(tmp_path), base_model_name_or_path="gpt2")
    assert "has an alpha of 'x', which is no number" in refusal(lambda: read_adapted(tmp_path), lora_alpha="x")
    assert "has bias=all" in refusal(lambda: read_adapted(tmp_path), bias="all")
    assert "has peft_type=IA3" in refusal(lambda: read_adapted(tmp_path), peft_type="IA3")
    wide = copy.deepcopy(CONFIGS["gpt2"])
    wide.n_embd = 32
    transformers.GPT2LMHeadModel(wide).save_pretrained(tmp_path / "wide")
    said = refusal(lambda: ours_of(read_adapted(tmp_path)), base_model_name_or_path=str(tmp_path / "wide"))
    assert "takes 16 and gives" in said
    assert llama.family.model_types == ("llama",)
