"""Files of sound that soundfile wrote, read as one channel at the rate that is asked for."""

import math
import os
import struct

import numpy as np
import pytest
import soundfile
import torch

from txtrain.audio.files import UnreadableError, find_audio, read_audio, to_16_bits, to_floats


def tone(rate: int, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * math.pi * hertz * np.arange(rate) / rate)).astype(np.float32)


@pytest.mark.parametrize("kind, closest", [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.05), ("mp3", 0.05)])
@pytest.mark.parametrize("rate", [16000, 22050])
def test_each_kind_of_file_is_read(tmp_path, kind, closest, rate):
    path = tmp_path / f"tone.{kind}"
    soundfile.write(path, np.stack([tone(rate), np.zeros(rate, np.float32)], axis=1), rate)  # the mean halves it
    waveform, own_rate = read_audio(path, 16000)
    assert own_rate == rate and waveform.dtype == np.int16
    assert abs(len(waveform) - 16000) <= (2000 if kind == "mp3" else 1)
    middle = to_floats(waveform)[4000:12000].numpy()
    expected = tone(16000)[:8000] / 2
    spectrum, wanted = np.abs(np.fft.rfft(middle)), np.abs(np.fft.rfft(expected))
    assert spectrum.argmax() == wanted.argmax()  # the same tone, whatever the codec's delay
    assert spectrum.max() == pytest.approx(wanted.max(), rel=max(closest, 0.01))


def test_what_cannot_be_read_is_said_in_words(tmp_path):
    broken = {"text.wav": b"no sound at all", "empty.flac": b"", "cut.ogg": b"OggS\0\0"}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableError, match=r"^[^\n]{5,}$"):
            read_audio(tmp_path / name, 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(UnreadableError, match="no samples"):
        read_audio(tmp_path / "silent.wav", 16000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan], np.float32), 16000, subtype="FLOAT")
    with pytest.raises(UnreadableError, match="no numbers"):
        read_audio(tmp_path / "nan.wav", 16000)


@pytest.mark.parametrize("kind, subtype", [("wav", "PCM_16"), ("wav", "FLOAT"), ("aiff", "PCM_16"), ("flac", "PCM_16")])
def test_a_file_that_is_cut_short_is_not_read_as_a_shorter_one(tmp_path, kind, subtype):
    path = tmp_path / f"tone.{kind}"
    soundfile.write(path, tone(16000), 16000, subtype=subtype)
    whole = path.read_bytes()
    assert len(read_audio(path, 16000)[0]) == 16000
    for share in (0.5, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UnreadableError, match=r"cut short|lost sync"):
            read_audio(path, 16000)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_a_file_out_of_a_pipe_whose_header_knows_no_length_is_read(tmp_path, size):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(16000), 16000)
    written = bytearray(path.read_bytes())
    assert written[36:40] == b"data"
    written[40:44] = struct.pack("<I", size)
    path.write_bytes(written)
    assert len(read_audio(path, 16000)[0]) == 16000


def test_what_is_no_file_is_said_too(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "link.wav").symlink_to("nowhere.wav")
    for name, reason in {"folder.wav": "it is a folder", "link.wav": "it is not there"}.items():
        with pytest.raises(UnreadableError, match=reason):
            read_audio(tmp_path / name, 16000)
    assert [path.name for path in find_audio(tmp_path)] == ["link.wav"]


def test_sixteen_bits_are_rounded_and_cut_off():
    waveform = torch.tensor([-1.5, -1.0, 0.0, 0.25, 1.0, 2.0])
    assert to_16_bits(waveform).tolist() == [-32767, -32767, 0, 8192, 32767, 32767]
    torch.testing.assert_close(to_floats(to_16_bits(waveform)), waveform.clamp(-1, 1), atol=2e-5, rtol=0)


def test_files_are_found_in_order_at_any_depth(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("z.WAV", "b/a.mp3", "b/notes.txt", "a.flac"):
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in find_audio(tmp_path)] == ["a.flac", "b/a.mp3", "z.WAV"]


@pytest.mark.parametrize("rate, reason", [(1, "its sample rate is 1 Hz"), (99, "99 Hz"), (3_000_000, "3000000 Hz")])
def test_a_rate_that_no_sound_has_is_a_reason_before_memory_is_asked_for(tmp_path, rate, reason):
    path = tmp_path / "slow.wav"
    sound = b"\1\0" * 480_000
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(sound), b"WAVE", b"fmt ", 16, 1, 1, rate, rate, 2, 16)
    path.write_bytes(head + struct.pack("<4sI", b"data", len(sound)) + sound)
    with pytest.raises(UnreadableError, match=reason):
        read_audio(path, 16000)


def test_a_file_of_many_hours_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("txtrain.audio.files.LONGEST", 1)
    soundfile.write(tmp_path / "long.wav", np.zeros(16001, np.int16), 16000)
    with pytest.raises(UnreadableError, match="hours long: cut it"):
        read_audio(tmp_path / "long.wav", 16000)


def test_pipes_hidden_files_and_foreign_kinds(tmp_path):
    (tmp_path / ".hidden").mkdir()
    for name in ("._a.wav", ".hidden/b.wav", "phone.m4a", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.wav")
    assert [path.name for path in find_audio(tmp_path)] == ["phone.m4a", "pipe.wav"]
    for name, reason in (("pipe.wav", "it is no regular file"), ("phone.m4a", r"reads no \.m4a: convert it")):
        with pytest.raises(UnreadableError, match=reason):
            read_audio(tmp_path / name, 16000)
