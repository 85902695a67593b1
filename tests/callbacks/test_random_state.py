"""The generators of training."""

import random

import numpy as np
import torch

from txtrain.callbacks.random_state import RandomState, capture, restore


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_restored_generators_draw_the_same_again() -> None:
    state = capture()
    first = draw()
    assert draw() != first
    restore(state)
    assert draw() == first


def test_what_happens_between_two_batches_leaves_no_trace() -> None:
    callback = RandomState()
    callback.on_train_batch_end(None, None, None, None, 0)
    expected = draw()
    draw()
    callback.on_train_batch_start(None, None, None, 1)
    assert draw() == expected


def test_the_state_goes_through_a_file(tmp_path) -> None:
    callback, other = RandomState(), RandomState()
    callback.on_train_batch_end(None, None, None, None, 0)
    expected = draw()
    torch.save(callback.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    other.on_train_batch_start(None, None, None, 0)
    assert draw() == expected


def test_another_number_of_ranks_is_told(caplog) -> None:
    callback = RandomState()
    callback.load_state_dict({"ranks": [capture(), capture()]})
    assert callback.state is None
    assert "of 2 ranks, now there are 1" in caplog.text
