"""One device."""

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from txtrain.strategy.portable import Portable


class OneDevice(Portable, SingleDeviceStrategy):
    """All on one device, with no communication.

    Args:
        device: which.
    """

    option = "auto"

    def __init__(self, *, device: torch.device) -> None:
        super().__init__(device=device)
