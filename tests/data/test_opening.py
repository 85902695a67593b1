"""A tokenizer that sets `<s>` before a text: documents begin with it in training, as in generation and transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from txtrain.cli import main
from txtrain.data.chat import ChatData
from txtrain.data.masked import Masking
from txtrain.data.text import TextFiles
from txtrain.data.tokenizer import Pretrained, byte_letters
from txtrain.generate.prompts import PromptEncoder
from txtrain.trained import load_trained

TEXTS = [f"{word} goes on for {number} words" for number in range(30) for word in ("alpha", "bravo", "é")]


def make_folder(folder: Path, single: str = "<s> $A") -> Path:
    """Bytes, and what Llama 3 sets around them."""
    folder.mkdir()
    core = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(byte_letters())}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>", "<mask>")])
    template = processors.TemplateProcessing(
        single=single,
        pair=f"{single} {single.replace('$A', '$B')}",
        special_tokens=[("<s>", 256), ("</s>", 257)],
    )
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    core.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("opening")
    make_folder(place / "tok")
    (place / "my.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return place


def data(folder: Path, *, add_bos: bool | None = True, **options: Any) -> TextFiles:
    tokenizer = Pretrained(path=str(folder / "tok"), add_bos=add_bos)
    options = {"path": str(folder / "my.jsonl"), "seq_len": 40, "cache_dir": str(folder / "cache")} | options
    made = TextFiles(tokenizer=tokenizer, **options)
    made.prepare()
    return made


def stream(made: TextFiles, split: str = "train") -> list[int]:
    return np.fromfile(made.folder / f"{split}.bin", dtype=made.dtype).tolist()


def test_each_document_is_what_transformers_makes_of_it(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "tok")
    made = data(folder)
    tokens = [*stream(made)[1:], *stream(made, "validation")[1:]]
    ends = [place + 1 for place, token in enumerate(tokens) if token == 257]
    documents = [tokens[first:last] for first, last in zip([0, *ends], ends, strict=False)]
    assert sorted(documents) == sorted([*theirs(text).input_ids, 257] for text in TEXTS)


@pytest.mark.parametrize("packing", ["concat", "documents"])
def test_the_opening_is_read_and_never_a_target(folder, packing):
    made = data(folder, packing=packing)
    windows = made.samples("train")
    batch = windows.batch(np.arange(len(windows)))
    targets = batch["targets"][batch["targets"] != -100]
    assert 256 in batch["tokens"]
    assert 256 not in targets
    assert 257 in targets
    assert len(targets) == made.train_tokens
    if packing == "documents":
        assert (batch["positions"][batch["tokens"] == 256] == 0).all()
        assert (batch["positions"][:, 1:][batch["tokens"][:, 1:] == 257] > 0).all()


def test_a_config_that_does_not_say_has_the_old_stream_and_its_cache(folder):
    old, new = data(folder, add_bos=None), data(folder)
    assert stream(old) == [token for token in stream(new) if token != 256]
    assert "add_bos" not in old.tokenizer.fingerprint()
    assert old.fingerprint() != new.fingerprint()
    assert old.prompt("a") == [97]
    assert new.prompt("a") == [256, 97]


def test_where_the_end_of_text_opens_too_it_stands_once(tmp_path, folder):
    make_folder(tmp_path / "tok", single="</s> $A")
    alone = data(tmp_path, path=str(folder / "my.jsonl"))
    assert stream(alone) == stream(data(folder, add_bos=None))
    assert alone.prompt("a") == [257, 97]


def test_a_masked_sample_begins_once(folder):
    masking = Masking()
    made = data(folder, masking=masking)
    assert 256 not in stream(made)
    batch = made.samples("train").batch(np.arange(4))
    assert ((batch["tokens"] == 256).sum(1) == 1).all()


def test_a_chat_without_a_template_of_its_own_begins_so_too(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    (tmp_path / "my.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 20)
    made = ChatData(
        tokenizer=Pretrained(path=str(folder / "tok"), add_bos=True),
        path=str(tmp_path / "my.jsonl"),
        seq_len=64,
        cache_dir=str(tmp_path / "cache"),
    )
    made.prepare()
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "tok")
    expected = theirs.apply_chat_template(
        messages, chat_template=made.chat_template().source, tokenize=True, return_dict=False
    )
    assert made.encoder.encode([next(made.conversations())])[0].tokens.tolist() == expected
    assert expected[0] == 256
    assert made.prompt("hi")[0] == 256


RUN = ["data=text", "tokenizer=pretrained", "model.dim=32", "model.num_layers=1", "logger=none", "trainer.max_steps=2"]
RUN += ["data.seq_len=40", "trainer.accelerator=cpu", "samples.length=0", "data.packing=documents"]


@pytest.fixture(scope="module")
def runs(folder):
    """By the rule: true, false, and null as in configs from before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        for rule in ("true", "false", "null"):
            named = ["data.path=my.jsonl", "tokenizer.path=tok", f"tokenizer.add_bos={rule}", f"run_dir=run-{rule}"]
            assert main(["train", *RUN, *named]) == 0
        config = folder / "run-null" / "config.yaml"
        config.write_text(config.read_text().replace("  add_bos: null\n", ""))
        assert "add_bos" not in config.read_text()
    return folder


@pytest.mark.parametrize(("rule", "first"), [("true", [256]), ("false", []), ("null", [256])])
def test_generate_begins_a_prompt_by_the_rule_of_the_run(runs, rule, first):
    trained = load_trained(runs / f"run-{rule}")
    assert PromptEncoder(trained, chat=False).encode("ab") == [*first, 97, 98]
    saved = Tokenizer.from_file(str(runs / f"run-{rule}" / "tokenizer.json"))  # of which transformers makes an export's
    assert saved.encode("ab").ids == [*first, 97, 98]
    assert saved.encode("a", "b").ids == [*first, 97, *(token for token in first or [256]), 98]


@pytest.mark.parametrize(("rule", "first"), [("true", [256]), ("false", [257]), ("null", [257])])
def test_eval_scores_documents_as_training_had_them(runs, rule, first, monkeypatch):
    """Beside a loss of each document alone, by the model that `generate` loads."""
    monkeypatch.chdir(runs)
    monkeypatch.setenv("TXTRAIN_CACHE", str(runs / "cache"))
    (runs / "few.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:5]))
    words = ["data=text", "data.path=few.jsonl", "data.seq_len=200", "data.packing=documents"]
    assert main(["eval", f"run-{rule}", *words, "trainer.accelerator=cpu", "--json", "found.json"]) == 0
    found = json.loads(Path("found.json").read_text().splitlines()[0])
    model, total, count = load_trained(runs / f"run-{rule}").model, 0.0, 0
    for text in TEXTS[:5]:
        ids = torch.tensor([[*first, *text.encode(), 257]])
        logits = model(ids[:, :-1])
        total += float(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
