"""Plain tensors that a forward pass brings along: what they are is known by their bytes. B batch"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headstart.surgery.fixed_values import Book


def find_constant(book: Book, value: Tensor) -> int | None:
    """The content of a constant with these bytes; with a row for each image, of one with this row."""
    for kind, tensor in _forms(book, value, cheaply=True):
        for known, content in book.contents.constants.get(kind, ()):
            if same_bytes(known, tensor):
                return content
    return None


def add_constant(book: Book, value: Tensor, content: int | None = None) -> int:
    """Remember a constant, of a new content or as what another one is."""
    content = book.contents.new() if content is None else content
    for kind, tensor in _forms(book, value, cheaply=False):
        book.contents.constants.setdefault(kind, []).append((tensor.detach().clone(), content))
    return content


def _forms(book: Book, value: Tensor, *, cheaply: bool) -> list[tuple[tuple[Any, ...], Tensor]]:
    """The forms of a constant: the whole, and its row where every image has the same one."""
    forms: list[tuple[tuple[Any, ...], Tensor]] = [(("whole", value.dtype, tuple(value.shape)), value)]
    if not value.ndim or value.shape[0] % book.batch or not value.numel():
        return forms
    rows = value.shape[0] // book.batch
    kind = ("rows", value.dtype, rows, tuple(value.shape[1:]))
    if not cheaply or kind in book.contents.constants:
        parts = value.reshape(book.batch, rows, *value.shape[1:])
        if same_bytes(parts, parts[:1].expand(parts.shape)):
            forms.append((kind, value[:rows]))
    return forms


def same_bytes(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors of one type and shape hold the same bits."""
    if ours.device != theirs.device:
        return False
    if ours.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16) and ours.numel():
        whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[ours.element_size()]
        ours, theirs = ours.contiguous().view(whole), theirs.contiguous().view(whole)
    return torch.equal(ours, theirs)
