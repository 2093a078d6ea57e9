"""Interval and baseline of a metric that is a function: as of headstart's own, and what cannot be had is said."""

from __future__ import annotations

import math
import re
import warnings
from time import sleep

import pytest
import torch
from torch import Tensor

from headstart.errors import ConfigError
from headstart.tasks.kinds import measure
from headstart.tasks.metrics import compute_macro_f1
from headstart.tasks.own_metrics import OwnMetric, measure_own
from headstart.tasks.own_ratings import Rating, rate_own
from headstart.tasks.task import TaskSpec
from headstart.training.evaluate import Evaluation, Predictions


def weighted_error(outputs: Tensor, truth: Tensor) -> float:
    """Of a resample that lacks a class it is refused, as scikit-learn's area under the curve is."""
    if len(set(truth.tolist())) < outputs.shape[1]:
        raise ValueError("Only one class\nis there")
    return float((outputs.argmax(1) != truth).float().mean())


def correlate(outputs: Tensor, truth: Tensor, *, none: float = math.nan) -> float:
    """No number where there are both classes, and every image gets the same answer."""
    return none if len(set(truth.tolist())) == 2 and outputs.eq(outputs[0]).all() else float(outputs[:, 0].mean())


def make_evaluation(task: TaskSpec, outputs: Tensor, truth: Tensor, own: dict[str, OwnMetric]) -> Evaluation:
    predictions = Predictions(task=task, outputs=outputs, keys=tuple(map(str, range(len(truth)))))
    metrics = measure(task, outputs, truth) | measure_own(own, outputs, truth)
    return Evaluation(predictions=predictions, truth=truth, metrics=metrics, own=own)


def test_a_function_has_the_interval_and_the_baseline_of_headstarts_own_metric() -> None:
    """Of the same formula: to the last digits, in every kind of task."""
    drawn = torch.Generator().manual_seed(0)
    truth = torch.randint(3, (60,), generator=drawn)
    outputs = (torch.rand(60, 3, generator=drawn) + torch.nn.functional.one_hot(truth, 3)).softmax(1)
    classes = TaskSpec(kind="classify", classes=("a", "b", "c"))

    def f1(outputs: Tensor, truth: Tensor) -> Tensor:
        return compute_macro_f1(outputs.argmax(1), truth, 3)

    tags = TaskSpec(kind="multilabel", classes=("a", "b"))
    flags = (torch.rand(60, 2, generator=drawn) < 0.4).float()
    sure = (0.3 * flags + torch.rand(60, 2, generator=drawn) / 2).clamp(0, 1)
    numbers = TaskSpec(kind="regress", targets=("t",), mean=(0.0,), std=(1.0,))
    heights = torch.randn(60, 1, generator=drawn, dtype=torch.float64).exp()
    for task, said, true, name, function in (
        (classes, outputs, truth, "macro_f1", f1),
        (tags, sure, flags, "nll", lambda said, true: torch.nn.functional.binary_cross_entropy(said, true)),
        (numbers, heights.float() * 1.3, heights, "mae", lambda said, true: (said - true).abs().mean()),
        (numbers, heights.float() * 1.3, heights, "rmse", lambda said, true: (said - true).square().mean().sqrt()),
    ):
        metric = OwnMetric(function=function, better="lower" if task is not classes else "higher")
        found = make_evaluation(task, said, true, {"mine": metric})
        if name == "rmse":
            assert found.rate("mine").baseline_says == "always the mean"
        mine, theirs = found.rate("mine"), found.rate(name)
        assert mine.remarks == ()
        for mine_end, their_end in ((mine.low, theirs.low), (mine.high, theirs.high), (mine.value, theirs.value)):
            assert mine_end == pytest.approx(their_end, rel=1e-4)
        if theirs.baseline is not None:
            assert mine.baseline == pytest.approx(theirs.baseline, rel=1e-4)


def test_a_function_that_changes_what_it_gets_changes_no_prediction() -> None:
    outputs, truth = torch.eye(3), torch.arange(3)
    measure_own(
        {"mine": OwnMetric(function=lambda said, true: said.zero_().sum() + true.zero_().sum())}, outputs, truth
    )
    assert outputs.equal(torch.eye(3)) and truth.equal(torch.arange(3))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            weighted_error,
            r"^no interval: on [\d,]+ of 1,012 resamples it fails \(ValueError: Only one class is there\)$",
        ),
        (lambda said, true: correlate(said, true), "^no baseline: on the same answer for every image it gives nan$"),
        (lambda said, true: 1 / correlate(said, true, none=0), r"^no baseline: .* it fails \(ZeroDivisionError: "),
        (lambda said, true: sleep(0.05) or 0.5, r"^no interval: a call takes \d+ ms, and 150 are needed$"),
        (
            lambda said, true: sleep(0.004) or float(said.argmax(1).eq(true).double().mean()),
            "^interval of 300 resamples",
        ),
    ],
)
def test_what_a_function_cannot_give_is_said(function, said: str, capsys) -> None:
    """Twelve images of two classes, one of which is rare."""
    truth = torch.tensor([0] * 11 + [1])
    outputs = torch.full((12, 2), 0.3)
    outputs[range(12), truth] = 0.7
    outputs[0] = torch.tensor([0.4, 0.6])

    def loud(said: Tensor, true: Tensor) -> float:
        print("called")
        warnings.warn("rarely", stacklevel=1)
        return function(said, true)

    rating = rate_own(
        OwnMetric(function=loud, better="higher"),
        TaskSpec(kind="classify", classes=("a", "b")),
        outputs,
        truth,
        value=0.5,
    )
    assert any(re.search(said, text) for text in rating.remarks), rating
    assert ("no interval" in said) == (rating.interval is None) and ("no baseline" in said) == (rating.baseline is None)
    assert capsys.readouterr().out == ""


def test_ratings_are_read_back_and_what_is_damaged_is_left_out() -> None:
    rating = Rating(value=0.5, low=0.25, high=0.75, baseline=0.5, baseline_says="always a", remarks=("why",))
    assert Rating.from_dict(0.5, rating.to_dict()) == rating
    assert Rating.from_dict(0.5, rating.to_dict() | {"low": "x"}) == Rating(value=0.5) == Rating.from_dict(0.5, None)


def test_a_metric_that_an_evaluation_does_not_have_is_refused() -> None:
    task = TaskSpec(kind="classify", classes=("a", "b"))
    found = make_evaluation(task, torch.eye(2), torch.arange(2), {})
    with pytest.raises(ConfigError, match="metric: 'top_2' is none of this evaluation's; accepted: accuracy, "):
        found.rate("top_2")
