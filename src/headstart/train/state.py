"""``TrainState``: the one mutable object. Model, optimizer, average and counters are all that a resume needs."""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping
from dataclasses import dataclass, field

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from headstart.parallel.model import Replica
from headstart.train.compiled import Compiled


@dataclass
class Best:
    """The best validation so far: score, where, and which weights."""

    score: tuple[float, ...]  # larger is better, compared from the left
    step: int
    epoch: int
    weights: str  # "trained" or "average"


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What every step asks of a model and its optimizer, looked up once (see ``parts_of``).

    ``trained``: the parameters of all groups; ``typed``: the first one of floating numbers; ``modules``: all of them,
    with the ``modes`` that ``model.train()`` gave them; ``statistics``: where running means and variances are, a
    module's buffers and the name among them.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    trained: tuple[nn.Parameter, ...]
    typed: Tensor
    modules: tuple[nn.Module, ...]
    modes: list[bool]
    statistics: tuple[tuple[MutableMapping[str, Tensor | None], str], ...]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.trained[0].device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes with, outside autocast."""
        return self.typed.dtype

    def gradients(self) -> list[Tensor]:
        """Those that there are."""
        return [parameter.grad for parameter in self.trained if parameter.grad is not None]


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
    compiled: Compiled | None = field(default=None, repr=False, compare=False)  # what steps call in place of the model
    parts: Parts | None = field(default=None, repr=False, compare=False)  # what ``parts_of`` has looked up


def parts_of(state: TrainState) -> Parts:
    """The parts of the state's model, in training mode; looked up again where model, optimizer or groups are others."""
    known, groups = state.parts, state.optimizer.param_groups
    if (
        known is None
        or known.model is not state.model
        or known.optimizer is not state.optimizer
        or len(known.trained) != sum([len(group["params"]) for group in groups])
        or known.modes != [module.training for module in known.modules]
    ):
        known = state.parts = _look(state)
    return known


def _look(state: TrainState) -> Parts:
    modules = tuple(state.model.train().modules())
    trained = tuple(parameter for group in state.optimizer.param_groups for parameter in group["params"])
    return Parts(
        model=state.model,
        optimizer=state.optimizer,
        trained=trained,
        typed=next((value for value in state.model.parameters() if value.is_floating_point()), trained[0]),
        modules=modules,
        modes=[module.training for module in modules],
        statistics=tuple((part._buffers, name) for part in modules for name in part._buffers if "running_" in name),
    )


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
