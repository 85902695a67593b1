"""Tiny models with random weights, of transformers' making and ours with the same weights."""

import re
from functools import partial

import torch
import transformers

from tests.model.families import (
    DIM,
    EPS,
    HEADS,
    INNER,
    LAYERS,
    LENGTH,
    LLAMA,
    SIZES,
    VOCAB,
    new_model,
    reference,
    renamed,
)
from txtrain.data.tokenizer import Byte
from txtrain.model import Decoder, EncoderDecoder
from txtrain.model.attention import Attention
from txtrain.model.embed import Embedding
from txtrain.model.encoding import T5, Learned, Rope
from txtrain.model.ffn import FeedForward, GatedFeedForward
from txtrain.model.norm import PreNorm


def llama():
    """Rotary positions and grouped queries."""
    theirs = reference("LlamaForCausalLM", **SIZES, num_key_value_heads=2, rms_norm_eps=EPS)
    norms = ("input_layernorm", "norm.norms.0"), ("post_attention_layernorm", "norm.norms.1")
    weights = renamed(theirs.state_dict(), *LLAMA, *norms)
    axes = {"encoding": Rope, "norm": PreNorm, "attention": Attention, "ffn": GatedFeedForward}
    return theirs, new_model(Decoder, weights, kv_heads=2, embedding=partial(Embedding, tied=False), **axes)


def llama_folder(folder):
    """Writes a Llama of transformers' in bfloat16 with a tokenizer of bytes → the same model in float32."""
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        tie_word_embeddings=True,
        max_position_embeddings=64,
        eos_token_id=256,
    )
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    theirs.generation_config.eos_token_id = [256, 7]
    theirs.save_pretrained(folder)
    tokenizer = Byte()
    tokenizer.fit()
    tokenizer.save(folder / "tokenizer.json")
    return theirs.float()


def gpt2():
    """A table of positions."""
    theirs = reference("GPT2LMHeadModel", n_embd=DIM, n_layer=LAYERS, n_head=HEADS, n_inner=INNER, n_positions=LENGTH)
    with torch.no_grad():  # else it says one word over and over
        theirs.transformer.ln_f.bias.zero_()
        theirs.transformer.wpe.weight.mul_(5)
    state = {name: x.T if re.search(r"c_\w+\.weight", name) else x for name, x in theirs.state_dict().items()}
    weights = renamed(
        state,
        (r"^transformer\.wte", "embedding.tokens"),
        (r"^transformer\.wpe", "stack.encoding.table"),
        (r"^transformer\.ln_f", "stack.norm.final"),
        (r"^transformer\.h", "stack.blocks"),
        (r"\.attn\.c_proj", ".attention.o_proj"),
        (r"\.attn\.", ".attention."),
        (r"\.mlp\.c_fc", ".ffn.up_proj"),
        (r"\.mlp\.c_proj", ".ffn.down_proj"),
        (r"ln_1", "norm.norms.0"),
        (r"ln_2", "norm.norms.1"),
        (r"^lm_head", "head.linear"),
    )
    for name in [name for name in weights if "c_attn" in name]:
        for part, value in zip(("q_proj", "k_proj", "v_proj"), weights.pop(name).chunk(3), strict=True):
            weights[name.replace("c_attn", part)] = value
    axes = {
        "encoding": Learned,
        "norm": partial(PreNorm, layer="layernorm", bias=True, eps=EPS),
        "attention": partial(Attention, bias=True),
        "ffn": partial(FeedForward, activation="gelu_tanh", bias=True),
    }
    return theirs, new_model(Decoder, weights, **axes)


def t5():
    """An encoder and a decoder."""
    theirs = reference(
        "T5ForConditionalGeneration",
        d_model=DIM,
        d_kv=DIM // HEADS,
        d_ff=INNER,
        num_layers=LAYERS,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        layer_norm_epsilon=EPS,
        feed_forward_proj="relu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "Attention" in name and "bias" not in name:
                weight.mul_(3)
    weights = renamed(
        theirs.state_dict(),
        (r"^shared", None),
        (r"\.embed_tokens", ".embedding.tokens"),
        (r"^lm_head", "decoder.head.linear"),
        (r"\.final_layer_norm", ".stack.norm.final"),
        (r"\.block\.\d\..*relative_attention_bias", ".stack.encoding.table"),
        (r"\.block\.", ".stack.blocks."),
        (r"\.layer\.(\d)\.layer_norm", r".norm.norms.\1"),
        (r"\.layer\.0\.SelfAttention\.(.)", r".attention.\1_proj"),
        (r"\.layer\.1\.EncDecAttention\.(.)", r".cross_attention.\1_proj"),
        (r"\.layer\.\d\.DenseReluDense\.wo", ".ffn.down_proj"),
        (r"\.layer\.\d\.DenseReluDense\.wi", ".ffn.up_proj"),
    )
    axes = {
        "encoding": partial(T5, num_buckets=8, max_distance=16),
        "norm": PreNorm,
        "attention": partial(Attention, scale=1.0),
        "ffn": partial(FeedForward, activation="relu"),
    }
    return theirs, new_model(EncoderDecoder, weights, embedding=partial(Embedding, tied=False), **axes)


def prompts(*lengths):
    """Random ids, the same each time."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]
