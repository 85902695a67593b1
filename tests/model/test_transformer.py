"""The models: what each token may know, what is shared, and how many parameters there are."""

from functools import partial

import pytest
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from txtrain.model import Decoder, Encoder, EncoderDecoder, EncoderWithHead, Shape
from txtrain.model.attention import Attention
from txtrain.model.embed import Embedding
from txtrain.model.encoding import NoEncoding
from txtrain.model.ffn import FeedForward, GatedFeedForward
from txtrain.model.head import Head, NoHead, TransformHead
from txtrain.model.norm import DeepNorm, PreNorm

VOCAB, LENGTH = 50, 12


def new_model(model_class=Decoder, shape=None, **changes):
    torch.manual_seed(0)
    parts = {"encoding": NoEncoding, "norm": PreNorm, "attention": Attention, "ffn": GatedFeedForward}
    parts |= {"embedding": Embedding} | ({} if model_class is Encoder else {"head": Head})
    shape = shape or Shape(dim=32, num_layers=2, num_heads=4, num_kv_heads=2)
    return model_class(vocab_size=VOCAB, max_len=LENGTH, shape=shape, **(parts | changes)).eval()


@pytest.fixture
def tokens():
    return torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def test_decoder_is_causal(tokens):
    model, changed = new_model(), tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCAB
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("model_class", [Encoder, EncoderWithHead])
def test_encoder_is_not(tokens, model_class):
    model, changed = new_model(model_class), tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCAB
    assert not torch.allclose(model(tokens)[:, 0], model(changed)[:, 0])


def test_documents_do_not_leak(tokens):
    """A window of two documents gives each token what it gets when its document stands alone."""
    model, cut = new_model(), 5
    documents = (torch.arange(LENGTH) >= cut).long().expand(2, -1)
    positions = torch.cat([torch.arange(cut), torch.arange(LENGTH - cut)])[None]
    packed = model(tokens, positions, documents=documents)
    torch.testing.assert_close(packed[:, :cut], model(tokens[:, :cut]), rtol=0, atol=1e-6)
    torch.testing.assert_close(packed[:, cut:], model(tokens[:, cut:]), rtol=0, atol=1e-6)


def test_padding_changes_no_real_token(tokens):
    model = new_model(Encoder)
    padding = (torch.arange(LENGTH) < 9).expand(2, -1)
    torch.testing.assert_close(model(tokens, padding=padding)[:, :9], model(tokens[:, :9]), rtol=0, atol=1e-6)


def test_decoder_reads_only_real_memory(tokens):
    model = new_model(EncoderDecoder)
    padding = (torch.arange(LENGTH) < 9).expand(2, -1)
    with_padding = model(tokens, tokens[:, :4], padding)
    torch.testing.assert_close(with_padding, model(tokens[:, :9], tokens[:, :4]), rtol=0, atol=1e-6)
    changed = tokens.clone()
    changed[:, 2] = (changed[:, 2] + 1) % VOCAB
    assert not torch.allclose(model(changed, tokens[:, :4], padding), with_padding)


def test_tying_shares_one_matrix():
    tied, untied = new_model(), new_model(embedding=partial(Embedding, tied=False))
    assert tied.head.linear.weight is tied.embedding.tokens.weight
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert count(untied) - count(tied) == VOCAB * 32
    both = new_model(EncoderDecoder)
    assert both.decoder.embedding.tokens.weight is both.encoder.embedding.tokens.weight
    assert both.decoder.head.linear.weight is both.encoder.embedding.tokens.weight


def test_token_vectors_of_their_own_on_each_side():
    model = new_model(EncoderDecoder, embedding=partial(Embedding, shared=False))
    assert model.decoder.embedding.tokens.weight is not model.encoder.embedding.tokens.weight
    assert model.decoder.head.linear.weight is model.decoder.embedding.tokens.weight
    with pytest.raises(ValueError, match=r"embedding\.shared=false"):
        new_model(Decoder, embedding=partial(Embedding, shared=False))


def test_decoder_of_its_own_depth(tokens):
    model = new_model(EncoderDecoder, shape=Shape(dim=32, num_layers=3, num_decoder_layers=1, num_heads=4))
    assert (len(model.encoder.stack.blocks), len(model.decoder.stack.blocks)) == (3, 1)
    assert model(tokens, tokens[:, :4]).shape == (2, 4, VOCAB)
    with pytest.raises(ValueError, match=r"model\.num_decoder_layers=1 is for encoder-decoders"):
        new_model(Decoder, shape=Shape(dim=32, num_layers=3, num_decoder_layers=1, num_heads=4))


def test_deepnorm_counts_the_layers_of_each_side():
    """Encoder α = 0.81 · (N⁴ M)^(1/16), decoder α = (3 M)^(1/4), for N and M layers."""
    shape = Shape(dim=32, num_layers=3, num_decoder_layers=2, num_heads=4)
    model = new_model(EncoderDecoder, shape=shape, norm=DeepNorm)
    assert model.encoder.stack.norm.alpha == pytest.approx(0.81 * (3**4 * 2) ** (1 / 16))
    assert model.decoder.stack.norm.alpha == pytest.approx((3 * 2) ** (1 / 4))


def test_parameter_count_is_the_formula():
    """GPT-2 small without biases and positions: V·D + L(12·D² + 2·D) + D."""
    shape = Shape(dim=768, num_layers=12, num_heads=12)
    with torch.device("meta"):
        model = new_model(shape=shape, ffn=FeedForward)
    assert sum(p.numel() for p in model.parameters()) == VOCAB * 768 + 12 * (12 * 768**2 + 2 * 768) + 768


def test_grouped_queries_equal_repeated_keys_and_values(tokens):
    """Grouped-query attention is multi-head attention whose key and value heads are copies."""
    grouped = new_model()
    full = new_model(shape=Shape(dim=32, num_layers=2, num_heads=4))
    weights = grouped.state_dict()
    for name in list(weights):
        if "k_proj" in name or "v_proj" in name:
            weights[name] = weights[name].unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    torch.testing.assert_close(grouped(tokens), full(tokens), rtol=0, atol=1e-6)


def test_shape_says_what_is_impossible():
    with pytest.raises(ValueError, match=r"model\.head_dim=10"):
        Shape(dim=32, num_layers=1, num_heads=3)
    with pytest.raises(ValueError, match=r"model\.num_kv_heads=1"):
        Shape(dim=32, num_layers=1, num_heads=4, num_kv_heads=3)
    with pytest.raises(ValueError, match=r"model\.num_layers=4"):
        Shape(dim=32, num_layers=0, num_heads=4)
    with pytest.raises(ValueError, match=r"model\.dropout"):
        Shape(dim=32, num_layers=1, num_heads=4, dropout=1.0)


def test_soft_cap_bounds_the_logits(tokens):
    model = new_model(head=partial(Head, soft_cap=0.05))
    free = new_model()
    torch.testing.assert_close(model(tokens), 0.05 * torch.tanh(free(tokens) / 0.05))


def test_head_scale_is_on_the_scores_and_not_on_the_bias(tokens):
    scaled, plain = (new_model(head=partial(Head, scale=scale, bias=True)) for scale in (0.25, 1.0))
    for model in (scaled, plain):
        torch.nn.init.ones_(model.head.linear.bias)
    torch.testing.assert_close(scaled(tokens) - 1, 0.25 * (plain(tokens) - 1))


@pytest.mark.parametrize("ours, theirs", [("gelu", "gelu"), ("gelu_tanh", "gelu_new"), ("relu", "relu")])
def test_transform_head_is_berts(ours, theirs):
    config = BertConfig(vocab_size=VOCAB, hidden_size=32, hidden_act=theirs, layer_norm_eps=1e-3)
    bert = BertLMPredictionHead(config)
    embedding = Embedding(vocab_size=VOCAB, dim=32, tied=False)
    head = TransformHead(
        embedding=embedding, vocab_size=VOCAB, dim=32, bias=True, activation=ours, norm_eps=config.layer_norm_eps
    )
    for parameter in bert.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pairs = [(head.transform, bert.transform.dense), (head.norm, bert.transform.LayerNorm), (head.linear, bert.decoder)]
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(head(x), bert(x))
    with pytest.raises(ValueError, match=r"head\.norm_eps=1e-5"):
        TransformHead(embedding=embedding, vocab_size=VOCAB, dim=32, norm_eps=0.0)


def test_no_head_gives_the_encoders_vectors(tokens):
    headless = new_model(EncoderWithHead, head=NoHead)
    torch.testing.assert_close(headless(tokens), new_model(Encoder)(tokens), rtol=0, atol=0)
    with pytest.raises(ValueError, match="this head scores no tokens"):
        new_model(Decoder, head=NoHead)


def test_embedding_norm_has_its_own_epsilon(tokens):
    embedding = Embedding(vocab_size=VOCAB, dim=32, norm=True, norm_eps=0.5)
    x = embedding.tokens(tokens)
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 0.5).sqrt()
    torch.testing.assert_close(embedding(tokens, lambda x: x), expected)
    with pytest.raises(ValueError, match=r"embedding\.norm_eps=1e-5"):
        Embedding(vocab_size=VOCAB, dim=32, norm_eps=0.0)


def test_scaled_embedding_starts_at_unit_variance(tokens):
    model = new_model(embedding=partial(Embedding, scale=True), shape=Shape(dim=256, num_layers=1, num_heads=4))
    assert model.embedding(tokens, lambda x: x).std().item() == pytest.approx(1.0, rel=0.1)
