"""txtrain trains transformers in which every technique is a config axis."""

import sys

from txtrain.imports import QuickTorchmetrics

__version__ = "0.1.0"

if "torchmetrics" not in sys.modules:
    sys.meta_path.insert(0, QuickTorchmetrics())
