"""The formulas of metrics: torchmetrics' to the bit, scikit-learn's within rounding, and their own laws."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as by
import torchmetrics.functional.regression as of_numbers

from headstart.tasks.kinds import KINDS, find_kind, measure, measure_present, selection_key
from headstart.tasks.metrics import (
    compute_accuracy,
    compute_average_precision,
    compute_class_nll,
    compute_f1,
    compute_macro_f1,
    compute_mae,
    compute_r2,
    compute_rmse,
    compute_tag_nll,
    is_lower_better,
)
from headstart.tasks.task import TaskSpec

NUMBERS = TaskSpec(kind="regress", targets=("y",), mean=(0.002,), std=(0.001,))
CASES = [  # images, classes or tags, digits of the probabilities (few: ties)
    (images, classes, digits, seed)
    for seed, (images, classes, digits) in enumerate(
        (n, k, d) for n in (1, 2, 7, 64, 333, 2000) for k in (2, 3, 11, 40) for d in (1, 2, 9)
    )
]


@pytest.fixture(params=CASES, ids=str)
def drawn(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities of classes (N, K), labels (N,), and tags (N, K), some of which no image has."""
    images, classes, digits, seed = request.param
    rng = torch.Generator().manual_seed(seed)
    probabilities = (2 * torch.randn(images, classes, generator=rng)).softmax(1)
    probabilities = (probabilities * 10**digits).round() / 10**digits
    labels = torch.randint(max(1, classes - 1), (images,), generator=rng)
    return probabilities, labels, (torch.rand(images, classes, generator=rng) < 0.2).long()


def test_class_metrics_are_torchmetrics_to_the_bit_and_scikit_learns(drawn) -> None:
    probabilities, labels, _ = drawn
    predicted, classes = probabilities.argmax(1), probabilities.shape[1]
    accuracy, f1 = compute_accuracy(predicted, labels), compute_macro_f1(predicted, labels, classes)
    assert torch.equal(accuracy, by.multiclass_accuracy(probabilities, labels, num_classes=classes, average="micro"))
    assert torch.equal(f1, by.multiclass_f1_score(probabilities, labels, num_classes=classes, average="macro"))
    assert float(accuracy) == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert float(f1) == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0))


def test_average_precision_is_torchmetrics_to_the_bit_and_scikit_learns(drawn) -> None:
    probabilities, _, tags = drawn
    for scores, flags in zip(probabilities.T, tags.T, strict=True):
        found = compute_average_precision(scores, flags > 0)
        if not flags.any():
            assert math.isnan(found)
            continue
        assert torch.equal(found, by.binary_average_precision(scores, flags))
        assert float(found) == pytest.approx(sklearn.metrics.average_precision_score(flags, scores), rel=1e-5)


def test_f1_of_tags_is_torchmetrics_to_the_bit(drawn) -> None:
    probabilities, _, tags = drawn
    said, known = probabilities > 0.5, tags > 0
    found = compute_f1((said & known).sum(0), known.sum(0), said.sum(0))
    expected = [by.binary_f1_score(scores, flags) for scores, flags in zip(probabilities.T, tags.T, strict=True)]
    assert torch.equal(found, torch.stack(expected))


def test_likelihoods_are_scikit_learns(drawn) -> None:
    probabilities, labels, tags = drawn
    probabilities = (probabilities.double() + 1e-3) / (probabilities.double() + 1e-3).sum(1, keepdim=True)
    known = range(probabilities.shape[1])
    expected = sklearn.metrics.log_loss(labels, probabilities, labels=list(known))
    assert float(compute_class_nll(probabilities, labels)) == pytest.approx(expected)
    each = [sklearn.metrics.log_loss(tags[:, k], probabilities[:, k], labels=[0, 1]) for k in known]
    assert float(compute_tag_nll(probabilities, tags)) == pytest.approx(np.mean(each))


@pytest.mark.parametrize("images", [2, 3, 17, 200, 1000, 4097])
def test_errors_are_torchmetrics_to_the_bit_and_scikit_learns(images: int) -> None:
    rng = torch.Generator().manual_seed(images)
    values, truth = (100 * torch.randn(images, 2, generator=rng, dtype=torch.float64)[:, 0] for _ in range(2))
    mae, rmse, r2 = compute_mae(values, truth), compute_rmse(values, truth), compute_r2(values, truth)
    assert torch.equal(mae, of_numbers.mean_absolute_error(values, truth))
    assert torch.equal(rmse, of_numbers.mean_squared_error(values, truth, squared=False))
    assert r2 == pytest.approx(float(of_numbers.r2_score(values, truth)), rel=1e-9)
    assert float(mae) == pytest.approx(sklearn.metrics.mean_absolute_error(truth, values))
    assert float(rmse) == pytest.approx(sklearn.metrics.root_mean_squared_error(truth, values))
    assert r2 == pytest.approx(sklearn.metrics.r2_score(truth, values))


def test_a_weighted_metric_is_that_of_the_repeated_images() -> None:
    rng = torch.Generator().manual_seed(5)
    labels, predicted = (torch.randint(4, (30,), generator=rng) for _ in range(2))
    scores, truth = (torch.rand(30, generator=rng, dtype=torch.float64).mul(5).round() for _ in range(2))
    drawn = torch.stack([torch.bincount(torch.randint(30, (30,), generator=rng), minlength=30) for _ in range(20)])
    weighted = [
        compute_macro_f1(predicted, labels, 5, drawn.double()),
        compute_average_precision(scores, (labels > 1).double(), drawn.double()),
        compute_mae(scores, truth, drawn.double()),
    ]
    for place, counts in enumerate(drawn):
        again = torch.arange(30).repeat_interleave(counts)
        repeated = [
            compute_macro_f1(predicted[again], labels[again], 5),
            compute_average_precision(scores[again], labels[again] > 1),
            compute_mae(scores[again], truth[again]),
        ]
        assert [float(each[place]) for each in weighted] == pytest.approx([float(each) for each in repeated], rel=1e-5)


def test_classes_and_tags_that_no_image_has_are_named_and_never_counted_as_0() -> None:
    names, rng = ("a", "b", "c", "d"), torch.Generator().manual_seed(3)
    probabilities = torch.rand(40, 4, generator=rng)
    labels = torch.randint(3, (40,), generator=rng)  # no image is of d, and some are called so
    found, absent = measure_present(TaskSpec(kind="classify", classes=names), probabilities, labels)
    assert absent == ("d",) and 3 in probabilities.argmax(1)
    expected = sklearn.metrics.f1_score(labels, probabilities.argmax(1), labels=[0, 1, 2], average="macro")
    assert found["macro_f1"] == pytest.approx(expected)
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, probabilities.argmax(1)))
    tags = torch.randint(2, (40, 4), generator=rng).float()
    tags[:, 1] = 0
    found, absent = measure_present(TaskSpec(kind="multilabel", classes=names), probabilities, tags)
    kept = [0, 2, 3]
    assert absent == ("b",)
    assert found == pytest.approx(
        measure(TaskSpec(kind="multilabel", classes=("a", "c", "d")), probabilities[:, kept], tags[:, kept])
    )
    whole = TaskSpec(kind="classify", classes=names[:3])
    assert measure_present(whole, probabilities[:, :3], labels) == (measure(whole, probabilities[:, :3], labels), ())


@pytest.mark.parametrize("name", KINDS)
def test_a_kinds_main_metric_decides_which_epoch_is_better(name: str) -> None:
    kind = find_kind(name)
    names = {"targets": ("x",), "mean": (0.0,), "std": (1.0,)} if kind.gives_numbers else {"classes": ("x", "y")}
    task = TaskSpec(kind=kind.name, **names)
    main = kind.metrics["auto"]
    low, high = ({main: value, "nll": 1.0} for value in (0.2, 0.3))
    better, worse = (low, high) if is_lower_better(main) else (high, low)
    assert selection_key(task, better) > selection_key(task, worse) > selection_key(task, {})


def test_what_the_images_do_not_define_is_left_out_without_a_warning() -> None:
    tags = TaskSpec(kind="multilabel", classes=("red", "blue"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(tags, torch.tensor([[0.9, 0.2]]), torch.zeros(1, 2))
        one = measure(NUMBERS, torch.tensor([[1.0]]), torch.tensor([[1.0]]))
    assert set(found) == {"macro_f1", "nll"}
    assert "r2" not in one


def test_r2_of_small_numbers_is_that_of_large_ones() -> None:
    truth = torch.linspace(0.001, 0.003, 20)[:, None]
    for values in (truth, 0.004 - truth, torch.full_like(truth, 0.002), truth + 0.0003):
        large = TaskSpec(kind="regress", targets=("y",), mean=(2.0,), std=(1.0,))
        small = measure(NUMBERS, values, truth)["r2"]
        assert small == pytest.approx(measure(large, values * 1000, truth * 1000)["r2"], abs=1e-4)


def test_a_single_tag_has_an_average_precision() -> None:
    task = TaskSpec(kind="multilabel", classes=("red",))
    scores = torch.tensor([[0.9], [0.2], [0.8], [0.1]])
    assert measure(task, scores, torch.tensor([[1.0], [0.0], [1.0], [0.0]]))["mean_average_precision"] == 1.0


def test_targets_of_different_units_count_alike_for_what_is_best() -> None:
    task = TaskSpec(kind="regress", targets=("price", "rooms"), mean=(3e5, 4.0), std=(1e5, 1.0))
    truth = torch.tensor([[2e5, 3.0], [4e5, 5.0]])
    rooms_right = measure(task, torch.tensor([[2e5 + 1, 3.0], [4e5 + 1, 5.0]]), truth)
    rooms_wrong = measure(task, torch.tensor([[2e5, 5.0], [4e5, 3.0]]), truth)
    assert rooms_right["mae:price"] == 1
    assert selection_key(task, rooms_right) > selection_key(task, rooms_wrong)
