"""Arithmetic of the forward pass: fp32, bf16, or fp16 with a scaled loss. Weights and losses stay fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LARGEST_SCALE = 2.0**16  # torch's own start; halved at each overflow
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """A context in which the forward pass runs in ``precision``."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def make_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler | None:
    """The loss scaler that fp16 needs (its gradients underflow below 6e-8); None for the others."""
    if precision != "fp16":
        return None
    return torch.amp.GradScaler(device.type, init_scale=LARGEST_SCALE)


def device_of(module: torch.nn.Module) -> torch.device:
    """Where the module's parameters are."""
    return next(module.parameters()).device


def dtype_of(module: torch.nn.Module) -> torch.dtype:
    """What the module computes with, outside autocast."""
    return next((value.dtype for value in module.parameters() if value.is_floating_point()), torch.float32)


def pick_device(wanted: str) -> torch.device:
    """The device that ``auto`` means (the accelerator if there is one), or the one named."""
    if wanted != "auto":
        return torch.device(wanted)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
