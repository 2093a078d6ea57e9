"""Digests of what is the user's own: of a function with all that it uses, and of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from headstart.storage.tensors import view_bytes
from headstart.surgery.code_digest import code_digest
from headstart.surgery.reach import Copying, read_graph


class _Holder(nn.Module):
    """A module that holds what is looked at: a loss may be a function, a partial, or any object that can be called."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held


def digest_function(function: Callable[..., object]) -> str:
    """SHA-256 of the code of a loss or transform, defaults, closure, attributes, and the values of its tensors."""
    holder = _Holder(function)
    contents = read_graph(holder, Copying(values=False, parameters=False)).values()
    tensors = [content for content in contents if content.kind == "tensor" and "gradient of" not in content.name]
    values = tensors_digest({f"{content.name} {place}": content.target for place, content in enumerate(tensors)})
    return hashlib.sha256(f"{code_digest(holder)} {values}".encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if nn.parameter.is_lazy(value) or value.is_meta:
            digest.update(f"{name} without values\n".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        plain = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        digest.update(view_bytes(plain.cpu().resolve_conj().resolve_neg().contiguous()))
    return digest.hexdigest()
