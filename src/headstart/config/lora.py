"""Options of low-rank adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from headstart.config.numbers import Auto, Count, Positive, Probability


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters beside frozen layers (Hu et al. 2021), merged into them at the end; recipe lora."""

    rank: Count = 16
    """LoRA: inner size of the adapters; at most the smaller side of a layer's weight."""
    alpha: Positive = 16.0
    """LoRA: an adapter's output is multiplied by alpha / rank."""
    dropout: Probability = 0.0
    """LoRA: dropout before the adapters."""
    targets: Auto | Annotated[tuple[str, ...], Field(min_length=1)] = "auto"
    """LoRA: layers to adapt, as globs over module names; auto: all linear layers and ungrouped convolutions."""
