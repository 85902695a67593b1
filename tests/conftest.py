"""Fixtures that tests in more than one folder ask for."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left with a long one when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def no_lines_of_slow_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests count the lines of commands, and on a busy machine `loading the model ...` would be one more."""
    monkeypatch.setattr("txtrain.terminal.SILENCE", 600.0)


@pytest.fixture
def no_wandb_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """W&B finds neither a key nor a setting of whoever runs the tests."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()  # it remembers the environment
