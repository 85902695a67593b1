"""Golden losses: what a refactor must not change."""

import json

import pytest

from scripts.golden import GOLDEN, recipes, run

LOSSES = json.loads((GOLDEN / "losses.json").read_text())


@pytest.mark.parametrize("name", recipes())
def test_losses_are_reproduced(name, tmp_path):
    found = run(recipes()[name], tmp_path)
    assert len(found) == 20
    assert found == pytest.approx(LOSSES[name], rel=1e-5)


def test_every_recipe_learns():
    for name, losses in LOSSES.items():
        assert losses[-1] < losses[0] - 0.3, name
