"""Encoders and encoder-decoders from Hugging Face folders, against transformers' own models of the same folders."""

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from tests.interop.random_folders import VOCAB, read
from txtrain.errors import UserError
from txtrain.interop import read_folder

LENGTH, CLOSE = 12, {"rtol": 1e-4, "atol": 1e-4}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BERT |= {"vocab_size": VOCAB, "max_position_embeddings": 20}
DISTILBERT = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 20,
}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "vocab_size": VOCAB}
BART |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 20}
MARIAN = BART | {"pad_token_id": 0, "decoder_start_token_id": 0}
T5 = {"d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": VOCAB}
T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "layer_norm_epsilon": 1e-5}

ENCODERS = [
    ("Bert", BERT),
    ("Bert", BERT | {"tie_word_embeddings": False, "hidden_act": "gelu_new", "type_vocab_size": 3}),
    ("Bert", BERT | {"layer_norm_eps": 0.1, "hidden_act": "relu"}),
    ("Roberta", BERT | {"type_vocab_size": 1}),
    ("Roberta", BERT | {"pad_token_id": 4, "tie_word_embeddings": False, "hidden_act": "silu"}),
    ("DistilBert", DISTILBERT),
    ("DistilBert", DISTILBERT | {"sinusoidal_pos_embds": True, "tie_word_embeddings": False, "activation": "relu"}),
]
PAIRS = [
    ("BartForConditionalGeneration", BART),
    ("BartForConditionalGeneration", BART | {"scale_embedding": True, "activation_function": "relu"}),
    ("BartForConditionalGeneration", BART | {"tie_word_embeddings": False, "decoder_layers": 3}),
    ("MarianMTModel", MARIAN | {"activation_function": "swish", "scale_embedding": True}),
    ("MarianMTModel", MARIAN | {"share_encoder_decoder_embeddings": False, "decoder_layers": 2}),
    ("MarianMTModel", MARIAN | {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False}),
    ("T5ForConditionalGeneration", T5 | {"num_decoder_layers": 1}),
    ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-silu", "num_decoder_layers": 3}),
]


@pytest.fixture(autouse=True)
def quiet():
    """Tiny vocabularies make transformers warn of its default token numbers."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(verbosity)


def saved(folder, kind, config_kind, **config):
    """A transformers model with every weight random, norms, biases and buffers too, after a pass through its folder."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, f"{config_kind}Config")(**config))
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for n, b in model.named_buffers() if n == "final_logits_bias")):
            tensor.normal_(std=0.2)
            if tensor.dim() == 1:
                tensor.add_(0.5)
    model.save_pretrained(folder)
    return getattr(transformers, kind).from_pretrained(folder).eval()


def rewritten(folder, ours, theirs):
    """Transformers' model of the config.json and the weights that our rules write."""
    imported = read_folder(folder)
    config = imported.family.config(imported.axes)
    assert config["architectures"] == [type(theirs).__name__]
    kept = ("vocab_size", "max_position_embeddings", "pad_token_id")
    config = {key: imported.config[key] for key in kept if key in imported.config} | config
    own = dict(ours.named_parameters())
    places = {name: imported.family.names.find(name, own) for name in own}
    again = folder / "again"
    again.mkdir()
    weights = {place.theirs: place.rule.to_theirs([own[name].detach()], []) for name, place in places.items()}
    save_file(weights, again / "model.safetensors", {"format": "pt"})
    (again / "config.json").write_text(json.dumps(config))
    model, info = type(theirs).from_pretrained(again, output_loading_info=True)
    assert not info["unexpected_keys"]
    unread = r"pooler|^model\.shared|^(cls\.predictions|lm_head)\.bias"  # those that the pass does not use
    assert all(re.search(unread, name) for name in info["missing_keys"]), info["missing_keys"]
    return model.eval()


@pytest.fixture
def tokens():
    return torch.randint(5, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def right_padding():
    return torch.arange(LENGTH)[None] < torch.tensor([LENGTH, 7, 4])[:, None]


@pytest.mark.parametrize("family, config", ENCODERS)
@pytest.mark.parametrize("end", ["Model", "ForMaskedLM"])
def test_encoder(family, config, end, tokens, tmp_path):
    theirs = saved(tmp_path, family + end, family, **config)
    ours = read(tmp_path)
    padding = right_padding()
    tokens[~padding] = config.get("pad_token_id", 1)
    types, given = None, {}
    if config.get("type_vocab_size") != 1 and family != "DistilBert":
        types = (torch.arange(LENGTH) > 3).long().expand(3, -1)
        given = {"token_type_ids": types}
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=padding.long(), **given)[0]
        torch.testing.assert_close(ours(tokens, types=types, padding=padding)[padding], expected[padding], **CLOSE)
        # Without types, and with nothing padded.
        expected = theirs(tokens[:1])[0]
        torch.testing.assert_close(ours(tokens[:1]), expected, **CLOSE)
        torch.testing.assert_close(rewritten(tmp_path, ours, theirs)(tokens[:1])[0], expected, **CLOSE)


def test_roberta_with_padding_first(tokens, tmp_path):
    theirs = saved(tmp_path, "RobertaForMaskedLM", "Roberta", **BERT)
    padding = right_padding().flip(1)
    tokens[~padding] = theirs.config.pad_token_id
    positions = (padding.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = read(tmp_path)(tokens, positions, padding=padding)
        expected = theirs(tokens, attention_mask=padding.long()).logits
    torch.testing.assert_close(logits[padding], expected[padding], **CLOSE)


@pytest.mark.parametrize("kind, config", PAIRS)
def test_encoder_decoder(kind, config, tokens, tmp_path):
    family = kind.removesuffix("ForConditionalGeneration").removesuffix("MTModel")
    theirs = saved(tmp_path, kind, family, **config)
    ours = read(tmp_path)
    padding, target = right_padding(), tokens.flip(0)[:, :9]
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=padding.long(), decoder_input_ids=target)
        memory = ours.encode(tokens, padding)
        torch.testing.assert_close(memory[padding], expected.encoder_last_hidden_state[padding], **CLOSE)
        torch.testing.assert_close(ours(tokens, target, padding), expected.logits, **CLOSE)
        again = rewritten(tmp_path, ours, theirs)
        again = again(input_ids=tokens, attention_mask=padding.long(), decoder_input_ids=target)
        torch.testing.assert_close(again.logits, expected.logits, **CLOSE)


def test_t5_head_of_its_own(tokens, tmp_path):
    """T5 1.1's config says that nothing is tied, and its files hold two matrices."""
    config = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    saved(tmp_path, "T5ForConditionalGeneration", "T5", **config)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = torch.randn(VOCAB, 32)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", **config}))
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    ours = read(tmp_path)
    assert not torch.equal(ours.decoder.head.linear.weight, ours.decoder.embedding.tokens.weight)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, decoder_input_ids=tokens).logits
        torch.testing.assert_close(ours(tokens, tokens), expected, **CLOSE)
        again = rewritten(tmp_path, ours, theirs)(input_ids=tokens, decoder_input_ids=tokens)
        torch.testing.assert_close(again.logits, expected, **CLOSE)


def test_older_names(tokens, tmp_path):
    """BERT's first files have gamma and beta, BART's no prefix and no bias of logits, T5's a table never read."""
    theirs = saved(tmp_path / "bert", "BertForMaskedLM", "Bert", **BERT)
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    change(tmp_path / "bert", lambda name: next((name.replace(a, b) for a, b in older.items() if a in name), name))
    with torch.no_grad():
        torch.testing.assert_close(read(tmp_path / "bert")(tokens), theirs(tokens).logits, **CLOSE)
    theirs = saved(tmp_path / "bart", "BartModel", "Bart", **BART)
    ours = read(tmp_path / "bart")
    assert not ours.decoder.head.linear.bias.any()
    with torch.no_grad():
        expected = theirs(input_ids=tokens, decoder_input_ids=tokens).last_hidden_state @ theirs.shared.weight.T
        torch.testing.assert_close(ours(tokens, tokens), expected, **CLOSE)
    saved(tmp_path / "t5", "T5ForConditionalGeneration", "T5", **T5)
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    change(tmp_path / "t5", lambda name: name, **{unread: torch.zeros(8, 4)})
    read(tmp_path / "t5")


def change(folder, rename, **more):
    weights = load_file(folder / "model.safetensors")
    save_file({rename(name): value for name, value in weights.items()} | more, folder / "model.safetensors")


REFUSED = [
    ("bert", {"is_decoder": True}, "its is_decoder is True"),
    ("bert", {"position_embedding_type": "relative_key"}, "its position_embedding_type is relative_key"),
    ("bert", {"hidden_act": "mish"}, "its hidden_act is mish, and txtrain knows gelu"),
    ("bert", {"architectures": ["BertForQuestionAnswering"]}, "its architectures say BertForQuestionAnswering"),
    ("bart", {"decoder_ffn_dim": 64}, "its encoder_ffn_dim is 48 and its decoder_ffn_dim 64"),
    ("marian", {"decoder_vocab_size": 60}, "its decoder_vocab_size is 60"),
    ("t5", {"feed_forward_proj": "gated-mish"}, "its feed_forward_proj is gated-mish"),
]


@pytest.mark.parametrize("family, change, message", REFUSED)
def test_what_no_axis_expresses_is_refused(family, change, message, tmp_path):
    config = {"bert": BERT, "bart": BART, "marian": MARIAN, "t5": T5}[family] | change
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": family}))
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path)
