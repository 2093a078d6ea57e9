"""A run as a list of phases: what is frozen, what the optimizer keeps, which epoch is the best."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from headstart.config.schema import AdamW, Schedule, Sgd, Stages, TimmOptimizer
from headstart.errors import RunError
from headstart.events import EpochDone, PhaseStarted, StepDone
from headstart.surgery.freeze import freeze_by
from headstart.tasks.kinds import selection_key
from headstart.training.activation_cache import CacheRules
from headstart.training.evaluate import evaluate
from headstart.training.phases import PhasePlan, TrainingPlan, enter_phase, train_phases
from headstart.training.rules import StepRules
from headstart.training.state import TrainState, make_average
from headstart.training.step import train_step


def phase(name: str, freeze, *, first: int = 0, epochs: int = 1, lr: float = 1e-2, norms="batch") -> PhasePlan:
    return PhasePlan(
        name=name, freeze=freeze, first_epoch=first, epochs=epochs, lr=lr, head_lr=lr, layer_decay=0.5,
        norm_statistics=norms,
    )  # fmt: skip


def course(*phases: PhasePlan, optimizer=None, patience: int = 0, **rules) -> TrainingPlan:
    return TrainingPlan(
        phases=phases, optimizer=optimizer or AdamW(), schedule=Schedule(kind="constant", warmup=0),
        rules=StepRules(**rules), patience=patience,
        cache=CacheRules(folder=Path("nowhere"), model="net", dtype="auto", limit_bytes=0),
    )  # fmt: skip


def fresh(model: nn.Module) -> TrainState:
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=0.0))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


PROBE_THEN_ALL = (phase("probe", "backbone"), phase("all", "none", first=1))


def test_unfreezing_keeps_the_heads_optimizer_state_and_drops_nothing(net, images) -> None:
    state, plan = fresh(net(norm=True)), course(*PROBE_THEN_ALL)
    enter_phase(state, plan, 0)
    assert {name for group in state.optimizer.param_groups for name in group["names"]} == {"fc.weight", "fc.bias"}
    for batch in images.train.epoch(0):
        train_step(state, batch, rules=plan.rules)
    before = copy.deepcopy(state.optimizer.state[state.model.fc.weight])
    enter_phase(state, plan, 1)
    kept = state.optimizer.state[state.model.fc.weight]
    assert kept["step"] == before["step"] == 4
    assert torch.equal(kept["exp_avg"], before["exp_avg"])
    grouped = {name for group in state.optimizer.param_groups for name in group["names"]}
    assert grouped == {name for name, _ in state.model.named_parameters()}
    assert state.model.conv1.weight not in state.optimizer.state


def test_norms_whose_statistics_are_frozen_train_their_weights_and_act_as_in_evaluation(net, images) -> None:
    """The first step of the second phase sees the very features that the head was trained on."""
    model = net(norm=True)
    plan = course(phase("probe", "backbone"), phase("all", "none", first=1, norms="frozen"))
    norm = next(part for part in model.modules() if isinstance(part, nn.BatchNorm2d))
    before = snapshot(norm)
    events = list(train_phases(fresh(model), plan, images.train, images.val))
    assert all(torch.equal(before[name], value) for name, value in snapshot(norm).items() if "running" in name)
    assert not torch.equal(before["weight"], norm.weight)
    assert not torch.equal(before["bias"], norm.bias)
    started = [event for event in events if isinstance(event, PhaseStarted)]
    assert started[1].frozen == 0  # buffers are no parameters
    pixels = next(iter(images.val.epoch(0))).inputs(torch.device("cpu"), torch.contiguous_format)
    model.train()
    in_training = model(pixels)
    assert torch.equal(in_training, model.eval()(pixels))


def test_an_optimizer_that_counts_by_group_goes_on_counting(net, images) -> None:
    """timm's lamb: with its count back at 1 and its means kept, the head's first step would be 10 times too long."""
    plan = course(*PROBE_THEN_ALL, optimizer=TimmOptimizer(name="lamb", lr=1e-2))
    state = fresh(net())
    enter_phase(state, plan, 0)
    for batch in images.train.epoch(0):
        train_step(state, batch, rules=plan.rules)
    enter_phase(state, plan, 1)
    steps = {group["name"]: float(group.get("step", 0)) for group in state.optimizer.param_groups}
    assert steps == {"conv1": 0, "conv2": 0, "head": 4}


def test_what_is_frozen_again_and_freed_starts_anew(net, images) -> None:
    plan = course(phase("a", "none"), phase("b", "backbone", first=1), phase("c", "none", first=2))
    state = fresh(net())
    for index in range(3):
        enter_phase(state, plan, index)
        train_step(state, next(images.train.epoch(index)), rules=plan.rules)
    assert state.optimizer.state[state.model.fc.weight]["step"] == 3
    assert state.optimizer.state[state.model.conv1.weight]["step"] == 1


def test_frozen_weights_and_statistics_are_bit_equal_after_a_phase(net, images) -> None:
    state, plan = fresh(net(norm=True)), course(phase("probe", "backbone", epochs=2))
    before = snapshot(state.model)
    list(train_phases(state, plan, images.train, images.val))
    after = state.model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["fc.weight", "fc.bias"]


def test_statistics_of_frozen_stages_stand_while_later_ones_move(net, images) -> None:
    model = nn.Sequential(*net(norm=True))
    deeper = nn.Sequential()
    for name, part in zip(
        ["conv1", "bn1", "act1", "conv2", "bn2", "act2", "pool", "flat", "fc"],
        [model[0], model[1], model[2], model[3], nn.BatchNorm2d(16), *list(model)[4:]],
        strict=True,
    ):
        deeper.add_module(name, part)
    state = fresh(deeper)
    before = snapshot(deeper)
    list(train_phases(state, course(phase("top", Stages(stages=1))), images.train, images.val))
    after = deeper.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(("conv1", "bn1")) for name in changed)
    assert {"bn2.running_mean", "bn2.num_batches_tracked", "conv2.weight", "fc.weight"} <= changed


def test_a_frozen_tensor_that_changes_is_found(net, images) -> None:
    state = fresh(net(norm=True))
    events = train_phases(state, course(phase("probe", "backbone")), images.train, images.val)
    with pytest.raises(RunError, match=r"phase probe: bn1.running_var: frozen, and changed all the same"):
        for event in events:
            if isinstance(event, StepDone) and event.step == 2:
                state.model.bn1.running_var[0] += 1e-6


def test_a_tensor_with_two_names_is_frozen_and_proven_like_any_other(net, images) -> None:
    model = net()
    tied = nn.Sequential()
    again = nn.Conv2d(8, 8, 3, padding=1)
    for name, part in {"conv1": model.conv1, "one": again, "act1": nn.ReLU(), "two": again, "pool": model.pool,
                       "flat": model.flat, "fc": nn.Linear(8, 3)}.items():  # fmt: skip
        tied.add_module(name, part)
    before = again.weight.clone()
    events = list(train_phases(fresh(tied), course(phase("probe", "backbone")), images.train, images.val))
    assert isinstance(events[-1], EpochDone)
    assert torch.equal(again.weight, before)


def test_events_come_in_order_with_the_phase_and_its_metrics(net, images) -> None:
    state = fresh(net())
    events = list(train_phases(state, course(*PROBE_THEN_ALL), images.train, images.val))
    kinds = [type(event).__name__ for event in events]
    assert kinds == ["PhaseStarted", *["StepDone"] * 4, "EpochDone"] * 2
    probe, everything = (event for event in events if isinstance(event, PhaseStarted))
    total = sum(value.numel() for value in state.model.parameters())
    assert (probe.trainable, probe.frozen) == (51, total - 51)
    assert (everything.name, everything.trainable, everything.frozen) == ("all", total, 0)
    ends = [event for event in events if isinstance(event, EpochDone)]
    assert [(event.epoch, event.phase, event.step) for event in ends] == [(1, 0, 4), (2, 1, 8)]
    assert ends[-1].metrics == evaluate(state.model, images.val).metrics
    assert ends[-1].average_metrics == {}


@pytest.mark.parametrize("optimizer", [AdamW(), Sgd(momentum=0.9)])
def test_a_state_between_two_phases_goes_on_with_the_second(net, images, optimizer) -> None:
    plan = course(*PROBE_THEN_ALL, optimizer=optimizer)
    whole, parts = fresh(net(norm=True)), fresh(net(norm=True))
    list(train_phases(whole, plan, images.train, images.val))
    for event in train_phases(parts, plan, images.train, images.val):
        if isinstance(event, EpochDone):
            break
    rest = list(train_phases(parts, plan, images.train, images.val))
    assert isinstance(rest[0], PhaseStarted) and rest[0].index == 1
    assert all(torch.equal(value, parts.model.state_dict()[name]) for name, value in whole.model.state_dict().items())


def test_training_stops_after_as_many_epochs_without_a_better_one_as_patience_says(net, images) -> None:
    """With a rate of next to nothing no epoch is better than the first."""
    state = fresh(net())
    plan = course(phase("all", "none", epochs=9, lr=1e-30), patience=2)
    ends = [event for event in train_phases(state, plan, images.train, images.val) if isinstance(event, EpochDone)]
    assert [event.epoch for event in ends] == [1, 2, 3]
    assert state.stopped
    assert state.best.epoch == 1
    assert list(train_phases(state, plan, images.train, images.val)) == []


def test_patience_counts_in_the_last_phase_only(net, images) -> None:
    phases = phase("probe", "backbone", epochs=3, lr=1e-30), phase("all", "none", first=3, epochs=3, lr=1e-30)
    state = fresh(net())
    ends = [
        e
        for e in train_phases(state, course(*phases, patience=1), images.train, images.val)
        if isinstance(e, EpochDone)
    ]
    assert [event.epoch for event in ends] == [1, 2, 3, 4]


def test_the_best_epoch_is_the_one_with_the_best_metrics_of_either_weights(net, images) -> None:
    state = fresh(net(norm=True))
    state.average = make_average(state.model, half_life=0.5, total_steps=20)
    found = []
    for event in train_phases(state, course(phase("all", "none", epochs=5, lr=0.05)), images.train, images.val):
        if isinstance(event, EpochDone):
            found += [(selection_key(images.task, event.metrics), event.epoch, "trained")]
            found += [(selection_key(images.task, event.average_metrics), event.epoch, "average")]
            assert event.average_metrics == evaluate(state.average.module, images.val).metrics
            best = max(found, key=lambda row: row[0])
            assert (state.best.score, state.best.epoch, state.best.weights) == best
            assert state.best.step == state.best.epoch * 4


@pytest.mark.parametrize("metric", ["nll", "balanced_accuracy"])
def test_the_best_epoch_is_the_one_that_is_best_in_the_metric_that_is_asked_for(net, images, metric: str) -> None:
    state, found = fresh(net(norm=True)), []
    asked = replace(course(phase("all", "none", epochs=6, lr=0.2)), metric=metric)
    for event in train_phases(state, asked, images.train, images.val):
        if isinstance(event, EpochDone):
            found.append(event.metrics)
    better = min if metric == "nll" else max
    values = [metrics[metric] for metrics in found]
    assert len(set(values)) > 1
    assert state.best.score[0] == (-1 if metric == "nll" else 1) * better(values)
    assert values[state.best.epoch - 1] == better(values)


def test_the_average_is_the_one_written_by_hand(net, images) -> None:
    """Half counts what lies half_life of all steps back; statistics are averaged, counters are the model's own."""
    state = fresh(net(norm=True))
    state.average = make_average(state.model, half_life=0.25, total_steps=8)
    decay = 0.5 ** (1 / 2)
    by_hand = None
    for event in train_phases(state, course(phase("all", "none", epochs=2)), images.train, images.val):
        if isinstance(event, StepDone):
            now = snapshot(state.model)
            if event.step <= 2:  # timm's starts from the weights of the second step
                by_hand = now
            for name, value in now.items():
                kept = by_hand[name]
                by_hand[name] = decay * kept + (1 - decay) * value if value.is_floating_point() else value
    for name, value in state.average.module.state_dict().items():
        torch.testing.assert_close(value, by_hand[name], rtol=1e-5, atol=1e-7)
    assert not torch.equal(state.average.module.fc.weight, state.model.fc.weight)


def test_a_frozen_part_stays_as_it_is_in_the_average_too(net, images) -> None:
    state = fresh(net(norm=True))
    state.average = make_average(state.model, half_life=0.25, total_steps=4)
    before = snapshot(state.model)
    list(train_phases(state, course(phase("probe", "backbone")), images.train, images.val))
    averaged = state.average.module.state_dict()
    assert all(torch.equal(before[name], averaged[name]) for name in before if not name.startswith("fc"))


def test_freezing_survives_the_users_own_train_in_the_middle_of_a_phase(net, images) -> None:
    state = fresh(net(norm=True))
    before = snapshot(state.model)
    for event in train_phases(state, course(phase("probe", "backbone")), images.train, images.val):
        if isinstance(event, StepDone):
            state.model.train()
    assert torch.equal(before["bn1.running_mean"], state.model.bn1.running_mean)
    freeze_by(state.model, "none")
    assert state.model.train().bn1.training


def test_a_validation_without_the_main_metric_is_worse_than_any_with_it(net, images, as_task) -> None:
    tagged = as_task("multilabel")
    empty = tagged.val.with_samples(tuple(replace(s, target=(0.0, 0.0, 0.0)) for s in tagged.val.samples))
    state = fresh(net())
    list(train_phases(state, course(phase("all", "none"), loss="bce"), tagged.train, empty))
    assert state.best.epoch == 1
    enter = course(phase("all", "none", epochs=2), loss="bce")
    list(train_phases(state, enter, tagged.train, tagged.val))
    assert state.best.epoch == 2
