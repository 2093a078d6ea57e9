"""A safetensors file as the memory of its tensors, one after the other: nothing is copied to be written.

The format is safetensors' own (https://github.com/huggingface/safetensors#format), and the bytes those of its ``save``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from headstart.storage.buffers import Buffers

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint64: "U64", torch.uint32: "U32",
    torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
}  # fmt: skip
_ORDER = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E5M2FNUZ", "F8_E4M3FNUZ",
    "F8_E4M3", "F8_E5M2", "I8", "U8",
    "BOOL",
)  # fmt: skip
"""The order of tensors in a file: the widest types first, so that each tensor is aligned; then by name."""
_ALIGNED = 8


def make_buffers(tensors: Mapping[str, Tensor]) -> Buffers:
    """A safetensors file without metadata (whose order is random).

    Equal tensors give equal bytes; those that share memory are stored each. To be used before a tensor changes.
    """
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header, end = dict[str, object](), 0
    names = sorted(ready, key=lambda name: (_ORDER.index(_NAMES[ready[name].dtype]), name))
    for name in names:
        value = ready[name]
        begin, end = end, end + value.nbytes
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return Buffers(len(text).to_bytes(8, "little"), text, *(view_bytes(ready[name]) for name in names))


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """``make_buffers`` as bytes, a copy."""
    return bytes(make_buffers(tensors))


def view_bytes(value: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, which can still be resized afterwards, as after ``numpy()`` it
    could not: observers of quantization do it in their first forward pass.
    """
    return np.from_dlpack(value.detach().reshape(-1).view(torch.uint8)).data


def is_dense(value: Tensor) -> bool:
    """Whether its numbers lie side by side in memory, in whatever order of dimensions, with none between them."""
    step = 1
    for stride, size in sorted((stride, size) for stride, size in _list_steps(value)):
        if stride != step:
            return False
        step *= size
    return True


def repeats_itself(value: Tensor) -> bool:
    """Whether some of its numbers are the same place in memory, as those of ``torch.ones(1).expand(16)`` are."""
    last = sum((size - 1) * stride for stride, size in _list_steps(value))
    return value.numel() > last + 1


def _list_steps(value: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of each dimension along which there is a step to take."""
    return [(stride, size) for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1]
