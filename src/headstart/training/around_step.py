"""What surrounds a step: where things are in the model, a snapshot of what a forward pass may change, the step's turn
among threads and its seed, and another try where memory runs out or fp16 overflows.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from itertools import chain
from operator import is_
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from headstart.data.batch import Batch, Pair, as_batch
from headstart.data.randomness import derive_seed
from headstart.distributed.fsdp import local
from headstart.distributed.processes import Processes, current
from headstart.errors import ConfigError, NonFiniteError, RunError, name_some
from headstart.events import StepDone
from headstart.isolation import own_arithmetic, seeded, training_turn
from headstart.optim.optimizers import check_optimizer
from headstart.private_names import foreach_norm
from headstart.surgery.module_state import restore_contents
from headstart.surgery.origins import is_library
from headstart.surgery.own_state import restore_own_state
from headstart.surgery.reach import Content, Copying, read_roots
from headstart.surgery.values import same_bytes
from headstart.surgery.whole_module import refuse_half, refuse_repeating
from headstart.training.companions import make_companions
from headstart.training.finite import complaint, norms, refuse_rates
from headstart.training.rules import StepRules
from headstart.training.state import TrainState
from headstart.wording import option

_MOST_BYTES = 4 << 30  # of parameters that are copied to see whether forward writes to one
_MOST_OVERFLOWS = 20  # fp16: from 2**16 this many halvings reach 2**-4, where no healthy loss overflows


@dataclass(kw_only=True, eq=False)
class ModuleIndex:
    """What every step asks of a model and its optimizer, looked up once (see ``index_of``).

    ``trained``: the parameters of all groups; ``named``: those of the model; ``typed``: the first one of floating
    numbers; ``modules``: all of them, with the ``modes`` that ``model.train()`` gave them; ``statistics``: where
    running means and variances are, a module's buffers and the name among them. ``homes``, ``children``, ``held`` and
    ``flags``: where modules keep their own modules and parameters, these, and which of them train. ``foreign``:
    parameters in groups that are not the model's, until a step has shown that they get a gradient. ``hooks``: where
    modules keep theirs; ``by_others``: whether some code is the user's own; ``stored``: what kind of numbers ``typed``
    was. ``rules``: those that the state was last made ready for. ``written``: parameters that forward itself writes
    to, once a step has shown it. ``processes``: this one's place among others. Of the step that is being made:
    ``snapshot``, what to go back to until it counts; ``began``, its monotonic second; ``overflows``, so far.
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
    processes: Processes
    in_group: bool
    rules: object = None
    written: tuple[nn.Parameter, ...] | None = None
    snapshot: Snapshot | None = None
    began: float = 0.0
    overflows: int = 0

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.trained[0].device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes with, outside autocast."""
        return self.typed.dtype

    @property
    def is_distributed(self) -> bool:
        """Whether several processes train the model together."""
        return self.processes.world_size > 1

    @property
    def may_draw(self) -> bool:
        """Whether code of the user's own runs in a forward pass, which may draw from Python's or NumPy's generator."""
        return self.by_others or any(self.hooks)

    def gradients(self) -> list[Tensor]:
        """The gradients that the parameters of the groups have."""
        return [parameter.grad for parameter in self.trained if parameter.grad is not None]

    def norms(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The 2-norm of each tensor, of all of it where it is sharded; one zero where there is no tensor."""
        if self.in_group or not tensors:
            return norms(tensors)
        return list(foreach_norm([*tensors], 2.0))

    @torch.no_grad()
    def weights_are_finite(self) -> bool:
        """Whether no parameter of the groups and no running statistic holds a NaN or an infinity."""
        statistics = [value for buffers, name in self.statistics if (value := buffers[name]) is not None]
        weights = [local(value) for value in self.trained] if self.in_group else self.trained
        return all(map(math.isfinite, torch.stack(self.norms([*weights, *statistics])).tolist()))

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
            and self.in_group == _in_group()
        )


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a forward pass may change. ``buffers``: a module's, a name, the buffer and its copy; ``own``: contents of
    what code of the user's own reaches; ``parameters``: those that forward writes to, with copies.
    """

    buffers: Sequence[tuple[MutableMapping[str, Tensor | None], str, Tensor, Tensor]]
    own: Mapping[int, Content]
    parameters: Sequence[tuple[nn.Parameter, Tensor]]


def index_of(state: TrainState) -> ModuleIndex:
    """The index of the state's model, in training mode; looked up again where anything about model, optimizer or groups
    has changed: parts and parameters that were put in place of others, what trains, modes. 3 microseconds for a small
    network, 40 for a ResNet-50.

    Raises: ConfigError: a parameter that trains is in no group, or in two. ModelError: one is in half precision.
    """
    if state.index is None or not state.index.fit(state):
        state.index = _look(state)
    index: ModuleIndex = state.index
    return index


def _look(state: TrainState) -> ModuleIndex:
    check_optimizer(state.optimizer)
    modules = tuple(state.model.train().modules())
    if state.own_state is not None:  # a ``train`` of the user's own has emptied what was read from a checkpoint
        restore_own_state(state.model, state.own_state)
        state.own_state = None
    trained = tuple(parameter for group in state.optimizer.param_groups for parameter in group["params"])
    _check_groups(state, trained)
    refuse_half(state.model)
    refuse_repeating(state.model)
    typed = next((value for value in state.model.parameters() if value.is_floating_point()), trained[0])
    homes = tuple([part._modules for part in modules]), tuple([part._parameters for part in modules])
    held: list[nn.Parameter | None] = _values(homes[1])
    own = set(map(id, held))
    return ModuleIndex(
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
        processes=current(),
        in_group=_in_group(),
        by_others=not all(is_known(part) and "forward" not in vars(part) for part in modules),
    )


def _in_group() -> bool:
    """Whether there is a process group, be it of this process alone."""
    return dist.is_available() and dist.is_initialized()


def _values(homes: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [*chain.from_iterable([home.values() for home in homes])]


def _same(before: Sequence[object], now: Sequence[object]) -> bool:
    """Whether these are the very same objects in the same order."""
    return len(before) == len(now) and all(map(is_, before, now))


def is_known(code: object) -> bool:
    """Whether a function, or an object's class, is a library's, which draws from torch's generators only; of a
    ``functools.partial`` the function that it calls. A name is known.
    """
    while isinstance(code, partial):
        code = code.func
    return is_library(getattr(code, "__module__", None) or type(code).__module__)


def _check_groups(state: TrainState, trained: Sequence[nn.Parameter]) -> None:
    """Raises: ConfigError: a parameter that trains is in no group, or one is in two; or there is none at all."""
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
    if not trained:
        raise ConfigError(
            f"step {state.step + 1}: the optimizer's groups hold no parameters, and nothing in the model trains "
            "(requires_grad), so that a step would move nothing; give the model a layer with weights, or let some "
            "train (requires_grad_(True)) and put them into a group"
        )
    twice = [name for name, value in named.items() if counts[id(value)] > 1]
    if twice:
        raise ConfigError(
            f"step {state.step + 1}: these are in the optimizer's groups more than once, so that every step would move "
            f"them as often: {name_some(twice)}; leave each in one"
        )


def check_foreign(state: TrainState, index: ModuleIndex) -> None:
    """Check after a backward pass.  Raises: ConfigError: parameters in groups that are not the model's have no
    gradient.
    """
    idle = [str(tuple(parameter.shape)) for parameter in index.foreign if parameter.grad is None]
    if idle:
        raise ConfigError(
            f"step {state.step + 1}: the optimizer has {len(idle)} parameters that neither the model nor the loss uses "
            f"(shapes {name_some(idle)}): a part was replaced; give its group the new one's parameters, or make the "
            "optimizer again"
        )
    index.foreign = ()


def take_snapshot(index: ModuleIndex, loss: object) -> Snapshot:
    """What a forward pass may write to: buffers of modules in training mode (batch statistics); of a model with code of
    the user's own all buffers, whatever that code reaches, and the parameters that it writes to; and what a ``loss`` of
    the user's own reaches.
    """
    others = [] if is_known(loss) else [loss]
    modules = [part for part in index.modules if part.training or index.by_others]
    tensors = [(part._buffers, name, value) for part in modules for name, value in part._buffers.items()]
    buffers = [(home, name, value, value.clone()) for home, name, value in tensors if value is not None]
    if not index.may_draw and not others:
        return Snapshot(buffers=buffers, own={}, parameters=[])
    watched = _own_parameters(index) if index.written is None and index.may_draw else index.written or ()
    return Snapshot(
        buffers=buffers, own=_read_own(index, others), parameters=[(value, _copy_to_cpu(value)) for value in watched]
    )


def _read_own(index: ModuleIndex, others: Sequence[object]) -> dict[int, Content]:
    """What the user's own classes, hooks, replaced methods and ``others`` reach; libraries' modules keep nothing but
    buffers.
    """
    roots: list[object] = [*others, *(part for part in index.modules if _is_own(part))]
    for value in index.held:
        if value is not None and (value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None)):
            roots += [value._backward_hooks, getattr(value, "_post_accumulate_grad_hooks", None)]
    besides = {id(part) for part in index.modules} | {id(value) for value in index.held}
    besides |= {id(value) for part in index.modules for value in part._buffers.values()}
    filled = [root for root in roots if isinstance(root, nn.Module) or root]  # a module's truth may be the user's own
    return read_roots(filled, Copying(values=True, parameters=False), besides=besides)


def _is_own(part: nn.Module) -> bool:
    hooks = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks
    return not is_known(part) or "forward" in vars(part) or any(hooks)


def _own_parameters(index: ModuleIndex) -> list[nn.Parameter]:
    """All parameters of the model, or none where they are too many to be copied, or sharded."""
    found = [*{id(value): value for value in index.held if type(value) is nn.Parameter}.values()]  # not lazy ones
    return found if sum(value.nbytes for value in found) <= _MOST_BYTES else []


def _copy_to_cpu(value: nn.Parameter) -> Tensor:
    """A copy on the CPU: the step needs an accelerator's memory itself."""
    return value.detach().clone() if value.is_cpu else value.detach().cpu()


def mark_written(index: ModuleIndex, snapshot: Snapshot) -> None:
    """Note which parameters the first forward passes wrote to, so that only these are copied again."""
    if index.written is None and index.may_draw:
        pairs = [(value, value.detach().cpu(), copy) for value, copy in snapshot.parameters]
        index.written = tuple(value for value, now, copy in pairs if not same_bytes(now, copy))


def restore_snapshot(snapshot: Snapshot) -> None:
    """Put all back, also where other objects were put in its place: a step that is not taken leaves no trace."""
    restore_contents(snapshot.own)
    with torch.no_grad():
        for home, name, buffer, value in snapshot.buffers:
            home[name] = buffer.copy_(value)
        for parameter, value in snapshot.parameters:
            parameter.copy_(value)


class Overflow(Exception):
    """The gradient of an fp16 step is not finite at this loss scale: the step is tried again with half of it."""


class Step(Protocol):
    """A function that makes one optimizer step."""

    def __call__(self, state: TrainState, batch: Batch, *, rules: StepRules, steps_in_epoch: int = 0) -> StepDone:
        """Make the step."""
        ...


class AnyStep(Protocol):
    """A function that makes one optimizer step on a batch, or on a pair (images, targets)."""

    def __call__(
        self, state: TrainState, batch: Batch | Pair, *, rules: StepRules, steps_in_epoch: int = 0
    ) -> StepDone:
        """Make the step."""
        ...


def retry_step(step: Step) -> AnyStep:
    """The step in its own turn among threads, with its own arithmetic and seed, tried again where memory runs out or
    fp16 overflows: it must not count twice then, in batch statistics or elsewhere, and draws the same numbers.

    Raises: RunError: memory runs out with two images at a time, or in one of several processes.
    """

    @wraps(step)
    def try_step(state: TrainState, batch: Batch | Pair, *, rules: StepRules, steps_in_epoch: int = 0) -> StepDone:
        batch = as_batch(batch)
        with training_turn(state.model), own_arithmetic():
            index = _prepare(state, batch, rules)
            everywhere = index.may_draw or not is_known(rules.loss)
            with seeded(_step_seed(state, index, rules), device=index.device, everywhere=everywhere) as seed_again:
                return _try(step, state, batch, rules, seed_again, steps_in_epoch=steps_in_epoch)

    return try_step


def _try(
    step: Step,
    state: TrainState,
    batch: Batch,
    rules: StepRules,
    seed_again: Callable[[], None],
    *,
    steps_in_epoch: int,
) -> StepDone:
    index: ModuleIndex = state.index
    try:
        while True:
            try:
                return step(state, batch, rules=rules, steps_in_epoch=steps_in_epoch)
            except (torch.OutOfMemoryError, Overflow) as error:
                _go_back(state, index, batch, rules, error)
                seed_again()
    finally:  # a step that is not taken leaves no trace
        if index.snapshot is not None:
            restore_snapshot(index.snapshot)
            index.snapshot = None


def _go_back(
    state: TrainState, index: ModuleIndex, batch: Batch, rules: StepRules, error: torch.OutOfMemoryError | Overflow
) -> None:
    """Go back to where the step began, ready for another try.  Raises: ``error``, where weights are moving already."""
    if index.snapshot is None:
        raise error
    restore_snapshot(index.snapshot)
    if isinstance(error, torch.OutOfMemoryError):
        _cut_smaller(state, index, batch, rules, error)


def _prepare(state: TrainState, batch: Batch, rules: StepRules) -> ModuleIndex:
    """The state's index, once the state has what these rules need of it, with a snapshot to go back to."""
    began = time.monotonic()
    before, index = state.index, index_of(state)
    if not all(math.isfinite(group["lr"]) for group in state.optimizer.param_groups):
        refuse_rates(state, batch)
    if index.rules is not rules or (state.scaler is None and rules.precision == "fp16"):
        make_companions(
            state, before, penalties=rules.penalties, precision=rules.precision, average_steps=rules.average_steps
        )
        index.rules = rules
    index.began, index.overflows, index.snapshot = began, 0, take_snapshot(index, rules.loss)
    return index


def _step_seed(state: TrainState, index: ModuleIndex, rules: StepRules) -> int:
    if index.processes.rank:
        return derive_seed("step", rules.seed, state.step, index.processes.rank)
    return (rules.seed << 24) + state.step & 0x7FFF_FFFF_FFFF_FFFF


def take_for_good(index: ModuleIndex) -> None:
    """Have the step count from here on: what its forward passes wrote stays."""
    if index.snapshot is not None:
        mark_written(index, index.snapshot)
    index.snapshot = None


def refuse_or_retry(state: TrainState, batch: Batch, loss: float, grad_norm: float) -> NoReturn:
    """End a step whose loss or gradient is not finite.

    Raises: Overflow: fp16 may do with a lower scale. NonFiniteError: else, and after 20 halvings.
    """
    assert state.index is not None
    state.index.overflows += 1
    if state.scaler is None or not math.isfinite(loss):
        raise NonFiniteError(complaint(state, batch, loss, grad_norm))
    state.scaler.update()  # it saw the overflow when it unscaled
    if state.index.overflows < _MOST_OVERFLOWS:
        raise Overflow
    raise NonFiniteError(complaint(state, batch, loss, grad_norm))


def _cut_smaller(
    state: TrainState, index: ModuleIndex, batch: Batch, rules: StepRules, error: torch.OutOfMemoryError
) -> None:
    """Have this step and all later ones made in twice as many micro-batches.

    Raises: RunError: there are two images at a time already, or several processes, which would have to agree.
    """
    count = max(rules.accumulate, state.micro_batches)
    images = -(-len(batch.targets) // count)
    if images <= 2 or index.is_distributed:
        raise RunError(
            f"step {state.step + 1}: {index.device} has no memory left with {images} images at a time "
            f"({str(error).splitlines()[0][:120]}); give {option('batch.accumulate', 2 * count)}, a smaller "
            f"{option('batch_size')} or {option('image_size')}, or a smaller model"
        ) from error
    torch.accelerator.empty_cache()  # does nothing where there is none
    state.micro_batches = 2 * count
