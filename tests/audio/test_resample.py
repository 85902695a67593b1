"""Resampling against the formula of a band-limited signal, and torchaudio's numbers."""

import math

import pytest
import torch

from txtrain.audio.resample import resample


@pytest.mark.parametrize("old, new", [(22050, 16000), (44100, 16000), (8000, 16000), (48000, 16000), (16000, 22050)])
def test_a_tone_is_the_same_tone_at_the_new_rate(old, new):
    tone = torch.sin(2 * math.pi * 500 * torch.arange(old // 2) / old)
    heard = resample(tone, old, new)
    assert len(heard) == math.ceil(len(tone) * new / old)
    expected = torch.sin(2 * math.pi * 500 * torch.arange(len(heard)) / new)
    inside = slice(new // 50, -new // 50)  # the ends have nothing beyond them
    torch.testing.assert_close(heard[inside], expected[inside], atol=2e-3, rtol=0)


def test_what_the_new_rate_cannot_hold_is_kept_out():
    tone = torch.sin(2 * math.pi * 11000 * torch.arange(44100) / 44100)
    assert resample(tone, 44100, 16000)[500:-500].abs().max() < 0.02


def test_a_waveform_at_the_right_rate_is_left_alone():
    waveform = torch.randn(100)
    assert resample(waveform, 16000, 16000) is waveform


@pytest.mark.parametrize("old, new", [(3, 2), (2, 3), (441, 160)])
def test_it_is_the_formula(old, new):
    """Each output sample is the sum of input samples, weighted by a Hann-windowed sinc around its time."""
    waveform = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cutoff = 0.99 * min(old, new) / old  # in half rates of the input
    expected = []
    for m in range(math.ceil(200 * new / old)):
        time = torch.arange(200, dtype=torch.float64) - m * old / new
        x = cutoff * time
        window = torch.where(x.abs() < 6, torch.cos(math.pi * x / 12).square(), torch.zeros_like(x))
        expected.append((waveform * torch.sinc(x) * window * cutoff).sum())
    torch.testing.assert_close(resample(waveform, old, new).double(), torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("old", [16001, 44101, 15999])
def test_rates_with_no_common_divisor_take_little_memory_and_follow_the_formula(old, monkeypatch):
    tone = torch.sin(2 * math.pi * 500 * torch.arange(old // 4) / old)
    heard = resample(tone, old, 16000)
    expected = torch.sin(2 * math.pi * 500 * torch.arange(len(heard)) / 16000)
    assert len(heard) == math.ceil(len(tone) * 16000 / old)
    torch.testing.assert_close(heard[400:-400], expected[400:-400], atol=2e-3, rtol=0)
    by_filters = resample(tone, 441, 160)
    monkeypatch.setattr("txtrain.audio.resample.MOST_WEIGHTS", 1000)
    torch.testing.assert_close(resample(tone, 441, 160), by_filters, atol=1e-6, rtol=0)
