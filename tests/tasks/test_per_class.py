from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    r2_score,
    root_mean_squared_error,
)

from headstart.errors import StorageError
from headstart.runs.folder import write_predictions
from headstart.tasks import classify, multilabel, regress
from headstart.tasks.intervals import Interval, bootstrap, correct_percentiles, wilson
from headstart.tasks.kinds import find_kind
from headstart.tasks.metrics import resample_r2
from headstart.tasks.tags import join_tags, split_tags
from headstart.tasks.task import TaskSpec
from headstart.training.evaluate import Evaluation, Predictions


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
    interval = found.find_interval("macro_f1")
    assert interval is not None
    assert interval.low < f1[:4].mean() < interval.high


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
    found = multilabel.score_rows(rows, ["t"]).find_interval("mean_average_precision")
    rng = np.random.default_rng(0)
    draws = [rng.integers(30, size=30) for _ in range(1000)]
    values = np.array([average_precision_score(truth[drawn], scores[drawn]) for drawn in draws])
    expected = stats.bootstrap(
        (np.arange(30),), lambda drawn: average_precision_score(truth[drawn], scores[drawn]), vectorized=False,
        n_resamples=0, bootstrap_result=SimpleNamespace(bootstrap_distribution=values), method="BCa",
    ).confidence_interval  # fmt: skip
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("seed", range(4))
def test_a_corrected_bootstrap_is_scipys(seed: int):
    rng = np.random.default_rng(seed)
    data = rng.lognormal(0, 1, 25)
    reference = stats.bootstrap((data,), np.std, method="BCa", n_resamples=999, rng=rng)
    left_out = np.array([np.std(np.delete(data, place)) for place in range(25)])
    found = correct_percentiles(reference.bootstrap_distribution, number=float(np.std(data)), left_out=left_out)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval))


@pytest.mark.parametrize("classes", [2, 30, 60])
def test_the_interval_of_macro_f1_holds_its_number_or_is_not_given(classes: int):
    """With three images per class, plain percentiles of the resamples lie below the number itself."""
    names = [f"c{k}" for k in range(classes)]
    rows = [{"truth": name, "prediction": name if k else "c0"} for name in names for k in range(3)]
    scores = classify.score_rows(rows, names)
    found, value = scores.find_interval("macro_f1"), scores.compute("macro_f1")
    assert found is None or found.low <= value <= found.high
    if classes == 2:
        assert found is not None


def test_resamples_that_all_lie_on_one_side_of_the_number_give_no_interval():
    values = np.linspace(0.3, 0.5, 200)
    assert correct_percentiles(values, number=0.7, left_out=np.zeros(0)) is None
    assert correct_percentiles(values, number=0.499, left_out=np.zeros(0)) is None  # corrected, it lies beyond
    perfect = correct_percentiles(np.ones(200), number=1.0, left_out=np.ones(5))
    assert perfect == Interval(1.0, 1.0)


def test_every_classes_probability_is_in_the_row_and_gives_scikit_learns_metrics():
    names, rng = ("a", "b", "c"), np.random.default_rng(1)
    task = TaskSpec(kind="classify", classes=names)
    outputs, truth = rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40)
    rows = [
        {name: str(value) for name, value in find_kind("classify").write_row(task, true, given.tolist()).items()}
        for true, given in zip(truth, outputs, strict=True)
    ]
    assert list(rows[0]) == ["truth", "prediction", "confidence", "p:a", "p:b", "p:c"]
    found = classify.score_rows(rows, names)
    expected = {
        "accuracy": accuracy_score(truth, outputs.argmax(1)),
        "balanced_accuracy": balanced_accuracy_score(truth, outputs.argmax(1)),
        "nll": log_loss(truth, outputs),
        "mean_average_precision": average_precision_score(np.eye(3)[truth], outputs, average="macro"),
    }
    assert {key: found.compute(key) for key in expected} == pytest.approx(expected, rel=1e-4)
    for key in expected:
        interval = found.find_interval(key)
        assert interval is not None and interval.low < expected[key] < interval.high
    older = [{name: value for name, value in row.items() if not name.startswith("p:")} for row in rows]
    assert math.isnan(classify.score_rows(older, names).compute("nll"))
    assert classify.score_rows(older, names).find_interval("nll") is None


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
    assert (found.median, found.mean, found.baseline_mae, found.baseline_rmse) == (150, 150, 50, 50)


def test_resampled_metrics_of_numbers_are_those_of_the_repeated_images():
    rng = np.random.default_rng(4)
    truth = rng.lognormal(3, 1, (30, 2))
    values = truth * rng.uniform(0.6, 1.5, (30, 2))
    drawn = rng.integers(30, size=30)
    weights = torch.from_numpy(np.bincount(drawn, minlength=30)).double()[None]
    r2 = resample_r2(torch.from_numpy(values[:, 0]), torch.from_numpy(truth[:, 0]), weights)
    assert float(r2) == pytest.approx(r2_score(truth[drawn, 0], values[drawn, 0]))
    rows = [
        {"truth:a": str(t[0]), "prediction:a": str(v[0]), "truth:b": str(t[1]), "prediction:b": str(v[1])}
        for t, v in zip(truth, values, strict=True)
    ]
    one, two = regress.score_rows(rows, ["a"]), regress.score_rows(rows, ["a", "b"])
    assert one.compute("rmse") == pytest.approx(root_mean_squared_error(truth[:, 0], values[:, 0]))
    assert one.compute("mae_log10") == pytest.approx(abs(np.log10(truth[:, 0] / values[:, 0])).mean())
    assert math.isnan(two.compute("mae")) and two.find_interval("mae") is None  # no common unit
    shares = abs(truth - values).mean(0) / abs(truth - np.median(truth, 0)).mean(0)
    assert two.compute("relative_mae") == pytest.approx(shares.mean())
    for key in ("relative_mae", "relative_rmse", "relative_mae_log10", "r2"):
        interval = two.find_interval(key)
        assert interval is not None and interval.low < two.compute(key) < interval.high


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


def test_a_metric_of_tags_has_its_interval_and_a_baseline_that_no_answer_without_looking_beats():
    rng = np.random.default_rng(3)
    truth = (rng.random((60, 3)) < (0.7, 0.4, 0.1)).astype(int)
    outputs = np.clip(0.5 * truth + rng.uniform(0, 0.6, truth.shape), 0, 1)
    task = TaskSpec(kind="multilabel", classes=("a", "b", "c"))
    kind = find_kind("multilabel")
    rows = [
        {name: str(value) for name, value in kind.write_row(task, true, given).items()}
        for true, given in zip(truth.tolist(), outputs.tolist(), strict=True)
    ]
    found = multilabel.score_rows(rows, task.classes)
    said = outputs > 0.5
    sets = {tuple(row): int((truth == row).all(1).sum()) for row in truth}
    expected = {
        "accuracy": (accuracy_score(truth, said), max(sets.values()) / 60),
        "macro_f1": (f1_score(truth, said, average="macro"), f1_score(truth, np.ones_like(truth), average="macro")),
        "balanced_accuracy": (np.mean([balanced_accuracy_score(truth[:, k], said[:, k]) for k in range(3)]), 0.5),
        "mean_average_precision": (average_precision_score(truth, outputs, average="macro"), truth.mean(0).mean()),
    }
    for key, (value, guess) in expected.items():
        assert found.compute(key) == pytest.approx(value), key
        interval = found.find_interval(key)
        assert interval is not None and interval.low < value < interval.high
        assert kind.find_baseline(key, {}, found)[0] == pytest.approx(guess), key


def test_the_baselines_of_classes_are_what_always_the_most_frequent_class_gets():
    truth = ["b"] * 5 + ["a"] * 3 + ["c"] * 2
    rows = [{"truth": name, "prediction": "a"} for name in truth]
    found, kind = classify.score_rows(rows, ["a", "b", "c", "d"]), find_kind("classify")
    always = ["b"] * 10
    expected = {
        "accuracy": accuracy_score(truth, always),
        "macro_f1": f1_score(truth, always, average="macro", zero_division=0),
        "balanced_accuracy": balanced_accuracy_score(truth, always),
    }
    for key, value in expected.items():
        guess, says = kind.find_baseline(key, {}, found)
        assert (guess, says) == (pytest.approx(value), "always b")
    assert kind.find_baseline("nll", {}, found) == (None, "")


@pytest.mark.parametrize(("images", "named"), [(4, True), (5, False)])
def test_a_table_of_more_probabilities_than_it_is_worth_has_the_largest_alone(tmp_path, monkeypatch, images, named):
    monkeypatch.setattr("headstart.runs.folder.MOST_PROBABILITIES", 8)
    task = TaskSpec(kind="classify", classes=("a", "b"))
    keys = tuple(str(place) for place in range(images))
    predictions = Predictions(task=task, outputs=torch.full((images, 2), 0.5), keys=keys)
    evaluation = Evaluation(predictions=predictions, truth=torch.zeros(images, dtype=torch.int64), metrics={})
    write_predictions(tmp_path / "p.csv", evaluation, task=task, contents=dict.fromkeys(keys, "ab"))
    header = (tmp_path / "p.csv").read_text().splitlines()[0]
    assert ('"p:a","p:b"' in header) is named and '"confidence"' in header and '"sha256"' in header
