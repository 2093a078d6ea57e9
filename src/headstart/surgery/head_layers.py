"""The layers that a new head is made of.

    B batch, C channels, D features, K outputs

Each is known to the tracer as one piece, so that a head which was put in is found again, in a copy as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

HeadKind = Literal["linear", "conv"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
}
RANK = "headstart_rank"  # on a head that was put in: 0 the main one, then its equals
_LAST_LAYER_STD = 0.001  # near-zero scores at first, also for SqueezeNet, whose features have a norm of 360


class DropoutLinear(nn.Linear):
    """A linear layer that drops part of its input in training; saved under the names of a plain one."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__(inputs, outputs)
        self.dropout = dropout

    def forward(self, input: Tensor) -> Tensor:  # (B, D) -> (B, K)
        """Scores from features."""
        return super().forward(functional.dropout(input, self.dropout, self.training))


class DropoutConv2d(nn.Conv2d):
    """A 1x1 convolution that drops part of its input in training; saved under the names of a plain one."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__(inputs, outputs, kernel_size=1)
        self.dropout = dropout

    def forward(self, input: Tensor) -> Tensor:  # (B, C, H, W) -> (B, K, H, W)
        """Scores from feature maps."""
        return super().forward(functional.dropout(input, self.dropout, self.training))


class MlpHead(nn.Sequential):
    """Linear layers (1x1 convolutions) with an activation and dropout between them."""


def make_head(
    kind: HeadKind, sizes: Sequence[int], *, activation: str, dropout: float, like: Tensor | None = None
) -> nn.Module:
    """A head from ``sizes[0]`` inputs to ``sizes[-1]`` outputs, on the device and with the dtype of ``like``.

    Its first values are drawn from torch's global generator, always on the CPU in fp32: a seed gives the same head
    on every device.
    """
    last = _layer(kind, sizes[-2], sizes[-1], dropout if len(sizes) == 2 else 0.0)
    head: nn.Module = last
    if len(sizes) > 2:
        parts: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes[:-1]):
            parts += [_layer(kind, inputs, outputs, 0.0), ACTIVATIONS[activation](), nn.Dropout(dropout)]
        head = MlpHead(*parts, last)
    with torch.no_grad():
        last.weight.normal_(0.0, _LAST_LAYER_STD)
        assert last.bias is not None
        last.bias.zero_()
    return head if like is None else head.to(device=like.device, dtype=like.dtype)


def _layer(kind: HeadKind, inputs: int, outputs: int, dropout: float) -> nn.Linear | nn.Conv2d:
    with torch.device("cpu"):
        if kind == "conv":
            return DropoutConv2d(inputs, outputs, dropout) if dropout > 0 else nn.Conv2d(inputs, outputs, 1)
        return DropoutLinear(inputs, outputs, dropout) if dropout > 0 else nn.Linear(inputs, outputs)
