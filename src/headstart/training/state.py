"""``TrainState``: the one mutable object. Model, optimizer, average and counters are all that a resume needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from headstart.distributed.ddp import Replica
from headstart.isolation import training_turn
from headstart.surgery.own_state import OwnState
from headstart.training.average import make_average as make_average
from headstart.training.average import update_average as update_average
from headstart.training.compile import Compiled


@dataclass
class Best:
    """The best validation so far.

    Attributes:
        ``score``: Numbers of which larger ones are better, compared from the left.
        ``step``: How many optimizer steps had been made.
        ``epoch``: How many epochs were complete.
        ``weights``: Whose it is: trained or average.
    """

    score: tuple[float, ...]
    step: int
    epoch: int
    weights: str


@dataclass
class TrainState:
    """A model in training with its optimizer and counters: all that ``hs.save`` writes and a resume needs.

    Attributes:
        ``model``: The module that is trained.
        ``optimizer``: A torch optimizer of its parameters.
        ``step``: How many optimizer steps have been made, in all phases together.
        ``epochs_done``: How many epochs are complete.
        ``epoch_step``: How many steps of the running epoch have been made.
        ``phase``: The index of the phase whose groups the optimizer has; -1 where there is none yet.
        ``average``: The averaged weights, where the rules keep some.
        ``scaler``: The loss scaler of fp16.
        ``start``: The pretrained values, by name, that ``penalties.l2_start`` holds the weights to (L2-SP, Li et al.
            2018, arXiv:1802.01483).
        ``best``: The best validation so far: its score, step, epoch and weights.
        ``stale_epochs``: How many epochs of the last phase have passed without a better validation.
        ``stopped``: Whether early stopping has ended the run.
        ``epoch_loss``: The sum of losses of the running epoch.
        ``epoch_weight``: The sum of the samples' weights of the running epoch.
        ``micro_batches``: How many parts a step is cut into since memory ran out; 0 goes by the rules.
        ``unsharded``: The same model whole, where each process holds a part of the trained one.
        ``suffix``: The part of the model that computes, where batches hold tensors at its boundary.
        ``replica``: The model across processes, where there are several.
        ``compiled``: The compiled model that steps call.
        ``average_decay``: The decay of an average that ``average_steps`` of the rules made.
        ``index``: A table of the model's modules, kept from one step to the next.
        ``own_state``: What the model's own modules held when a checkpoint was read, until training mode is entered,
            which may empty it.

    Example:
        >>> import headstart as hs, torch
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> state = hs.TrainState(net, torch.optim.AdamW(hs.param_groups(net, lr=1e-3)))
        >>> state.step, state.epochs_done
        (0, 0)
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
    unsharded: nn.Module | None = None  # the same model whole, where the trained one is sharded
    suffix: nn.Module | None = None  # what of the model computes, where batches hold tensors at its boundary
    replica: Replica | None = None  # the model across processes, where there are several
    compiled: Compiled | None = field(default=None, repr=False, compare=False)  # what steps call in place of the model
    average_decay: float | None = None  # of an average that ``average_steps`` of the rules made
    index: Any = field(default=None, repr=False, compare=False)  # the ``ModuleIndex`` that ``index_of`` has looked up
    own_state: OwnState | None = field(default=None, repr=False, compare=False)  # to put back in training mode

    def begin_epoch(self) -> None:
        """Enter training mode, unless an epoch goes on: so one begins in the same way after a checkpoint was read."""
        if not self.epoch_step:
            with training_turn(self.model):
                self.model.train()
            self.own_state = None
