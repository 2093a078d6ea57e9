"""Where the run computes, and what allocates its memory."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from headstart.allocator import PRELOAD, has_tcmalloc, propose_tcmalloc
from headstart.config.schema import Config
from headstart.errors import ConfigError
from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.training.precision import has_bf16, usable_device
from headstart.wording import option

TCMALLOC_SAVES = "with it training all of a ResNet-50 takes 3.9 GB in place of 4.9"  # docs/measured/speed.md


def choose_device(draft: Draft) -> Draft:
    """The draft with the device to train on.  Raises: ConfigError: it is not there, or cannot compute as asked."""
    device = usable_device(draft.config.device)
    check_precision(draft.config, device)
    found = "an accelerator is there" if device.type != "cpu" else "no accelerator is there"
    why = found if draft.config.device == "auto" else "as asked"
    draft = draft.decide(Decision("device", str(device), why)).record("device", str(device))
    return replace(draft, device=device)


def choose_allocator(draft: Draft) -> Draft:
    """The draft with what allocates memory, where that is not the system's malloc, or need not be."""
    return draft.decide(*about_allocator(draft.device))


def about_allocator(device: torch.device) -> tuple[Decision, ...]:
    """The decision on the allocator; none where it is the system's and no other one is there."""
    if has_tcmalloc():
        gain = ": a step takes less memory" if device.type == "cpu" else ""
        why = f"{os.environ.get(PRELOAD) or 'it'} is loaded{gain}; {PRELOAD}= does without"
        return (Decision("allocator", "tcmalloc", why),)
    library = propose_tcmalloc() if device.type == "cpu" else None
    if library is None:
        return ()
    why = f"tcmalloc is installed; {TCMALLOC_SAVES}, with the same numbers: {PRELOAD}={library} headstart train ..."
    return (Decision("allocator", "the system's", why),)


def check_precision(config: Config, device: torch.device) -> str:
    """The reason that the plan gives for a precision that is asked for.  Raises: ConfigError: it cannot be had."""
    if config.precision == "bf16" and not has_bf16(device):
        raise ConfigError(
            f"precision: {torch.cuda.get_device_name(device)} has no bf16; give fp16 or fp32, e.g. "
            f"{option('precision', 'fp16')}"
        )
    emulated = config.precision == "fp16" and device.type == "cpu"
    return "as asked; a CPU computes fp16 many times slower than fp32 or bf16" if emulated else "as asked"
