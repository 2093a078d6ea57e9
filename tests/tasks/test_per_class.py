from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support

from headstart.errors import StorageError
from headstart.tasks import classify, multilabel, regress
from headstart.tasks.intervals import Interval, bootstrap, wilson
from headstart.tasks.tags import join_tags, split_tags


def test_wilson_gives_the_published_interval():
    found = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_holds_the_share_and_stays_within_0_and_1(total: int, share: float):
    successes = round(total * share)
    found = wilson(successes, total)
    assert found is not None
    assert 0 <= found.low <= successes / total <= found.high <= 1


def test_no_images_have_no_interval():
    assert wilson(0, 0) is None
    assert bootstrap(lambda weights: weights.sum(1), size=1) is None


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval_and_repeats_itself():
    values = np.random.default_rng(3).normal(10, 2, 400)
    found = [bootstrap(lambda weights: weights @ torch.from_numpy(values) / 400, size=400) for _ in range(2)]
    assert found[0] == found[1]
    half = 1.96 * values.std() / math.sqrt(400)
    assert found[0] is not None
    assert found[0].low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found[0].high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_a_bootstrap_that_would_take_minutes_is_not_begun():
    assert bootstrap(lambda weights: pytest.fail("was called"), size=10**6, cost=1000) is None


def test_class_scores_equal_scikit_learns():
    rng = np.random.default_rng(0)
    classes = ["a", "b", "c", "never"]
    truth = rng.choice(["a", "b", "c"], 200)
    said = np.where(rng.random(200) < 0.7, truth, rng.choice(classes, 200))
    rows = [{"id": str(i), "truth": t, "prediction": p} for i, (t, p) in enumerate(zip(truth, said, strict=True))]
    found = classify.score_rows(rows, classes)
    precision, recall, f1, support = precision_recall_fscore_support(truth, said, labels=classes, zero_division=0)
    assert np.array_equal(found.confusion, confusion_matrix(truth, said, labels=classes))
    for k, row in enumerate(found.classes):
        assert row.support == support[k]
        assert row.f1 == pytest.approx(f1[k])
        assert math.isnan(row.recall) if not support[k] else row.recall == pytest.approx(recall[k])
        assert row.precision == pytest.approx(precision[k])
    worst = found.confused[0]
    assert worst.count == max(c for i, line in enumerate(found.confusion) for j, c in enumerate(line) if i != j)
    assert worst.share == worst.count / found.classes[classes.index(worst.truth)].support
    assert found.macro_f1_interval is not None
    assert found.macro_f1_interval.low < f1[:4].mean() < found.macro_f1_interval.high


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])), min_size=1, max_size=30))
def test_average_precision_equals_scikit_learns_also_with_ties(pairs: list[tuple[bool, float]]):
    rows = [{"id": "i", "truth": "t" * given, "prediction": "", "p:t": str(p)} for given, p in pairs]
    found = multilabel.score_rows(rows, ["t"]).tags[0]
    if not any(given for given, _ in pairs):
        assert math.isnan(found.average_precision)
    else:
        expected = average_precision_score([given for given, _ in pairs], [p for _, p in pairs])
        assert found.average_precision == pytest.approx(expected)


def test_a_resampled_average_precision_is_that_of_the_repeated_images():
    truth, scores = np.array([1, 0, 1, 0, 1, 0] * 5), np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.1] * 5)
    rows = [{"truth": "t" * bool(t), "prediction": "", "p:t": str(p)} for t, p in zip(truth, scores, strict=True)]
    found = multilabel.score_rows(rows, ["t"]).map_interval
    rng, values = np.random.default_rng(0), []
    for _ in range(1000):
        drawn = rng.integers(30, size=30)
        values.append(average_precision_score(truth[drawn], scores[drawn]))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))))


@pytest.mark.parametrize(
    "tags",
    [[], ["sea"], ["sea", "sun"], ["a;b", "a", "b"], [";"], ["\\", "\\;", ";\\"], ["a\\b", "c\\"], ["a\nb", ", "]],
)
def test_tags_come_back_from_one_cell_whatever_they_hold(tags):
    assert split_tags(join_tags(tags)) == tags


def test_a_single_backslash_in_a_cell_of_an_earlier_version_stays():
    assert split_tags(r"a\b;c") == [r"a\b", "c"]


def test_a_tag_that_holds_the_separator_or_another_tag_is_counted_exactly():
    rows = [
        {"truth": join_tags(truth), "prediction": "", "p:a": "0.1", "p:a;b": "0.2", "p:b": "0.3"}
        for truth in (["a;b"], ["a", "b"], ["b"])
    ]
    assert [tag.support for tag in multilabel.score_rows(rows, ["a", "a;b", "b"]).tags] == [1, 1, 2]


def test_target_errors_are_in_the_targets_unit():
    rows = [{"truth:p": "100", "prediction:p": "110"}, {"truth:p": "200", "prediction:p": "170"}]
    (found,) = regress.score_rows(rows, ["p"]).targets
    assert (found.mae, found.bias) == (20, -10)
    assert found.rmse == pytest.approx(math.sqrt(500))
    assert found.r2 == pytest.approx(1 - 1000 / 5000)
    assert isinstance(found.mae_interval, Interval)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "x.png", "truth": "dog", "prediction": "a"}, "truth of x.png is 'dog', not a class of the plan"),
        ({"id": "x.png", "truth": "a"}, "no column 'prediction'"),
    ],
)
def test_predictions_that_do_not_fit_the_plan_are_refused(row: dict[str, str], message: str):
    with pytest.raises(StorageError, match=message):
        classify.score_rows([row], ["a", "b"])


def test_a_prediction_that_is_no_number_is_refused():
    with pytest.raises(StorageError, match=r"prediction:p of x.png is 'much', no number"):
        regress.score_rows([{"id": "x.png", "truth:p": "1", "prediction:p": "much"}], ["p"])
