"""A run as a list of phases.

Freeze, group, train, validate; frozen tensors are proven unchanged at every epoch's end.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from headstart.config.schema import FreezeRule, NormStatistics, Optimizer, Schedule
from headstart.data.loader import Batches
from headstart.distributed.collectives import all_gather_object, broadcast_object
from headstart.distributed.fsdp import local
from headstart.distributed.processes import current
from headstart.errors import ModelError, RunError, StorageError
from headstart.events import (
    CacheGivenUp,
    DataNote,
    EpochDone,
    PhaseStarted,
    StepDone,
    TrainingEvent,
)
from headstart.optim.groups import param_groups
from headstart.optim.optimizers import make_optimizer
from headstart.storage.tensors import view_bytes
from headstart.surgery.boundary import Boundary
from headstart.surgery.freeze import NOTHING_FIXED, Fixed, Frozen, freeze_by, what_freezes
from headstart.surgery.halves import Suffix
from headstart.surgery.layout import iterate_tensors
from headstart.surgery.replay import NotReplayable
from headstart.tasks.kinds import selection_key
from headstart.tasks.own_metrics import Better, OwnMetric, measure_own
from headstart.training.activation_cache import CacheRules, open_activations
from headstart.training.boundary_proof import prove_boundary, refute_boundary
from headstart.training.evaluate import Evaluation, evaluate, keep_own_state
from headstart.training.fit import fit
from headstart.training.phase_data import PhaseData, make_phase_data, open_image_cache
from headstart.training.rules import StepRules
from headstart.training.state import Best, TrainState
from headstart.training.state_copy import StateCopy, copy_state, put_back


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """A phase with everything decided; epochs count from 0 over the whole run."""

    name: str
    freeze: FreezeRule
    first_epoch: int
    epochs: int
    lr: float
    head_lr: float
    layer_decay: float
    norm_statistics: NormStatistics
    views: int = 0
    """Fixed random changes that every image has in turn; 0: new ones in every epoch."""
    cached: tuple[str, ...] = ()
    """Splits (train, val) that are read from the activation cache."""
    fixed: Fixed = NOTHING_FIXED
    """What was frozen in the module before, and stays so whatever ``freeze`` says."""
    extends: bool = False
    """Added to the run after it had begun with fewer epochs."""
    moving: frozenset[str] = frozenset()
    """Buffers that forward writes to although nothing around them trains: they are not frozen."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Everything about a run's training that stays the same from first step to last."""

    phases: tuple[PhasePlan, ...]
    optimizer: Optimizer
    schedule: Schedule
    rules: StepRules
    patience: int
    cache: CacheRules
    metric: str = "auto"
    """The word of ``--metric``, or the name of one of the own metrics: by what an epoch is better."""
    own_metrics: Mapping[str, OwnMetric] = field(default_factory=dict)
    """Metrics of the user's own, by name."""

    @property
    def better(self) -> Better | None:
        """Which way of ``metric`` is good, where it is one of the user's own; else None."""
        return self.own_metrics[self.metric].better if self.metric in self.own_metrics else None


def enter_phase(state: TrainState, training_plan: TrainingPlan, index: int) -> Frozen:
    """Set what is frozen and the optimizer's groups; state of parameters that stay trainable is kept."""
    phase = training_plan.phases[index]
    frozen = freeze_phase(state.model, phase)
    before = state.optimizer
    state.optimizer = phase_optimizer(state.model, phase, training_plan.optimizer)
    old_groups = {group.get("name"): group for group in before.param_groups}
    for group in state.optimizer.param_groups:
        kept = [parameter for parameter in group["params"] if parameter in before.state]
        state.optimizer.state.update((parameter, before.state[parameter]) for parameter in kept)
        if kept and "step" in old_groups.get(group["name"], {}):  # timm's lamb and adan count steps by group
            group["step"] = old_groups[group["name"]]["step"]
    state.phase = index
    return frozen


def freeze_phase(model: nn.Module, phase: PhasePlan) -> Frozen:
    """Freeze what the phase says, statistics included."""
    frozen = freeze_by(model, phase.freeze, norm_statistics=phase.norm_statistics, fixed=phase.fixed)
    return _without_moving(frozen, phase)


def _without_moving(frozen: Frozen, phase: PhasePlan) -> Frozen:
    return replace(frozen, tensors=tuple(name for name in frozen.tensors if name not in phase.moving))


def phase_optimizer(model: nn.Module, phase: PhasePlan, options: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of a phase over the model as it is frozen now."""
    decay = options.weight_decay
    groups = param_groups(model, lr=phase.lr, head_lr=phase.head_lr, layer_decay=phase.layer_decay, weight_decay=decay)
    return make_optimizer(groups, options)


class CacheRefuted(Exception):
    """What a phase reads from the cache is not what its model computes; says why."""


def train_phases(
    state: TrainState, training_plan: TrainingPlan, train: Batches, val: Batches
) -> Iterator[TrainingEvent]:
    """Train what is left of the plan; an epoch's event has its metrics, and whether it is the best so far.

    Raises: NonFiniteError: see ``fit``.
    """
    with (
        open_image_cache(train, where=training_plan.cache) as (train, train_note),
        open_image_cache(val, where=training_plan.cache) as (val, val_note),
    ):
        yield from filter(None, (train_note, val_note))
        yield from _phases(state, training_plan, train, val)


def _phases(state: TrainState, training_plan: TrainingPlan, train: Batches, val: Batches) -> Iterator[TrainingEvent]:
    for index in range(len(training_plan.phases)):
        phase = training_plan.phases[index]  # as the plan is by now: without a cache that was given up
        if state.epochs_done >= phase.first_epoch + phase.epochs or _is_over(state, training_plan):
            continue
        frozen = enter_phase(state, training_plan, index) if state.phase != index else freeze_phase(state.model, phase)
        yield PhaseStarted(
            index=index,
            name=phase.name,
            epochs=phase.epochs,
            trainable=frozen.of - frozen.parameters,
            frozen=frozen.parameters,
        )
        plain = PhaseData(train=_with_views(train, phase), val=val)
        phase_data = yield from make_phase_data(
            state, frozen, plain, splits=phase.cached, rules=training_plan.rules, where=training_plan.cache
        )
        yield from report_changed_files(phase_data.train)
        state.suffix = phase_data.suffix
        start = copy_state(state) if phase_data.suffix is not None or phase_data.eval_model is not None else None
        try:
            why = yield from _train_until_refuted(state, training_plan, phase, frozen, phase_data)
            if why is not None:
                assert start is not None, why
                _give_up(state, start, phase_data, why)
                phase_data = plain
                training_plan = replace(
                    training_plan, phases=tuple(replace(each, cached=()) for each in training_plan.phases)
                )
                yield CacheGivenUp(state.step, f"cache: given up, {why}; all since step {state.step} is trained again")
                yield from _train_phase(state, training_plan, training_plan.phases[index], frozen, phase_data)
        finally:
            state.suffix = None
            phase_data.close()


def _train_until_refuted(
    state: TrainState, training_plan: TrainingPlan, phase: PhasePlan, frozen: Frozen, phase_data: PhaseData
) -> Generator[TrainingEvent, None, str | None]:
    """Train the phase; return why what is read from the cache is not what the model computes, where it is not.

    The error goes no further: its frames hold the model across processes, beside which there can be no second one.
    """
    try:
        yield from _train_phase(state, training_plan, phase, frozen, phase_data)
    except (CacheRefuted, NotReplayable) as error:
        if phase_data.suffix is None and phase_data.eval_model is None:  # nothing is read from a cache
            raise
        return str(error)
    return None


def _give_up(state: TrainState, start: StateCopy, phase_data: PhaseData, why: str) -> None:
    """Put the state back to the phase's start, to go on without the cache, of which nothing is kept."""
    put_back(state, start)
    refute_boundary(state.model, why)
    phase_data.discard()
    state.suffix = state.replica = state.compiled = None


def _train_phase(
    state: TrainState, training_plan: TrainingPlan, phase: PhasePlan, frozen: Frozen, phase_data: PhaseData
) -> Iterator[TrainingEvent]:
    proof = frozen_digest(state.model, frozen)
    for event in fit(
        state,
        phase_data.train,
        rules=training_plan.rules,
        epochs=phase.epochs,
        schedule=training_plan.schedule,
        first_epoch=phase.first_epoch,
    ):
        if isinstance(event, StepDone):
            epoch_ends = state.epoch_step == event.steps_in_epoch
            phase_ends = epoch_ends and state.epochs_done + 1 == phase.first_epoch + phase.epochs
            _look_at_cache(state, phase_data, epoch_ends=epoch_ends, phase_ends=phase_ends)
            yield event
            if not current().is_distributed:  # else after the epoch, together
                yield from report_changed_files(phase_data.train)
            continue
        now = frozen_digest(state.model, frozen)
        changed = sorted(name for name, value in proof.items() if now[name] != value)
        if changed:
            raise RunError(
                f"phase {phase.name}: {', '.join(changed[:5])}: frozen, and changed all the same; something writes to "
                "it besides the optimizer: forward, a hook, or what watches the run"
            )
        _check_equal(state.model)
        validated = _validate(state, training_plan, replace(event, phase=state.phase), phase_data)
        yield from phase_data.iterate_damage_notes()
        yield from report_changed_files(phase_data.train)
        yield validated
        if _is_over(state, training_plan):
            return


def report_changed_files(batches: Batches) -> Iterator[DataNote]:
    """Notes on files that any process has found changed since this was last asked; of all splits."""
    if batches.images.changed is not None:
        for text in sorted({text for news in all_gather_object(batches.images.changed.news()) for text in news}):
            yield DataNote(text)


def _look_at_cache(state: TrainState, phase_data: PhaseData, *, epoch_ends: bool, phase_ends: bool) -> None:
    """Compare the cache with the model after the first step, the last one, and now and then between them.

    Raises: CacheRefuted: what is read is not what the model computes.
    """
    if phase_data.check is not None and (phase_ends or phase_data.check.is_due(epoch_ends=epoch_ends)):
        why = phase_data.check.find_difference(state.epochs_done)
        if why is not None:
            raise CacheRefuted(why)


def _with_views(train: Batches, phase: PhasePlan) -> Batches:
    if train.augmentation is None or not phase.views:
        return train
    augmentation = replace(train.augmentation, views=phase.views, first_epoch=phase.first_epoch)
    return replace(train, dataset=replace(train.images, augmentation=augmentation))


def _validate(state: TrainState, training_plan: TrainingPlan, event: EpochDone, phase_data: PhaseData) -> EpochDone:
    val, metric, better = phase_data.val, training_plan.metric, training_plan.better
    by_weights = {"trained": _metrics(state.model, phase_data.eval_model, val, training_plan)}
    if state.average is not None:
        by_weights["average"] = _metrics(state.average.module, phase_data.eval_average, val, training_plan)
    by_weights = broadcast_object(by_weights)  # the same choice everywhere, whatever the last bit of a machine is
    metrics = by_weights["trained"]
    keys = {name: selection_key(val.task, found, metric=metric, better=better) for name, found in by_weights.items()}
    name, value = max(keys.items(), key=lambda pair: pair[1])
    is_best = state.best is None or value > state.best.score
    if is_best:
        state.best = Best(score=value, step=state.step, epoch=state.epochs_done, weights=name)
    in_last = state.phase == len(training_plan.phases) - 1
    state.stale_epochs = 0 if is_best or not in_last else state.stale_epochs + 1
    state.stopped = 0 < training_plan.patience <= state.stale_epochs
    return replace(event, metrics=metrics, average_metrics=by_weights.get("average", {}))


def _metrics(model: nn.Module, suffix: nn.Module | None, val: Batches, training_plan: TrainingPlan) -> dict[str, float]:
    """The metrics of a model: by its part behind the boundary where the batches begin there and it has one."""
    batches = val if suffix is not None else replace(val, dataset=val.images)
    eval_model = suffix or model
    with keep_own_state(eval_model):
        return evaluate_as_planned(eval_model, batches, training_plan).metrics


def evaluate_as_planned(model: nn.Module, batches: Batches, training_plan: TrainingPlan) -> Evaluation:
    """The evaluation in the run's arithmetic, the user's own metrics among the others."""
    rules, metric = training_plan.rules, "auto" if training_plan.better else training_plan.metric
    found = evaluate(model, batches, precision=rules.evaluated_in, memory_format=rules.memory_format, metric=metric)
    own = measure_own(training_plan.own_metrics, found.predictions.outputs, found.truth)
    return replace(found, metrics={**found.metrics, **own}, own=training_plan.own_metrics)


def evaluate_best(model: nn.Module, val: Batches, training_plan: TrainingPlan, *, epoch: int) -> Evaluation:
    """The evaluation of this epoch's model; from the cache where validation was read from it, once a batch of that,
    computed again by this very model, was found to be the same bits.
    """
    rules = training_plan.rules
    phase = next(
        phase for phase in training_plan.phases if phase.first_epoch < epoch <= phase.first_epoch + phase.epochs
    )
    eval_model, batches = model, val
    with keep_own_state(model), ExitStack() as stack:
        if "val" in phase.cached:
            frozen = what_freezes(model, phase.freeze, norm_statistics=phase.norm_statistics, fixed=phase.fixed)
            frozen = _without_moving(frozen, phase)
            with suppress(StorageError, ModelError):
                boundary = _prove_traced_boundary(model, frozen, val, rules)
                opened = open_activations(boundary, val, rules=rules, where=training_plan.cache)
                deque(stack.enter_context(closing(opened)).fill(), maxlen=0)
                eval_model, batches = boundary.eval_suffix, replace(val, dataset=opened)
        return evaluate_as_planned(eval_model, batches, training_plan)


def _prove_traced_boundary(model: nn.Module, frozen: Frozen, val: Batches, rules: StepRules) -> Boundary:
    """The proved boundary of the traced graph.

    Raises: ModelError: there is none. What runs a module's own code is not used once weights and attributes were put
    back from a file: it may keep what it was found with.
    """
    boundary = prove_boundary(model, frozen, val, rules)
    if isinstance(boundary.eval_suffix, Suffix):
        raise ModelError("model: it runs its own code behind the boundary")
    return boundary


def _is_over(state: TrainState, training_plan: TrainingPlan) -> bool:
    """Whether patience ended the run; not where it stopped in what was the last phase, and was extended since."""
    return state.stopped and state.phase == len(training_plan.phases) - 1


def frozen_digest(model: nn.Module, frozen: Frozen) -> dict[str, int]:
    """CRC-32 of the bytes of each frozen tensor, buffers included: a fifth of SHA-256's time, after every epoch.

    Buffers of modules that are not kept in evaluation mode are left out: a forward pass of the module's own may write
    them, as a counter that a model holds beside its frozen layers.
    """
    eval_modules, frozen_names = set(frozen.modules), set(frozen.tensors)
    return {
        name: zlib.crc32(_bytes(tensor))
        for name, tensor, is_buffer in iterate_tensors(model)
        if name in frozen_names and (not is_buffer or name.rpartition(".")[0] in eval_modules)
    }


def _check_equal(model: nn.Module) -> None:
    """Prove that every process has the same weights and buffers, to the bit."""
    if current().is_distributed:
        held = [tensor for _, tensor, _ in iterate_tensors(model) if local(tensor) is tensor]  # a part differs by rank
        digests = all_gather_object(_digest(held))
        assert len(set(digests)) == 1, f"the ranks' models differ: {digests}"


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return view_bytes(local(tensor.detach()).contiguous().cpu())
