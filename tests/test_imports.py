"""What starting costs: nothing that is not used is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_FOR_TRAINING = {"transformers", "matplotlib", "scipy", "pandas", "datasets", "wandb", "deepspeed", "tensorboard"}


def imported(*lines: str) -> list[set[str]]:
    """The packages that a process of its own has imported after each line."""
    script = ["import sys", *(f"{line}\nprint('imported', *sys.modules)" for line in lines)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error::UserWarning", "-c", "\n".join(script)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    told = [line.split() for line in run.stdout.splitlines() if line.startswith("imported ")]
    return [{name.partition(".")[0] for name in names[1:]} for names in told]


def test_training_imports_nothing_that_it_does_not_use() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("scipy")
    before, after = imported("import txtrain.train", "import scipy.signal, transformers, torchmetrics")
    assert {"torch", "lightning", "torchmetrics"} <= before
    assert not NOT_FOR_TRAINING & before
    assert {"scipy", "transformers"} <= after  # they are there for who asks


def test_packages_are_found_again_once_torchmetrics_is_imported() -> None:
    from lightning_utilities.core import imports

    from txtrain.imports import needless_hidden

    kept = imports.package_available, imports.RequirementCache
    with needless_hidden():
        assert not imports.package_available("scipy")
        assert not imports.RequirementCache("transformers>=4.4")
        assert imports.package_available("torch") and imports.RequirementCache("torch>=2")
    assert (imports.package_available, imports.RequirementCache) == kept


def test_the_list_of_commands_needs_no_library() -> None:
    (loaded,) = imported("from txtrain import cli; cli.main(['--help'])")
    assert not {"torch", "lightning", "lightning_utilities", "hydra", "omegaconf"} & loaded
