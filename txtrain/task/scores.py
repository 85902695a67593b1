"""Scores of classifiers, from counts that add up over batches and ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Whether a chunk begins at a tag, or has ended before it, by the letters of the tag before and of this one; a change
# of type does both. It is the rule of CoNLL's evaluation, as seqeval has it.
LETTERS = "OBIES"
BEGINS = {"OB", "BB", "IB", "EB", "SB", "OS", "BS", "IS", "ES", "SS", "OI", "OE", "EI", "EE", "SI", "SE"}
ENDS = {"BO", "BB", "BS", "IO", "IB", "IS", "EO", "EB", "EI", "EE", "ES", "SO", "SB", "SI", "SE", "SS"}


def count_confusions(guesses: Tensor, targets: Tensor, num_labels: int) -> Tensor:
    """guesses and targets (N,) → (L, L) int64: how many of the class of a row were taken for that of a column.

    Negative targets do not count.
    """
    valid = targets >= 0
    places = targets[valid] * num_labels + guesses[valid]
    return torch.bincount(places, minlength=num_labels**2).reshape(num_labels, num_labels)


def accuracy(confusions: Tensor) -> float:
    """The share that was taken for what it is."""
    return (confusions.diagonal().sum().double() / confusions.sum()).item()


def macro_f1(confusions: Tensor) -> float:
    """The mean of F1 over the classes that occur, as targets or as guesses."""
    right = confusions.diagonal().double()
    either = (confusions.sum(0) + confusions.sum(1)).double()
    return (2 * right / either)[either > 0].mean().item()


def matthews(confusions: Tensor) -> float:
    """Matthews' correlation for any number of classes (https://doi.org/10.1016/j.compbiolchem.2004.09.006).

    0 where all targets or all guesses are of one class.
    """
    counts = confusions.double()
    guessed, true, total = counts.sum(0), counts.sum(1), counts.sum()
    covariance = counts.diagonal().sum() * total - (guessed * true).sum()
    spread = ((total**2 - guessed.square().sum()) * (total**2 - true.square().sum())).sqrt()
    return (covariance / spread).item() if spread > 0 else 0.0


class Entities:
    """Counts entities in sequences of tags such as B-PER I-PER O (IOB2), or with E- and S- (IOBES).

    An entity is a run of tags of one type; it is right if its first tag, its last and its type are those of a true one.
    What is written loosely, such as an I- that begins, is read as CoNLL's evaluation and seqeval do.

    Args:
        labels: the names of the tags.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        letters = [label[0] if _is_tag(label) else "O" for label in labels]
        self._labels = list(labels)
        self.types = sorted({label[2:] for label in labels if label != "O"})
        self._letter = torch.tensor([LETTERS.index(letter) for letter in letters] + [0])  # the last is beyond the end
        self._type = torch.tensor([self.types.index(x[2:]) if x != "O" else len(self.types) for x in labels] + [-1])
        table = lambda pairs: torch.tensor([[a + b in pairs for b in LETTERS] for a in LETTERS])  # noqa: E731
        self._begins, self._ends = table(BEGINS), table(ENDS)

    @staticmethod
    def describe(labels: Sequence[str]) -> bool:
        """Whether labels are tags of entities."""
        return all(label == "O" or _is_tag(label) for label in labels) and any(label != "O" for label in labels)

    def count(self, guesses: Tensor, targets: Tensor) -> Tensor:
        """guesses and targets (B, T) → (3, types) int64: right, guessed and true entities of each type.

        Places with negative targets do not count: what is left and right of them are neighbours.
        """
        order = (targets < 0).long().argsort(dim=1, stable=True)
        guesses, targets = guesses.gather(1, order), targets.gather(1, order)
        outside = len(self._letter) - 1
        guesses, targets = guesses.where(targets >= 0, outside), targets.where(targets >= 0, outside)
        guessed, true = self._chunks(guesses), self._chunks(targets)
        same = guessed[0] & true[0] & (guessed[1] == true[1]) & (guessed[2] == true[2])
        kinds = len(self.types)
        return torch.stack(
            [torch.bincount(types[begin], minlength=kinds) for begin, types in ((same, true[1]), guessed[:2], true[:2])]
        )

    def find(self, tags: Sequence[str]) -> list[tuple[str, int, int]]:
        """Type, first place and last place of each entity in a sequence of tags."""
        row = torch.tensor([[self._labels.index(tag) if tag in self._labels else -1 for tag in tags]])
        begins, types, ends = (part[0].tolist() for part in self._chunks(row % len(self._letter)))
        return [
            (self.types[kind], place, ends[place] - 1)
            for place, (begin, kind) in enumerate(zip(begins, types, strict=True))
            if begin
        ]

    def _chunks(self, tags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tags (B, T) → whether an entity begins there, of which type, and where it ends, (B, T) each."""
        device, last = tags.device, len(self._letter) - 1
        beyond = tags.new_full((len(tags), 1), last)
        tags = torch.cat([beyond, tags, beyond], dim=1)
        letters, types = self._letter.to(device)[tags], self._type.to(device)[tags]
        before, here = letters[:, :-1], letters[:, 1:]
        changed = types[:, :-1] != types[:, 1:]
        begins = self._begins.to(device)[before, here] | (changed & (here > 0))
        ends = self._ends.to(device)[before, here] | (changed & (before > 0))
        columns = torch.arange(tags.shape[1] - 1, device=device).expand_as(ends)
        # The first end at or after each place: the smallest from the right.
        next_end = columns.where(ends, tags.shape[1]).flip(1).cummin(1).values.flip(1)
        return begins[:, :-1], types[:, 1:-1], next_end[:, 1:]


def f1(counts: Tensor) -> dict[str, float]:
    """(3, types) of right, guessed and true → precision, recall and F1 over all types, 0 where undefined."""
    right, guessed, true = counts.sum(1).tolist()
    return {
        "precision": right / guessed if guessed else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (guessed + true) if guessed + true else 0.0,
    }


def _is_tag(label: str) -> bool:
    return len(label) > 2 and label[0] in "BIES" and label[1] == "-"
