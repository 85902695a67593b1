"""Packing: every token is a target once, and with `documents` nothing says what is in another document."""

import numpy as np
import pytest
import torch

from txtrain.data.packing import Windows

END = 0


def stream(*documents: list[int]) -> list[int]:
    return [END, *(token for document in documents for token in [*document, END])]


def windows(folder, tokens: list[int], seq_len: int, packing: str = "concat") -> Windows:
    path = folder / "tokens.bin"
    np.array(tokens, dtype="uint16").tofile(path)
    return Windows(path=path, dtype="uint16", seq_len=seq_len, packing=packing, end_of_text=END)


@pytest.mark.parametrize("packing", ["concat", "documents"])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17])
def test_every_token_is_a_target_once_and_its_input_stands_before_it(tmp_path, packing, length):
    tokens = stream(list(range(1, length)))
    samples = windows(tmp_path, tokens, seq_len=8, packing=packing)
    batch = samples.batch(np.arange(len(samples)))
    valid = batch["targets"] != -100
    assert batch["targets"][valid].tolist() == tokens[1:]
    assert batch["tokens"][valid].tolist() == tokens[:-1]
    assert batch["tokens"].shape == batch["targets"].shape == (len(samples), 8)


def test_an_empty_row_has_no_target(tmp_path):
    batch = windows(tmp_path, stream([1, 2, 3]), seq_len=2).batch(np.array([0, -1]))
    assert batch["targets"].tolist() == [[1, 2], [-100, -100]]
    assert batch["index"].tolist() == [0, -1]


def test_documents_by_hand(tmp_path):
    samples = windows(tmp_path, stream([11, 12], [21], [31, 32, 33, 34]), seq_len=5, packing="documents")
    batch = samples.batch(np.arange(len(samples)))
    assert batch["tokens"].tolist() == [[END, 11, 12, END, 21], [END, 31, 32, 33, 34]]
    assert batch["targets"].tolist() == [[11, 12, END, 21, END], [31, 32, 33, 34, END]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert batch["documents"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]


def test_a_document_that_goes_on_in_the_next_window_starts_at_position_zero_there(tmp_path):
    batch = windows(tmp_path, stream([1, 2, 3, 4, 5, 6, 7]), seq_len=4, packing="documents").batch(np.array([1]))
    assert batch["tokens"].tolist() == [[4, 5, 6, 7]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3]]
    assert batch["documents"].tolist() == [[0, 0, 0, 0]]


def test_a_target_depends_on_its_own_document_only(tmp_path):
    # What a token may see: itself and earlier tokens of its document. Whatever that is, the target comes from the same
    # document, or is its end; so changing one document changes no pair of (seen, target) of another.
    def pairs(documents: list[list[int]], wanted: int) -> set:
        samples = windows(tmp_path, stream(*documents), seq_len=32, packing="documents")
        batch = {name: tensor[0] for name, tensor in samples.batch(np.array([0])).items()}
        mine = (batch["documents"] == wanted) & (batch["targets"] != -100)
        return {
            (tuple(batch["tokens"][: i + 1][batch["documents"][: i + 1] == wanted].tolist()), int(batch["targets"][i]))
            for i in torch.nonzero(mine).flatten().tolist()
        }

    first, second = [5, 6, 7], [8, 9]
    assert pairs([first, second], 1) == pairs([[1, 2, 1], second], 1) == {((0,), 8), ((0, 8), 9), ((0, 8, 9), 0)}
    assert pairs([first, second], 0) == pairs([first, [3, 4, 3, 4]], 0)


def test_padding_belongs_to_no_document(tmp_path):
    batch = windows(tmp_path, stream([1, 2]), seq_len=6, packing="documents").batch(np.array([0]))
    real = batch["targets"][0] != -100
    assert real.tolist() == [True, True, True, False, False, False]
    assert not set(batch["documents"][0][real].tolist()) & set(batch["documents"][0][~real].tolist())
