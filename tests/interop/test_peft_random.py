"""Random adapters as PEFT saves them, and configs as hubs and hands leave them: read as PEFT does, or refused."""

import json
import random

import peft
import pytest
import torch
from torch import nn

from tests.interop.test_peft import TOKENS, folders, ours_of, theirs_of
from txtrain.errors import UserError
from txtrain.interop.adapted import read_adapted
from txtrain.interop.peft_config import CONFIG, KNOWN

__all__ = ["folders"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own

FEW, MANY = 30, 400
LAYERS = {
    "gpt2": ["c_attn", "c_proj", "c_fc", "attn.c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}
TABLES = {"gpt2": ["wte", "lm_head"], "llama": ["embed_tokens", "lm_head"], "gpt_neox": ["embed_in", "embed_out"]}
STARTS = [True, True, False, "gaussian", "orthogonal", "mica", "pissa", "olora"]
OTHERS = [peft.IA3Config, peft.LoHaConfig, peft.LoKrConfig, peft.OFTConfig, peft.VeraConfig, peft.FourierFTConfig]
OTHERS += [peft.PrefixTuningConfig, peft.PromptTuningConfig, peft.LNTuningConfig, peft.AdaLoraConfig]
WHERE = ["target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"]
VALUES = [
    None,
    True,
    False,
    0,
    1,
    2,
    -1,
    1.5,
    "",
    "x",
    "q_proj",
    r".*\.0\..*",
    [],
    ["q_proj"],
    ["c_proj"],
    [0],
    [1],
    {},
    {"q_proj": 2},
    float("nan"),
]


def settings_of(family, draws):
    """Of a LoRA adapter."""
    layers = draws.sample(LAYERS[family], draws.randint(1, len(LAYERS[family])))
    targets = draws.choice([layers, layers, "all-linear", rf".*\.({'|'.join(layers)})"])
    found = {"r": draws.choice([2, 4, 6]), "lora_alpha": draws.choice([1, 3, 8, 5.5]), "target_modules": targets}
    found |= {"use_dora": draws.random() < 0.3, "use_rslora": draws.random() < 0.3, "lora_dropout": 0.1}
    found |= {"init_lora_weights": draws.choice(STARTS), "task_type": "CAUSAL_LM"}
    if draws.random() < 0.3:
        key = draws.choice([*layers, rf".*\.1\..*\.{layers[0]}", "does_not_exist"])
        found |= {draws.choice(["rank_pattern", "alpha_pattern"]): {key: draws.choice([2, 5])}}
    if isinstance(targets, list) and draws.random() < 0.2:
        found["layers_to_transform"] = draws.choice([0, [1], [0, 1]])
    if draws.random() < 0.15:
        found["exclude_modules"] = draws.choice([layers[:1], r".*\.0\..*"])
    if isinstance(targets, list) and draws.random() < 0.2:
        found["target_modules"] = [*targets, draws.choice(TABLES[family])]
    if draws.random() < 0.1:
        found["bias"] = draws.choice(["all", "lora_only"])
    if draws.random() < 0.1:
        found["modules_to_save"] = [draws.choice(TABLES[family])]
    return found


def write(folder, base, family, draws):
    """Saves an adapter that has learned something; None if PEFT makes none of these settings."""
    try:
        if draws.random() < 0.08:
            kind = draws.choice(OTHERS)
            more = {"num_virtual_tokens": 3} if "P" in kind.__name__[:1] else {"target_modules": LAYERS[family][:1]}
            more |= {"feedforward_modules": []} if kind is peft.IA3Config else {}
            more |= {"total_step": 9} if kind is peft.AdaLoraConfig else {}
            config = kind(task_type="CAUSAL_LM", **more)
        else:
            config = peft.LoraConfig(**settings_of(family, draws))
        torch.manual_seed(draws.randrange(10**6))
        model = peft.get_peft_model(theirs_of(base), config).eval()
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError):
        return False
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, save_embedding_layers=draws.choice(["auto", "auto", True, False]))
    return True


def change(config, draws):
    """Up to two keys of a config are gone, null, renamed, unknown or have another value."""
    for _ in range(draws.choice([0, 1, 1, 2])):
        key = draws.choice(draws.choice([WHERE, list(config)]))
        if (how := draws.choice(["gone", "null", "renamed", "unknown", "value", "known"])) == "gone":
            config.pop(key, None)
        elif how == "null":
            config[key] = None
        elif how == "renamed":
            config[f"{key}_"] = config.pop(key, None)
        else:
            name = {"unknown": "use_next", "known": draws.choice(sorted(KNOWN)), "value": key}[how]
            config[name] = draws.choice(VALUES)
    return config


def logits_of_peft(base, folder):
    """None if PEFT does not read it."""
    try:
        with torch.no_grad():
            return peft.PeftModel.from_pretrained(theirs_of(base), folder).eval()(TOKENS).logits
    except Exception:  # whatever it raises, it is no adapter to it
        return None


def logits_of_ours(folder):
    """None if it is refused, in a line."""
    try:
        model: nn.Module = ours_of(read_adapted(folder))
    except UserError:
        return None
    with torch.no_grad():
        return model(TOKENS)


@pytest.mark.parametrize("seed", [*range(FEW), *(pytest.param(n, marks=pytest.mark.heavy) for n in range(FEW, MANY))])
def test_a_random_adapter_gives_the_logits_of_peft_or_is_refused(seed, folders, tmp_path):
    draws = random.Random(seed)
    family = draws.choice(sorted(LAYERS))
    if not write(tmp_path, folders[family], family, draws):
        return
    path = tmp_path / CONFIG
    path.write_text(json.dumps(change(json.loads(path.read_text()), draws)))
    ours = logits_of_ours(tmp_path)
    theirs = None if ours is None else logits_of_peft(folders[family], tmp_path)
    if theirs is not None and theirs.isfinite().all():
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_most_random_adapters_are_read(folders, tmp_path):
    """Untouched LoRA adapters, which are no others than PEFT's users have."""
    read = made = 0
    for seed in range(12):
        draws = random.Random(seed)
        family, folder = draws.choice(sorted(LAYERS)), tmp_path / str(seed)
        if write(folder, folders[family], family, draws):
            made += 1
            read += logits_of_ours(folder) is not None
    assert made >= 8 and read >= made // 2
