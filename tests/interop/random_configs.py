"""Random small configs of every family, as config.json on the hub has them: keys left out, null, renamed or unknown."""

from functools import cache

import transformers

from txtrain.interop.families import families
from txtrain.interop.keys import Extra, Nullable

DECODER = {"vocab_size": 50, "num_hidden_layers": 3, "max_position_embeddings": 24}
ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BARTS = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
BARTS |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 24, "vocab_size": 50}
BARTS |= {"pad_token_id": 1, "decoder_start_token_id": 2, "eos_token_id": 3}
SMALL = {
    "gpt2": {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24},
    "bloom": {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"vocab_size": 50, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 24},
    "t5": {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0},
    "bart": BARTS,
    "marian": BARTS,
    "bert": ENCODER | {"vocab_size": 50, "max_position_embeddings": 24},
    "roberta": ENCODER | {"vocab_size": 50, "max_position_embeddings": 32, "pad_token_id": 1},
    "distilbert": {"vocab_size": 50, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
    | {"max_position_embeddings": 24},
    "vit": ENCODER | {"image_size": 16, "patch_size": 8},
    "deit": ENCODER | {"image_size": 16, "patch_size": 8},
    "audio-spectrogram-transformer": ENCODER | {"max_length": 24, "num_mel_bins": 16, "patch_size": 8},
}
DECODERS = dict.fromkeys(("llama", "qwen2", "olmo2", "phi", "gpt_neox"), ENCODER | DECODER)
DECODERS |= {"mistral": ENCODER | DECODER | {"num_attention_heads": 8, "hidden_size": 64}}
DECODERS |= {"qwen3": ENCODER | DECODER | {"head_dim": 8}, "gemma2": ENCODER | DECODER | {"head_dim": 8}}
for kind in ("qwen2", "qwen3"):
    DECODERS[kind] = DECODERS[kind] | {"num_key_value_heads": 2}
SMALL |= DECODERS
ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh", "swish")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
UNKNOWN = {"n_ctx": 24, "architecture": "custom", "use_moe": True, "sliding_windows": 4, "mup_scale": 0.5}


@cache
def config_class(kind):
    return type(transformers.AutoConfig.for_model(kind))


def choices(kind, draws):
    """What may stand in a config of this family besides sizes, drawn."""
    keys = families()[kind].keys.defaults
    found = {}
    for key, stated in keys.items():
        if key in SMALL[kind] or draws.random() < 0.5:
            continue
        if "activation" in key or key == "hidden_act":
            found[key] = draws.choice(ACTIVATIONS)
        elif key.endswith(("_eps", "epsilon")):
            found[key] = draws.choice((1e-3, 1e-6, 1))
        elif isinstance(stated, bool) and key not in ("is_decoder", "is_encoder_decoder", "add_cross_attention"):
            found[key] = draws.random() < 0.5
        elif "softcapping" in key:
            found[key] = draws.choice((None, 2.0, 5))
    for key, values in {
        "num_key_value_heads": (1, 2, None),
        "head_dim": (8, 8, 16),
        "sliding_window": (5, None),
        "max_window_layers": (0, 1, 2),
        "query_pre_attn_scalar": (16, 7),
        "n_inner": (40, None),
        "type_vocab_size": (1, 3),
        "num_decoder_layers": (1, 3, None),
        "relative_attention_num_buckets": (8, 16),
        "relative_attention_max_distance": (10, 20),
        "feed_forward_proj": ("relu", "gated-gelu", "gated-silu", "gelu"),
        "frequency_stride": (4, 8),
        "time_stride": (3, 8),
        "scale_decoder_outputs": (True, False),
        "is_causal": (True, False),
        "attn_config": ({"softmax_scale": 0.3}, {"clip_qkv": 1.0}, None, {"alibi": True, "attn_pdrop": 0}),
    }.items():
        if (key in keys and draws.random() < 0.4) or (key == "is_causal" and draws.random() < 0.03):
            found[key] = draws.choice(values)
    if "layer_types" in keys and draws.random() < 0.4:
        layers = SMALL[kind]["num_hidden_layers"]
        found["layer_types"] = [draws.choice(("full_attention", "sliding_attention")) for _ in range(layers)]
    return found | (rotary(kind, draws) if "rope_parameters" in keys else {})


def rotary(kind, draws):
    """Positions in any of the spellings that files have had."""
    scaling = draws.choice(("default", "linear", "dynamic", "yarn", "llama3", "default"))
    stated = {} if scaling == "default" else {"factor": draws.choice((2.0, 4, 1.5))}
    stated |= LLAMA3 if scaling == "llama3" else {}
    if scaling in ("yarn", "llama3") and draws.random() < 0.7:
        stated["original_max_position_embeddings"] = 12
    if scaling == "yarn":
        more = (
            {"mscale": 0.7, "mscale_all_dim": 0.9},
            {"attention_factor": 1.3},
            {"beta_fast": 16, "beta_slow": 2},
            {},
        )
        stated |= draws.choice(more) | draws.choice(({}, {"truncate": True}, {"truncate": False}))
    found = {}
    if draws.random() < 0.3:
        found["partial_rotary_factor"] = draws.choice((0.5, 1.0))
    if kind == "gpt_neox" and draws.random() < 0.5:
        found |= {"rotary_pct": draws.choice((0.5, 1.0)), "rotary_emb_base": 5000}
    form = draws.randrange(5)
    name = draws.choice(("rope_type", "type"))
    if form == 0:
        return found
    if form == 1:
        return found | {"rope_theta": draws.choice((500.0, 5000))}
    if form == 2:
        return found | {"rope_theta": 5000.0, "rope_scaling": {name: scaling} | stated}
    if form == 3:
        return found | {"rope_parameters": {name: scaling, "rope_theta": 5000.0} | stated}
    both = {"rope_parameters": {name: "default", "rope_theta": 500.0}, "rope_scaling": {name: scaling} | stated}
    return found | draws.choice((both, both | {"rope_theta": 5000.0}, {"rope_scaling": None, "rope_theta": 5e3}))


def hub_config(kind, draws):
    """One config.json: random choices, then keys left out, made null, renamed and added."""
    config = SMALL[kind] | choices(kind, draws)
    keys = families()[kind].keys
    sizes = set(SMALL[kind])
    for key in list(config):
        if key not in sizes and draws.random() < 0.15:
            del config[key]
    nullable = [
        key for key, stated in keys.defaults.items() if key not in sizes and isinstance(stated, Nullable | Extra)
    ]
    if nullable and draws.random() < 0.12:
        config[draws.choice(nullable)] = None
    if draws.random() < 0.05:
        config[draws.choice(sorted(config))] = None
    for other, main in keys.spellings.items():
        if main in config and draws.random() < 0.3:
            value = config[main] if draws.random() < 0.3 else config.pop(main)
            config[other] = value
    if draws.random() < 0.3:
        config |= dict([draws.choice(sorted(UNKNOWN.items()))])
    return {"model_type": kind, **config}
