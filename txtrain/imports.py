"""Makes Lightning's import two seconds shorter: torchmetrics, which it needs, then leaves alone what it may do without.

torchmetrics imports transformers, matplotlib and scipy as soon as they are installed, for metrics and plots that
nothing here uses. While it is imported it is told that they are not there; this is asked of lightning_utilities, by two
public names. Where a later version asks in another way, all is imported as before and nothing breaks but the test of
this file. Who wants torchmetrics with all its metrics in the same process imports it before txtrain.
"""

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NEEDLESS = ("matplotlib", "scipy", "transformers", "librosa", "torchaudio", "torchvision", "onnxruntime")


class QuickTorchmetrics:
    """A finder for `sys.meta_path`, which works once."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchmetrics":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_alone(module: ModuleType) -> None:
                with needless_hidden():
                    execute(module)

            spec.loader.exec_module = execute_alone  # type: ignore[method-assign]
        return spec


@contextmanager
def needless_hidden() -> Iterator[None]:
    """What is imported within finds none of the packages."""
    from lightning_utilities.core import imports

    available, requirement = imports.package_available, imports.RequirementCache

    def hidden(name: str | None) -> bool:
        return re.split("[<>=!~ ]", name or "")[0] in NEEDLESS

    class Requirement(requirement):  # type: ignore[misc, valid-type]
        def __bool__(self) -> bool:
            return not hidden(self.requirement or self.module) and super().__bool__()

    def is_available(name: str) -> bool:
        return not hidden(name) and available(name)

    vars(imports).update(package_available=is_available, RequirementCache=Requirement)
    try:
        yield
    finally:
        vars(imports).update(package_available=available, RequirementCache=requirement)
