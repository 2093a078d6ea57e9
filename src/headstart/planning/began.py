"""What a run begins with: its weights and, of what is the user's own, the code."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from torch import nn

from headstart.data.transforms.own import OwnTransforms
from headstart.models.sources import OpenedModel
from headstart.surgery.code_digest import code_digest
from headstart.surgery.function_digest import digest_function, tensors_digest
from headstart.tasks.losses import LossFunction

FRAMING = "framing"
"""The name of the user's own change of evaluated images, among what a run began with."""


def name_weights_by_digest(opened: OpenedModel) -> OpenedModel:
    """The facts about a module of the user's own, its weights named by the SHA-256 of all its tensors."""
    digest = tensors_digest({**dict(opened.module.named_parameters()), **dict(opened.module.named_buffers())})
    return replace(opened, weights=replace(opened.weights, sha256=digest))


def about_weights(opened: OpenedModel) -> str:
    """How many tensors came from the weights, and the first digits of their SHA-256."""
    sha256 = opened.weights.sha256
    return f"{opened.coverage}; SHA-256 {sha256[:12]}" if sha256 else str(opened.coverage)


def began_with(
    opened: OpenedModel, *, own: bool, loss: LossFunction | None, transforms: OwnTransforms
) -> dict[str, str | None]:
    """SHA-256 of the weights, and of the code of a module, a loss and transforms, before anything is replaced; None
    for what is not the user's own, or is random by the run's seed.
    """
    framing = {} if transforms.val is None else {FRAMING: digest_function(transforms.val)}
    return framing | {
        "weights": opened.weights.sha256,
        "module": _module_digest(opened.module) if own else None,
        "loss": None if loss is None else digest_function(loss),
        "transform": None if transforms.train is None else digest_function(transforms.train),
    }


def _module_digest(module: nn.Module) -> str:
    """SHA-256 of a module's code and of which of its parameters train."""
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    return hashlib.sha256(f"{code_digest(module)} {frozen}".encode()).hexdigest()
