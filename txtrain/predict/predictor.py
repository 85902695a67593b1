"""What a task says of its inputs: the one interface between `txtrain predict` and the tasks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from txtrain.errors import UserError

if TYPE_CHECKING:
    from txtrain.trained import Trained

Given = str | Mapping[str, Any] | Path
"""An input as the user gives it: a line of text, a JSON object, or a file of its own."""


class Predictor(ABC):
    """A trained model that says something of each input. A task names its predictor (`Task.predictor`).

    The constructor's further arguments are the options that a user types, `txtrain predict RUN INPUTS beams=4`, so they
    are keyword-only, annotated, and have defaults.

    Args:
        trained: the model, on its device, and what was saved with it.
    """

    suffixes: ClassVar[frozenset[str]] = frozenset()  # of files that are one input each, such as ".png"

    def __init__(self, trained: "Trained") -> None:
        self.trained = trained

    def beside(self, given: Given, folder: Path) -> Given:
        """An input whose paths, if it has any, are relative to a folder: that of the file which it is a line of."""
        return given

    @abstractmethod
    def read(self, given: Given) -> Any:
        """One input as `predict` takes it.

        Raises:
            UserError: it cannot be read; the command says where it stands.
        """

    @abstractmethod
    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """What is said of each of a few inputs that go through the model together, as plain JSON."""


def text_of(given: Given, field: str = "text") -> str:
    """The text of an input: the line itself, or a field of a JSON object."""
    if isinstance(given, str):
        return given
    if isinstance(given, Path):
        raise UserError(f"{given} is no text: give .txt or .jsonl")
    if field not in given:
        raise UserError(f"it has {', '.join(given) or 'no fields'}, and the text is to be in {field}")
    text = given[field]
    if not isinstance(text, str):
        raise UserError(f"{field} is {type(text).__name__}, not text: give a text")
    return text


def path_beside(given: Given, folder: Path, field: str) -> Given:
    """An input that names a file, in a line or in a field of a JSON object, relative to a folder."""
    if isinstance(given, str | Path):
        return folder / Path(given).expanduser()
    name = given.get(field) if isinstance(given, Mapping) else None
    return given if not isinstance(name, str) or not name else {**given, field: str(folder / Path(name).expanduser())}
