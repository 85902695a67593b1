"""Whole models against transformers' own, with the same random weights: each family is a point on our axes."""

import re
from functools import partial

import pytest
import torch
from transformers.utils import logging

from tests.model.families import (
    DIM,
    EPS,
    FUSED,
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
    split_heads,
)
from txtrain.model import Decoder, Encoder, EncoderDecoder
from txtrain.model.attention import Attention
from txtrain.model.embed import Embedding
from txtrain.model.encoding import T5, Alibi, Learned, Rope
from txtrain.model.ffn import FeedForward, GatedFeedForward
from txtrain.model.head import Head
from txtrain.model.norm import ParallelNorm, PostNorm, PreNorm, ReorderedNorm, SandwichNorm

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LAYER_NORM = {"layer": "layernorm", "bias": True, "eps": EPS}


@pytest.fixture(autouse=True)
def quiet():
    """Tiny vocabularies make transformers warn of its default token numbers."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


@pytest.fixture
def tokens():
    return torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def test_gpt2_is_learned_positions_and_pre_norm(tokens):
    gpt2 = reference("GPT2LMHeadModel", n_embd=DIM, n_layer=LAYERS, n_head=HEADS, n_inner=INNER, n_positions=LENGTH)
    # Its linear layers are stored the other way round.
    state = {name: x.T if re.search(r"c_\w+\.weight", name) else x for name, x in gpt2.state_dict().items()}
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
    model = new_model(
        Decoder,
        weights,
        encoding=Learned,
        norm=partial(PreNorm, **LAYER_NORM),
        attention=partial(Attention, bias=True),
        ffn=partial(FeedForward, activation="gelu_tanh", bias=True),
    )
    torch.testing.assert_close(model(tokens), gpt2(tokens).logits, **CLOSE)


ROPES = [
    ({}, {"rope_type": "default"}),
    ({"scaling": "linear", "factor": 4.0}, {"rope_type": "linear"}),
    ({"scaling": "dynamic", "factor": 4.0, "original_len": 12}, {"rope_type": "dynamic"}),
    ({"scaling": "yarn", "factor": 4.0, "original_len": 12}, {"rope_type": "yarn"}),
    (
        {"scaling": "llama3", "factor": 4.0, "original_len": 12},
        {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
]


@pytest.mark.parametrize("ours, theirs", ROPES)
def test_llama_is_rope_pre_norm_rmsnorm_swiglu_and_grouped_queries(tokens, ours, theirs):
    rope = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 12}
    llama = reference(
        "LlamaForCausalLM",
        **SIZES,
        num_key_value_heads=2,
        rms_norm_eps=EPS,
        max_position_embeddings=12,
        rope_parameters=rope | theirs,
    )
    weights = renamed(
        llama.state_dict(), *LLAMA, ("input_layernorm", "norm.norms.0"), ("post_attention_layernorm", "norm.norms.1")
    )
    model = new_model(
        Decoder,
        weights,
        kv_heads=2,
        embedding=partial(Embedding, tied=False),
        encoding=partial(Rope, **ours),
        norm=PreNorm,
        attention=Attention,
        ffn=GatedFeedForward,
    )
    torch.testing.assert_close(model(tokens), llama(tokens).logits, **CLOSE)


def test_gpt_neox_is_partial_rope_and_parallel_norm(tokens):
    neox = reference(
        "GPTNeoXForCausalLM",
        **SIZES,
        layer_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )
    weights = renamed(
        split_heads(neox.state_dict()),
        (r"^gpt_neox\.embed_in", "embedding.tokens"),
        (r"^gpt_neox\.final_layer_norm", "stack.norm.final"),
        (r"^gpt_neox\.layers", "stack.blocks"),
        *FUSED,
    )
    model = new_model(
        Decoder,
        weights,
        embedding=partial(Embedding, tied=False),
        encoding=partial(Rope, fraction=0.5),
        norm=partial(ParallelNorm, shared=False, **LAYER_NORM),
        attention=partial(Attention, bias=True),
        ffn=partial(FeedForward, bias=True),
    )
    torch.testing.assert_close(model(tokens), neox(tokens).logits, **CLOSE)


def test_gptj_is_interleaved_rope_and_one_norm_for_parallel_branches(tokens):
    gptj = reference("GPTJForCausalLM", n_embd=DIM, n_layer=LAYERS, n_head=HEADS, n_inner=INNER, rotary_dim=4)
    weights = renamed(
        gptj.state_dict(),
        (r"^transformer\.wte", "embedding.tokens"),
        (r"^transformer\.ln_f", "stack.norm.final"),
        (r"^transformer\.h", "stack.blocks"),
        (r"\.attn\.out_proj", ".attention.o_proj"),
        (r"\.attn\.", ".attention."),
        (r"mlp\.fc_in", "ffn.up_proj"),
        (r"mlp\.fc_out", "ffn.down_proj"),
        (r"ln_1", "norm.norms.0"),
        (r"^lm_head", "head.linear"),
    )
    model = new_model(
        Decoder,
        weights,
        embedding=partial(Embedding, tied=False),
        head=partial(Head, bias=True),
        encoding=partial(Rope, fraction=0.5, layout="interleaved"),
        norm=partial(ParallelNorm, **LAYER_NORM),
        attention=Attention,
        ffn=partial(FeedForward, activation="gelu_tanh", bias=True),
    )
    torch.testing.assert_close(model(tokens), gptj(tokens).logits, **CLOSE)


def test_bloom_is_alibi_and_a_normed_embedding(tokens):
    bloom = reference("BloomForCausalLM", hidden_size=DIM, n_layer=LAYERS, n_head=HEADS)
    weights = renamed(
        split_heads(bloom.state_dict()),
        (r"^transformer\.word_embeddings_layernorm", "embedding.norm"),
        (r"^transformer\.word_embeddings", "embedding.tokens"),
        (r"^transformer\.ln_f", "stack.norm.final"),
        (r"^transformer\.h", "stack.blocks"),
        ("self_attention", "attention"),
        *FUSED,
    )
    model = new_model(
        Decoder,
        weights,
        inner=4 * DIM,
        embedding=partial(Embedding, norm=True),
        encoding=Alibi,
        norm=partial(PreNorm, **LAYER_NORM),
        attention=partial(Attention, bias=True),
        ffn=partial(FeedForward, activation="gelu_tanh", bias=True),
    )
    torch.testing.assert_close(model(tokens), bloom(tokens).logits, **CLOSE)


@pytest.mark.parametrize(
    "version, ffn, names",
    [
        ("relu", partial(FeedForward, activation="relu"), [("wi", "up_proj")]),
        ("gated-gelu", partial(GatedFeedForward, activation="gelu_tanh"), [("wi_0", "gate_proj"), ("wi_1", "up_proj")]),
    ],
)
def test_t5_is_bucketed_bias_and_unscaled_attention(tokens, version, ffn, names):
    t5 = reference(
        "T5ForConditionalGeneration",
        d_model=DIM,
        d_kv=DIM // HEADS,
        d_ff=INNER,
        num_layers=LAYERS,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        layer_norm_epsilon=EPS,
        feed_forward_proj=version,
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    weights = renamed(
        t5.state_dict(),
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
        *((rf"\.layer\.\d\.DenseReluDense\.{old}\b", f".ffn.{new}") for old, new in names),
    )
    model = new_model(
        EncoderDecoder,
        weights,
        embedding=partial(Embedding, tied=False),
        encoding=partial(T5, num_buckets=8, max_distance=16),
        norm=PreNorm,
        attention=partial(Attention, scale=1.0),
        ffn=ffn,
    )
    padding = torch.ones(2, LENGTH, dtype=torch.bool)
    padding[1, 17:] = False
    target = tokens.flip(0)[:, :9]
    expected = t5(input_ids=tokens, attention_mask=padding.long(), decoder_input_ids=target).logits
    torch.testing.assert_close(model(tokens, target, padding), expected, **CLOSE)


def test_olmo2_is_reordered_norm_and_qk_norm(tokens):
    """Queries and keys are each normed over all heads together."""
    olmo = reference(
        "Olmo2ForCausalLM",
        **SIZES,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
    )
    weights = renamed(
        olmo.state_dict(),
        *LLAMA,
        ("post_attention_layernorm", "norm.norms.0"),
        ("post_feedforward_layernorm", "norm.norms.1"),
    )
    model = new_model(
        Decoder,
        weights,
        kv_heads=2,
        embedding=partial(Embedding, tied=False),
        encoding=Rope,
        norm=partial(ReorderedNorm, eps=1e-6),
        attention=partial(Attention, qk_norm="all"),
        ffn=GatedFeedForward,
    )
    torch.testing.assert_close(model(tokens), olmo(tokens).logits, **CLOSE)


def test_gemma2_is_sandwich_norm_and_soft_caps(tokens):
    gemma = reference(
        "Gemma2ForCausalLM",
        **SIZES,
        num_key_value_heads=1,
        head_dim=DIM // HEADS,
        query_pre_attn_scalar=16,
        rms_norm_eps=EPS,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        layer_types=["full_attention"] * LAYERS,
    )
    weights = renamed(
        gemma.state_dict(),
        *LLAMA,
        ("input_layernorm", "norm.inner.0"),
        ("pre_feedforward_layernorm", "norm.inner.1"),
        ("post_attention_layernorm", "norm.outer.0"),
        ("post_feedforward_layernorm", "norm.outer.1"),
    )
    for name in weights:
        if "norm" in name:
            weights[name] = weights[name] + 1  # Gemma stores the difference from 1
    model = new_model(
        Decoder,
        weights,
        kv_heads=1,
        embedding=partial(Embedding, scale=True),
        head=partial(Head, soft_cap=3.0),
        encoding=Rope,
        norm=SandwichNorm,
        attention=partial(Attention, scale=0.25, soft_cap=2.0),
        ffn=partial(GatedFeedForward, activation="gelu_tanh"),
    )
    torch.testing.assert_close(model(tokens), gemma(tokens).logits, **CLOSE)


def test_bert_is_an_encoder_with_post_norm_and_token_types(tokens):
    bert = reference(
        "BertModel",
        **SIZES,
        max_position_embeddings=LENGTH,
        layer_norm_eps=EPS,
    )
    weights = renamed(
        bert.state_dict(),
        (r"^pooler", None),
        (r"^embeddings\.word_embeddings", "embedding.tokens"),
        (r"^embeddings\.position_embeddings", "stack.encoding.table"),
        (r"^embeddings\.token_type_embeddings", "embedding.types"),
        (r"^embeddings\.LayerNorm", "embedding.norm"),
        (r"^encoder\.layer", "stack.blocks"),
        (r"attention\.self\.(.)\w*", r"attention.\1_proj"),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"attention\.output\.LayerNorm", "norm.norms.0"),
        (r"intermediate\.dense", "ffn.up_proj"),
        (r"output\.dense", "ffn.down_proj"),
        (r"output\.LayerNorm", "norm.norms.1"),
    )
    model = new_model(
        Encoder,
        weights,
        embedding=partial(Embedding, norm=True, token_types=2),
        encoding=Learned,
        norm=partial(PostNorm, **LAYER_NORM),
        attention=partial(Attention, bias=True),
        ffn=partial(FeedForward, bias=True),
    )
    padding = torch.ones(2, LENGTH, dtype=torch.bool)
    padding[1, 17:] = False
    types = (torch.arange(LENGTH) > 10).long().expand(2, -1)
    expected = bert(tokens, attention_mask=padding.long(), token_type_ids=types).last_hidden_state
    torch.testing.assert_close(model(tokens, types=types, padding=padding)[padding], expected[padding], **CLOSE)
