"""Rates as functions of the step: against torch's schedulers where they have the same definition, and laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from headstart.config.schema import Schedule
from headstart.optim.schedules import rate_factor

KINDS = ("linear", "cosine", "constant", "step", "one_cycle")


def factors(schedule: Schedule, total: int) -> list[float]:
    return [rate_factor(schedule, step, total=total) for step in range(total)]


def torchs(total: int, make) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("total", [1, 2, 7, 50])
def test_linear_and_cosine_are_torchs(total) -> None:
    linear = torchs(total, lambda o: lr_scheduler.LinearLR(o, 1.0, end_factor=0.0, total_iters=total))
    assert factors(Schedule(kind="linear", warmup=0), total) == pytest.approx(linear)
    cosine = torchs(total, lambda o: lr_scheduler.CosineAnnealingLR(o, total))
    assert factors(Schedule(kind="cosine", warmup=0), total) == pytest.approx(cosine)


@pytest.mark.parametrize(("share", "size"), [(0.1, 5), (0.2, 10), (0.3, 15), (0.5, 25)])
def test_step_is_torchs_and_drops_on_time(share, size) -> None:
    expected = torchs(50, lambda o: lr_scheduler.StepLR(o, size, gamma=0.3))
    schedule = Schedule(kind="step", warmup=0, step_share=share, step_factor=0.3)
    assert factors(schedule, 50) == pytest.approx(expected)


@pytest.mark.parametrize("total", [5, 10, 33, 100])
def test_one_cycle_is_torchs(total) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total), []
    for step in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    assert factors(Schedule(kind="one_cycle"), total) == pytest.approx(found)


def test_warm_up_is_torchs_and_then_comes_the_shape() -> None:
    warmed = factors(Schedule(kind="cosine", warmup=0.29), 100)
    rising = torchs(30, lambda o: lr_scheduler.LinearLR(o, 1 / 30, total_iters=29))
    assert warmed[:30] == pytest.approx(rising)  # 29 steps: 0.29 * 100 is 28.999999999999996
    assert warmed[29:] == pytest.approx(factors(Schedule(kind="cosine", warmup=0), 71))


def test_constant_is_the_full_rate() -> None:
    assert factors(Schedule(kind="constant", warmup=0), 5) == [1.0] * 5


@given(st.sampled_from(KINDS), st.floats(0, 0.999), st.integers(1, 400), st.data())
def test_every_factor_is_above_zero_and_at_most_one(kind, warmup, total, data) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert 0 < rate_factor(Schedule(kind=kind, warmup=warmup), step, total=total) <= 1


@given(st.sampled_from(("linear", "cosine", "step")), st.floats(0, 0.9), st.integers(2, 200))
def test_a_rate_rises_in_the_warm_up_and_never_after(kind, warmup, total) -> None:
    found = factors(Schedule(kind=kind, warmup=warmup), total)
    peak = found.index(max(found))
    assert peak <= math.floor(warmup * total + 1e-9)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
