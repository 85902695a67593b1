"""Llama 1 to 3 (https://arxiv.org/abs/2407.21783), and models of its shape: SmolLM, TinyLlama, Yi."""

from txtrain.interop.common import ACTIVATIONS, LLAMA_RULES, SIZES, Rotary
from txtrain.interop.family import Always, Family, Field, Only
from txtrain.interop.names import in_layers


class Llama(Family):
    """Rotary positions, pre-norm with RMSNorm, grouped queries, SwiGLU."""

    model_types = ("llama",)
    architecture = "LlamaForCausalLM"
    parts = (
        Always({"norm": "pre", "norm.layer": "rmsnorm", "ffn": "swiglu"}),
        *SIZES,
        Field("model.num_kv_heads", "num_key_value_heads", None),
        Field("model.head_dim", "head_dim", None),
        Rotary(),
        Field("norm.eps", "rms_norm_eps", 1e-6),
        Field("attention.bias", "attention_bias", False),
        Field("ffn.bias", "mlp_bias", False),
        Field("ffn.activation", "hidden_act", "silu", ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings", False),
        Only("rope_interleaved"),
    )
    rules = (
        *LLAMA_RULES,
        *in_layers(
            "stack.blocks.{layer}",
            "model.layers.{layer}",
            {"norm.norms.0": "input_layernorm", "norm.norms.1": "post_attention_layernorm"},
        ),
    )
