"""What a translator is compared with: the source itself, and the translation of the most similar source."""

from scripts.translation_baselines import translations
from txtrain.data.parallel import Pair

KNOWN = [
    Pair("Delete this folder", "Diesen Ordner löschen"),
    Pair("Delete this file", "Diese Datei löschen"),
    Pair("Moving files", "Dateien verschieben"),
]


def test_each_baseline_says_what_it_is_named_after() -> None:
    asked = ["Delete that folder!", "delete this file", "Files that moved"]
    said = translations(KNOWN, asked)
    assert said["copy"] == asked
    nearest = [pair.target for pair in KNOWN]
    assert said["neighbour by characters"] == said["neighbour by both"] == nearest
    assert said["neighbour by words"][:2] == nearest[:2]
