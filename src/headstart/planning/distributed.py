"""How a model is trained by several processes: whole on each, or sharded."""

from __future__ import annotations

from dataclasses import replace

import torch

from headstart.distributed.fsdp import can_shard
from headstart.distributed.processes import current
from headstart.errors import ConfigError
from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.planning.memory import state_share
from headstart.wording import option

_MOST = 0.8  # of a GPU's memory for weights, gradients and the optimizer; the rest is for activations


def check_parallel(draft: Draft) -> Draft:
    """The draft as it was.  Raises: ConfigError: the options of several processes do not go together."""
    config, chosen = draft.config, draft.config.parallel
    if chosen.kind == "fsdp" and not can_shard():
        raise ConfigError(
            f"parallel.kind: fsdp is known to be right from torch 2.14 on, and here is {torch.__version__}; update "
            f"torch, or give {option('parallel.kind', 'ddp')}"
        )
    if chosen.kind == "fsdp" and (config.average.kind != "none" or config.precision == "fp16"):
        field = "average.kind" if config.average.kind != "none" else "precision"
        accepted = "none" if config.average.kind != "none" else "bf16 or fp32"
        raise ConfigError(f"{field}: with parallel.kind fsdp only {accepted}; or give {option('parallel.kind', 'ddp')}")
    if chosen.sync_norm and draft.device.type == "cpu":
        raise ConfigError("parallel.sync_norm: torch has it for accelerators only, not for the CPU; give false")
    return draft


def choose_parallel(draft: Draft) -> Draft:
    """The draft with the module on its device, and with whether each process holds a part of every parameter."""
    ours, config, chosen, device = current(), draft.config, draft.config.parallel, draft.device
    draft.module.to(device)
    if not ours.is_distributed:
        return draft
    weights = sum(parameter.nbytes for parameter in draft.module.parameters())
    needed = int(weights * (2 + state_share(config.optimizer)))  # where all train
    fits = device.type != "cuda" or needed <= _MOST * torch.cuda.mem_get_info(device)[1]
    can = config.average.kind == "none" and config.precision != "fp16" and can_shard()
    sharded = chosen.kind == "fsdp" or (chosen.kind == "auto" and not fits and can)
    kind = "fsdp: each holds a part of every parameter" if sharded else "ddp: each holds the whole model"
    why = f"{chosen.kind}: to train it all takes {needed / 2**20:,.0f} MiB besides the activations"
    norm = "over all processes" if chosen.sync_norm else "of the first process's part of each batch"
    decision = Decision("parallel", f"{ours.world_size} processes, {kind}", f"{why}; BatchNorm's statistics are {norm}")
    draft = draft.record("parallel", {"kind": "fsdp" if sharded else "ddp"})
    return replace(draft.decide(decision), sharded=sharded)
