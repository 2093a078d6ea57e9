"""Tensors at a model's boundary as bytes of one image, and back: same numbers, same order in memory.

B batch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class BoundarySpec:
    """One tensor at the boundary: ``shape`` of one image, ``dtype`` as computed and as ``stored``, and the ``order``
    of its dimensions (B among them) in memory, from the outermost.
    """

    shape: tuple[int, ...]
    dtype: str
    stored: str
    order: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of one image."""
        count = 1
        for side in self.shape:
            count *= side
        return count * _dtype(self.stored).itemsize

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def make_boundary_spec(value: Tensor, *, as_bf16: bool) -> BoundarySpec:
    """What has to be known of a tensor (B, ...); ``as_bf16``: fp32 is stored in half its size."""
    strides = value.stride()
    order = sorted(range(value.ndim), key=lambda place: (-strides[place], place))
    name = str(value.dtype).removeprefix("torch.")
    stored = "bfloat16" if as_bf16 and value.dtype == torch.float32 else name
    return BoundarySpec(shape=tuple(value.shape[1:]), dtype=name, stored=stored, order=tuple(order))


def record_bytes(crossings: Sequence[BoundarySpec]) -> int:
    """Of one image."""
    return sum(crossing.size for crossing in crossings)


def pack_records(values: Tensors, crossings: Sequence[BoundarySpec]) -> Tensor:
    """Bytes (B, page_bytes) on the CPU."""
    parts = []
    for value, crossing in zip(values, crossings, strict=True):
        plain = value.detach().to("cpu", _dtype(crossing.stored)).contiguous()
        parts.append(plain.view(len(plain), -1).view(torch.uint8))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def unpack_records(pages: Tensor, crossings: Sequence[BoundarySpec]) -> Tensors:
    """The tensors of pages (B, page_bytes), as the model made them."""
    values, start = [], 0
    for crossing in crossings:
        part = pages[:, start : start + crossing.size].contiguous()
        start += crossing.size
        plain = part.view(_dtype(crossing.stored)).view(len(pages), *crossing.shape)
        shape = (len(pages), *crossing.shape)
        if crossing.order == tuple(range(len(shape))) and crossing.stored == crossing.dtype:
            values.append(plain)
            continue
        values.append(torch.empty_permuted(shape, crossing.order, dtype=_dtype(crossing.dtype)).copy_(plain))
    return tuple(values)


def rounding(values: Tensors, crossings: Sequence[BoundarySpec]) -> float:
    """Relative error of storing them, in the Euclidean norm; 0 where they are stored as computed."""
    if all(crossing.stored == crossing.dtype for crossing in crossings):
        return 0.0
    wrong = whole = 0.0
    for value, crossing in zip(values, crossings, strict=True):
        if crossing.stored != crossing.dtype:
            again = value.to(_dtype(crossing.stored)).to(value.dtype)
            wrong += float((value - again).double().square().sum())
        whole += float(value.double().square().sum()) if value.is_floating_point() else 0.0
    return float((wrong / whole) ** 0.5) if wrong and whole else 0.0


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype), name
    return found
