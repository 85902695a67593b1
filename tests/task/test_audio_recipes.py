"""The recipes with the sizes of AST and Whisper have as many parameters as `transformers` says those have."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import ASTConfig, ASTModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tests.test_options import compose
from txtrain.audio.mel import log_mel
from txtrain.train import model_function


def build(*overrides):
    """The model of a recipe, on no device, for the sizes that its data would give it."""
    config = compose(*overrides, "data.path=nowhere")
    nodes = {group: node for group, node in config.items() if OmegaConf.is_config(node) and group != "data"}
    parts = {group: instantiate(node, _convert_="all") for group, node in nodes.items()}
    features = log_mel(**{key: value for key, value in config.data.features.items() if key != "_target_"})
    frames = features.num_frames(round(config.data.max_seconds * features.sample_rate))
    with torch.device("meta"):
        return model_function(parts)(num_mels=features.num_mels, max_frames=frames, num_labels=10)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_ast_has_its_size():
    with torch.device("meta"):
        theirs = ASTModel(ASTConfig())
    model = build("experiment=ast_base")
    model.head = torch.nn.Identity()
    assert model.embedding.grid.size == (12, 101)
    assert count(model) == count(theirs)


def test_whisper_tiny_has_its_size():
    sizes = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}
    with torch.device("meta"):
        theirs = WhisperEncoder(WhisperConfig(**sizes))
    model = build("experiment=whisper_encoder")
    model.head = torch.nn.Identity()
    assert model.embedding.max_len == 1500
    assert count(model) == count(theirs) + 4 * 384  # biases of keys, which change no score
