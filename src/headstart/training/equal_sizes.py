"""Which smaller batches give an image the very bits of a whole one: tried on a run's own images.

With them one photo does not cost the pass of a whole batch. On a CPU in fp32 it is often the head's product that has
other bits below 16 images; in bf16 a single one has the same (measured on five architectures of timm).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from headstart.data.batch import Batch
from headstart.data.loader import Batches
from headstart.surgery.own_state import has_own_code
from headstart.training.evaluate import compute_logits, in_eval
from headstart.training.precision import Precision

_COMPARED = 8  # images at least, where there are so many


def find_equal_sizes(
    model: nn.Module, batches: Batches, *, precision: Precision, memory_format: str
) -> tuple[int, ...]:
    """Powers of two below the batch size at which the first images have the bits that they have in a whole batch.

    None for a model with code of the user's own, which may count its calls, or draw.
    """
    if batches.batch_size == 1 or has_own_code(model):
        return ()
    batch = batches.example_batch(batches.batch_size)
    sizes = [1 << power for power in range((batches.batch_size - 1).bit_length())]
    with in_eval(model):
        whole = compute_logits(model, batch, precision=precision, memory_format=memory_format)

        def is_equal(size: int) -> bool:
            parts = enumerate(_cut(batch, size, count=max(1, _COMPARED // size)))
            logits = (
                (place * size, compute_logits(model, part, precision=precision, memory_format=memory_format))
                for place, part in parts
            )  # the first that differs ends it
            return all(torch.equal(rows, whole[start : start + len(rows)]) for start, rows in logits)

        return tuple(filter(is_equal, sizes))


def _cut(batch: Batch, size: int, *, count: int) -> list[Batch]:
    """The first images of a batch as batches of this size, the last one padded as the whole is."""
    starts = range(0, min(batch.size, count * size), size)
    return [
        replace(batch, pixels=batch.pixels[start : start + size], size=min(size, batch.size - start))
        for start in starts
        if start + size <= len(batch.pixels)
    ]
