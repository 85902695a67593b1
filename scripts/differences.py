"""Trains the cases of tests/strategy/cases.py in one process and in two, and writes the table into docs/distributed.md.

python -m scripts.differences
"""

import tempfile
from pathlib import Path

from tests.strategy.cases import ALL, CASES, STRATEGIES, differences, train

PAGE = Path(__file__).parent.parent / "docs" / "distributed.md"
MARK = "<!-- differences -->\n"
COLUMNS = {"losses": "losses (relative)", "norms": "gradient norms (relative)", "weights": "weights"}


def table(folder: Path) -> list[str]:
    """A row for each strategy: the largest difference over all cases."""
    results = train(folder, ALL)
    rows = [["strategy", *COLUMNS.values()], ["---"] * (1 + len(COLUMNS))]
    for strategy in STRATEGIES:
        found = [differences(results["auto", case], results[strategy, case]) for case in CASES]
        rows.append([f"`{strategy}`", *(f"{max(case[name] for case in found):.0e}" for name in COLUMNS)])
    return ["| " + " | ".join(row) + " |\n" for row in rows]


def main() -> None:
    before, mark, rest = PAGE.read_text().partition(MARK)
    _, _, after = rest.partition("\n\n")
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(before + mark + "".join(table(Path(folder))) + "\n" + after)


if __name__ == "__main__":
    main()
