"""What activation checkpointing does to this model."""

from __future__ import annotations

from torch import nn

from headstart.config.schema import Config
from headstart.errors import ConfigError
from headstart.events import Decision
from headstart.training.activation_checkpointing import find_blocks


def choose_recompute(config: Config, module: nn.Module) -> tuple[Decision, ...]:
    """Nothing unless it is asked for.  Raises: ConfigError: the model has no blocks."""
    if not config.activation_checkpointing:
        return ()
    count = len(find_blocks(module))
    if not count:
        raise ConfigError(
            "activation_checkpointing: this model has no row of blocks whose activations could be computed again; "
            "leave it out, and give --batch.accumulate 2 where memory is short"
        )
    why = f"as asked: {count} blocks are computed again for the backward pass; phases that read from the cache keep "
    return (Decision("activation checkpointing", "on", why + "what little they have"),)
