"""Scores from counts are those of scikit-learn and seqeval, and add up over parts."""

import random

import pytest
import torch
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score, recall_score
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef

from txtrain.task.scores import Entities, accuracy, count_confusions, f1, macro_f1, matthews

TAGS = ["B-ORG", "B-PER", "E-PER", "I-ORG", "I-PER", "O", "S-PER"]


@pytest.mark.parametrize("seed", range(8))
def test_scores_of_classes_are_those_of_scikit_learn(seed):
    draws = torch.Generator().manual_seed(seed)
    labels = 2 + seed
    targets = torch.randint(labels, (300,), generator=draws)
    guesses = torch.where(
        torch.rand(300, generator=draws) < 0.5, targets, torch.randint(labels, (300,), generator=draws)
    )
    if seed % 2:  # a class that never occurs, and one that is never guessed
        targets, guesses = targets.clamp(max=labels - 2), guesses.clamp(min=1, max=labels - 2)
    ignored = torch.rand(300, generator=draws) < 0.1
    confusions = count_confusions(guesses, targets.where(~ignored, -100), labels)
    true, told = targets[~ignored].tolist(), guesses[~ignored].tolist()
    assert confusions.tolist() == confusion_matrix(true, told, labels=range(labels)).tolist()
    assert accuracy(confusions) == pytest.approx(accuracy_score(true, told), abs=1e-12)
    assert macro_f1(confusions) == pytest.approx(f1_score(true, told, average="macro"), abs=1e-12)
    assert matthews(confusions) == pytest.approx(matthews_corrcoef(true, told), abs=1e-12)
    parts = [count_confusions(guesses[part], targets.where(~ignored, -100)[part], labels) for part in range(300)]
    assert torch.equal(sum(parts), confusions)


def test_one_guess_for_all_has_no_correlation():
    confusions = count_confusions(torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 0, 1]), 2)
    assert matthews(confusions) == matthews_corrcoef([0, 1, 0, 1], [0, 0, 0, 0]) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_entities_are_those_of_seqeval(seed):
    """Random tags, most of them badly formed, with places that do not count strewn in."""
    draw = random.Random(seed)
    tags = TAGS if seed % 2 else [tag for tag in TAGS if tag[0] in "BIO"]
    length, rows = 14, 6
    true, told, targets, guesses = [], [], [], []
    for _ in range(rows):
        kept = [draw.random() < 0.8 for _ in range(length)]
        row = [draw.choice(tags) for _ in range(length)]
        guess = [tag if draw.random() < 0.6 else draw.choice(tags) for tag in row]
        true.append([tag for tag, keep in zip(row, kept, strict=True) if keep])
        told.append([tag for tag, keep in zip(guess, kept, strict=True) if keep])
        targets.append([tags.index(tag) if keep else -100 for tag, keep in zip(row, kept, strict=True)])
        guesses.append([tags.index(tag) for tag in guess])
    entities = Entities(tags)
    scores = f1(entities.count(torch.tensor(guesses), torch.tensor(targets)))
    assert scores["f1"] == pytest.approx(entity_f1(true, told), abs=1e-12)
    assert scores["precision"] == pytest.approx(precision_score(true, told), abs=1e-12)
    assert scores["recall"] == pytest.approx(recall_score(true, told), abs=1e-12)
    parts = [entities.count(torch.tensor([g]), torch.tensor([t])) for g, t in zip(guesses, targets, strict=True)]
    assert f1(sum(parts)) == scores


def test_only_tags_of_entities_are_read_as_such():
    assert Entities.describe(["B-X", "I-X", "O"])
    assert not Entities.describe(["NOUN", "VERB"])
    assert not Entities.describe(["O"])
