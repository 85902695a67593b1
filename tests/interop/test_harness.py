"""In lm-evaluation-harness a model scores as the harness's own `hf` does on the same weights, and answers a task."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is in the extra harness")

from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from txtrain.interop import harness

LETTERS = "abcdefghijklmnopqrstuvwxyz .?"
PAIRS = [
    ("who is it", " me"),
    ("", "abc"),
    ("a", "bcdefg hijk"),
    ("trailing ", "space"),
    ("long " * 12, "cut on the left"),
]
TEXTS = ["a text. ", "one that is much longer than the model can see at once. " * 2, "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama, whose tokenizer puts a token before each text."""
    folder = tmp_path_factory.mktemp("llama")
    vocab = {token: number for number, token in enumerate(["<s>", "</s>", *LETTERS])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=48,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def both(folder):
    ours = harness.HarnessModel(path=str(folder), device="cpu", batch_size=2)
    theirs = HFLM(pretrained=str(folder), device="cpu", batch_size=2, dtype="float32", max_length=48)
    return ours, theirs


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def test_scores_of_continuations_are_those_of_transformers(both):
    ours, theirs = (model.loglikelihood(requests(*PAIRS), disable_tqdm=True) for model in both)
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_scores_of_whole_texts_are_those_of_transformers(both):
    ours, theirs = (model.loglikelihood_rolling(requests(*((text,) for text in TEXTS))) for model in both)
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_texts_are_those_of_transformers(both):
    asked = [("who is", {"until": ["e", "."], "max_gen_toks": 9}), ("long " * 20, {"until": [], "max_gen_toks": 9})]
    asked.append(("a cat", {"until": ["q"], "max_gen_toks": 20}))
    ours, theirs = (model.generate_until(requests(*asked), disable_tqdm=True) for model in both)
    assert ours == theirs


@pytest.mark.slow  # the harness reads the descriptions of all its thousands of tasks first
def test_a_local_task_runs_by_the_documented_command(folder, tmp_path, monkeypatch, capsys):
    rows = [{"question": "is it a", "choices": [" b", " c"], "answer": number % 2} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "letters.yaml").write_text(
        "task: letters\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path}/rows.jsonl\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: question\n"
        "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    words = f"--model_args path={folder} --tasks letters --include_path {tmp_path} --output_path {tmp_path}/out"
    monkeypatch.setattr(sys, "argv", ["harness", *words.split()])
    harness.main()
    [found] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(found.read_text())["results"]["letters"]["acc,none"] == 0.5
    out = capsys.readouterr().out
    assert "letters" in out
    assert "Tasks" in out and "Metric" in out, "old versions of pytablewriter head the columns with A, B, C"


def test_a_document_begins_as_in_training_where_that_is_asked_for(folder):
    model = harness.HarnessModel(path=str(folder), device="cpu", add_bos_token=True)
    assert model.tok_encode("ab") == [0, 2, 3]
    assert model.tok_encode("ab", add_special_tokens=False) == [2, 3]
    [(score, _)] = model.loglikelihood(requests(("", "ab")), disable_tqdm=True)
    logits = model.trained.model(torch.tensor([[0, 2]])).log_softmax(-1)
    assert math.isclose(score, (logits[0, 0, 2] + logits[0, 1, 3]).item(), abs_tol=1e-5)
