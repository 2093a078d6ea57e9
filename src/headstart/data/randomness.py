"""Randomness as a function: of the seed, the epoch and the sample or batch; never of what was drawn before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headstart.isolation import own_turn


def derive_seed(*parts: int | str) -> int:
    """Seed in 0 .. 2**63 - 1 that depends on every part and on their order."""
    text = "\x1f".join(str(part) for part in parts).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """Positions 0 .. count - 1 in the order in which this epoch visits them."""
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return [int(position) for position in torch.randperm(count, generator=generator)]


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Within the block torch's default CPU generator starts from ``seed``; after it, it goes on where it was.

    torchvision's transforms take no generator; they draw from this one only.
    """
    generator = torch.default_generator
    with own_turn():
        state = generator.get_state()
        generator.manual_seed(seed)
        try:
            yield
        finally:
            generator.set_state(state)
