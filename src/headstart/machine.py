"""The machine and the libraries as far as they decide the bits of a result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from headstart.distributed.processes import current

FOR_PEOPLE = ("kernel", "cpu", "cores")  # recorded, and other ones give the same bits
_LIBRARIES = ("headstart", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors")
_ATTENTION = ("flash_sdp", "math_sdp", "mem_efficient_sdp")
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")


def environment(device: torch.device) -> dict[str, Any]:
    """Facts that can change the bits of a result, versions among them, and a few for people."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
        "platform": "-".join(filter(None, (platform.system(), platform.machine(), *platform.libc_ver()))),
        "kernel": platform.release(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "instruction_limits": " ".join(f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ),
        "switches": _switches(),
        "world_size": current().world_size,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
    }


def _switches() -> str:
    """What of torch is not set as it comes, and chooses other kernels or other sums."""
    cudnn, mkldnn, attention = torch.backends.cudnn, torch.backends.mkldnn, torch.backends.cuda
    usual = {
        "mkldnn.enabled": (mkldnn.enabled, True),
        "mkldnn.deterministic": (mkldnn.deterministic, False),
        "cudnn.enabled": (cudnn.enabled, True), "cudnn.benchmark": (cudnn.benchmark, False),
        "cudnn.deterministic": (cudnn.deterministic, False),
        "deterministic_algorithms": (torch.are_deterministic_algorithms_enabled(), False),
        **{name: (getattr(attention, f"{name}_enabled")(), True) for name in _ATTENTION},
        "float32_matmul_precision": (_precision_of_products(), "highest"),
    }  # fmt: skip
    return " ".join(f"{name}={value}" for name, (value, default) in usual.items() if value != default)


def _precision_of_products() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's newer switches, one by one
        return "mixed"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
