"""An opened model: a module, and everything known about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from headstart.models.preprocess import Preprocess
from headstart.models.weights import Coverage


@dataclass(frozen=True)
class WeightsSource:
    """The source of weights: its ``kind``, ``where`` it lies, its ``sha256`` and its ``licence`` (None: not known)."""

    kind: Literal["pretrained", "none", "file"]
    where: str
    sha256: str | None
    licence: str | None


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A module on the CPU in float32, and everything known about it.

    Attributes:
        ``module``: The torch module, its head as it was.
        ``spec``: The name by which it was asked for.
        ``library``: Where its code is from: timm, torchvision, or own for a module that was given.
        ``architecture``: The name of the architecture in its library; of an own module that of its class.
        ``options``: The options of the architecture that were given.
        ``num_outputs``: The number of classes before any head was replaced; None where that is not known.
        ``preprocess``: How images become the model's input: size, framing, mean and standard deviation.
        ``coverage``: How many of the module's tensors were loaded, and which were not.
        ``weights``: Where the weights are from, with their digest and licence.
        ``bundle``: The parsed ``headstart.json`` of a bundle; else None.

    Example:
        >>> import headstart as hs
        >>> opened = hs.open_model("starter")
        >>> opened.library, opened.architecture, opened.num_outputs
        ('timm', 'resnet18d', 1000)
    """

    module: nn.Module
    spec: str
    library: Literal["timm", "torchvision", "own"]
    architecture: str
    options: Mapping[str, object]
    num_outputs: int | None
    preprocess: Preprocess
    coverage: Coverage
    weights: WeightsSource
    bundle: Mapping[str, object] | None = None
