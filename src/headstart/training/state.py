"""``TrainState``: the one mutable object. Model, optimizer, average and counters are all that a resume needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import is_
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from headstart.distributed.ddp import Replica
from headstart.errors import ConfigError, name_some
from headstart.surgery.module_state import restore_contents
from headstart.surgery.origins import is_library
from headstart.surgery.reach import Content, Copying, read_roots
from headstart.surgery.values import same_bytes
from headstart.surgery.whole_module import refuse_half
from headstart.training.average import make_average as make_average
from headstart.training.average import update_average as update_average
from headstart.training.compile import Compiled

_MOST_BYTES = 4 << 30  # of parameters that are copied to see whether forward writes to one


@dataclass
class Best:
    """The best validation so far: score, where, and which weights."""

    score: tuple[float, ...]  # larger is better, compared from the left
    step: int
    epoch: int
    weights: str  # "trained" or "average"


@dataclass(kw_only=True, eq=False)
class Parts:
    """What every step asks of a model and its optimizer, looked up once (see ``parts_of``).

    ``trained``: the parameters of all groups; ``named``: those of the model; ``typed``: the first one of floating
    numbers; ``modules``: all of them, with the ``modes`` that ``model.train()`` gave them; ``statistics``: where
    running means and variances are, a module's buffers and the name among them. ``homes``, ``children``, ``held`` and
    ``flags``: where modules keep their own modules and parameters, these, and which of them train. ``foreign``:
    parameters in groups that are not the model's, until a step has shown that they get a gradient. ``hooks``: where
    modules keep theirs; ``by_others``: whether some code is the user's own; ``stored``: what kind of numbers ``typed``
    was. ``rules``: those that the state was last made ready for. ``written``: parameters that forward itself writes
    to, once a step has shown it.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    trained: tuple[nn.Parameter, ...]
    typed: Tensor
    modules: tuple[nn.Module, ...]
    modes: list[bool]
    statistics: tuple[tuple[MutableMapping[str, Tensor | None], str], ...]
    homes: tuple[tuple[Mapping[str, nn.Module | None], ...], tuple[Mapping[str, nn.Parameter | None], ...]]
    children: list[nn.Module | None]
    held: list[nn.Parameter | None]
    flags: list[bool]
    foreign: tuple[nn.Parameter, ...]
    hooks: tuple[Mapping[int, object], ...]
    by_others: bool
    stored: torch.dtype
    named: dict[str, nn.Parameter]
    rules: object = None
    written: tuple[nn.Parameter, ...] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.trained[0].device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes with, outside autocast."""
        return self.typed.dtype

    @property
    def may_draw(self) -> bool:
        """Whether code of the user's own runs in a forward pass, which may draw from Python's or NumPy's generator."""
        return self.by_others or any(self.hooks)

    def gradients(self) -> list[Tensor]:
        """The gradients that the parameters of the groups have."""
        return [parameter.grad for parameter in self.trained if parameter.grad is not None]

    def fit(self, state: TrainState) -> bool:
        """Whether the state's model and optimizer are those that were looked up, and hold what they held."""
        groups = [group["params"] for group in state.optimizer.param_groups]
        return (
            self.model is state.model
            and self.optimizer is state.optimizer
            and _same(self.trained, [*chain.from_iterable(groups)])
            and _same(self.children, _values(self.homes[0]))
            and _same(self.held, _values(self.homes[1]))
            and self.flags == [value is not None and value.requires_grad for value in self.held]
            and self.modes == [module.training for module in self.modules]
            and self.stored is self.typed.dtype
        )


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a forward pass may change. ``buffers``: a module's, a name, the buffer and its copy; ``own``: contents of
    what code of the user's own reaches; ``parameters``: those that forward writes to, with copies.
    """

    buffers: Sequence[tuple[MutableMapping[str, Tensor | None], str, Tensor, Tensor]]
    own: Mapping[int, Content]
    parameters: Sequence[tuple[nn.Parameter, Tensor]]


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
    average_decay: float | None = None  # of an average that ``average_steps`` of the rules made
    parts: Parts | None = field(default=None, repr=False, compare=False)  # what ``parts_of`` has looked up


def parts_of(state: TrainState) -> Parts:
    """The parts of the state's model, in training mode; looked up again where anything about model, optimizer or groups
    has changed: parts and parameters that were put in place of others, what trains, modes. 3 microseconds for a small
    network, 40 for a ResNet-50.

    Raises: ConfigError: a parameter that trains is in no group, or in two. ModelError: one is in half precision.
    """
    if state.parts is None or not state.parts.fit(state):
        state.parts = _look(state)
    return state.parts


def _look(state: TrainState) -> Parts:
    modules = tuple(state.model.train().modules())
    trained = tuple(parameter for group in state.optimizer.param_groups for parameter in group["params"])
    _check_groups(state, trained)
    refuse_half(state.model)
    typed = next((value for value in state.model.parameters() if value.is_floating_point()), trained[0])
    homes = tuple([part._modules for part in modules]), tuple([part._parameters for part in modules])
    held: list[nn.Parameter | None] = _values(homes[1])
    own = set(map(id, held))
    return Parts(
        model=state.model,
        optimizer=state.optimizer,
        trained=trained,
        typed=typed,
        stored=typed.dtype,
        modules=modules,
        modes=[module.training for module in modules],
        statistics=tuple((part._buffers, name) for part in modules for name in part._buffers if "running_" in name),
        homes=homes,
        children=_values(homes[0]),
        held=held,
        flags=[value is not None and value.requires_grad for value in held],
        foreign=tuple(parameter for parameter in trained if id(parameter) not in own),
        hooks=tuple(hooks for part in modules for hooks in (part._forward_hooks, part._forward_pre_hooks)),
        named=dict(state.model.named_parameters()),
        by_others=not all(is_known(part) and "forward" not in vars(part) for part in modules),
    )


def _values(homes: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [*chain.from_iterable([home.values() for home in homes])]


def _same(before: Sequence[object], now: Sequence[object]) -> bool:
    """Whether these are the very same objects in the same order."""
    return len(before) == len(now) and all(map(is_, before, now))


def is_known(code: object) -> bool:
    """Whether a function, or an object's class, is a library's, which draws from torch's generators only."""
    return is_library(getattr(code, "__module__", None) or type(code).__module__)


def _check_groups(state: TrainState, trained: Sequence[nn.Parameter]) -> None:
    """Raises: ConfigError: a parameter that trains is in no group, or one is in two."""
    named, counts = dict(state.model.named_parameters()), Counter(map(id, trained))
    missing = [name for name, value in named.items() if value.requires_grad and not counts[id(value)]]
    if missing:
        gone = len(set(counts) - set(map(id, named.values())))
        about = f" ({gone} of those that it has are not the model's)" if gone else ""
        raise ConfigError(
            f"step {state.step + 1}: these train (requires_grad) but are in no group of the optimizer{about}, so that "
            f"they would never move: {name_some(missing)}; put them in one "
            '(optimizer.add_param_group({"params": [...]})) or freeze them (requires_grad_(False), hs.freeze)'
        )
    twice = [name for name, value in named.items() if counts[id(value)] > 1]
    if twice:
        raise ConfigError(
            f"step {state.step + 1}: these are in the optimizer's groups more than once, so that every step would move "
            f"them as often: {name_some(twice)}; leave each in one"
        )


def check_foreign(state: TrainState, parts: Parts) -> None:
    """After a backward pass.  Raises: ConfigError: parameters in groups that are not the model's have no gradient."""
    idle = [str(tuple(parameter.shape)) for parameter in parts.foreign if parameter.grad is None]
    if idle:
        raise ConfigError(
            f"step {state.step + 1}: the optimizer has {len(idle)} parameters that neither the model nor the loss uses "
            f"(shapes {name_some(idle)}): a part was replaced; give its group the new one's parameters, or make the "
            "optimizer again"
        )
    parts.foreign = ()


def keep_state(parts: Parts, loss: object) -> Kept:
    """What a forward pass may write to: buffers of modules in training mode (batch statistics); of a model with code of
    the user's own all buffers, whatever that code reaches, and the parameters that it writes to; and what a ``loss`` of
    the user's own reaches.
    """
    others = [] if isinstance(loss, str) or is_known(loss) else [loss]
    modules = [part for part in parts.modules if part.training or parts.by_others]
    tensors = [(part._buffers, name, value) for part in modules for name, value in part._buffers.items()]
    buffers = [(home, name, value, value.clone()) for home, name, value in tensors if value is not None]
    if not parts.may_draw and not others:
        return Kept(buffers=buffers, own={}, parameters=[])
    watched = _own_parameters(parts) if parts.written is None and parts.may_draw else parts.written or ()
    return Kept(
        buffers=buffers, own=_read_own(parts, others), parameters=[(value, _copied(value)) for value in watched]
    )


def _read_own(parts: Parts, others: Sequence[object]) -> dict[int, Content]:
    """What the user's own classes, hooks, replaced methods and ``others`` reach; libraries' modules keep nothing but
    buffers.
    """
    roots: list[object] = [*others, *(part for part in parts.modules if _is_own(part))]
    for value in parts.held:
        if value is not None and (value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None)):
            roots += [value._backward_hooks, getattr(value, "_post_accumulate_grad_hooks", None)]
    besides = {id(part) for part in parts.modules} | {id(value) for value in parts.held}
    besides |= {id(value) for part in parts.modules for value in part._buffers.values()}
    return read_roots([root for root in roots if root], Copying(values=True, parameters=False), besides=besides)


def _is_own(part: nn.Module) -> bool:
    hooks = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks
    return not is_known(part) or "forward" in vars(part) or any(hooks)


def _own_parameters(parts: Parts) -> list[nn.Parameter]:
    """All of the model's, unless they are too many to be copied or shared out among processes."""
    values = {id(value): value for value in parts.held if type(value) is nn.Parameter}.values()
    found = [value for value in values if not nn.parameter.is_lazy(value)]
    return found if sum(value.nbytes for value in found) <= _MOST_BYTES else []


def _copied(value: nn.Parameter) -> Tensor:
    """Beside the accelerator, whose memory the step needs."""
    return value.detach().clone() if value.is_cpu else value.detach().cpu()


def note_written(parts: Parts, kept: Kept) -> None:
    """After the first forward passes: which parameters these have written to, so that only they are copied again."""
    if parts.written is None and parts.may_draw:
        parts.written = tuple(value for value, copy in kept.parameters if not same_bytes(value.detach().cpu(), copy))


def put_back(kept: Kept) -> None:
    """All as it was, also where other objects were put in its place: a step that is not taken leaves no trace."""
    restore_contents(kept.own)
    with torch.no_grad():
        for home, name, buffer, value in kept.buffers:
            home[name] = buffer.copy_(value)
        for parameter, value in kept.parameters:
            parameter.copy_(value)
