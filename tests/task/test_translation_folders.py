"""Translators of other makers: from folders of T5, BART and Marian with a tokenizer, trained on and translating."""

import json
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.data.pieces import write_marian
from tests.interop.random_folders import write_folder
from tests.task.test_translation import PAIRS
from txtrain.cli import main
from txtrain.trained import load_trained

SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
COMMON = {"pad_token_id": 0, "eos_token_id": 1}
SIDES = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
SIDES |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 16, "max_position_embeddings": 64}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "feed_forward_proj": "relu"}
FAMILIES = {
    "t5": T5 | {"decoder_start_token_id": 0},
    "bart": SIDES | {"bos_token_id": 3, "decoder_start_token_id": 1, "forced_bos_token_id": None},
    "marian": SIDES | {"decoder_start_token_id": 0, "scale_embedding": True},
}
GREEDY = {"do_sample": False, "num_beams": 1, "max_length": 30, "forced_eos_token_id": None}
CLOSED = {"t5": "$A </s>", "bart": "<s> $A </s>", "marian": "$A </s>"}
HUBS = "marian as on the Hub"  # with SentencePiece's files


def write_tokenizer(folder: Path, closed: str | None) -> transformers.PreTrainedTokenizerBase:
    """Pieces of words by a unigram model, as SentencePiece makes them, with special tokens around a text.

    Without these SentencePiece makes them itself, for each side others.
    """
    if closed is None:
        write_marian(folder, *(list(side) for side in zip(*PAIRS, strict=True)), vocab_size=60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that sacremoses is recommended, which it does not use on texts
            return transformers.MarianTokenizer.from_pretrained(folder)
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    core.train_from_iterator([text for pair in PAIRS for text in pair], trainer)
    ids = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing(single=closed, special_tokens=ids)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("family", [*FAMILIES, HUBS])
def test_training_begins_with_the_loss_of_transformers(family, tmp_path, monkeypatch, capsys):
    """Teacher forcing and special tokens are as in transformers, which shifts the labels by itself."""
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer = write_tokenizer(folder, CLOSED.get(family))
    config = COMMON | FAMILIES[family.split()[0]] | {"vocab_size": len(tokenizer)}
    if family == HUBS:  # where the end comes first, and padding last
        pad = len(tokenizer) - 1
        config |= {"eos_token_id": 0, "pad_token_id": pad, "decoder_start_token_id": pad}
    family = family.split()[0]
    theirs = write_folder(folder, family, auto="AutoModelForSeq2SeqLM", **config)
    if family == "marian":  # its waves are fixed, and were overwritten with random numbers
        for side in (theirs.model.encoder, theirs.model.decoder):
            side.embed_positions.weight.data = side.embed_positions.create_weight()
        theirs.generation_config.bad_words_ids = [[config["pad_token_id"]], [tokenizer.unk_token_id or 2]]
        theirs.save_pretrained(folder)
    held = PAIRS[::40]
    for name, pairs in {"train.tsv": PAIRS[1::40], "held.tsv": held}.items():
        (tmp_path / name).write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")

    read = tokenizer([source for source, _ in held], padding=True, return_tensors="pt")
    written = tokenizer(text_target=[target for _, target in held], padding=True, return_tensors="pt")
    labels = written.input_ids.where(written.attention_mask.bool(), -100)
    with torch.no_grad():
        expected = theirs(input_ids=read.input_ids, attention_mask=read.attention_mask, labels=labels).loss.item()

    given = ["task=translation", "data=pairs", f"data.path={tmp_path / 'train.tsv'}", f"init_from={folder}"]
    given += [f"data.validation_path={tmp_path / 'held.tsv'}", "logger=none", "trainer.accelerator=cpu"]
    given += ["data.seq_len=60", "optimizer=sgd", "optimizer.lr=1e-12", "trainer.max_steps=1", "lora.rank=2"]
    assert main(["train", *given, f"run_dir={tmp_path / 'run'}", "trainer.devices=1"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["validation_loss"] == pytest.approx(expected, rel=1e-4)

    (tmp_path / "one.txt").write_text(f"{held[0][0]}\n")
    told = []
    for model in (folder, tmp_path / "run"):
        capsys.readouterr()
        assert main(["predict", str(model), str(tmp_path / "one.txt"), "beams=1"]) == 0
        told.append(json.loads(capsys.readouterr().out)["translation"])
    assert told[0].startswith(told[1]), "a longer context ends later"
    generated = theirs.generate(read.input_ids[:1], attention_mask=read.attention_mask[:1], **GREEDY)[0, 1:]
    ids = generated if generated[-1] != config["eos_token_id"] else generated[:-1]
    assert told[0].startswith(tokenizer.decode(ids, skip_special_tokens=False))
    if type(tokenizer) is transformers.MarianTokenizer:
        check_files_go_out(tmp_path, tokenizer, held)
        capsys.readouterr()
        assert main(["generate", str(folder), held[0][0], "--max-new-tokens", "12"]) == 0
        assert told[0].startswith(capsys.readouterr().out.strip())


def check_files_go_out(place, tokenizer, held):
    """SentencePiece's files, of a run and of a folder, for transformers and for us."""
    sources, targets = (list(side) for side in zip(*held, strict=True))
    expected = tokenizer(sources).input_ids, tokenizer(text_target=targets).input_ids
    for name in ("run", "model"):
        folder = place / f"from {name}"
        assert main(["export", str(place / name), str(folder)]) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = transformers.AutoTokenizer.from_pretrained(folder)
        assert type(again) is transformers.MarianTokenizer
        assert (again(sources).input_ids, again(text_target=targets).input_ids) == expected
        trained = load_trained(folder)
        assert (trained.tokenizer.read_batch(sources), trained.written.read_batch(targets)) == expected
