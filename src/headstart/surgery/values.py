"""Values that can be copied, compared by their bytes, and put back: tensors, arrays, generators of random numbers."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError, ArithmeticError, OSError)
"""What the attributes and methods of odd objects raise when they are looked at."""
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_ONE_WAY = frozenset((torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
"""Types in which equal numbers have equal bytes."""
_MOST_BYTES = 1 << 28  # of one array or tensor that is copied; larger ones are known by their version counter


class TensorValue(NamedTuple):
    """A tensor's facts, and a copy of its values or, without one, where they are and how often they were written."""

    shape: tuple[int, ...] | None
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    copied: Tensor | None
    address: tuple[int, int]
    stride: tuple[int, ...] | None = None  # None: it has none, or none that is put back


def tensor_value(target: Tensor, *, copied: bool) -> TensorValue:
    """The value, copied where that is asked for and possible (a lazy tensor has none)."""
    if nn.parameter.is_lazy(target):
        return TensorValue(None, target.dtype, target.device, target.requires_grad, None, (0, 0))
    value = None
    if copied and target.numel() * target.element_size() <= _MOST_BYTES:
        value = target.detach().clone()
    try:
        address = (target.data_ptr(), target._version)
    except FAILURES:  # no storage, or an inference tensor
        address = (0, 0)
    stride = target.stride() if target.layout is torch.strided else None
    return TensorValue(tuple(target.shape), target.dtype, target.device, target.requires_grad, value, address, stride)


def same_tensor(one: TensorValue, other: TensorValue) -> bool:
    """Whether two values are equal to the bit; what was not copied, by its address and number of writes."""
    if one[:4] != other[:4]:
        return False
    if one.copied is None or other.copied is None:
        return one.address == other.address
    return same_bytes(one.copied, other.copied)


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and dtype hold the same bytes: NaN equals NaN, and 0 is not -0."""
    if one.is_meta:
        return True
    try:
        if one.dtype in _ONE_WAY:
            return torch.equal(one, other)
        if _is_plain(one) and _is_plain(other):  # most are; it takes less
            return torch.equal(one.detach().view(torch.int32), other.detach().view(torch.int32))
        return torch.equal(_bytes(one), _bytes(other))
    except FAILURES:  # sparse, quantized, a subclass of somebody's
        return bool((one.to_dense() == other.to_dense()).all())


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.is_contiguous() and not tensor.is_neg()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def put_back_tensor(target: Tensor, value: TensorValue) -> None:
    """Put shape, dtype, order in memory and values back, in place; nothing is written where they still are as they
    were.
    """
    if value.shape is None:
        if not nn.parameter.is_lazy(target):
            target.data = torch.empty(0, dtype=value.dtype, device=value.device)
        return
    if (tuple(target.shape), target.dtype, target.device) != value[:3]:
        if value.copied is not None:
            target.data = value.copied.clone()
    elif value.copied is not None and value.stride is not None and target.stride() != value.stride:
        target.data = torch.empty_strided(target.shape, value.stride, dtype=value.dtype, device=value.device).copy_(
            value.copied
        )
    elif value.copied is not None and not same_bytes(target, value.copied):
        target.detach().copy_(value.copied)
    if target.is_leaf and target.requires_grad != value.requires_grad:
        target.requires_grad_(value.requires_grad)


def array_value(target: np.ndarray[Any, Any], *, copied: bool) -> np.ndarray[Any, Any]:
    """A copy of an array, or the array itself where it is very large."""
    return target.copy() if copied and target.nbytes <= _MOST_BYTES else target


def same_array(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays are equal to the byte."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def generator_state(target: Any) -> Any:
    """The state of a generator of random numbers, as a value of its own."""
    if isinstance(target, random.Random):
        return target.getstate()
    if isinstance(target, np.random.RandomState):
        return target.get_state(legacy=False)
    if isinstance(target, np.random.Generator):
        return target.bit_generator.state
    return target.get_state().clone()


def put_back_generator(target: Any, state: Any) -> None:
    """Set a generator to a state that ``generator_state`` gave."""
    if isinstance(target, random.Random):
        target.setstate(state)
    elif isinstance(target, np.random.Generator):
        target.bit_generator.state = state
    else:
        target.set_state(state)


def same_state(one: Any, other: Any) -> bool:
    """Whether two states of generators, or values inside them, are equal."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same_state, one, other))
    if isinstance(one, Tensor):
        return one.shape == other.shape and same_bytes(one, other)
    if isinstance(one, np.ndarray):
        return same_array(one, other)
    return bool(one == other or one is other)


def same_plain(one: Any, other: Any) -> bool:
    """Whether two numbers, names or other values are equal; NaN equals NaN, 0 is not -0, 1 is not True."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (one == one.__class__(other) and str(one) == str(other)) or (one != one and other != other)
    return bool(one == other)
