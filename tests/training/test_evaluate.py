"""Evaluation: the model as it was, every image by itself, and metrics equal to scikit-learn's."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import nn

import headstart as hs
from headstart.data.images import image_batches
from headstart.errors import ConfigError, DataError
from headstart.tasks.kinds import measure, name_metric, selection_key
from headstart.tasks.task import TaskSpec
from headstart.training.evaluate import Evaluation, Predictions, evaluate, in_eval, predict
from headstart.training.phases import frozen_digest

CLASSES = TaskSpec(kind="classify", classes=("a", "b", "c", "d"))
TAGS = TaskSpec(kind="multilabel", classes=("a", "b", "c"))
DRAW = np.random.default_rng(0)


@pytest.fixture
def model(net) -> nn.Module:
    made = net(norm=True, dropout=0.5)
    with torch.no_grad():
        for value in (*made.parameters(), *made.buffers()):
            if value.is_floating_point():
                value.add_(0.3 * torch.rand(value.shape, generator=torch.Generator().manual_seed(1)))
    return made


def by_key(predictions) -> dict[str, torch.Tensor]:
    return dict(zip(predictions.keys, predictions.outputs, strict=True))


def test_evaluation_leaves_modes_buffers_and_gradients_as_they_were(model, images) -> None:
    model.train()
    model.bn1.eval()
    modes = {name: part.training for name, part in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    evaluate(model, images.val)
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None and value.requires_grad for value in model.parameters())
    assert torch.is_grad_enabled()


class Gained(nn.Module):
    """Its own ``train`` does more than set the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gain = nn.Linear(3, 4), 1.0

    def train(self, mode: bool = True) -> Gained:
        self.gain = 1.0 if mode else 0.5
        return super().train(mode)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.mean((2, 3))) * self.gain


@pytest.mark.parametrize(("training", "gain"), [(True, 1.0), (False, 0.5)])
def test_a_train_of_the_users_own_undoes_what_it_did_for_evaluation(training: bool, gain: float) -> None:
    model = Gained().train(training)
    hs.evaluate(model, [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))])
    assert (model.training, model.gain) == (training, gain)


class Scaled(nn.Module):
    """Has buffers and no parameters, or not even these."""

    def __init__(self, gain: float | None) -> None:
        super().__init__()
        self.register_buffer("gain", None if gain is None else torch.tensor(gain))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if self.gain is None else images.mean((2, 3)) * self.gain


@pytest.mark.parametrize("gain", [None, 2.0])
def test_a_model_without_parameters_is_evaluated_like_any_other(gain: float | None, images) -> None:
    pictures = torch.rand(3, 3, 8, 8)
    evaluation = hs.evaluate(Scaled(gain), [(pictures, torch.tensor([0, 1, 2]))])
    expected = (pictures.mean((2, 3)) * (gain or 1.0)).softmax(1)
    assert torch.allclose(evaluation.predictions.outputs, expected)
    assert hs.predict(Scaled(gain), images.val).outputs.shape == (len(images.val.samples), 3)


def test_modes_come_back_when_the_model_fails(model) -> None:
    model.train()
    model.drop.eval()
    with pytest.raises(ZeroDivisionError), in_eval(model):
        assert not any(part.training for part in model.modules())
        raise ZeroDivisionError
    assert model.training
    assert not model.drop.training


def test_outputs_can_be_used_after_evaluation(model, images) -> None:
    outputs = predict(model, images.val).outputs
    outputs.requires_grad_().sum().backward()
    assert torch.equal(outputs.grad, torch.ones_like(outputs))


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_has_the_same_bits_whatever_its_batch_mates(model, images, precision, memory_format) -> None:
    everything = images.val.with_samples(images.val.samples + images.train.samples[:11])
    how = {"precision": precision, "memory_format": memory_format}
    together = by_key(predict(model, everything, **how))
    backwards = by_key(predict(model, everything.with_samples(everything.samples[::-1]), **how))
    for sample in everything.samples:
        assert torch.equal(together[sample.key], backwards[sample.key])
    for sample in everything.samples[::5]:
        alone = by_key(predict(model, everything.with_samples((sample,)), **how))
        assert torch.equal(together[sample.key], alone[sample.key])


def test_another_batch_size_changes_rounding_only(model, images) -> None:
    one, other = (predict(model, replace(images.val, batch_size=size)).outputs for size in (8, 3))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_every_image_is_evaluated_once_in_order(model, images) -> None:
    found = evaluate(model, replace(images.val, batch_size=3))
    assert found.predictions.keys == tuple(sample.key for sample in images.val.samples)
    assert found.truth.tolist() == [sample.target for sample in images.val.samples]
    right = (found.predictions.outputs.argmax(1) == found.truth).double().mean().item()
    assert found.accuracy == found.metrics["accuracy"] == pytest.approx(right)


def test_training_images_are_evaluated_without_their_random_changes(model, images) -> None:
    plain = images.val.with_samples(images.train.samples)
    found, expected = evaluate(model, images.train), evaluate(model, plain)
    assert found.metrics == expected.metrics
    assert torch.equal(found.predictions.outputs, expected.predictions.outputs)


def test_probabilities_are_the_softmax_or_the_sigmoid_of_the_scores(model, images, as_task) -> None:
    batch = next(images.val.epoch(0))
    with torch.no_grad():
        raw = model.eval()(batch.inputs(torch.device("cpu"), torch.contiguous_format))
    assert torch.equal(predict(model, images.val).outputs[:8], raw.softmax(1))
    assert torch.equal(predict(model, as_task("multilabel").val).outputs[:8], raw.sigmoid())


@pytest.mark.parametrize("log", [False, True])
def test_numbers_are_in_original_units_and_the_truth_is_exact(net, as_task, log) -> None:
    val = as_task("regress", log=log).val
    found = evaluate(net(classes=2), val)
    truth = np.array([sample.target for sample in val.samples])
    assert (found.truth.numpy() == truth).all()
    task, values = val.task, found.predictions.outputs.double().numpy()
    for place, name in enumerate(task.targets):
        true, said = truth[:, place], values[:, place]
        expected = {
            "mae": reference.mean_absolute_error(true, said), "rmse": reference.root_mean_squared_error(true, said),
            "r2": reference.r2_score(true, said), "baseline_mae": abs(true - np.median(true)).mean(),
            "baseline_rmse": true.std(),
        }  # fmt: skip
        if log:
            expected["mae_log10"] = abs(np.log10(true) - np.log10(said)).mean()
            expected["baseline_mae_log10"] = abs(np.log10(true) - np.median(np.log10(true))).mean()
        assert {key: found.metrics[f"{key}:{name}"] for key in expected} == pytest.approx(expected, rel=1e-6)
    shares = [found.metrics[f"mae:{name}"] / found.metrics[f"baseline_mae:{name}"] for name in task.targets]
    assert found.metrics["relative_mae"] == pytest.approx(np.mean(shares))
    assert "mae" not in found.metrics  # there is no common unit
    with pytest.raises(DataError, match=r"2 targets have no common unit; take metrics\['mae:price'\]"):
        _ = found.mae


def test_one_target_has_plain_metrics_only() -> None:
    task = TaskSpec(kind="regress", targets=("x",), mean=(2.0,), std=(1.0,))
    found = measure(task, torch.tensor([[1.0], [4.0]]), torch.tensor([[2.0], [2.0]]).double())
    assert set(found) <= {"mae", "rmse", "r2", "baseline_mae", "baseline_rmse"}
    assert (found["mae"], found["baseline_mae"]) == (1.5, 0.0)


@pytest.mark.parametrize("present", [4, 3])
def test_metrics_of_classes_are_scikit_learns(present) -> None:
    """Also where a class is neither true nor given: it does not count."""
    probabilities = DRAW.dirichlet(np.ones(4), 60).astype(np.float32)
    probabilities[:, present:] = 0
    truth = DRAW.integers(0, present, 60)
    found = measure(CLASSES, torch.from_numpy(probabilities), torch.from_numpy(truth))
    said = probabilities.argmax(1)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(truth, said))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(truth, said, average="macro"))
    assert found["nll"] == pytest.approx(-np.log(probabilities[np.arange(60), truth].clip(1e-12)).mean(), rel=1e-5)


def test_metrics_of_tags_are_scikit_learns() -> None:
    probabilities, truth = DRAW.random((50, 3)).astype(np.float32), DRAW.integers(0, 2, (50, 3))
    found = measure(TAGS, torch.from_numpy(probabilities), torch.from_numpy(truth).float())
    expected = {
        "mean_average_precision": reference.average_precision_score(truth, probabilities, average="macro"),
        "macro_f1": reference.f1_score(truth, probabilities > 0.5, average="macro"),
        "nll": np.mean([reference.log_loss(truth[:, tag], probabilities[:, tag].astype(float)) for tag in range(3)]),
    }
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tag_without_an_example_is_left_out_of_the_mean() -> None:
    probabilities, truth = torch.rand(20, 3), torch.randint(0, 2, (20, 3)).float()
    truth[:, 1] = 0
    found = measure(TAGS, probabilities, truth)["mean_average_precision"]
    others = reference.average_precision_score(truth[:, [0, 2]], probabilities[:, [0, 2]], average="macro")
    assert found == pytest.approx(others, rel=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_metric_that_is_not_defined_is_left_out_and_counts_as_the_worst() -> None:
    task = TaskSpec(kind="regress", targets=("x",), mean=(2.0,), std=(1.0,), log=True)
    one = measure(task, torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    assert "r2" not in one
    endless = measure(task, torch.tensor([[math.inf], [1.0]]), torch.tensor([[2.0], [1.0]]))
    assert "mae_log10" not in endless
    assert selection_key(task, endless) < selection_key(task, one)
    nothing = measure(TAGS, torch.rand(4, 3), torch.zeros(4, 3))
    assert "mean_average_precision" not in nothing
    assert selection_key(TAGS, nothing) < selection_key(TAGS, {"mean_average_precision": 0.0, "nll": 99.0})
    assert all(math.isfinite(value) for value in (*selection_key(TAGS, nothing), *selection_key(task, endless)))


def test_better_is_more_accurate_and_then_likelier() -> None:
    assert selection_key(CLASSES, {"accuracy": 0.9, "nll": 2.0}) > selection_key(CLASSES, {"accuracy": 0.8, "nll": 0.1})
    assert selection_key(CLASSES, {"accuracy": 0.9, "nll": 0.1}) > selection_key(CLASSES, {"accuracy": 0.9, "nll": 0.2})
    plain = TaskSpec(kind="regress", targets=("x",))
    assert selection_key(plain, {"mae": 1.0}) > selection_key(plain, {"mae": 2.0})
    logged = replace(plain, log=True)
    assert selection_key(logged, {"mae": 9.0, "mae_log10": 0.1}) > selection_key(logged, {"mae": 1.0, "mae_log10": 0.2})


def test_better_numbers_of_several_units_are_better_by_their_share_of_the_medians_error() -> None:
    task = TaskSpec(kind="regress", targets=("price", "size"))
    truth = torch.tensor([[2000.0, 1.0], [4000.0, 5.0], [3000.0, 3.0]])
    one, other = (
        measure(task, truth + torch.tensor([price, size]), truth) for price, size in ((600.0, 0.5), (400.0, 1.0))
    )
    assert one["relative_mae"] == pytest.approx((600 / (2000 / 3) + 0.5 / (4 / 3)) / 2)
    assert selection_key(task, one) == (-one["relative_mae"],)
    assert selection_key(task, one) > selection_key(task, other)
    equal = measure(task, truth, torch.tensor([[2000.0, 3.0]]).expand(3, 2))  # no target varies
    assert "relative_mae" not in equal
    assert math.isfinite(selection_key(task, equal)[0])
    assert selection_key(task, equal) < selection_key(task, other)


@pytest.mark.parametrize(
    ("kind", "metric", "name"),
    [
        ("classify", "balanced_accuracy", "balanced_accuracy"), ("classify", "ap", "mean_average_precision"),
        ("classify", "macro_f1", "macro_f1"), ("classify", "nll", "nll"),
        ("multilabel", "accuracy", "accuracy"), ("multilabel", "balanced_accuracy", "balanced_accuracy"),
        ("multilabel", "ap", "mean_average_precision"), ("multilabel", "nll", "nll"),
    ],
)  # fmt: skip
def test_the_metric_that_is_asked_for_is_scikit_learns_and_decides(kind, metric, name) -> None:
    rng = np.random.default_rng(5)
    outputs = rng.dirichlet(np.ones(3), 50).astype(np.float32)
    truth = rng.integers(0, 3, 50) if kind == "classify" else rng.integers(0, 2, (50, 3))
    said = outputs.argmax(1) if kind == "classify" else outputs > 0.5
    spec = TaskSpec(kind=kind, classes=("a", "b", "c"))
    given = torch.from_numpy(truth) if kind == "classify" else torch.from_numpy(truth).float()
    found = measure(spec, torch.from_numpy(outputs), given, metric=metric)
    marks = np.eye(3)[truth] if kind == "classify" else truth
    recalls = (
        [reference.balanced_accuracy_score(truth[:, k], said[:, k]) for k in range(3)] if kind != "classify" else []
    )
    expected = {
        "accuracy": lambda: reference.accuracy_score(truth, said),
        "balanced_accuracy": lambda: np.mean(recalls) if recalls else reference.balanced_accuracy_score(truth, said),
        "mean_average_precision": lambda: reference.average_precision_score(marks, outputs, average="macro"),
        "macro_f1": lambda: reference.f1_score(truth, said, average="macro"),
        "nll": lambda: found["nll"],
    }[name]()  # fmt: skip
    assert found[name] == pytest.approx(expected, rel=1e-5)
    sign = -1 if metric == "nll" else 1
    assert selection_key(spec, found, metric=metric)[0] == sign * found[name]
    usual = measure(spec, torch.from_numpy(outputs), given)
    assert set(usual) <= set(found)


@pytest.mark.parametrize(
    ("kind", "metric", "says"),
    [
        ("classify", "mae", "metric: mae has no meaning for classify; accepted: accuracy, macro_f1, balanced_accuracy"),
        ("multilabel", "r2", "metric: r2 has no meaning for multilabel"),
        (
            "regress",
            "accuracy",
            "metric: accuracy has no meaning for regress; accepted: mae, rmse, r2; e.g. --metric rmse",
        ),
    ],
)
def test_a_metric_of_another_kind_of_task_is_refused(kind, metric, says) -> None:
    with pytest.raises(ConfigError, match=says):
        name_metric(TaskSpec(kind=kind, classes=("a", "b"), targets=("x",)), metric)


def test_new_images_are_predicted_without_labels(model, images, colours) -> None:
    batches = image_batches([colours / "red"], preprocess=images.val.preprocess, task=images.task, batch_size=8)
    found = predict(model, batches)
    assert found.outputs.shape == (12, 3)
    assert torch.allclose(found.outputs.sum(1), torch.ones(12))


def test_equal_heads_are_averaged_and_auxiliary_ones_ignored(model, images) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.model(inputs), 3 * self.model(inputs)

    two = Two()
    hs.declare_scores(two, "all")
    doubled = predict(two, images.val).outputs
    single = predict(model, images.val).outputs
    torch.testing.assert_close(doubled, (2 * single.log()).softmax(1))


def test_a_float64_model_is_evaluated_in_float64(model, images) -> None:
    outputs = predict(model.double(), images.val).outputs
    torch.testing.assert_close(outputs, predict(model.float(), images.val).outputs, rtol=1e-4, atol=1e-5)


def test_a_model_that_gives_no_scores_is_refused(images) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scores": inputs}

    with pytest.raises(DataError, match=r"the model returns dict, not a tensor of scores"):
        predict(Words(), images.val)


def test_the_digest_of_frozen_tensors_sees_a_single_bit(net) -> None:
    from headstart.surgery.freeze import freeze

    model = net(norm=True)
    frozen = freeze(model, rule="backbone")
    before = frozen_digest(model, frozen)
    model.fc.bias.data += 1
    assert frozen_digest(model, frozen) == before
    model.bn1.running_mean[3] += 1e-7
    assert frozen_digest(model, frozen) != before


def test_an_evaluation_is_shown_in_two_lines() -> None:
    task = TaskSpec(kind="classify", classes=("a", "b", "c", "d"))
    said = Predictions(task=task, outputs=torch.ones(1234, 4), keys=tuple(map(str, range(1234))))
    numbers = {"accuracy": 0.51237, "nll": 12.0}
    found = Evaluation(predictions=said, truth=torch.ones(1234), metrics=numbers, note="own")
    assert repr(found) == ("Evaluation of 1,234 images, classify (a, b, c and 1 more); own\naccuracy 0.5124  nll 12")
