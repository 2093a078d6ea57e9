"""Decisions with their reasons: model, arithmetic, device."""

from __future__ import annotations

import os

import torch

from headstart.allocator import PRELOAD, has_tcmalloc, propose_tcmalloc
from headstart.config.schema import Config
from headstart.errors import ConfigError
from headstart.events import Decision
from headstart.training.precision import has_bf16, usable_device

CPU_MODEL = "timm/mobilenetv3_large_100.ra_in1k"
GPU_MODEL = "timm/convnext_tiny.in12k_ft_in1k"
TCMALLOC_SAVES = "with it training all of a ResNet-50 takes 3.9 GB in place of 4.9"  # docs/measured/speed.md


def choose_device(config: Config) -> tuple[torch.device, Decision]:
    """The device to train on.  Raises: ConfigError: it is not there."""
    device = usable_device(config.device)
    found = "an accelerator is there" if device.type != "cpu" else "no accelerator is there"
    return device, Decision("device", str(device), found if config.device == "auto" else "as asked")


def choose_allocator(device: torch.device) -> tuple[Decision, ...]:
    """What allocates the machine's memory, where that is not the system's malloc, or need not be it."""
    if has_tcmalloc():
        gain = ": a step takes less memory" if device.type == "cpu" else ""
        why = f"{os.environ.get(PRELOAD) or 'it'} is loaded{gain}; {PRELOAD}= does without"
        return (Decision("allocator", "tcmalloc", why),)
    library = propose_tcmalloc() if device.type == "cpu" else None
    if library is None:
        return ()
    why = f"tcmalloc is installed; {TCMALLOC_SAVES}, with the same numbers: {PRELOAD}={library} headstart train ..."
    return (Decision("allocator", "the system's", why),)


def choose_model(config: Config, device: torch.device) -> tuple[str, Decision]:
    """The model spec: what was asked for, or by device a light or a stronger one."""
    if config.model.name != "auto":
        return config.model.name, Decision("model", config.model.name, "as asked")
    if device.type == "cpu":
        why = "auto: light enough for a CPU (75.8 % ImageNet top-1); --model names another"
        return CPU_MODEL, Decision("model", CPU_MODEL, why)
    why = "auto: an accelerator carries a stronger one (84.2 % ImageNet top-1); --model names another"
    return GPU_MODEL, Decision("model", GPU_MODEL, why)


def check_precision(config: Config, device: torch.device) -> str:
    """What to say of a precision that is asked for.  Raises: ConfigError: the device cannot do it."""
    if config.precision == "bf16" and not has_bf16(device):
        raise ConfigError(
            f"precision: {torch.cuda.get_device_name(device)} has no bf16; give fp16 or fp32, e.g. --precision fp16"
        )
    emulated = config.precision == "fp16" and device.type == "cpu"
    return "as asked; a CPU computes fp16 many times slower than fp32 or bf16" if emulated else "as asked"
