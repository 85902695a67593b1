"""Encoders of spectrograms: against Whisper's encoder and AST of `transformers`, and what is behind a clip's end."""

from functools import partial

import pytest
import torch
from transformers import ASTConfig, ASTModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from txtrain.model.attention import Attention
from txtrain.model.encoding.alibi import Alibi
from txtrain.model.encoding.fire import Fire
from txtrain.model.encoding.learned import Learned
from txtrain.model.encoding.none import NoEncoding
from txtrain.model.encoding.rope import Rope
from txtrain.model.encoding.sinusoidal import Sinusoidal
from txtrain.model.encoding.t5 import T5
from txtrain.model.ffn import FeedForward
from txtrain.model.head import Head, NoHead
from txtrain.model.norm.pre import PreNorm
from txtrain.model.patches import Patches
from txtrain.model.pooling import PoolingHead
from txtrain.model.shape import Shape
from txtrain.model.spectrogram import AudioEncoder, Convolutions, SpectrogramPatches

CONVOLUTIONS, PATCHES = partial(Convolutions), partial(SpectrogramPatches, patch_size=16, stride=10)


def encoder(embedding=CONVOLUTIONS, head=NoHead, encoding=Learned, num_mels=32, max_frames=100, layers=2, **sizes):
    torch.manual_seed(0)
    model = AudioEncoder(
        num_mels=num_mels,
        max_frames=max_frames,
        shape=Shape(dim=32, num_layers=layers, num_heads=4),
        embedding=embedding,
        head=head,
        encoding=encoding,
        norm=partial(PreNorm, layer="layernorm", bias=True),
        attention=partial(Attention, bias=True),
        ffn=partial(FeedForward, activation="gelu", bias=True),
        **sizes,
    )
    for parameter in model.parameters():  # none may be zero, or it would not be compared
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def copy(model, theirs, names):
    """Their weights into ours: `names` maps each of our modules to theirs."""
    for mine, other in names.items():
        mine, other = model.get_submodule(mine), theirs.get_submodule(other)
        mine.weight.data = other.weight.data.reshape(mine.weight.shape)
        if other.bias is not None:
            mine.bias.data = other.bias.data
        elif mine.bias is not None:
            mine.bias.data.zero_()


def test_it_is_whispers_encoder():
    config = WhisperConfig(
        num_mel_bins=32,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        max_source_positions=50,
    )
    torch.manual_seed(1)
    theirs = WhisperEncoder(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = encoder(max_frames=100)
    names = {"embedding.conv1": "conv1", "embedding.conv2": "conv2", "stack.norm.final": "layer_norm"}
    for layer in range(2):
        mine, other = f"stack.blocks.{layer}", f"layers.{layer}"
        names |= {f"{mine}.norm.norms.0": f"{other}.self_attn_layer_norm"}
        names |= {f"{mine}.norm.norms.1": f"{other}.final_layer_norm"}
        names |= {f"{mine}.attention.{x}_proj": f"{other}.self_attn.{x}_proj" for x in "qkv"}
        names |= {f"{mine}.attention.o_proj": f"{other}.self_attn.out_proj"}
        names |= {f"{mine}.ffn.up_proj": f"{other}.fc1", f"{mine}.ffn.down_proj": f"{other}.fc2"}
    copy(model, theirs, names)
    model.stack.encoding.table.weight.data = theirs.embed_positions.weight.data
    frames = torch.randn(3, 100, 32)
    expected = theirs(frames.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(model(frames, torch.full((3,), 100)), expected, atol=1e-4, rtol=1e-4)


def test_it_is_ast():
    config = ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_mel_bins=32,
        max_length=100,
    )
    torch.manual_seed(1)
    theirs = ASTModel(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = encoder(partial(SpectrogramPatches, distillation_token=True))
    names = {"embedding.projection": "embeddings.patch_embeddings.projection", "stack.norm.final": "layernorm"}
    for layer in range(2):
        mine, other = f"stack.blocks.{layer}", f"layers.{layer}"
        names |= {f"{mine}.norm.norms.0": f"{other}.layernorm_before"}
        names |= {f"{mine}.norm.norms.1": f"{other}.layernorm_after"}
        names |= {f"{mine}.attention.{x}_proj": f"{other}.attention.{x}_proj" for x in "qkvo"}
        names |= {f"{mine}.ffn.up_proj": f"{other}.mlp.fc1", f"{mine}.ffn.down_proj": f"{other}.mlp.fc2"}
    copy(model, theirs, names)
    model.embedding.class_token.data = theirs.embeddings.cls_token.data.flatten()
    model.embedding.distillation_token.data = theirs.embeddings.distillation_token.data.flatten()
    model.stack.encoding.table.weight.data = theirs.embeddings.position_embeddings.data[0]
    frames = torch.randn(3, 100, 32)
    expected = theirs(frames).last_hidden_state
    torch.testing.assert_close(model(frames, torch.full((3,), 100)), expected, atol=1e-4, rtol=1e-4)


MEAN = partial(PoolingHead, pool="mean")
LENGTHS = torch.tensor([100, 63, 17, 1])


@pytest.mark.parametrize(
    "embedding, encodings",
    [
        (CONVOLUTIONS, [Learned, Sinusoidal, Rope, Alibi, T5, NoEncoding]),
        (PATCHES, [Learned, NoEncoding]),
        (partial(PATCHES, class_token=False), [Learned]),
        (partial(PATCHES, patch_size=[32, 4], stride=[32, 3]), [Learned]),
    ],
    ids=["convolutions", "patches", "no class token", "patches of all frequencies"],
)
def test_nothing_depends_on_what_is_behind_the_end(embedding, encodings):
    for encoding in encodings:
        model = encoder(embedding, head=MEAN, encoding=encoding, num_labels=3)
        frames = torch.randn(len(LENGTHS), 100, 32)
        expected = model(frames, LENGTHS)
        for row, length in enumerate(LENGTHS.tolist()):
            frames[row, length:] = 1e4
        torch.testing.assert_close(model(frames, LENGTHS), expected, atol=0, rtol=0)
        for row, length in enumerate(LENGTHS.tolist()):  # alone, and with less behind the end
            alone = model(frames[row : row + 1, : max(length, 16)], LENGTHS[row : row + 1])
            torch.testing.assert_close(alone, expected[row : row + 1], atol=1e-4, rtol=1e-4)


def test_nothing_of_a_text_depends_on_what_is_behind_the_end():
    model = encoder(head=Head, encoding=Rope, vocab_size=7)
    frames = torch.randn(len(LENGTHS), 100, 32)
    expected, times = model(frames, LENGTHS), model.times(LENGTHS).tolist()
    assert times == [50, 32, 9, 1] and expected.shape == (4, 50, 7)
    for row, (length, time) in enumerate(zip(LENGTHS.tolist(), times, strict=True)):
        alone = model(frames[row : row + 1, :length], LENGTHS[row : row + 1])
        torch.testing.assert_close(alone[0], expected[row, :time], atol=1e-4, rtol=1e-4)


def test_gradients_do_not_depend_on_it_either():
    model = encoder(head=MEAN, num_labels=3)
    frames, gradients = torch.randn(2, 64, 32), []
    for filling in (0.0, 100.0):
        frames[1, 40:] = filling
        model.zero_grad()
        model(frames, torch.tensor([64, 40])).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_a_shorter_clip_has_the_first_places_of_the_grid():
    embedding = encoder(PATCHES).embedding
    whole, part = (embedding.positions(torch.zeros(1, frames, 32))[0] for frames in (100, 56))
    assert embedding.grid.size == (2, 9) and whole[0].tolist() == part[0].tolist() == [-1, -1]
    assert part[1:].tolist() == [[band, time] for band in range(2) for time in range(5)]
    assert embedding.max_len == len(whole) == 19


@pytest.mark.parametrize(
    "wrong, line",
    [
        ({"embedding": partial(Patches, image_size=32)}, "embedding=convolutions or embedding=spectrogram_patches"),
        ({"embedding": PATCHES, "head": Head, "vocab_size": 5}, "embedding=convolutions"),
        ({"embedding": partial(PATCHES, patch_size=40)}, r"embedding\.patch_size=32"),
        ({"embedding": PATCHES, "encoding": Fire}, "no positions on a grid"),
        ({"head": partial(PoolingHead, pool="mean")}, "head=default"),
    ],
)
def test_impossible_combinations_are_refused(wrong, line):
    with pytest.raises(ValueError, match=line):
        encoder(**wrong)


def test_other_models_refuse_spectrograms():
    with pytest.raises(ValueError, match=r"reads spectrograms.*leave embedding out \(default for tokens"):
        Convolutions(dim=8, vocab_size=4)
