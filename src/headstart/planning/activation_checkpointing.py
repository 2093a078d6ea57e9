"""What activation checkpointing does to this model."""

from __future__ import annotations

from headstart.errors import ConfigError
from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.training.activation_checkpointing import find_blocks
from headstart.wording import option


def check_recompute(draft: Draft) -> Draft:
    """The draft with the decision on it where it is asked for.  Raises: ConfigError: the model has no blocks."""
    if not draft.config.activation_checkpointing:
        return draft
    count = len(find_blocks(draft.module))
    if not count:
        raise ConfigError(
            "activation_checkpointing: this model has no row of blocks whose activations could be computed again; "
            f"leave it out, and give {option('batch.accumulate', 2)} where memory is short"
        )
    why = f"as asked: {count} blocks are computed again for the backward pass; phases that read from the cache keep "
    return draft.decide(Decision("activation checkpointing", "on", why + "what little they have"))
