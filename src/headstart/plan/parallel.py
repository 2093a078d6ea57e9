"""How a model is trained by several processes: whole on each, or shared out."""

from __future__ import annotations

import torch
from torch import nn

from headstart.config.schema import Config
from headstart.errors import ConfigError
from headstart.parallel.processes import current
from headstart.parallel.shards import shares_out, training_bytes
from headstart.plan.decisions import Decision


def choose_parallel(config: Config, module: nn.Module, device: torch.device) -> tuple[Decision, ...]:
    """Nothing for one process; else how the work is divided.

    Raises: ConfigError: what was asked for does not go together.
    """
    ours, chosen = current(), config.parallel
    if chosen.kind == "fsdp" and (config.average.kind != "none" or config.precision == "fp16"):
        field = "average.kind" if config.average.kind != "none" else "precision"
        accepted = "none" if config.average.kind != "none" else "bf16 or fp32"
        raise ConfigError(f"{field}: with parallel.kind fsdp only {accepted}; or give --parallel.kind ddp")
    if chosen.sync_norm and device.type == "cpu":
        raise ConfigError("parallel.sync_norm: torch has it for accelerators only, not for the CPU; give false")
    if not ours.several:
        return ()
    shared = shares_out(chosen.kind, module, device)
    kind = "fsdp: each holds a part of every parameter" if shared else "ddp: each holds the whole model"
    why = f"{chosen.kind}: training needs {training_bytes(module) / 2**20:,.0f} MiB besides the activations"
    norm = "over all processes" if chosen.sync_norm else "of the first process's part of each batch"
    return (Decision("parallel", f"{ours.world_size} processes, {kind}", f"{why}; BatchNorm's statistics are {norm}"),)
