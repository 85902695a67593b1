"""BERT, RoBERTa and DistilBERT that score labels: in, out, and as a start, against transformers."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing, RobertaProcessing
from tokenizers.trainers import WordPieceTrainer

from tests.task.examples import TEXT, write_labelled, write_tagged
from txtrain.cli import main
from txtrain.trained import load_trained

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BERT |= {"vocab_size": 320, "max_position_embeddings": 40}
DISTILBERT = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "vocab_size": 320,
    "max_position_embeddings": 40,
}
SIZES = {"bert": BERT, "roberta": BERT | {"pad_token_id": 0, "type_vocab_size": 1}, "distilbert": DISTILBERT}
KINDS = [
    getattr(transformers, f"{family}For{what}Classification")
    for family in ("Bert", "Roberta", "DistilBert")
    for what in ("Sequence", "Token")
]
LABELS = ["bad", "good", "neutral"]
RUN = ["logger=none", "trainer.accelerator=cpu", "trainer.max_steps=2", "data.seq_len=32"]


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def their_folder(path, kind, **options):
    """A folder of transformers with random weights and a WordPiece tokenizer."""
    torch.manual_seed(0)
    config = kind.config_class(**SIZES[kind.base_model_prefix], **options)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(path)
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator([TEXT.read_text()], WordPieceTrainer(vocab_size=320, special_tokens=special))
    tokenizer.save(str(path / "tokenizer.json"))
    return model


named = partial(dict, id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_logits_are_those_of_transformers_in_and_out(tmp_path, kind):
    theirs, folder, again = their_folder(tmp_path / "theirs", kind, **named()), tmp_path / "theirs", tmp_path / "again"
    trained = load_trained(folder)
    tokens = torch.randint(5, 300, (3, 20))
    padding = torch.arange(20) < torch.tensor([[20], [11], [5]])
    tokens[~padding] = 0
    types = torch.randint(2, (3, 20)) if kind.base_model_prefix == "bert" else None
    given = {"attention_mask": padding.long()} | ({} if types is None else {"token_type_ids": types})
    expected = theirs(tokens, **given).logits
    found = trained.model(tokens, types=types, padding=padding)
    if found.dim() == 3:
        expected, found = expected[padding], found[padding]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert list(trained.labels) == LABELS
    assert main(["export", str(folder), str(again)]) == 0  # which compares with transformers too
    back = kind.from_pretrained(again).eval()
    assert back.config.id2label == dict(enumerate(LABELS))
    other = back(tokens, **given).logits
    torch.testing.assert_close(other[padding] if other.dim() == 3 else other, expected, rtol=1e-4, atol=1e-4)


def test_a_masked_language_model_gets_a_new_head(tmp_path):
    """The body is BERT's, the head is new; what a run trains goes out as transformers' own class with its labels."""
    their_folder(tmp_path / "bert", transformers.BertForMaskedLM)
    write_labelled(tmp_path / "rows.jsonl")
    data = ["data=labelled", "data.path=rows.jsonl", "init_from=bert"]
    assert main(["train", "task=sequence_classification", *data, *RUN, "optimizer.lr=1e-12", "run_dir=run"]) == 0
    before, after = load_trained("bert").model.state_dict(), load_trained("run").model.state_dict()
    assert {name for name in before if not name.startswith("head.")} == {n for n in after if not n.startswith("head.")}
    assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in before if not n.startswith("head."))
    assert main(["export", "run", "out"]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert list(config["id2label"].values()) == LABELS


def test_folders_predict(tmp_path):
    their_folder(tmp_path / "bert", transformers.BertForMaskedLM)
    their_folder(tmp_path / "tags", transformers.BertForTokenClassification, **named())
    write_tagged(tmp_path / "tags.jsonl", rows=3)
    (tmp_path / "asked.txt").write_text("Before we [MASK] any further, <mask>\n")
    assert main(["predict", "bert", "asked.txt", "top=2", "--output", "filled.jsonl", "--device=cpu"]) == 0
    assert len(json.loads((tmp_path / "filled.jsonl").read_text())["masks"]) == 2
    assert main(["predict", "tags", "tags.jsonl", "--output", "told.jsonl", "--device=cpu"]) == 0
    assert json.loads((tmp_path / "told.jsonl").read_text().splitlines()[0])["tags"][0] in LABELS


def test_pairs_are_read_as_robertas_tokenizer_sets_them(tmp_path):
    """`<s> a </s></s> b </s>`."""
    kind = transformers.RobertaForSequenceClassification
    theirs = their_folder(tmp_path / "pairs", kind, **named())
    tokenizer = Tokenizer.from_file("pairs/tokenizer.json")
    tokenizer.post_processor = RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save("pairs/tokenizer.json")
    read = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    first, second = "Before we proceed any further", "hear me speak."
    ids = read(first, second, return_tensors="pt").input_ids
    assert (ids == 3).sum() == 3
    expected = theirs(ids).logits.softmax(-1)[0].tolist()
    (tmp_path / "asked.jsonl").write_text(json.dumps({"text": first, "pair": second}) + "\n")
    assert main(["predict", "pairs", "asked.jsonl", "--output", "told.jsonl", "--device=cpu"]) == 0
    told = json.loads((tmp_path / "told.jsonl").read_text())["probabilities"]
    assert [told[label] for label in LABELS] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"num_labels": 1},
        {"num_labels": 1, "problem_type": "regression"},
        {"num_labels": 3, "problem_type": "regression"},
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"num_labels": 3, "problem_type": "single_label_classification"},
        {"num_labels": 3},
    ],
    ids=str,
)
def test_scores_are_those_of_the_pipeline(tmp_path, options):
    their_folder(tmp_path / "scores", transformers.BertForSequenceClassification, **options)
    core = Tokenizer.from_file("scores/tokenizer.json")
    core.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    core.save("scores/tokenizer.json")
    texts = ["the cat sat", "a dog"]
    Path("two.txt").write_text("\n".join(texts))
    assert main(["predict", "scores", "two.txt", "--device", "cpu", "--output", "told.jsonl"]) == 0
    told = [json.loads(line) for line in Path("told.jsonl").read_text().splitlines()]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]")
    pipeline = transformers.pipeline("text-classification", "scores", tokenizer=tokenizer, device="cpu")
    for line, scores in zip(told, pipeline(texts, top_k=None), strict=True):
        got = line["scores"] if options.get("problem_type") == "regression" else line["probabilities"]
        assert got == pytest.approx({score["label"]: score["score"] for score in scores}, abs=1e-5)


def test_eval_refuses_what_it_would_measure_by_a_softmax(tmp_path, capsys):
    kind = transformers.BertForSequenceClassification
    their_folder(tmp_path / "scores", kind, num_labels=3, problem_type="multi_label_classification")
    Path("two.jsonl").write_text('{"text": "a cat", "label": "LABEL_0"}\n{"text": "a dog", "label": "LABEL_1"}\n')
    assert main(["eval", "scores", "data=labelled", "data.path=two.jsonl", "trainer.accelerator=cpu"]) == 1
    assert "is of a multi_label_classification" in capsys.readouterr().err
