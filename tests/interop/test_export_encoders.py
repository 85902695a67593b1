"""`txtrain export` of encoders and encoder-decoders: it computes in `transformers` what it did before."""

import json
from pathlib import Path

import pytest
import torch

from tests.interop.random_folders import write_tokenizer
from tests.interop.test_encoders import BART, BERT, DISTILBERT, MARIAN, T5, saved
from txtrain.cli import main

CLASSES = {
    "BertModel": ("Bert", BERT),
    "BertForMaskedLM": ("Bert", BERT | {"tie_word_embeddings": False}),
    "RobertaForMaskedLM": ("Roberta", BERT | {"pad_token_id": 4}),
    "DistilBertForMaskedLM": ("DistilBert", DISTILBERT),
    "BartForConditionalGeneration": ("Bart", BART),
    "MarianMTModel": ("Marian", MARIAN | {"share_encoder_decoder_embeddings": False}),
    "T5ForConditionalGeneration": ("T5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}


@pytest.mark.parametrize("kind", CLASSES)
@torch.no_grad()
def test_a_folder_goes_through_us_unchanged(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    family, config = CLASSES[kind]
    theirs = saved(tmp_path / "in", kind, family, **config | {"vocab_size": 260})
    write_tokenizer(tmp_path / "in")
    assert main(["export", "in", "out"]) == 0
    again = type(theirs).from_pretrained("out").eval()
    tokens = torch.randint(5, 260, (2, 12), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": tokens}
    if theirs.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    torch.testing.assert_close(again(**inputs)[0], theirs(**inputs)[0], rtol=1e-4, atol=1e-4)
    for key in ("architectures", "decoder_start_token_id"):
        written, read = (json.loads(Path(name, "config.json").read_text()).get(key) for name in ("out", "in"))
        assert written == read, key
