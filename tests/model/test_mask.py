"""The mask's rule: the whole of it against single queries and keys, and single conditions by hand."""

from itertools import product

import torch

from txtrain.model.mask import Mask

DEVICE = torch.device("cpu")


def rows(mask: Mask, window: int | None, num_queries: int, num_keys: int) -> list[str]:
    """The first sequence's mask, one string for each query, x where it sees a key."""
    dense = mask.dense(window, num_queries, num_keys, DEVICE)[0, 0]
    return ["".join("x" if seen else "." for seen in row) for row in dense]


def test_nothing_is_hidden_without_conditions() -> None:
    assert rows(Mask(causal=False), None, 2, 3) == ["xxx", "xxx"]


def test_causal() -> None:
    assert rows(Mask(causal=True), None, 3, 3) == ["x..", "xx.", "xxx"]


def test_queries_are_the_last_ones() -> None:
    assert rows(Mask(causal=True), None, 2, 4) == ["xxx.", "xxxx"]


def test_window_counts_the_query_itself() -> None:
    assert rows(Mask(causal=True), 2, 4, 4) == ["x...", "xx..", ".xx.", "..xx"]
    assert rows(Mask(causal=True), 1, 2, 2) == ["x.", ".x"]


def test_window_of_an_encoder_looks_both_ways() -> None:
    assert rows(Mask(causal=False), 2, 4, 4) == ["xx..", "xxx.", ".xxx", "..xx"]


def test_documents() -> None:
    documents = torch.tensor([[4, 4, 9, 9]])
    assert rows(Mask(causal=True, documents=documents), None, 4, 4) == ["x...", "xx..", "..x.", "..xx"]
    assert rows(Mask(causal=True, documents=documents), None, 1, 4) == ["..xx"]


def test_padding_hides_keys() -> None:
    padding = torch.tensor([[True, False, True]])
    assert rows(Mask(causal=False, padding=padding), None, 2, 3) == ["x.x", "x.x"]


def test_dense_is_the_elementwise_rule_everywhere() -> None:
    generator = torch.Generator().manual_seed(0)
    documents = torch.randint(0, 3, (2, 7), generator=generator).sort(1).values
    padding = torch.rand(2, 7, generator=generator) < 0.7
    for causal, with_documents, with_padding, window, num_queries in product(
        (True, False), (True, False), (True, False), (None, 3), (7, 2)
    ):
        mask = Mask(
            causal=causal,
            documents=documents if with_documents else None,
            padding=padding if with_padding else None,
        )
        dense = mask.dense(window, num_queries, 7, DEVICE)
        assert dense.shape == (2 if with_documents or with_padding else 1, 1, num_queries, 7)
        assert mask.rows == len(dense)
        assert mask.is_dense(window) == (with_documents or with_padding or window is not None)
        for b, i, j in product(range(len(dense)), range(num_queries), range(7)):
            at = 7 - num_queries + i
            seen = mask.allows(torch.tensor(b), torch.tensor(at), torch.tensor(j), window)
            assert seen == dense[b, 0, i, j]
