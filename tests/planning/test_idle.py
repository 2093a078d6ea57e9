"""Options that change nothing are named in the plan, and the plan says nothing of what they would do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import headstart as hs


@dataclass(frozen=True)
class Case:
    """Options, the name under which the plan lists them where they change nothing, and whether they do."""

    options: dict[str, object]
    name: str
    is_idle: Callable[[dict[str, object]], bool]


def value(options: dict[str, object], name: str, usual: object) -> object:
    return options.get(name, usual)


CASES = [
    Case({"schedule.warmup": 0.3}, "schedule.warmup 0.3", lambda o: o.get("schedule.kind") == "one_cycle"),
    Case({"schedule.step_share": 0.4}, "schedule.step_share 0.4", lambda o: o.get("schedule.kind") != "step"),
    Case({"schedule.step_factor": 0.5}, "schedule.step_factor 0.5", lambda o: o.get("schedule.kind") != "step"),
    Case({"schedule.kind": "one_cycle"}, "", lambda _: False),
    Case({"schedule.kind": "step"}, "", lambda _: False),
    Case({"schedule.kind": "cosine"}, "", lambda _: False),
    Case({"average.half_life": 0.2}, "average.half_life 0.2", lambda o: o.get("average.kind") != "ema"),
    Case({"average.kind": "ema"}, "", lambda _: False),
    Case({"penalties.l1_on": "all"}, "penalties.l1_on all", lambda o: not o.get("penalties.l1")),
    Case({"penalties.l1": 1e-4}, "", lambda _: False),
    Case({"stop.patience": 2}, "stop.patience 2", lambda o: value(o, "epochs", 2) == 2),
    Case({"epochs": 5}, "", lambda _: False),
    Case({"optimizer.layer_decay": 0.5}, "optimizer.layer_decay 0.5", lambda o: o.get("recipe") == "probe"),
    Case({"recipe": "probe"}, "", lambda _: False),
    Case({"cache.dtype": "bf16"}, "cache.dtype bf16", lambda _: True),  # these runs are too short for a cache
    Case({"cache.views": 3}, "cache.views 3",
         lambda o: o.get("augment.preset") == "none" or value(o, "epochs", 2) == 2),
    Case({"augment.preset": "none"}, "", lambda _: False),
    Case({"attention": "plain"}, "attention plain", lambda _: True),  # a ResNet has none
    Case({"batch.accumulate": 64}, "", lambda _: False),
]  # fmt: skip
PAIRS = [(one, other) for one, other in combinations(CASES, 2) if not set(one.options) & set(other.options)]


@pytest.fixture
def plan_of(settings) -> Callable[..., hs.Plan]:
    """The plan of a run of two epochs with these options by dotted name."""
    usual = settings(recipe="full", epochs=2)

    def make(options: dict[str, object]) -> hs.Plan:
        return hs.plan(hs.load_config(usual, flags=options))

    return make


def said(plan: hs.Plan) -> dict[str, tuple[str, str]]:
    return {decision.name: (decision.value, decision.reason) for decision in plan.decisions}


def check(options: dict[str, object], idle: list[str], plan: hs.Plan) -> None:
    found = said(plan)
    listed = found.get("without effect", ("", ""))[0].split("; ") if "without effect" in found else []
    assert sorted(listed) == sorted(idle), options
    schedule, average = found["schedule"]
    assert ("warm-up" in schedule) == (options.get("schedule.kind") != "one_cycle")
    assert ("after each" in schedule) == (options.get("schedule.kind") == "step")
    assert ("half-life" in average) == (options.get("average.kind") == "ema")
    assert ("stop" in found) == ("stop.patience" in options and "stop.patience 2" not in idle)
    assert "on all" not in found.get("penalties", ("", ""))[0] or "penalties.l1" in options
    assert ("micro-batch" in found["batch"][1]) == ("batch.accumulate" in options)
    if "batch.accumulate" in options:  # 8 images: no micro-batch is of a single one
        assert found["batch"][1].startswith("in 4 micro-batches, not 64")
    for phase in plan.document["phases"]:
        assert options.get("recipe") != "probe" or phase["freeze"] == "backbone"


@hypothesis_settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pair=st.sampled_from(PAIRS))
def test_the_plan_names_what_changes_nothing_for_any_pair_of_options(plan_of, pair: tuple[Case, Case]) -> None:
    options = pair[0].options | pair[1].options
    idle = [case.name for case in pair if case.is_idle(options)]
    check(options, idle, plan_of(options))


def test_the_plan_of_usual_options_names_none(plan_of) -> None:
    check({}, [], plan_of({}))


def test_a_probe_of_random_weights_is_called_that(plan_of) -> None:
    assert "the weights are random" in said(plan_of({"recipe": "probe"}))["recipe"][1]
    assert "random" not in said(plan_of({}))["recipe"][1]
