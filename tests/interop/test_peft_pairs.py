"""Adapters of encoder-decoders in the format of PEFT, against the real one, both ways."""

import json

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers.utils import logging

from tests.interop.random_folders import read
from tests.interop.test_encoders import BART, MARIAN, T5, right_padding, saved
from tests.model.adapted import randomise_adapters
from txtrain.errors import UserError
from txtrain.interop import read_folder
from txtrain.interop.peft import read_adapter, write_adapter
from txtrain.interop.peft_config import CONFIG
from txtrain.model.lora import LoRA
from txtrain.model.lora.exchange import put

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own: of tied weights

APART = {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False}
MODELS = {
    "t5": ("T5ForConditionalGeneration", "T5", T5 | {"num_decoder_layers": 1}),
    "t5 gated": ("T5ForConditionalGeneration", "T5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "bart": ("BartForConditionalGeneration", "Bart", BART),
    "marian": ("MarianMTModel", "Marian", MARIAN | APART),
}
OURS = {
    "everything": {},
    "dora": {"variant": "dora"},
    "some": {"targets": ["cross_attention.q_proj", "decoder.*.ffn.*", "v_proj"], "variant": "rslora"},
    "patterns": {"rank_pattern": {"v_proj": 1, "*.ffn.*": 5}, "alpha_pattern": {"encoder.*.q_proj": 3}, "layers": 0},
    "tables": {"targets": ["embedding.tokens", "k_proj"]},
    "head": {"targets": ["head.linear", "q_proj"]},
}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
TOKENS = torch.randint(5, 50, (3, 12), generator=torch.Generator().manual_seed(0))
GIVEN = {"input_ids": TOKENS, "attention_mask": right_padding().long(), "decoder_input_ids": TOKENS.flip(0)}


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory):
    """A folder of each, with random weights."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    made = {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in MODELS}
    for name, (kind, family, config) in MODELS.items():
        saved(made[name], kind, family, **config)
    yield made
    logging.set_verbosity(verbosity)


def theirs_of(name, folders):
    return getattr(transformers, MODELS[name][0]).from_pretrained(folders[name]).eval()


def logits(model):
    with torch.no_grad():
        if isinstance(model, nn.Module) and hasattr(model, "generate"):
            return model(**GIVEN).logits
        return model(TOKENS, TOKENS.flip(0), right_padding())


WRITTEN = [(name, "everything") for name in MODELS] + [("t5", name) for name in ("dora", "some", "patterns", "head")]
WRITTEN += [
    ("bart", "some"),
    ("bart", "head"),
    ("marian", "dora"),
    ("marian", "tables"),
    ("t5", "tables"),
    ("bart", "tables"),
]


@pytest.mark.parametrize("name, settings", WRITTEN)
def test_adapters_of_ours_give_equal_logits_in_peft(name, settings, folders, tmp_path):
    """Merged too; a tied head with an adapter is merged by PEFT into the embedding as well, which is another model."""
    imported, ours = read_folder(folders[name]), read(folders[name])
    base = logits(ours)
    torch.manual_seed(1)
    LoRA(**({"rank": 3, "alpha": 5} | OURS[settings])).apply(ours, adapt_only=True)
    randomise_adapters(ours)
    expected = logits(ours)
    assert not torch.allclose(expected, base, atol=1e-2)
    write_adapter(tmp_path, ours, imported.family, heads=4, base=folders[name])
    assert json.loads((tmp_path / CONFIG).read_text())["task_type"] == "SEQ_2_SEQ_LM"
    theirs = peft.AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(theirs), expected, **CLOSE)
    again = read(folders[name])
    put(again, read_adapter(tmp_path, again, imported.family, heads=4))
    torch.testing.assert_close(logits(again), expected, **CLOSE)
    if settings not in ("head", "tables"):
        torch.testing.assert_close(logits(theirs.merge_and_unload()), expected, **CLOSE)
        torch.testing.assert_close(logits(read(tmp_path)), expected, **CLOSE)


THEIRS = {
    "usual": {"target_modules": None},
    "everything": {"target_modules": "all-linear", "use_rslora": True},
    "dora": {"target_modules": "all-linear", "use_dora": True, "rank_pattern": {"SelfAttention.k|k_proj": 3}},
}


@pytest.mark.parametrize(
    "name, settings", [*(("t5", name) for name in THEIRS), ("bart", "dora"), ("marian", "everything")]
)
def test_adapters_of_peft_give_equal_logits_in_ours(name, settings, folders, tmp_path):
    config = peft.LoraConfig(r=2, lora_alpha=6, task_type="SEQ_2_SEQ_LM", **THEIRS[settings])
    theirs = peft.get_peft_model(theirs_of(name, folders), config).eval()
    torch.manual_seed(2)
    for part, parameter in theirs.named_parameters():
        if "lora_B" in part or "magnitude" in part:
            nn.init.normal_(parameter, mean=float("magnitude" in part), std=0.3)
    theirs.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(read(tmp_path)), logits(theirs), **CLOSE)


def test_an_adapter_of_a_table_that_no_layer_is_called_by_is_refused(folders, tmp_path):
    """`shared` holds the table of both sides, and is not asked for vectors: in PEFT such an adapter does nothing."""
    config = peft.LoraConfig(r=2, target_modules=["shared"], task_type="SEQ_2_SEQ_LM")
    theirs = peft.get_peft_model(theirs_of("t5", folders), config).eval()
    nn.init.normal_(theirs.base_model.model.shared.lora_embedding_A["default"])
    torch.testing.assert_close(logits(theirs), logits(theirs_of("t5", folders)))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="which has shared: this one has no such layer"):
        read(tmp_path)
