"""Sampled text, and that it disturbs nothing."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.callbacks.tiny import VOCABULARY, Run
from txtrain.callbacks.clock import Clock
from txtrain.callbacks.samples import Samples, evaluating
from txtrain.cli import main
from txtrain.generate import sample
from txtrain.model import Decoder
from txtrain.model.attention import Attention
from txtrain.model.embed import Embedding
from txtrain.model.encoding import T5
from txtrain.model.ffn import GatedFeedForward
from txtrain.model.head import Head
from txtrain.model.norm import PreNorm
from txtrain.model.shape import Shape
from txtrain.printable import printable


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
    assert list(sample(model, [7], length=12, max_len=4, temperature=0)) == [(8 + i) % 10 for i in range(12)]
    assert set(model.lengths) == {4}


def test_the_model_reads_the_newest_tokens_that_fit() -> None:
    seen = []
    model = Next()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0].tolist()))
    assert len(list(sample(model, [1, 2, 3], length=3, max_len=4, temperature=0))) == 3
    assert seen == [[1, 2, 3, 0], [1, 2, 3, 4], [2, 3, 4, 5]]


def test_a_decoder_that_reads_each_token_once_writes_what_one_writes_that_reads_all_anew() -> None:
    axes = {"encoding": T5, "norm": PreNorm, "attention": Attention, "ffn": GatedFeedForward, "head": Head}
    shape = Shape(dim=16, num_layers=2, num_heads=2)
    torch.manual_seed(0)
    model = Decoder(shape=shape, vocab_size=50, max_len=32, embedding=Embedding, **axes)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.5)
    tokens, prompt = [3, 1, 4], [3, 1, 4]
    for _ in range(20):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    read = []
    model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].size(1)))
    assert len(set(tokens)) > 5
    assert list(sample(model, prompt, length=20, max_len=23, temperature=0)) == tokens[3:]
    assert read == [3] + [1] * 19
    read.clear()
    assert list(sample(model, prompt, length=20, max_len=20, temperature=0))[:18] == tokens[3:21]
    assert read == [3] + [1] * 17 + [20] * 2, "each token is read once until the window is full"


def test_a_text_ends_at_the_first_of_its_end_tokens() -> None:
    model = Next()
    assert list(sample(model, [3], length=9, max_len=4, temperature=0, end_tokens={7, 8})) == [4, 5, 6]
    assert len(model.lengths) == 4, "nothing is read after the end"


def test_a_sample_that_takes_a_while_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for patience, told in ((60, []), (0, ["writing a sample of up to 4 tokens"])):
        monkeypatch.setattr("txtrain.callbacks.samples.PATIENCE", patience)
        caplog.clear()
        with caplog.at_level("INFO", logger="txtrain"):
            Run(tmp_path / str(patience), max_steps=1, validate=1).fit()
        assert [line for line in caplog.messages if line.startswith("writing")] == told


def test_top_k_draws_among_the_k_likeliest_by_their_probabilities() -> None:
    draw = partial(sample, Next(), length=1, max_len=4, temperature=3.0, top_k=2)
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor([next(draw([0], generator=generator)) for _ in range(2000)])
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


def test_a_sample_before_the_first_step_is_of_the_model_as_it_was_and_changes_nothing(tmp_path: Path) -> None:
    plain = Run(tmp_path / "one", max_steps=4, validate=2, samples={"length": 6}).fit()
    still = Run(tmp_path / "two", max_steps=2, validate=1, samples={"length": 6, "before": True})
    still.task.configure_optimizers = lambda: torch.optim.SGD(still.task.model.parameters(), lr=0.0)
    still.fit()
    before, *after = still.summary.samples.rows
    assert before[0] == 0 and [row[1:] for row in after] == [before[1:], before[1:]]
    both = Run(tmp_path / "three", max_steps=4, validate=2, samples={"length": 6, "before": True}).fit()
    assert both.summary.samples.rows[1:] == plain.summary.samples.rows
    assert both.summary.samples.text_before == before[1] + before[2] and plain.summary.samples.text_before is None
    assert all(map(torch.equal, both.weights(), plain.weights()))
    [saved] = (tmp_path / "two" / "checkpoints").glob("step_*2.ckpt")
    on = Run(tmp_path / "two", max_steps=4, validate=2, samples={"length": 6, "before": True}).fit(saved)
    assert [row[0] for row in on.summary.samples.rows] == [0, 1, 2, 4]


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


def test_nothing_but_text_tabs_and_line_ends_reaches_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc\td\x07é") == "a�[2Jb\nc\td�é"


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"length": -1}, "samples.length is -1: give a number of tokens, or samples.length=0 for none"),
        ({"temperature": -0.5}, "samples.temperature is -0.5: give 0 or more, such as samples.temperature=0.8"),
        ({"top_k": 0}, "samples.top_k is 0: give 1 or more, or samples.top_k=null for all tokens"),
    ],
)
def test_settings_that_draw_nothing_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Samples(clock=Clock(), **setting)


def test_the_config_says_what_is_written_also_for_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 400)
    small = ["data=text", "data.path=text.txt", "tokenizer=char", "data.seq_len=16", "model.dim=16", "logger=none"]
    small += ["model.num_layers=1", "model.num_heads=1", "model.num_kv_heads=1", "trainer.accelerator=cpu"]
    small += ["data.batch_size=2", "run_dir=run", "trainer.val_check_interval=2", "trainer.limit_val_batches=1"]
    steps, samples = ["trainer.max_steps=2"], ["samples.prompt='to be'", "samples.length=3"]
    assert main(["train", *small, *steps, *samples]) == 0
    first = json.loads((tmp_path / "run/summary.json").read_text())["sample"]
    assert first.startswith("to be") and len(first) == len("to be") + 3
    assert main(["train", "resume=run", "trainer.max_steps=4", "samples.length=7"]) == 0
    second = json.loads((tmp_path / "run/summary.json").read_text())["sample"]
    assert second.startswith("to be") and len(second) == len("to be") + 7
    assert main(["train", *small, *steps, "run_dir=other", "samples.top_k=0"]) == 1
    assert "error: samples.top_k is 0" in capsys.readouterr().err
