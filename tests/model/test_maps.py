"""Attention maps are what `transformers` says of the same weights, and what each layer's output was mixed by."""

from functools import partial

import pytest
import torch
import transformers
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.interop.random_folders import LENGTH, VOCAB, build, write_folder
from tests.interop.test_decoders import BLOOM, GEMMA, GPT2, GROUPED, WINDOW
from tests.interop.test_encoders import BERT, T5
from tests.interop.test_vit import VIT
from txtrain.config import config_directory, options
from txtrain.interop import read_folder
from txtrain.model import Decoder, Encoder, EncoderDecoder, Shape
from txtrain.model.attention import Attention
from txtrain.model.embed import Embedding
from txtrain.model.encoding import Alibi, Rope
from txtrain.model.ffn import FeedForward
from txtrain.model.head import Head
from txtrain.model.maps import recording, sizes_of_stacks
from txtrain.model.norm import PreNorm

DECODERS = {
    "gpt2": GPT2,
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": WINDOW},
    "gemma2": GEMMA,
    "bloom": BLOOM,
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
HEADS, T, WIDTH = 4, 12, 16


def maps_of(model, run, *, heads=range(HEADS), layers=range(9)):
    with torch.no_grad(), recording(model, layers=layers, heads=list(heads)) as maps:
        run(model)
    return {(found.where, found.layer, found.head): found.weights for found in maps}


def assert_alike(found, where, theirs, rows=slice(None)):
    """`theirs`: of each layer (B, H, Q, K)."""
    for layer, weights in enumerate(theirs):
        for head in range(weights.size(1)):
            torch.testing.assert_close(found[where, layer, head][:, rows], weights[:, head, rows], **CLOSE)


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_those_of_decoders(family, tmp_path):
    """Learned positions, rotations, biases, grouped heads, windows and soft caps."""
    theirs = write_folder(tmp_path, family, **DECODERS[family])
    tokens = torch.randint(0, VOCAB, (2, LENGTH))
    found = maps_of(build(read_folder(tmp_path)), lambda model: model(tokens))
    expected = theirs(tokens, output_attentions=True).attentions
    assert len(found) == 4 * len(expected)
    assert_alike(found, "decoder", expected)


@torch.no_grad()
def test_those_of_padded_text(tmp_path):
    theirs = write_folder(tmp_path, "bert", auto="AutoModelForMaskedLM", **BERT)
    tokens, padding = torch.randint(0, VOCAB, (2, T)), torch.arange(T) < torch.tensor([[T], [7]])
    found = maps_of(build(read_folder(tmp_path)), lambda model: model(tokens, padding=padding))
    expected = theirs(tokens, attention_mask=padding.long(), output_attentions=True).attentions
    assert_alike(found, "encoder", expected)
    assert found["encoder", 1, 2][1, :, 7:].abs().max() == 0


@torch.no_grad()
def test_those_of_encoder_decoders_and_between_them(tmp_path):
    theirs = write_folder(tmp_path, "t5", auto="AutoModelForSeq2SeqLM", **T5 | {"num_decoder_layers": 3})
    source, target = torch.randint(0, VOCAB, (2, T)), torch.randint(0, VOCAB, (2, 7))
    padding = torch.arange(T) < torch.tensor([[T], [5]])
    ours = build(read_folder(tmp_path), max_len=T)
    assert sizes_of_stacks(ours) == [(2, 4), (3, 4)]
    found = maps_of(ours, lambda model: model(source, target, padding))
    given = {"input_ids": source, "attention_mask": padding.long(), "decoder_input_ids": target}
    expected = theirs(**given, output_attentions=True)
    assert_alike(found, "encoder", expected.encoder_attentions)
    assert_alike(found, "decoder", expected.decoder_attentions)
    assert_alike(found, "cross", expected.cross_attentions)


@torch.no_grad()
def test_those_of_images(tmp_path):
    torch.manual_seed(0)
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(**VIT, initializer_range=0.5, attn_implementation="eager")
    ).eval()
    theirs.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    found = maps_of(build(read_folder(tmp_path)), lambda model: model(images))
    assert_alike(found, "encoder", theirs(images, output_attentions=True).attentions)


def new_model(kind, encoding, **attention):
    torch.manual_seed(0)
    return (
        kind(
            vocab_size=VOCAB,
            max_len=T,
            shape=Shape(dim=HEADS * WIDTH, num_layers=2, num_heads=HEADS, num_kv_heads=2),
            embedding=Embedding,
            encoding=encoding,
            norm=PreNorm,
            attention=partial(Attention, **attention),
            ffn=FeedForward,
            **({} if kind is Encoder else {"head": Head}),
        )
        .double()
        .eval()
    )


def encoding_named(name):
    return instantiate(OmegaConf.load(config_directory() / "encoding" / f"{name}.yaml"), _convert_="all")


MASKS = {
    "plain": {},
    "documents": {"documents": torch.stack([torch.arange(T) // 5, torch.arange(T) // 7])},
    "padding": {"padding": torch.arange(T) < torch.tensor([[T], [8]])},
}


@pytest.mark.parametrize("kind", [Decoder, Encoder])
@pytest.mark.parametrize("name", options(config_directory(), "encoding"))
def test_each_layer_mixed_its_values_by_them(name, kind):
    """There are fewer keys than dimensions of a head, so no other weights would give the same; in float64."""
    if kind is Encoder and name == "xpos":
        pytest.skip("for decoders only")
    for attention in ({}, {"window": 4, "qk_norm": "head", "scale": 0.5}, {"soft_cap": 2.0}):
        model, tokens = new_model(kind, encoding_named(name), **attention), torch.randint(0, VOCAB, (2, T))
        for masks in MASKS.values():
            given = {}
            for layer, block in enumerate(model.stack.blocks):
                block.attention.register_forward_hook(
                    lambda module, args, out, layer=layer, given=given: given.update({layer: (module, args[0], out)})
                )
            found = maps_of(model, lambda model, tokens=tokens, masks=masks: model(tokens, **masks))
            real = masks.get("padding", torch.ones(2, T, dtype=torch.bool))
            for layer, (module, x, out) in given.items():
                where = "decoder" if kind is Decoder else "encoder"
                weights = torch.stack([found[where, layer, head] for head in range(HEADS)], 1)
                values = module.v_proj(x).unflatten(-1, (2, WIDTH)).transpose(1, 2).repeat_interleave(2, dim=1)
                mixed = module.o_proj((weights.double() @ values).transpose(1, 2).flatten(2))
                torch.testing.assert_close(mixed[real], out[real], rtol=1e-5, atol=1e-5)
                assert (weights.sum(-1).transpose(1, 2)[real] - 1).abs().max() < 1e-5


@torch.no_grad()
def test_nothing_changes_and_nothing_stays():
    """The pass gives the same bits; blocks that were compiled run as written within, and compiled again after."""
    model = new_model(EncoderDecoder, Alibi)
    source, target = torch.randint(0, VOCAB, (2, T)), torch.randint(0, VOCAB, (2, 7))
    before, state = model(source, target), set(vars(model.decoder.stack.blocks[0].attention))

    def compiled(*given):
        raise AssertionError("a compiled block would run as it was compiled, without being watched")

    model.encoder.stack.blocks[0]._compiled_call_impl = compiled
    with recording(model, layers=[1], heads=[3, 0]) as maps:
        assert torch.equal(model(source, target), before)
    assert [(found.where, found.layer, found.head) for found in maps] == [
        (where, 1, head) for where in ("encoder", "decoder", "cross") for head in (3, 0)
    ]
    assert model.encoder.stack.blocks[0]._compiled_call_impl is compiled
    model.encoder.stack.blocks[0]._compiled_call_impl = None
    assert torch.equal(model(source, target), before) and len(maps) == 6
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert set(vars(model.decoder.stack.blocks[0].attention)) == state


def test_one_that_fails_leaves_no_hook():
    model = new_model(Decoder, Rope)
    with pytest.raises(IndexError), recording(model, layers=[0], heads=[0]):
        model(torch.tensor([[VOCAB]]))
    assert not any(module._forward_pre_hooks for module in model.modules())
