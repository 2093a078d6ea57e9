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
        """How many bytes the tensor of one image has as it is stored."""
        count = 1
        for side in self.shape:
            count *= side
        return count * _dtype(self.stored).itemsize

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


def make_boundary_spec(value: Tensor, *, as_bf16: bool) -> BoundarySpec:
    """The spec of a tensor (B, ...); with ``as_bf16`` fp32 is stored in half its size."""
    strides = value.stride()
    order = sorted(range(value.ndim), key=lambda place: (-strides[place], place))
    name = str(value.dtype).removeprefix("torch.")
    stored = "bfloat16" if as_bf16 and value.dtype == torch.float32 else name
    return BoundarySpec(shape=tuple(value.shape[1:]), dtype=name, stored=stored, order=tuple(order))


def record_bytes(specs: Sequence[BoundarySpec]) -> int:
    """How many bytes a record, the tensors of one image, has."""
    return sum(spec.size for spec in specs)


def pack_records(values: Tensors, specs: Sequence[BoundarySpec]) -> Tensor:
    """The records of a batch, bytes (B, record_bytes) on the CPU."""
    parts = []
    for value, spec in zip(values, specs, strict=True):
        plain = value.detach().to("cpu", _dtype(spec.stored)).contiguous()
        parts.append(plain.view(len(plain), -1).view(torch.uint8))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def unpack_records(records: Tensor, specs: Sequence[BoundarySpec]) -> Tensors:
    """The tensors in records (B, record_bytes), as the model made them."""
    values, start = [], 0
    for spec in specs:
        cut = records[:, start : start + spec.size].contiguous()
        start += spec.size
        plain = cut.view(_dtype(spec.stored)).view(len(records), *spec.shape)
        shape = (len(records), *spec.shape)
        if spec.order == tuple(range(len(shape))) and spec.stored == spec.dtype:
            values.append(plain)
            continue
        values.append(torch.empty_permuted(shape, spec.order, dtype=_dtype(spec.dtype)).copy_(plain))
    return tuple(values)


def rounding(values: Tensors, specs: Sequence[BoundarySpec]) -> float:
    """The relative error of storing tensors, in the Euclidean norm; 0 where they are stored as computed."""
    if all(spec.stored == spec.dtype for spec in specs):
        return 0.0
    lost = whole = 0.0
    for value, spec in zip(values, specs, strict=True):
        if spec.stored != spec.dtype:
            stored = value.to(_dtype(spec.stored)).to(value.dtype)
            lost += float((value - stored).double().square().sum())
        whole += float(value.double().square().sum()) if value.is_floating_point() else 0.0
    return float((lost / whole) ** 0.5) if lost and whole else 0.0


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype), name
    return found
