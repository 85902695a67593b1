"""Spectrograms against the feature extractors of `transformers` and its mel filters."""

import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor, WhisperFeatureExtractor
from transformers.audio_utils import hertz_to_mel as reference_mel
from transformers.audio_utils import mel_filter_bank

from txtrain.audio.mel import AstMel, WhisperMel, hertz_to_mel, log_mel, mel_filters, mel_to_hertz


def sound(samples: int, seed: int = 0) -> torch.Tensor:
    """Noise under a swell, and a tone."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16000
    return 0.1 * torch.randn(samples, generator=generator) * time / time[-1].clamp(min=1e-3) + 0.3 * torch.sin(
        2764.6 * time
    )


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_scale_is_that_of_transformers_and_has_an_inverse(scale):
    hertz = torch.tensor([0.0, 20, 440, 999.9, 1000, 1001, 4000, 8000], dtype=torch.float64)
    mel = hertz_to_mel(hertz, scale)
    np.testing.assert_allclose(mel.numpy(), [reference_mel(float(f), mel_scale=scale) for f in hertz], rtol=1e-12)
    torch.testing.assert_close(mel_to_hertz(mel, scale), hertz)


@pytest.mark.parametrize(
    "scale, straight_in_mel, equal_area",
    [
        ("slaney", False, True),
        ("slaney", False, False),
        ("htk", False, True),
        ("htk", False, False),
        ("kaldi", True, False),
    ],
)
def test_filters_are_those_of_transformers(scale, straight_in_mel, equal_area):
    # Kaldi's scale is HTK's in another unit.
    mine = mel_filters(
        num_mels=40,
        fft_size=512,
        sample_rate=16000,
        low=20.0,
        scale="htk" if scale == "kaldi" else scale,
        equal_area=equal_area,
        straight_in_mel=straight_in_mel,
    )
    norm = "slaney" if equal_area else None
    theirs = mel_filter_bank(
        257, 40, 20.0, 8000.0, 16000, norm=norm, mel_scale=scale, triangularize_in_mel_space=straight_in_mel
    )
    np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-9)


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("samples", [400, 3000, 32077])
def test_whisper_is_that_of_transformers(samples, num_mels):
    extractor = WhisperFeatureExtractor(feature_size=num_mels)
    theirs = extractor(sound(samples).numpy(), sampling_rate=16000, padding=False, return_tensors="np")
    (mine,) = WhisperMel(num_mels=num_mels)([sound(samples)])
    np.testing.assert_allclose(mine.numpy(), theirs.input_features[0].T, atol=2e-5)


def test_whisper_is_that_of_transformers_when_filled_up_to_30_seconds():
    theirs = WhisperFeatureExtractor()(sound(20000).numpy(), sampling_rate=16000, return_tensors="np").input_features[0]
    (mine,) = WhisperMel()([torch.nn.functional.pad(sound(20000), (0, 480000 - 20000))])
    np.testing.assert_allclose(mine.numpy(), theirs.T, atol=2e-5)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("samples", [400, 3000, 32077])
def test_ast_is_that_of_transformers(samples):
    frames = AstMel().num_frames(samples)
    extractor = ASTFeatureExtractor(max_length=frames)
    theirs = extractor(sound(samples).numpy(), sampling_rate=16000, return_tensors="np").input_values[0]
    (mine,) = AstMel()([sound(samples)])
    np.testing.assert_allclose(mine.numpy(), theirs, atol=2e-4)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_asts_mean_and_deviation_are_those_of_transformers():
    extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=18, mean=-6.8, std=5.5)
    theirs = extractor(sound(3199).numpy(), sampling_rate=16000, return_tensors="np").input_values[0]
    (mine,) = log_mel(style="ast", num_mels=64, mean=-6.8, std=5.5)([sound(3199)])
    np.testing.assert_allclose(mine.numpy(), theirs, atol=2e-4)
    with pytest.raises(ValueError, match=r"data\.features\.std is 0"):
        log_mel(style="ast", std=0)
    with pytest.raises(ValueError, match=r"data\.features\.mean normalise style=ast"):
        log_mel(mean=0.0)


@pytest.mark.parametrize("style", ["whisper", "ast"])
def test_a_clip_is_what_it_is_alone_and_as_long_as_told(style):
    features = log_mel(style=style, num_mels=64)
    clips = [sound(n, seed=n) for n in (1, 399, 400, 401, 559, 560, 5000)]
    together = features(clips)
    for clip, spectrogram in zip(clips, together, strict=True):
        assert spectrogram.shape == (features.num_frames(len(clip)), 64)
        torch.testing.assert_close(spectrogram, features([clip])[0], rtol=0, atol=1e-6)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match=r"data\.features\.num_mels=80"):
        log_mel(num_mels=0)
    with pytest.raises(ValueError, match=r"data\.features\.sample_rate=16000"):
        log_mel(sample_rate=0)
