"""Losses per sample: each against torch, torchvision or scikit-learn, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from headstart.config.schema import AutoLoss, Bce, CrossEntropy, Focal, Huber, Mae, Mse
from headstart.errors import ConfigError, DataError
from headstart.tasks.losses import check_first_outputs, check_labels, make_loss, resolve_loss

CLASSES = ("a", "b", "c", "d")
WEIGHTS = {"a": 0.2, "b": 1.0, "c": 10.0, "d": 3.0}


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 0, 1, 0, 2, 1, 0, 0])


def mean(made: object) -> torch.Tensor:
    if isinstance(made, torch.Tensor):
        return made.mean()
    losses, weights = made
    return (losses * weights).sum() / weights.sum()


@pytest.mark.parametrize("class_weights", ["none", WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_over_the_whole_batch_is_torchs(scores, labels, class_weights, smoothing) -> None:
    loss = make_loss(CrossEntropy(class_weights=class_weights, label_smoothing=smoothing), classes=CLASSES)
    weight = None if class_weights == "none" else torch.tensor(list(WEIGHTS.values()), dtype=torch.float64)
    expected = F.cross_entropy(scores, labels, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(mean(loss(scores, labels)), expected, rtol=1e-7, atol=0)


def test_mixed_labels_have_torchs_cross_entropy_of_probabilities(scores, labels) -> None:
    mixed = 0.7 * F.one_hot(labels, 4).double() + 0.3 * F.one_hot(labels.flip(0), 4).double()
    expected = F.cross_entropy(scores, mixed)
    torch.testing.assert_close(mean(make_loss(CrossEntropy())(scores, mixed)), expected)


@pytest.mark.parametrize("kind", [CrossEntropy, Focal])
def test_labels_mixed_with_themselves_are_the_labels(scores, labels, kind) -> None:
    loss = make_loss(kind(class_weights=WEIGHTS), classes=CLASSES, task="classify")
    torch.testing.assert_close(loss(scores, F.one_hot(labels, 4).float()), loss(scores, labels))


def test_focal_loss_of_classes_is_the_papers_formula(scores, labels) -> None:
    losses, weights = make_loss(Focal(gamma=2.0, class_weights=WEIGHTS), classes=CLASSES)(scores, labels)
    true = scores.softmax(1)[torch.arange(12), labels]
    torch.testing.assert_close(losses, (1 - true) ** 2 * -true.log())
    assert weights.tolist() == pytest.approx([WEIGHTS[CLASSES[label]] for label in labels.tolist()])


def test_focal_loss_of_tags_is_torchvisions(scores) -> None:
    tags = (scores.flip(0) > 0).float()
    losses = make_loss(Focal(gamma=1.5))(scores, tags)
    expected = sigmoid_focal_loss(scores, tags.double(), alpha=-1, gamma=1.5, reduction="none").mean(1)
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_has_a_finite_slope_where_the_model_is_certain(gamma) -> None:
    for targets in (torch.tensor([0, 1]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])):
        scores = torch.tensor([[200.0, -200.0], [200.0, -200.0]], requires_grad=True)
        mean(make_loss(Focal(gamma=gamma))(scores, targets)).backward()
        assert torch.isfinite(scores.grad).all()


def test_bce_is_torchs_mean_over_the_tags(scores) -> None:
    tags = (scores.flip(0) > 0).double()
    expected = F.binary_cross_entropy_with_logits(scores, tags)
    torch.testing.assert_close(mean(make_loss(Bce())(scores, tags)), expected)
    smooth = F.binary_cross_entropy_with_logits(scores, tags * 0.8 + 0.1)
    torch.testing.assert_close(mean(make_loss(Bce(label_smoothing=0.2))(scores, tags)), smooth)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [(Mse(), F.mse_loss), (Mae(), F.l1_loss), (Huber(delta=0.5), lambda o, t: F.huber_loss(o, t, delta=0.5))],
)
def test_losses_of_numbers_are_torchs(scores, loss, reference) -> None:
    truth = scores.flip(0)
    torch.testing.assert_close(mean(make_loss(loss)(scores, truth)), reference(scores, truth))


def test_balanced_weights_are_scikit_learns(scores, labels) -> None:
    counts = dict(zip(CLASSES, torch.bincount(labels).tolist(), strict=True))
    _, weights = make_loss(CrossEntropy(class_weights="balanced"), classes=CLASSES, counts=counts)(scores, labels)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels.numpy())
    assert weights.tolist() == pytest.approx(expected[labels.numpy()].tolist())


def test_a_class_of_weight_zero_does_not_count(scores, labels) -> None:
    loss = make_loss(CrossEntropy(class_weights={"a": 0.0}), classes=CLASSES)
    others = labels != 0
    torch.testing.assert_close(mean(loss(scores, labels)), F.cross_entropy(scores[others], labels[others]))


def test_losses_are_float64_for_float64_and_float32_for_fp16(scores, labels) -> None:
    tags, hot = (scores > 0).float(), F.one_hot(labels, 4)
    for loss, targets in ((CrossEntropy(), labels), (Focal(), labels), (Focal(), tags), (Bce(), tags), (Mse(), hot)):
        assert make_loss(loss)(scores, targets).dtype == torch.float64
        large = make_loss(loss)(scores.half() * 20, targets)  # exp(20) overflows fp16
        assert large.dtype == torch.float32
        assert torch.isfinite(large).all()


def test_auto_is_the_tasks_usual_loss() -> None:
    assert resolve_loss(AutoLoss(), task="classify") == CrossEntropy()
    assert resolve_loss(AutoLoss(), task="multilabel") == Bce()
    assert resolve_loss(AutoLoss(), task="regress") == Huber()


def test_auto_takes_weights_and_smoothing_along_where_they_have_a_meaning() -> None:
    asked = AutoLoss(class_weights={"a": 2.0}, label_smoothing=0.1)
    assert resolve_loss(asked, task="classify") == CrossEntropy(class_weights={"a": 2.0}, label_smoothing=0.1)
    assert resolve_loss(asked, task="multilabel") == Bce(class_weights={"a": 2.0}, label_smoothing=0.1)
    with pytest.raises(ConfigError, match=r"class_weights and label_smoothing have no meaning for numbers"):
        resolve_loss(asked, task="regress")


def test_a_loss_of_another_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mse does not fit the task classify; give one of cross_entropy, focal"):
        resolve_loss(Mse(), task="classify")


def test_a_weight_for_no_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no class is called rare, red; the classes are a, b, c, d"):
        make_loss(CrossEntropy(class_weights={"red": 1, "rare": 2, "a": 1}), classes=CLASSES)


def test_balanced_weights_without_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"balanced needs the training images' class counts"):
        make_loss(CrossEntropy(class_weights="balanced"), classes=CLASSES)


@pytest.mark.parametrize("loss", [Mse(), Mae(), Huber(), Bce()])
def test_a_column_against_a_row_is_refused(loss) -> None:
    with pytest.raises(DataError, match=r"\(5, 1\) and targets \(5,\) differ, and torch would broadcast them in silen"):
        make_loss(loss)(torch.zeros(5, 1), torch.zeros(5))


def test_feature_maps_are_no_scores() -> None:
    with pytest.raises(DataError, match=r"gives \(2, 4, 7, 7\), not one row of class scores per image"):
        make_loss(CrossEntropy())(torch.zeros(2, 4, 7, 7), torch.zeros(2, dtype=torch.int64))


def test_mixed_labels_of_other_classes_are_refused(scores) -> None:
    with pytest.raises(DataError, match=r"targets \(12, 3\) do not fit scores \(12, 4\)"):
        make_loss(CrossEntropy())(scores, torch.zeros(12, 3))


def test_probabilities_are_refused_for_labels_and_for_mixed_labels(scores, labels) -> None:
    mixed = 0.5 * F.one_hot(labels, 4) + 0.5 * F.one_hot(labels.flip(0), 4)
    for targets in (labels, mixed):
        with pytest.raises(DataError, match=r"probabilities .* applies softmax itself; remove the model's softmax"):
            check_first_outputs(scores.softmax(1), targets)
        check_first_outputs(scores, targets)


def test_outputs_that_sum_to_one_are_right_for_tags_and_numbers(scores) -> None:
    """The same outputs are refused for labels, see above."""
    right = [(scores.softmax(1), (scores > 0).float()), (scores.softmax(1), scores)]
    right += [(torch.ones(3, 1), torch.zeros(3, dtype=torch.int64))]
    assert [check_first_outputs(*pair) for pair in right] == [None, None, None]


@pytest.mark.parametrize("label", [-1, 4, 255])
def test_a_label_out_of_range_is_refused(scores, labels, label) -> None:
    labels[3] = label
    with pytest.raises(DataError, match=rf"a label is {label}, but the model has 4 outputs: labels run from 0 to 3"):
        check_labels(scores, labels)
