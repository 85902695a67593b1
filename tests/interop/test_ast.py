"""AST folders in and out, as a start and heard, against transformers' own model and feature extractor."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from transformers.utils import logging

from tests.interop.random_folders import read
from tests.interop.test_encoders import saved
from txtrain.audio.spectrograms import Spectrograms
from txtrain.cli import main
from txtrain.errors import UserError
from txtrain.interop import read_folder
from txtrain.trained import load_trained

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
AST = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
AST |= {"num_mel_bins": 24, "max_length": 40, "patch_size": 8, "frequency_stride": 5, "time_stride": 6}
NAMED = {"id2label": {0: "bark", 1: "miaow", 2: "Übel"}, "label2id": {"bark": 0, "miaow": 1, "Übel": 2}}
SECONDS = (400 + 39 * 160) / 16000  # of 40 frames
VARIANTS = [
    ("ASTModel", {}),
    ("ASTForAudioClassification", {"frequency_stride": 8, "time_stride": 3, "layer_norm_eps": 0.1, **NAMED}),
    ("ASTForAudioClassification", {"patch_size": 10, "qkv_bias": False, "hidden_act": "gelu_new", "num_labels": 5}),
    ("ASTForAudioClassification", {"num_mel_bins": 31, "max_length": 53, "hidden_act": "relu", "num_labels": 7}),
]
RUN = ["task=audio_classification", "data=audio_folder", "data.path=own", "logger=none", "trainer.accelerator=cpu"]
RUN += ["trainer.max_steps=2", "data.batch_size=4", "run_dir=run"]


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    yield
    logging.set_verbosity(verbosity)


def saved_ast(kind="ASTForAudioClassification", heard=None, **config):
    sizes = AST | config
    theirs = saved("in", kind, "AST", **sizes)
    if heard is not None:
        lengths = {key: sizes[key] for key in ("num_mel_bins", "max_length")}
        transformers.ASTFeatureExtractor(**lengths | heard).save_pretrained("in")
    return theirs


def tones(label, hertz, seconds=SECONDS, count=4):
    Path("own", label).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    for number in range(count):
        time = np.arange(round(seconds * 16000)) / 16000
        wave = 0.5 * np.sin(2 * math.pi * (hertz + 9 * number) * time) + 0.05 * noise.standard_normal(len(time))
        soundfile.write(f"own/{label}/{number}.wav", wave, 16000)


@pytest.mark.parametrize("kind, config", VARIANTS, ids=str)
@torch.no_grad()
def test_logits_are_equal_in_and_out(kind, config, capsys):
    theirs = saved_ast(kind, heard={}, **config)
    frames = torch.randn(3, theirs.config.max_length, theirs.config.num_mel_bins)
    expected = theirs(frames)[0]
    full = torch.full((3,), frames.size(1))
    torch.testing.assert_close(read("in")(frames, full), expected, **CLOSE)
    assert main(["export", "in", "out"]) == 0
    assert "logits equal in txtrain and transformers" in capsys.readouterr().out
    again = type(theirs).from_pretrained("out").eval()
    torch.testing.assert_close(again(frames)[0], expected, **CLOSE)
    written, before = (json.loads(Path(name, "config.json").read_text()) for name in ("out", "in"))
    for key in ("architectures", "model_type", *AST, *(NAMED if kind.endswith("Classification") else ())):
        assert written.get(key) == before.get(key), key
    files = {name: Path(name, "preprocessor_config.json").read_bytes() for name in ("in", "out")}
    assert files["in"] == files["out"]


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("heard", [{"mean": -6.8, "std": 5.5}, {"do_normalize": False}], ids=str)
@torch.no_grad()
def test_a_clip_has_the_probabilities_of_transformers(heard, capsys):
    theirs = saved_ast(heard=heard, **NAMED)
    tones("bark", 300)
    tones("miaow", 900, seconds=0.2)  # is filled up
    extractor = transformers.ASTFeatureExtractor.from_pretrained("in")
    files = sorted(Path("own").rglob("*.wav"))
    given = extractor([soundfile.read(file)[0] for file in files], sampling_rate=16000, return_tensors="pt")
    expected = theirs(given.input_values).logits.softmax(-1)
    assert main(["predict", "in", "own"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = list(NAMED["id2label"].values())
    for row, line in zip(expected, found, strict=True):
        assert line["label"] == names[int(row.argmax())]
        assert [line["probabilities"][name] for name in names] == pytest.approx(row.tolist(), abs=1e-4)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@torch.no_grad()
def test_training_goes_on_with_other_labels_and_goes_back(capsys):
    theirs = saved_ast(heard={"mean": -5.0, "std": 4.0}, **NAMED)
    tones("high", 900)
    tones("low", 300, seconds=0.2)
    assert main(["train", "init_from=in", *RUN]) == 0
    trained = load_trained("run")
    assert trained.labels == ("high", "low") and trained.model.head.linear.out_features == 2
    body = theirs.audio_spectrogram_transformer.layers[0].attention.q_proj.weight
    moved = (trained.model.stack.blocks[0].attention.q_proj.weight - body).abs().max()
    assert 0 < moved < 0.01, "the body is the folder's, a little trained"
    again = ["data.batch_size=2", "trainer.max_steps=1", "run_dir=again"]
    assert main(["train", "init_from=run", *RUN[:-1], *again]) == 0
    assert load_trained("again").inputs == trained.inputs, "a run is heard as the folder was"
    capsys.readouterr()
    assert main(["export", "run", "out"]) == 0
    assert "logits equal in txtrain and transformers" in capsys.readouterr().out
    again = transformers.ASTForAudioClassification.from_pretrained("out").eval()
    assert again.config.id2label == {0: "high", 1: "low"}
    extractor = transformers.ASTFeatureExtractor.from_pretrained("out")
    before = transformers.ASTFeatureExtractor.from_pretrained("in")
    clip = soundfile.read("own/high/0.wav")[0]
    heard, heard_before = (e(clip, sampling_rate=16000, return_tensors="pt").input_values for e in (extractor, before))
    torch.testing.assert_close(heard, heard_before)
    torch.testing.assert_close(trained.model(heard), again(heard).logits, **CLOSE)


@pytest.mark.parametrize(
    "command, message",
    [
        (["train", "init_from=in", *RUN, "data.max_seconds=5"], "data.max_seconds=5 is another size"),
        (["train", "init_from=in", *RUN, "data.features.num_mels=80"], "data.features.num_mels=80 is another size"),
        (["train", "init_from=in", "task=speech_recognition", "logger=none"], "set embedding=convolutions"),
        (["generate", "in", "a prompt"], "is an encoder, which writes no text"),
        (["export", "in", "out", "--family", "vit"], "vit has no counterpart of embedding=spectrogram_patches"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_told(command, message, capsys):
    saved_ast(heard={})
    tones("high", 900, count=2)
    tones("low", 300, count=2)
    assert main(command) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "config, heard, message",
    [
        ({"patch_size": [8, 4]}, {}, "its patch_size is .8, 4., and AST's patches are square"),
        ({"architectures": ["ASTForNothing"]}, {}, "its architectures say ASTForNothing"),
        ({"max_length": 80}, {"max_length": 80}, "position_embeddings is .1, 26, 32., and the config makes .* .54, 32"),
        ({"patch_size": 30}, {}, "embedding.patch_size=.30, 30. is larger than the 24 mel filters"),
        ({}, {"max_length": 20}, "has max_length=20, and its config.json 40"),
        ({}, {"num_mel_bins": 20}, "has num_mel_bins=20, and its config.json 24"),
        ({}, {"std": 0}, r"data\.features\.std is 0"),
        ({}, {"feature_extractor_type": "WhisperFeatureExtractor"}, "is of a WhisperFeatureExtractor"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_folder_is_told(config, heard, message):
    saved_ast(heard={})
    for name, change in (("config.json", config), ("preprocessor_config.json", heard)):
        path = Path("in", name)
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_trained("in")


def test_the_recipe_is_one_of_transformers():
    """What `experiment=ast_base` makes is what an AST folder of its sizes says."""
    from tests.test_options import compose
    from txtrain.interop.axes import GROUPS
    from txtrain.interop.families import families

    config = compose("experiment=ast_base", "data.path=nowhere")
    family = families()["audio-spectrogram-transformer"]
    written = family.config({group: dict(config[group]) for group in GROUPS})
    default = transformers.ASTConfig().to_dict()
    assert {key: written[key] for key in written if key != "architectures"} == {
        key: default[key] for key in written if key != "architectures"
    }


def test_spectrograms_of_another_style_are_not_written(capsys):
    saved_ast(heard={})
    tones("high", 900)
    tones("low", 300)
    typed = ["data.features.style=whisper", "trainer.max_steps=1"]
    assert main(["train", "init_from=in", *RUN, *typed]) == 0
    capsys.readouterr()
    assert main(["export", "run", "out"]) == 1
    assert "data.features.style=whisper" in capsys.readouterr().err
    assert not Path("out").exists()


def test_without_the_extractors_file_the_numbers_are_audiosets(caplog):
    saved_ast()
    inputs = load_trained("in").inputs
    assert (inputs.features.mean, inputs.features.std, inputs.max_frames) == (-4.2677393, 4.5689974, 40)
    assert "has no preprocessor_config.json" in caplog.text
    assert read_folder("in").max_len == 2 + 4 * 6


def test_a_mixture_is_heard_as_the_folder_says(capsys):
    saved_ast(heard={"mean": -5.0}, **NAMED)
    tones("high", 900)
    tones("low", 300)
    sets = [f"data.sets.{name}{key}" for name in "ab" for key in ("=audio_folder", ".path=own")]
    typed = [option for option in RUN if not option.startswith("data")]
    assert main(["train", "init_from=in", *typed, "data=mixture", "data.batch_size=4", *sets]) == 0
    heard = load_trained("run").inputs
    assert (heard.mean, heard.num_mels, heard.max_seconds, heard.fill) == (-5.0, 24, SECONDS, "zeros")


def test_what_transformers_will_hear_otherwise_is_told(tmp_path, caplog):
    Spectrograms(fill="zeros").save(tmp_path)
    assert not caplog.text
    Spectrograms(fill="mask").save(tmp_path)
    assert "transformers fills shorter clips up with zeros" in caplog.text
