"""What a run begins with: its weights and, of what is the user's own, the code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from headstart.data.transforms.own import PixelFunction
from headstart.models.sources import OpenedModel
from headstart.surgery.code_digest import code_digest
from headstart.surgery.reach import Copying, read_graph
from headstart.tasks.losses import LossFunction


class _Holder(nn.Module):
    """A module that holds what is looked at: a loss may be a function, a partial, or any object that can be called."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held


def name_weights_by_digest(opened: OpenedModel) -> OpenedModel:
    """The facts about a module of the user's own, its weights named by the SHA-256 of all its tensors."""
    digest = tensors_digest({**dict(opened.module.named_parameters()), **dict(opened.module.named_buffers())})
    return replace(opened, weights=replace(opened.weights, sha256=digest))


def about_weights(opened: OpenedModel) -> str:
    """How many tensors came from the weights, and the first digits of their SHA-256."""
    sha256 = opened.weights.sha256
    return f"{opened.coverage}; SHA-256 {sha256[:12]}" if sha256 else str(opened.coverage)


def began_with(
    opened: OpenedModel, *, own: bool, loss: LossFunction | None, transform: PixelFunction | None = None
) -> dict[str, str | None]:
    """SHA-256 of the weights, and of the code of a module, a loss and a transform, before anything is replaced; None
    for what is not the user's own, or is random by the run's seed.
    """
    return {
        "weights": opened.weights.sha256,
        "module": _module_digest(opened.module) if own else None,
        "loss": None if loss is None else digest_function(loss),
        "transform": None if transform is None else digest_function(transform),
    }


def _module_digest(module: nn.Module) -> str:
    """SHA-256 of a module's code and of which of its parameters train."""
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    return hashlib.sha256(f"{code_digest(module)} {frozen}".encode()).hexdigest()


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
        plain = plain.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()
