"""``TrainState``: the one mutable object. Model, optimizer, average and counters are all that a resume needs."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from headstart.parallel.model import Replica


@dataclass
class Best:
    """The best validation so far: score, where, and which weights."""

    score: tuple[float, ...]  # larger is better, compared from the left
    step: int
    epoch: int
    weights: str  # "trained" or "average"


@dataclass
class TrainState:
    """A model in training. ``step`` counts optimizer steps over all phases.

    ``start`` holds pretrained values for L2-SP.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    epochs_done: int = 0
    epoch_step: int = 0  # steps done in the running epoch
    phase: int = -1  # index of the phase whose groups the optimizer has; -1: none yet
    average: ModelEmaV3 | None = None
    scaler: torch.amp.GradScaler | None = None
    start: dict[str, Tensor] = field(default_factory=dict)
    best: Best | None = None
    stale_epochs: int = 0  # epochs of the last phase without a better validation
    stopped: bool = False  # early stopping ended the run
    epoch_loss: float = 0.0  # sum of losses of the running epoch, float64
    epoch_weight: float = 0.0
    micro_batches: int = 0  # that a step is cut into since memory ran out; 0: as the rules say
    unsharded: nn.Module | None = None  # the same model whole, where the trained one is shared out among processes
    suffix: nn.Module | None = None  # what of the model computes, where batches hold tensors at its boundary
    replica: Replica | None = None  # the model across processes, where there are several


def make_average(model: nn.Module, *, half_life: float, total_steps: int) -> ModelEmaV3:
    """An exponential moving average, buffers included, whose past counts half after ``half_life`` of all steps."""
    decay = 0.5 ** (1 / max(1.0, half_life * total_steps))
    return ModelEmaV3(model, decay=decay)


_UNBOUNDED: weakref.WeakKeyDictionary[ModelEmaV3, tuple[tuple[Tensor, Tensor], ...]] = weakref.WeakKeyDictionary()


def update_average(average: ModelEmaV3, model: nn.Module, *, step: int) -> None:
    """One step of the average. Buffers with infinities (limits that limit nothing) are copied: their mean is NaN."""
    average.update(model, step=step)
    if average not in _UNBOUNDED:
        pairs = zip(average.module.buffers(), model.buffers(), strict=True)
        _UNBOUNDED[average] = tuple((own, source) for own, source in pairs if bool(torch.isinf(source).any()))
    for own, source in _UNBOUNDED[average]:
        own.copy_(source)
