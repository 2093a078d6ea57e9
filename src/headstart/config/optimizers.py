"""Optimizers and their own fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le
from pydantic import Field

from headstart.config.numbers import Auto, NonNegative, Positive, Probability


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    """Optimizer: adamw, adam, sgd, rmsprop, or timm (any of timm's by name)."""
    lr: Auto | Positive = "auto"
    """Learning rate of the last backbone stage."""
    head_lr: Auto | Positive = "auto"
    """Learning rate of the head; auto: chosen with lr."""
    layer_decay: Auto | Annotated[float, Gt(0), Le(1)] = "auto"
    """Each stage nearer to the input trains at this times the next one's rate; 1: all the same."""
    weight_decay: NonNegative = 0.02
    """Decay of weights (never of norms and biases): decoupled in adamw, coupled L2 in the others."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """Adam: decay of the running means of gradient and squared gradient."""


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam with coupled L2."""

    kind: Literal["adam"] = "adam"
    lr: Auto | Positive = "auto"
    head_lr: Auto | Positive = "auto"
    layer_decay: Auto | Annotated[float, Gt(0), Le(1)] = "auto"
    weight_decay: NonNegative = 0.0
    betas: tuple[Probability, Probability] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent with momentum and coupled L2."""

    kind: Literal["sgd"] = "sgd"
    lr: Auto | Positive = "auto"
    head_lr: Auto | Positive = "auto"
    layer_decay: Auto | Annotated[float, Gt(0), Le(1)] = "auto"
    weight_decay: NonNegative = 1e-4
    momentum: Probability = 0.9
    """SGD and RMSprop: share of the last step that is carried on."""
    nesterov: bool = True
    """SGD: look ahead along the momentum."""


@dataclass(frozen=True, kw_only=True)
class RmsProp:
    """RMSprop with coupled L2."""

    kind: Literal["rmsprop"] = "rmsprop"
    lr: Auto | Positive = "auto"
    head_lr: Auto | Positive = "auto"
    layer_decay: Auto | Annotated[float, Gt(0), Le(1)] = "auto"
    weight_decay: NonNegative = 0.0
    momentum: Probability = 0.0


@dataclass(frozen=True, kw_only=True)
class TimmOptimizer:
    """Any optimizer of timm by its name."""

    kind: Literal["timm"] = "timm"
    name: str
    """timm's name of the optimizer, e.g. lamb, lion, nadamw."""
    lr: Positive
    head_lr: Auto | Positive = "auto"
    layer_decay: Auto | Annotated[float, Gt(0), Le(1)] = "auto"
    weight_decay: NonNegative = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of a timm optimizer."""


Optimizer = Annotated[AdamW | Adam | Sgd | RmsProp | TimmOptimizer, Field(discriminator="kind")]
