"""A process's place among those of its run, as the engine that started them says (torchrun, SLURM, ``--devices N``)."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch.distributed as dist

from headstart.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process's place: ``rank`` of ``world_size`` in all, ``local_rank`` of ``local_size`` on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are other processes."""
        return self.world_size > 1

    def slice(self, count: int) -> range:
        """This process's contiguous part of ``count`` things; the parts of all ranks are as even as can be."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)


SINGLE_PROCESS = Processes()


def in_environment() -> Processes:
    """What RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE say; alone where they are not set.

    Raises: ConfigError: they are no numbers, or the rank is none of the world's.
    """
    names = {"rank": "RANK", "world_size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}
    if os.environ.get("RANK") is None or os.environ.get("WORLD_SIZE") is None:
        return SINGLE_PROCESS
    usual = {"LOCAL_RANK": os.environ["RANK"], "LOCAL_WORLD_SIZE": os.environ["WORLD_SIZE"]}
    texts = {field: os.environ.get(name, usual.get(name, "")) for field, name in names.items()}
    if not all(text.isdecimal() for text in texts.values()) or int(texts["rank"]) >= int(texts["world_size"]):
        found = ", ".join(f"{name}={os.environ.get(name)}" for name in names.values())
        raise ConfigError(
            f"the environment's {found} are no place in a group of processes; start them with torchrun, or unset them"
        )
    return Processes(**{field: int(text) for field, text in texts.items()})


def current() -> Processes:
    """This process's place in the group that is there now."""
    if not (dist.is_available() and dist.is_initialized()):
        return SINGLE_PROCESS
    known = in_environment()
    if known.world_size == dist.get_world_size():
        return known
    rank, size = dist.get_rank(), dist.get_world_size()
    return Processes(rank=rank, world_size=size, local_rank=rank, local_size=size)
