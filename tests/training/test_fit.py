"""The loop: what it yields, its rates, and going on in the middle of an epoch."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from headstart.config.schema import AdamW, Schedule
from headstart.data.batch import Batch
from headstart.errors import ConfigError, NonFiniteError
from headstart.events import EpochDone, StepDone
from headstart.optim.groups import param_groups
from headstart.optim.optimizers import make_optimizer
from headstart.optim.schedules import rate_factor
from headstart.training.fit import fit
from headstart.training.rules import StepRules
from headstart.training.state import TrainState


def adamw(model, *, lr: float = 0.01, layer_decay: float = 0.5) -> TrainState:
    groups = param_groups(model, lr=lr, head_lr=10 * lr, layer_decay=layer_decay, weight_decay=0.05)
    return TrainState(model, make_optimizer(groups, AdamW(lr=lr)))


def test_an_epoch_is_its_steps_and_then_their_mean_loss(net, images) -> None:
    events = list(fit(adamw(net()), images.train, rules=StepRules(), epochs=2))
    kinds = [type(event).__name__ for event in events]
    assert kinds == ([*["StepDone"] * 4, "EpochDone"]) * 2
    for number in (1, 2):
        steps = [event for event in events if isinstance(event, StepDone) and event.epoch == number]
        (epoch,) = (event for event in events if isinstance(event, EpochDone) and event.epoch == number)
        assert [step.step for step in steps] == [number * 4 - 3 + place for place in range(4)]
        assert sum(step.images for step in steps) == len(images.train.samples)
        total = sum(step.loss * step.weight for step in steps)
        assert epoch.train_loss == pytest.approx(total / sum(step.weight for step in steps))
        assert (epoch.step, steps[-1].steps_in_epoch) == (number * 4, 4)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "step", "one_cycle"])
def test_every_schedule_reaches_every_group_with_its_own_rate(net, images, kind) -> None:
    """Where torch's schedulers would ignore timm's lr_scale, layer decay and head rate are in the rates themselves."""
    state, schedule = adamw(net()), Schedule(kind=kind, warmup=0.3)
    full = {group["name"]: group["lr"] for group in state.optimizer.param_groups}
    assert len(set(full.values())) == 3
    for event in fit(state, images.train, rules=StepRules(), epochs=2, schedule=schedule):
        if isinstance(event, StepDone):
            factor = rate_factor(schedule, event.step - 1, total=8)
            rates = {group["name"]: group["lr"] for group in state.optimizer.param_groups}
            assert rates == pytest.approx({name: rate * factor for name, rate in full.items()})
            assert (event.lr, event.head_lr) == pytest.approx((0.01 * factor, 0.1 * factor))


def test_without_a_schedule_the_rates_stay(net, images) -> None:
    state = adamw(net())
    before = [group["lr"] for group in state.optimizer.param_groups]
    list(fit(state, images.train, rules=StepRules(), epochs=1))
    assert [group["lr"] for group in state.optimizer.param_groups] == before


def test_without_a_schedule_a_scheduler_of_torch_sets_the_rates(net, images) -> None:
    state = adamw(net())
    before = [group["lr"] for group in state.optimizer.param_groups]
    scheduler, seen = torch.optim.lr_scheduler.StepLR(state.optimizer, 1, 0.1), []
    for event in fit(state, images.train, rules=StepRules(), epochs=1):
        if isinstance(event, StepDone):
            seen.append(event.head_lr)
            scheduler.step()
    assert seen == pytest.approx([0.1, 0.01, 0.001, 0.0001])
    assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx([rate * 1e-4 for rate in before])


@pytest.mark.parametrize("full", [True, False])
def test_without_a_schedule_a_rate_that_is_changed_by_hand_counts_from_the_next_step_on(net, images, full) -> None:
    state, seen = adamw(net()), []
    for group in state.optimizer.param_groups:
        group["lr"] = 0.5
        if not full:
            del group["initial_lr"]
    for event in fit(state, images.train, rules=StepRules(), epochs=1):
        if isinstance(event, StepDone):
            seen.append(event.lr)
            state.optimizer.param_groups[0]["lr"] = 0.5 + event.step
    assert seen == [0.5, 1.5, 2.5, 3.5]
    assert all(("initial_lr" in group) == full for group in state.optimizer.param_groups)


def test_with_a_schedule_a_rate_changes_by_its_full_one_and_another_change_is_refused(net, images) -> None:
    state, schedule, seen = adamw(net()), Schedule(kind="linear", warmup=0.0), []
    events = fit(state, images.train, rules=StepRules(), epochs=1, schedule=schedule)
    seen.append(next(events).head_lr)
    state.optimizer.param_groups[-1]["initial_lr"] *= 2
    seen.append(next(events).head_lr)
    assert seen == pytest.approx([0.1, 0.15])
    state.optimizer.param_groups[-1]["lr"] = 0.3
    with pytest.raises(ConfigError, match=r"step 3: the rate of group head was changed from 0.15 to 0.3, .*initial_lr"):
        next(events)
    assert state.step == 2


def test_with_a_schedule_an_optimizer_that_is_made_anew_is_taken_as_it_is(net, images) -> None:
    state, schedule = adamw(net()), Schedule(kind="constant", warmup=0.0)
    events = fit(state, images.train, rules=StepRules(), epochs=1, schedule=schedule)
    next(events)
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=0.7)
    assert next(events).lr == 0.7


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_loop_left_at_any_step_goes_on_as_if_it_had_not_been(net, images, stop) -> None:
    """Bit for bit, with dropout, augmentation and a schedule, also when left on an epoch's last step."""
    rules, schedule = StepRules(seed=3, accumulate=2), Schedule(kind="cosine", warmup=0.2)
    whole, parts = adamw(net(dropout=0.5)), adamw(net(dropout=0.5))
    expected = list(fit(whole, images.train, rules=rules, epochs=2, schedule=schedule))
    found = []
    for event in fit(parts, images.train, rules=rules, epochs=2, schedule=schedule):
        found.append(event)
        if isinstance(event, StepDone) and event.step == stop:
            break
    parts = copy.deepcopy(parts)
    torch.rand(17)
    found += fit(parts, images.train, rules=rules, epochs=2, schedule=schedule, first_epoch=0)
    for ours, theirs in zip(found, expected, strict=True):
        clock = {"seconds", "images_per_second", "input_seconds", "copy_seconds"}
        assert {name: value for name, value in vars(ours).items() if name not in clock} == {
            name: value for name, value in vars(theirs).items() if name not in clock
        }
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name]), name


def test_the_same_epoch_comes_in_another_order_next_time(net, images) -> None:
    seen: list[tuple[str, ...]] = []
    for epoch in (0, 0, 1):
        seen.append(tuple(key for batch in images.train.epoch(epoch) for key in batch.keys))
    assert seen[0] == seen[1] != seen[2]
    assert sorted(seen[0]) == sorted(seen[2])


def test_epochs_count_from_where_the_state_is(net, images) -> None:
    state = adamw(net())
    list(fit(state, images.train, rules=StepRules(), epochs=1))
    more = [
        event.epoch for event in fit(state, images.train, rules=StepRules(), epochs=2) if isinstance(event, EpochDone)
    ]
    assert more == [2, 3]
    assert (state.epochs_done, state.step, state.epoch_step) == (3, 12, 0)


def test_a_weight_that_is_not_finite_stops_at_the_epochs_end_with_its_name(net, images) -> None:
    state = adamw(net())
    with pytest.raises(NonFiniteError, match=r"epoch 1: fc.bias: not finite after step 4; try a lower rate"):
        for event in fit(state, images.train, rules=StepRules(), epochs=2):
            if isinstance(event, StepDone) and event.step == 4:
                with torch.no_grad():
                    state.model.fc.bias[0] = float("inf")


def test_the_time_in_which_a_step_waits_for_its_images_is_told(net, images) -> None:
    class Slow:
        def __len__(self) -> int:
            return len(images.train)

        def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
            for batch in images.train.epoch(epoch, first=first):
                time.sleep(0.05)
                yield batch

    *_, done = fit(adamw(net()), Slow(), rules=StepRules(), epochs=1)
    assert isinstance(done, EpochDone)
    assert 0.05 * len(images.train) <= done.input_seconds <= done.seconds


def test_training_learns_what_can_be_learned(net, images) -> None:
    state, losses = adamw(net(norm=True), lr=0.02), []
    for event in fit(state, images.train, rules=StepRules(), epochs=8):
        losses += [event.train_loss] if isinstance(event, EpochDone) else []
    assert losses[-1] < 0.5 * losses[0]
    batch = next(images.val.epoch(0))
    scores = state.model.eval()(batch.inputs(torch.device("cpu"), torch.contiguous_format))[: batch.size]
    assert F.cross_entropy(scores, batch.targets[: batch.size]) < 0.7
