"""config.json as the hub has it: keys left out, null, renamed or unknown mean what they mean in `transformers`."""

import json
import random
import sys
from dataclasses import fields

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file, save_file
from transformers.configuration_utils import PreTrainedConfig

from tests.interop.random_configs import SMALL, config_class, hub_config
from tests.interop.random_folders import read
from txtrain.errors import UserError
from txtrain.interop.axes import to_flat
from txtrain.interop.check import logits
from txtrain.interop.families import families
from txtrain.interop.keys import COMMON, NEUTRAL, Extra, Nullable

KINDS = sorted(families())
OTHER_HEADS = {
    "gpt_neox": "embed_out.weight",
    "bert": "cls.predictions.decoder.weight",
    "roberta": "lm_head.decoder.weight",
    "distilbert": "vocab_projector.weight",
}


@pytest.fixture(autouse=True)
def quiet():
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(verbosity)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_are_those_of_transformers(kind):
    keys, declared = families()[kind].keys, {field.name: field for field in fields(config_class(kind))}
    known = keys.defaults.keys() | COMMON.keys() | NEUTRAL | keys.neutral
    assert declared.keys() - known - {"per_layer_config"} == set()
    for key, stated in keys.defaults.items():
        if isinstance(stated, Extra):
            assert key not in declared, key
        else:
            default = stated.default if isinstance(stated, Nullable) else stated
            assert declared[key].default == default, key
    spelled = {other: main for other, main in keys.spellings.items() if other != "n_embed"}
    assert spelled == config_class(kind).attribute_map


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_models_code_reads_is_in_a_table(kind, monkeypatch):
    family, seen, plain = families()[kind], set(), PreTrainedConfig.__getattribute__

    def noted(config, key):
        file = sys._getframe(1).f_code.co_filename
        if "/modeling_" in file or file.endswith("masking_utils.py"):
            seen.add(key)
        return plain(config, key)

    config = config_class(kind)(**SMALL[kind])
    monkeypatch.setattr(PreTrainedConfig, "__getattribute__", noted)
    model = getattr(transformers, family.architecture)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        model(**inputs_of(kind))
    own = {
        key
        for key in seen
        if not key.startswith("_") and not callable(plain(config, key) if hasattr(config, key) else 0)
    }
    known = family.keys.defaults.keys() | family.keys.spellings.keys() | family.keys.neutral | NEUTRAL | COMMON.keys()
    known |= {"is_causal", "per_layer_config", "sub_configs", "tie_word_embeddings"}
    known |= {"clip_qkv", "softmax_scale"}  # of MPT's attn_config
    assert own - known == set()


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_left_out_means_what_the_config_class_means(kind):
    family, whole = (
        families()[kind],
        {"model_type": kind, "architectures": [families()[kind].architecture]} | SMALL[kind],
    )
    for key in SMALL[kind]:
        config = {name: value for name, value in whole.items() if name != key}
        try:
            stated = whole | config_class(kind)(**config).to_dict()
            wanted = to_flat(family.axes(stated))
        except (UserError, StrictDataclassClassValidationError):  # sizes that do not go together
            continue
        assert to_flat(family.axes(config)) == wanted, key
        assert family.longest(family.complete(config)) == family.longest(stated)
    nothing = {"model_type": kind, "architectures": whole["architectures"]}
    stated = nothing | config_class(kind)().to_dict()
    assert to_flat(family.axes(nothing)) == to_flat(family.axes(stated | nothing))


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_key_is_warned_of_and_a_neutral_one_is_not(kind, caplog):
    config = families()[kind].complete(SMALL[kind] | {"use_cache": True, f"of_{kind}": 3, "off": None})
    families()[kind].check(config)
    assert [record.message.split(": ")[-1] for record in caplog.records] == [f"of_{kind}"]


@pytest.mark.parametrize("kind", KINDS)
def test_random_configs_have_equal_logits_or_are_refused(kind, tmp_path):
    outcomes = [one_round(kind, seed, tmp_path / str(seed)) for seed in range(4)]
    assert "equal" in outcomes
    assert "refused in several lines" not in outcomes


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_many_random_configs_have_equal_logits_or_are_refused(kind, tmp_path):
    outcomes = [one_round(kind, seed, tmp_path / str(seed)) for seed in range(100, 160)]
    assert outcomes.count("equal") >= 10
    assert "refused in several lines" not in outcomes


@torch.no_grad()
def one_round(kind, seed, path):
    """How a random config of a family ended: "equal", "refused" here, or "theirs" where transformers refuses it."""
    draws = random.Random(f"{kind} {seed}")
    family, config = families()[kind], hub_config(kind, draws)
    path.mkdir()
    config["architectures"] = [family.architecture]
    (path / "config.json").write_text(json.dumps(config))
    try:
        theirs = their_model(path, family, draws)
        expected = theirs(**inputs_of(kind))
        expected = expected.logits if hasattr(expected, "logits") else expected.last_hidden_state
    except Exception:
        theirs = expected = None
        if not (path / "model.safetensors").is_file():
            save_file({"x": torch.zeros(1)}, path / "model.safetensors")
    try:
        ours = read(path)
        got = logits(ours, next(iter(inputs_of(kind).values())))
    except UserError as error:
        return "refused" if "\n" not in str(error) else "refused in several lines"
    if expected is None:
        return "theirs"
    assert got.shape == expected.shape, config
    difference = float((got - expected).abs().max())
    assert difference <= 1e-4 * max(1.0, float(expected.abs().max())), f"{difference} {config}"
    return "equal"


def their_model(path, family, draws):
    """Writes random weights as the hub has them, and gives the model that `transformers` loads."""
    auto = {"images": "AutoModelForImageClassification", "sound": "AutoModelForAudioClassification"}.get(family.reads)
    if auto is None and family.architecture.endswith("MaskedLM"):
        auto = "AutoModelForMaskedLM"
    elif auto is None:
        encodes = family.architecture.endswith(("ConditionalGeneration", "MTModel"))
        auto = "AutoModelForSeq2SeqLM" if encodes else "AutoModelForCausalLM"
    settings = transformers.AutoConfig.from_pretrained(path)
    torch.manual_seed(draws.randrange(1000))
    model = getattr(transformers, auto).from_config(settings, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
        if parameter.dim() == 1:
            parameter.add_(0.5)
    model.save_pretrained(path / "saved")
    tensors = load_file(path / "saved" / "model.safetensors")
    change_heads(tensors, draws)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return getattr(transformers, auto).from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()


def change_heads(tensors, draws):
    """A head beside a tied table, the same or another; or none where it is needed."""
    heads = ("lm_head.weight", *OTHER_HEADS.values())
    tables = [
        name for name in tensors if name.endswith(("wte.weight", "embed_tokens.weight", "word_embeddings.weight"))
    ]
    tables += [name for name in tensors if name.endswith(("embed_in.weight", "shared.weight"))]
    there = [name for name in heads if name in tensors]
    how = draws.random()
    if there and how < 0.1:
        del tensors[there[0]]
    elif not there and tables and how < 0.4:
        prefix = tables[0].split(".")[0]
        name = OTHER_HEADS.get(prefix, "lm_head.weight")
        table = tensors[tables[0]].clone()
        tensors[name] = table if how < 0.2 else table + 0.1


def inputs_of(kind):
    draws = torch.Generator().manual_seed(1)
    family = families()[kind]
    if family.reads == "images":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=draws)}
    if family.reads == "sound":
        return {"input_values": torch.randn(2, 24, 16, generator=draws)}
    tokens = torch.randint(4, 50, (2, 20), generator=draws)
    if family.model_class.__name__ == "EncoderDecoder":
        return {"input_ids": tokens, "decoder_input_ids": tokens}
    return {"input_ids": tokens}
