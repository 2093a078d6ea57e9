"""Losses per sample. A step divides the sum of losses by the sum of weights once, so weighted losses stay right
however a batch is cut.

Shapes: B batch, K classes or tags, T targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from headstart.config.schema import AutoLoss, Bce, ClassWeights, CrossEntropy, Focal, Huber, Loss, Mae, Mse
from headstart.errors import ConfigError, DataError
from headstart.tasks.kinds import find_kind
from headstart.wording import option

LossOutput = Tensor | tuple[Tensor, Tensor]
LossFunction = Callable[[Tensor, Tensor], LossOutput]


def resolve_loss(loss: Loss, *, task: str) -> Loss:
    """The loss that ``auto`` stands for, or the one given.  Raises: ConfigError: it does not fit the task."""
    kind = find_kind(task)
    if isinstance(loss, AutoLoss):
        return kind.choose_loss(loss)
    if not isinstance(loss, kind.losses):
        accepted = ", ".join(fitting().kind for fitting in kind.losses)
        raise ConfigError(
            f"loss.kind: {loss.kind} does not fit the task {task}; give one of {accepted}, e.g. "
            f"{option('loss.kind', accepted.split(',')[0])}"
        )
    return loss


def loss_by_name(name: str) -> Loss:
    """A loss of the schema with its defaults.  Raises: ConfigError: no such loss."""
    kinds = (CrossEntropy, Focal, Bce, Mse, Huber, Mae)
    losses: dict[str, Loss] = {kind.kind: kind() for kind in kinds}
    if name not in losses:
        raise ConfigError(
            f"loss: {name!r} is not one of {', '.join(losses)}; or give a function (outputs, targets) -> losses "
            "of shape (B,)"
        )
    return losses[name]


def make_loss(
    loss: Loss, *, classes: Sequence[str] = (), counts: Mapping[str, int] | None = None, task: str = ""
) -> LossFunction:
    """A resolved loss as a function (outputs, targets) -> losses (B,), or, with class weights, (losses, weights).

    ``classes`` are in the order of the outputs; ``counts`` are training images per class, for ``balanced``; ``task``
    says whether targets (B, K) are tags or, for ``classify``, mixed labels.

    Raises: ConfigError: a class weight names no class.
    """
    match loss:
        case CrossEntropy():
            weights = _class_weights(loss.class_weights, classes, counts)
            return lambda outputs, targets: _cross_entropy(outputs, targets, weights, loss.label_smoothing)
        case Focal():
            weights = _class_weights(loss.class_weights, classes, counts)
            tags = not (task and find_kind(task).one_label)
            return lambda outputs, targets: (_focal_tags if tags and targets.ndim == 2 else _focal)(
                outputs, targets, weights, loss.gamma
            )
        case Bce():
            weights = _class_weights(loss.class_weights, classes, counts)
            return lambda outputs, targets: _bce(outputs, targets, weights, loss.label_smoothing)
        case Mse():
            return lambda outputs, targets: _plain(F.mse_loss, outputs, targets)
        case Mae():
            return lambda outputs, targets: _plain(F.l1_loss, outputs, targets)
        case Huber():
            return lambda outputs, targets: _plain(
                lambda o, t, reduction: F.huber_loss(o, t, reduction=reduction, delta=loss.delta), outputs, targets
            )
        case AutoLoss():
            raise ConfigError("loss.kind: auto needs a task; give cross_entropy, bce, mse, huber or mae")


def _class_weights(chosen: ClassWeights, classes: Sequence[str], counts: Mapping[str, int] | None) -> Tensor | None:
    if isinstance(chosen, str):
        if chosen == "none":
            return None
        if not counts:
            raise ConfigError(
                "loss.class_weights: balanced needs the training images' class counts; give weights by class name"
            )
        return torch.tensor([sum(counts.values()) / (len(classes) * max(1, counts[name])) for name in classes])
    unknown = sorted(set(chosen) - set(classes))
    if unknown:
        raise ConfigError(
            f"loss.class_weights: no class is called {', '.join(unknown)}; the classes are {', '.join(classes)}"
        )
    return torch.tensor([float(chosen.get(name, 1.0)) for name in classes])


def _cross_entropy(outputs: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float) -> LossOutput:
    """Weighted as torch does it.

    Every class's share of the target counts by that class's weight, the sum is over target weights.
    """
    _check_scores(outputs, targets)
    scores = wide(outputs)
    if weights is None:
        targets = targets if targets.ndim == 1 else targets.to(scores.dtype)
        return F.cross_entropy(scores, targets, reduction="none", label_smoothing=smoothing)  # (B,)
    log_p = F.log_softmax(scores, dim=1)  # (B, K)
    hard = (targets if targets.ndim == 2 else F.one_hot(targets, outputs.shape[1])).to(log_p.dtype)  # (B, K)
    soft = hard * (1 - smoothing) + smoothing / outputs.shape[1]
    weights = weights.to(log_p)
    losses, scale = -(soft * log_p * weights).sum(1), (hard * weights).sum(1)  # both (B,)
    return torch.where(scale > 0, losses / scale.where(scale > 0, 1.0), 0.0), scale


def _focal(outputs: Tensor, targets: Tensor, weights: Tensor | None, gamma: float) -> LossOutput:
    """Lin et al. 2017, eq. 4: (1 - p)^gamma times the cross-entropy, p the probability of what is true."""
    _check_scores(outputs, targets)
    log_p = F.log_softmax(wide(outputs), dim=1)  # (B, K)
    hard = (targets if targets.ndim == 2 else F.one_hot(targets, outputs.shape[1])).to(log_p.dtype)  # (B, K)
    losses = hard * _missing(log_p) ** gamma * -log_p
    if weights is None:
        return losses.sum(1)
    weights = weights.to(log_p)
    scale = (hard * weights).sum(1)  # (B,)
    return torch.where(scale > 0, (losses * weights).sum(1) / scale.where(scale > 0, 1.0), 0.0), scale


def _focal_tags(outputs: Tensor, targets: Tensor, weights: Tensor | None, gamma: float) -> Tensor:
    _check_same_shape(outputs, targets)
    scores = wide(outputs)
    plain = F.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype), reduction="none")  # (B, K)
    losses = _missing(-plain) ** gamma * plain
    return (losses if weights is None else losses * weights.to(losses)).mean(1)


def _bce(outputs: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    _check_same_shape(outputs, targets)
    scores = wide(outputs)
    soft = targets.to(scores.dtype) * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(scores, soft, reduction="none")  # (B, K)
    if weights is not None:
        losses = losses * weights.to(losses)
    return losses.mean(1)


def _plain(function: Callable[..., Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    _check_same_shape(outputs, targets)
    values = wide(outputs)
    return function(values, targets.to(values.dtype), reduction="none").mean(1)  # (B, T) -> (B,)


def _missing(log_p: Tensor) -> Tensor:
    """1 - p, kept above zero, where the slope of a power below 1 is infinite."""
    return (-torch.expm1(log_p)).clamp_min(1e-12)


def wide(values: Tensor) -> Tensor:
    """At least float32: exp() overflows fp16 above 11.09."""
    return values if values.dtype == torch.float64 else values.float()


def _check_scores(outputs: Tensor, targets: Tensor) -> None:
    if outputs.ndim != 2:
        raise DataError(
            f"cross_entropy: the model gives {tuple(outputs.shape)}, not one row of class scores per image (B, K)"
        )
    if targets.ndim == 2 and targets.shape != outputs.shape:
        raise DataError(
            f"cross_entropy: targets {tuple(targets.shape)} do not fit scores {tuple(outputs.shape)}; give labels "
            "of shape (B,)"
        )


def _check_same_shape(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape == targets.shape:
        return
    both = f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ"
    if _broadcasts(outputs, targets):
        both += ", and torch would broadcast them in silence"
    raise DataError(f"{both}; give targets of shape (B, T), one column per output, e.g. targets[:, None]")


def _broadcasts(outputs: Tensor, targets: Tensor) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(outputs.shape[::-1], targets.shape[::-1], strict=False))


def check_labels(outputs: Tensor, targets: Tensor) -> None:
    """Refuse labels that the model has no output for.  targets: on the CPU, where looking costs no waiting.

    Raises: DataError.
    """
    if targets.ndim == 1 and not targets.dtype.is_floating_point and outputs.ndim == 2:
        values = targets.tolist()
        low, high = min(values, default=0), max(values, default=0)
        if low < 0 or high >= outputs.shape[1]:
            raise DataError(
                f"a label is {low if low < 0 else high}, but the model has {outputs.shape[1]} outputs: labels run "
                f"from 0 to {outputs.shape[1] - 1}"
            )


def check_first_outputs(outputs: Tensor, targets: Tensor) -> None:
    """Refuse probabilities where class scores belong, which a loss would accept in silence; looked at once per run.

    Raises: DataError.
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2 or not _are_labels(targets):
        return
    if bool((outputs >= 0).all()) and _sum_to_one(outputs):
        raise DataError(
            "the model's outputs are probabilities (each row sums to 1): cross_entropy applies softmax "
            "itself; remove the model's softmax"
        )


def _are_labels(targets: Tensor) -> bool:
    """Class indices (B,), or mixed labels (B, K)."""
    return (targets.ndim == 1 and not targets.dtype.is_floating_point) or (targets.ndim == 2 and _sum_to_one(targets))


def _sum_to_one(values: Tensor) -> bool:
    rows = values.detach().double().sum(1)
    return torch.allclose(rows, torch.ones_like(rows), atol=1e-3)
