"""Activation checkpointing: a block's activations are computed again for the backward pass instead of being kept.

The loss, the gradients and the batch statistics are those without it, to the bit: the second pass sees the random
numbers and the buffers of the first one, and what it writes to buffers is thrown away (torch's own recomputation counts
every batch twice in BatchNorm's running statistics).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_LAYERS = 3  # with parameters: less than a convolution, its norm and another layer is not worth it
_Buffers = list[tuple[nn.Module, str, Tensor]]


def find_blocks(model: nn.Module) -> tuple[nn.Module, ...]:
    """The blocks that stand in rows (``Sequential``, ``ModuleList``), the innermost that hold at least three layers
    with parameters; none is inside another one.
    """
    found: list[nn.Module] = []
    _collect(model, found, in_row=False)
    return tuple(found)


def _collect(part: nn.Module, found: list[nn.Module], *, in_row: bool) -> bool:
    """Whether ``part`` holds a block, or is one."""
    is_row = isinstance(part, nn.Sequential | nn.ModuleList)
    inside = [_collect(child, found, in_row=is_row) for child in part.children()]
    if any(inside):
        return True
    layers = sum(1 for inner in part.modules() if next(inner.parameters(recurse=False), None) is not None)
    if in_row and not is_row and layers >= _LAYERS:
        found.append(part)
        return True
    return False


@contextmanager
def recomputing(model: nn.Module, *, wanted: bool = True) -> Iterator[None]:
    """Within, forward passes of the model keep only what enters its blocks; backward passes belong within, too."""
    blocks = find_blocks(model) if wanted else ()
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        vars(block)["forward"] = partial(_again, block, block.forward)
    try:
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            vars(block).pop("forward") if own is None else vars(block).update(forward=own)


def _again(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    seen = [(part, name, value.clone()) for part, name, value in _moving(block)]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _with_buffers(seen)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _moving(block: nn.Module) -> _Buffers:
    """The buffers that a forward pass may write to: those of modules in training mode."""
    return [
        (part, name, value)
        for part in block.modules()
        if part.training
        for name, value in part._buffers.items()
        if value is not None
    ]


@contextmanager
def _with_buffers(values: _Buffers) -> Iterator[None]:
    """Within, modules have copies of these buffers: their own may be part of the graph that is going backward."""
    kept = [(part, name, part._buffers[name]) for part, name, _ in values]
    for part, name, value in values:
        part._buffers[name] = value.clone()
    try:
        yield
    finally:
        for part, name, own in kept:
            part._buffers[name] = own
