"""Sampled text, and that it disturbs nothing."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.callbacks.tiny import VOCABULARY, Run
from txtrain.callbacks.samples import evaluating, printable
from txtrain.generate import sample


class Next(nn.Module):
    """Scores the token after the last one highest, and those further away less and less."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.lengths: list[int] = []

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.lengths.append(tokens.size(1))
        return -self.scale * ((torch.arange(10) - tokens[..., None] - 1) % 10).float()


def test_greedy_sampling_takes_the_likeliest_beyond_the_longest_sequence() -> None:
    model = Next()
    assert sample(model, [7], length=12, max_len=4, temperature=0) == [(7 + i) % 10 for i in range(13)]
    assert set(model.lengths) == {4}


def test_the_model_reads_the_newest_tokens_that_fit() -> None:
    seen = []
    model = Next()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0].tolist()))
    sample(model, [1, 2, 3], length=3, max_len=4, temperature=0)
    assert seen == [[1, 2, 3, 0], [1, 2, 3, 4], [2, 3, 4, 5]]


def test_top_k_draws_among_the_k_likeliest_by_their_probabilities() -> None:
    draw = partial(sample, Next(), length=1, max_len=4, temperature=3.0, top_k=2)
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor([draw([0], generator=generator)[1] for _ in range(2000)])
    assert set(found.tolist()) == {1, 2}
    assert (found == 1).double().mean() == pytest.approx(1 / (1 + torch.e**-1), abs=0.04)


def test_samples_are_the_same_each_time_and_leave_generators_and_modes_alone(tmp_path: Path) -> None:
    run = Run(tmp_path / "one", max_steps=4, validate=2, samples={"length": 6}).fit()
    again = Run(tmp_path / "two", max_steps=4, validate=2, samples={"length": 6}).fit()
    without = Run(tmp_path / "three", max_steps=4, validate=2, samples={"length": 0}).fit()
    assert run.summary.samples.rows == again.summary.samples.rows
    assert [row[0] for row in run.summary.samples.rows] == [2, 4]
    assert without.summary.samples.rows == []
    assert all(map(torch.equal, run.weights(), without.weights()))
    assert run.task.model.training


def test_the_prompt_is_the_start_of_the_validation_set_or_what_is_given(tmp_path: Path) -> None:
    run = Run(tmp_path / "one", max_steps=1, validate=1).fit()
    first = next(iter(run.data.val_dataloader()))["tokens"][0].tolist()
    assert run.summary.samples.rows[0][1] == run.data.tokenizer.decode(first)
    run = Run(tmp_path / "two", max_steps=1, validate=1, samples={"prompt": "abc", "length": 3}).fit()
    assert run.summary.samples.rows[0][1] == "abc"
    assert run.summary.samples.text.startswith("abc")


def test_evaluating_gives_each_submodule_its_own_mode_back() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    module[1].eval()
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, True, False, False]


def test_the_text_ends_where_the_document_does(tmp_path: Path) -> None:
    run = Run(tmp_path, max_steps=1, validate=1, samples={"length": 300, "temperature": 5.0, "top_k": None}).fit()
    assert run.data.tokenizer.end_of_text == VOCABULARY - 1
    assert "\n" not in run.summary.samples.rows[0][2]
    assert len(run.summary.samples.rows[0][2]) < 300


def test_nothing_but_text_and_line_ends_reaches_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc\td\x07é") == "a�[2Jb\nc�d�é"
