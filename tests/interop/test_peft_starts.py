"""PEFT's adapters that take a part out of the base, bring a copy of it, or have keys that change what is computed."""

import dataclasses
import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.interop.test_peft import assert_equal_logits, folders, ours_of, theirs_of
from txtrain.errors import UserError
from txtrain.interop.adapted import read_adapted
from txtrain.interop.peft import TENSORS
from txtrain.interop.peft_config import CONFIG, KNOWN, NEUTRAL

__all__ = ["folders"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own: of Conv1D, of embeddings, of tied weights


def trained(folder, base, *, save_embedding_layers="auto", **settings):
    """An adapter that PEFT has made, as if it had learned something."""
    torch.manual_seed(2)
    config = peft.LoraConfig(**({"r": 3, "lora_alpha": 5, "task_type": "CAUSAL_LM"} | settings))
    model = peft.get_peft_model(theirs_of(base), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    return model


def refusal(folder):
    with pytest.raises(UserError) as error:
        ours_of(read_adapted(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


STARTS = [
    ("llama", {"init_lora_weights": "pissa"}),
    ("llama", {"init_lora_weights": "olora", "use_rslora": True}),
    ("llama", {"init_lora_weights": "pissa", "use_dora": True}),
    ("llama", {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 1}}),
    ("llama", {"init_lora_weights": "gaussian"}),
    ("llama", {"init_lora_weights": "orthogonal", "r": 4}),
    ("llama", {"init_lora_weights": "mica"}),
    ("gpt2", {"init_lora_weights": "pissa"}),
    ("gpt_neox", {"init_lora_weights": "pissa"}),
    ("gpt_neox", {"init_lora_weights": "olora"}),
]


@pytest.mark.parametrize("family, settings", STARTS)
def test_an_adapter_gives_the_logits_that_peft_gives_it(folders, tmp_path, family, settings):
    """Of the model that was trained, and of the folder as PEFT reads it."""
    targets = ["c_attn"] if family == "gpt2" else "all-linear"
    theirs = trained(tmp_path, folders[family], target_modules=targets, **settings)
    again = peft.PeftModel.from_pretrained(theirs_of(folders[family]), tmp_path).eval()
    ours = ours_of(read_adapted(tmp_path))
    assert_equal_logits(ours, theirs)
    assert_equal_logits(ours, again)


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "eva", "loftq", "lora_ga", "what_comes_next"])
def test_a_change_of_the_base_that_cannot_be_repeated_is_refused(folders, tmp_path, start):
    trained(tmp_path, folders["llama"], target_modules=["q_proj"])
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"init_lora_weights": start}))
    assert f"init_lora_weights={start}" in refusal(tmp_path)


COPIES = [
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["embed_tokens", "v_proj"]},
    {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    {"target_modules": ["q_proj", "lm_head"], "init_lora_weights": "pissa"},
    {"target_modules": ["q_proj"], "save_embedding_layers": True},
]


@pytest.mark.parametrize("settings", COPIES)
def test_copies_of_the_base_are_read_if_they_are_equal_to_it(folders, tmp_path, settings):
    theirs = trained(tmp_path, folders["llama"], **settings)
    tensors = load_file(tmp_path / TENSORS)
    [name, *_] = [name for name in tensors if ".lora_" not in name]
    assert_equal_logits(ours_of(read_adapted(tmp_path)), theirs)
    tensors[name][1, 2] += 0.01
    save_file(tensors, tmp_path / TENSORS)
    assert "that differs from the base's" in refusal(tmp_path)


def test_copies_of_a_tied_table_are_read(folders, tmp_path):
    theirs = trained(tmp_path, folders["gpt2"], target_modules=["c_attn"], save_embedding_layers=True)
    assert any("wte" in name for name in load_file(tmp_path / TENSORS))
    assert_equal_logits(ours_of(read_adapted(tmp_path)), theirs)


def test_pissa_of_a_tied_matrix_is_refused(folders, tmp_path):
    trained(tmp_path, folders["gpt2"], target_modules=["lm_head"], init_lora_weights="pissa")
    assert "one of two matrices that its base has tied" in refusal(tmp_path)


def test_a_magnitude_and_what_the_config_says_of_it_agree(folders, tmp_path):
    for dora in (False, True):
        shutil.rmtree(tmp_path, ignore_errors=True)
        trained(tmp_path, folders["llama"], target_modules=["q_proj"], use_dora=dora)
        config = json.loads((tmp_path / CONFIG).read_text())
        (tmp_path / CONFIG).write_text(json.dumps(config | {"use_dora": not dora}))
        assert f"has use_dora={not dora}, and {TENSORS} has {'a' if dora else 'no'} magnitude" in refusal(tmp_path)


def test_every_key_of_pefts_config_is_known():
    known = KNOWN.keys() | NEUTRAL
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} <= known
    assert not KNOWN.keys() & NEUTRAL


def test_a_key_that_is_in_no_table_is_refused_unless_it_is_off(folders, tmp_path):
    theirs = trained(tmp_path, folders["llama"], target_modules=["q_proj"])
    config = json.loads((tmp_path / CONFIG).read_text())
    for value in (None, False, [], {}):
        (tmp_path / CONFIG).write_text(json.dumps(config | {"use_next": value}))
        assert_equal_logits(ours_of(read_adapted(tmp_path)), theirs)
    for value in (True, 2, {"a": 1}, "yes"):
        (tmp_path / CONFIG).write_text(json.dumps(config | {"use_next": value}))
        assert f"has use_next={value}" in refusal(tmp_path)


@pytest.mark.parametrize("key", sorted(set(KNOWN) - {"use_dora", "use_rslora"}))
def test_a_value_that_changes_what_is_computed_is_refused(folders, tmp_path, key):
    trained(tmp_path, folders["llama"], target_modules=["q_proj"])
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {key: {"an": "option"}}))
    assert f"has {key}=" in refusal(tmp_path)
