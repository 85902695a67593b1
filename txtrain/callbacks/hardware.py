"""Peak speed of a device, and how much memory was used."""

import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

# Dense bfloat16 multiply-adds ×2 per second with float32 sums, and the NVIDIA document that says so. Where that gives
# the speed "with sparsity", half of it stands here. Names are as `normalised` makes them.
PEAK_FLOPS: dict[str, tuple[float, str]] = {
    "gb200": (2500e12, "Blackwell architecture technical brief"),
    "b200": (2250e12, "Blackwell architecture technical brief"),
    "b100": (1750e12, "Blackwell architecture technical brief"),
    "gh200": (989e12, "GH200 data sheet"),
    "h200": (989e12, "H200 data sheet"),
    "h200 nvl": (835e12, "H200 data sheet"),
    "h100": (989e12, "H100 data sheet, SXM"),
    "h100 pcie": (756e12, "H100 data sheet, PCIe"),
    "h100 nvl": (835e12, "H100 NVL data sheet"),
    "h800": (989e12, "H800 data sheet, SXM"),
    "h20": (148e12, "H20 data sheet"),
    "a100 sxm4": (312e12, "A100 data sheet"),
    "a100 pcie": (312e12, "A100 data sheet"),
    "a800 sxm4": (312e12, "A800 data sheet"),
    "a800 pcie": (312e12, "A800 data sheet"),
    "l40s": (362e12, "L40S data sheet"),
    "l40": (181e12, "L40 data sheet"),
    "l4": (121e12, "L4 data sheet"),
    "a40": (150e12, "A40 data sheet"),
    "a30": (165e12, "A30 data sheet"),
    "a10": (125e12, "A10 data sheet"),
    "a10g": (70e12, "A10G product brief"),
    "rtx 6000 ada": (364e12, "RTX 6000 Ada data sheet, from its FP8 speed"),
    "rtx 4090": (165e12, "Ada GPU architecture white paper, appendix A"),
    "rtx a6000": (155e12, "RTX A6000 data sheet"),
    "rtx 3090": (71e12, "GA102 GPU architecture white paper, appendix A"),
}


def normalised(name: str) -> str:
    """A device's name without maker, brand and memory: `NVIDIA H100 80GB HBM3` → `h100`."""
    words = re.split(r"[\s_-]+", name.lower().strip())
    left_out = re.compile(r"nvidia|geforce|generation|\d+g|\d+gb|hbm\d+e?")
    return " ".join(word for word in words if not left_out.fullmatch(word))


def peak_flops(device: torch.device) -> float | None:
    """Of dense bfloat16 products on a GPU that is known by its whole name, None elsewhere."""
    if device.type != "cuda":
        return None
    peak = PEAK_FLOPS.get(normalised(torch.cuda.get_device_name(device)))
    return None if peak is None else peak[0]


def peak_memory(device: torch.device) -> int:
    """Most bytes that tensors took on the GPU, or that this process took of main memory since `forget_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_peak()


def forget_peak() -> None:
    """The peak of this process begins anew, where the system can do that (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def process_peak() -> int:
    """Most bytes that this process took of main memory."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its peak also counts the process that started this one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
