"""A covering array: few rows in which every pair of options of any two axes occurs."""

from itertools import combinations, product


def pairwise(axes: dict[str, list]) -> list[dict]:
    """Rows of one option per axis. Greedy: each row is the one of some candidates that covers most new pairs (AETG)."""
    names = list(axes)
    missing = {frozenset([(a, x), (b, y)]) for a, b in combinations(names, 2) for x, y in product(axes[a], axes[b])}
    rows = []
    while missing:
        row = dict(min(missing, key=lambda pair: sorted(map(str, pair))))
        for name in names:
            if name not in row:
                row[name] = max(
                    axes[name],
                    key=lambda option: sum(frozenset([(name, option), other]) in missing for other in row.items()),
                )
        rows.append({name: row[name] for name in names})
        missing -= {frozenset(pair) for pair in combinations(row.items(), 2)}
    return rows
