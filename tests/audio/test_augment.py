"""Augmentation: a function of (seed, epoch, sample), within the bounds of the paper."""

import pytest
import torch

from txtrain.audio.augment import Augment
from txtrain.data.order import sample_generator


def spectrogram(frames: int = 60, mels: int = 40) -> torch.Tensor:
    return torch.arange(frames * mels, dtype=torch.float32).reshape(frames, mels)


ALL = Augment(speed=0.2, time_warp=5, frequency_masks=2, frequency_width=8, time_masks=2, time_width=30, time_share=0.2)


def test_it_is_a_function_of_seed_epoch_and_sample():
    waveform = torch.randn(2000)

    def made(*place: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = sample_generator(*place)
        return ALL.waveform(waveform, random, 3000), ALL.spectrogram(spectrogram(), random)

    first = made(1, 2, 3)
    torch.manual_seed(5)  # no other random number has a part in it
    for one, other in zip(first, made(1, 2, 3), strict=True):
        assert torch.equal(one, other)
    for place in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(first[1], made(*place)[1])


def test_masks_hide_whole_bands_and_stretches_no_wider_than_said():
    widest_band = widest_stretch = 0
    for index in range(200):
        x = spectrogram()
        y = Augment(frequency_masks=1, frequency_width=8).spectrogram(x, sample_generator(0, 0, index))
        hidden = (y != x).all(0)
        assert torch.equal(y[:, ~hidden], x[:, ~hidden])
        assert (y[:, hidden] == x.mean()).all()
        widest_band = max(widest_band, int(hidden.sum()))
        y = Augment(time_masks=1, time_width=100, time_share=0.2).spectrogram(x, sample_generator(0, 0, index))
        hidden = (y != x).all(1)
        assert torch.equal(y[~hidden], x[~hidden])
        widest_stretch = max(widest_stretch, int(hidden.sum()))
    assert widest_band == 8 and widest_stretch == 12  # the last one is a fifth of 60 frames


def test_warp_moves_a_point_and_keeps_both_ends():
    x = torch.linspace(0, 1, 60)[:, None].expand(60, 3)
    moved = [Augment(time_warp=10).spectrogram(x, sample_generator(0, 0, index)) for index in range(50)]
    shifts = torch.stack([(y - x).abs().max() * 59 for y in moved])
    assert all(y.shape == x.shape for y in moved)
    assert 3 < shifts.max() <= 10.5
    assert all((y[0] - x[0]).abs().max() < 0.05 and (y[-1] - x[-1]).abs().max() < 0.05 for y in moved)


def test_speed_keeps_within_its_bounds_and_moves_the_pitch():
    waveform = torch.sin(torch.arange(16000) * 0.2)
    lengths = [len(Augment(speed=0.1).waveform(waveform, sample_generator(0, 0, index), 20000)) for index in range(100)]
    assert min(lengths) >= Augment(speed=0.1).shortest(16000) and max(lengths) <= 16000 / 0.9 + 1
    assert max(lengths) - min(lengths) > 2000
    faster = Augment(speed=0.1).waveform(waveform, sample_generator(0, 0, 0), 20000)
    crossings = [(x[1:] * x[:-1] < 0).sum().item() for x in (waveform, faster)]
    assert crossings[0] == pytest.approx(crossings[1], abs=2)  # as many waves, in another time


def test_no_clip_becomes_longer_than_what_is_read_but_one_that_was():
    """A transcript is of the whole clip, so slowing it down must not have its end cut off."""
    for length, longest in ((990, 1000), (1000, 1000), (1500, 1700)):
        lengths = [
            len(Augment(speed=0.1).waveform(torch.randn(length), sample_generator(0, 0, index), 1000))
            for index in range(50)
        ]
        assert max(lengths) <= longest and min(lengths) < length


def test_off_it_changes_nothing():
    x, waveform = spectrogram(), torch.randn(100)
    assert torch.equal(Augment().spectrogram(x, sample_generator(0, 0, 0)), x)
    assert Augment().waveform(waveform, sample_generator(0, 0, 0), 100) is waveform


@pytest.mark.parametrize("wrong", [{"speed": 1.0}, {"time_share": -0.1}, {"time_masks": -1}])
def test_impossible_values_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"data\.augment\.{name}="):
        Augment(**wrong)
