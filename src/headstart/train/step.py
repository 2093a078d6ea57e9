"""One optimizer step, from images to weights: the order is the point.

micro-batches (sum of losses) -> divide by the step's total weight -> penalties -> unscale -> finite? -> clip -> step
-> average
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headstart.config import schema
from headstart.config.schema import Loss, Penalties
from headstart.data.batches import Batch
from headstart.errors import DataError, NonFiniteError
from headstart.optim.losses import LossFunction, check_first_outputs, make_loss
from headstart.optim.penalties import penalty
from headstart.train.precision import MEMORY_FORMATS, Precision, autocast, device_of
from headstart.train.state import TrainState

_AUXILIARY_WEIGHT = 0.3  # of auxiliary heads, in training only (Szegedy et al. 2015, section 5)
_MOST_OVERFLOWS = 20  # fp16: from 2**16 this many halvings reach 2**-4, where no healthy loss overflows


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """How a step is made. ``loss`` is a name, a config value, or a function (outputs, targets) -> one loss per sample
    (B,),
    or (losses, weights). The loss of a step is the sum of losses x weights over the sum of weights, however the step
    is cut.
    """

    loss: str | Loss | LossFunction = "cross_entropy"
    penalties: Penalties = Penalties()  # noqa: RUF009  frozen
    precision: Precision = "fp32"
    memory_format: str = "contiguous"
    accumulate: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None
    seed: int = 0

    def loss_function(self) -> LossFunction:
        """The loss as a function.  Raises: ConfigError: no such loss."""
        if callable(self.loss):
            return self.loss
        return make_loss(loss_by_name(self.loss) if isinstance(self.loss, str) else self.loss)


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """An optimizer step: its mean loss (without penalties), the gradient's norm before clipping, and the weights'
    total.
    """

    step: int
    epoch: int
    loss: float
    weight: float
    grad_norm: float
    lr: float
    head_lr: float
    images: int
    seconds: float = 0.0
    steps_in_epoch: int = 0


def loss_by_name(name: str) -> Loss:
    """A loss of the schema with its defaults.  Raises: DataError: no such loss."""
    kinds = (schema.CrossEntropy, schema.Focal, schema.Bce, schema.Mse, schema.Huber, schema.Mae)
    losses: dict[str, Loss] = {kind.kind: kind() for kind in kinds}
    if name not in losses:
        raise DataError(
            f"loss: {name!r} is not one of {', '.join(losses)}; or give a function (outputs, targets) -> losses "
            "of shape (B,)"
        )
    return losses[name]


def train_step(state: TrainState, batch: Batch, *, rules: StepRules) -> StepDone:
    """Make one optimizer step on ``batch``, in ``rules.accumulate`` micro-batches, with the rates that the groups
    have now.

    Dropout draws from (seed, step): nothing random is carried from step to step.

    Raises: NonFiniteError: the loss or the gradient is NaN or infinite (fp16: after 20 halvings of the loss scale).
    """
    state.model.train()
    for _ in range(_MOST_OVERFLOWS):
        torch.manual_seed((rules.seed << 24) + state.step & 0x7FFF_FFFF_FFFF_FFFF)
        state.optimizer.zero_grad(set_to_none=True)
        loss_sum, weight = _accumulate(state, batch, rules)
        grad_norm = _finish_gradient(state, batch, rules, weight)
        if _usable(state, batch, loss_sum / weight, grad_norm):
            break
    else:
        raise NonFiniteError(_complaint(state, batch, loss_sum / weight, grad_norm))
    _update(state)
    rates = [group["lr"] for group in state.optimizer.param_groups]
    body = [
        group["lr"] for group in state.optimizer.param_groups if not str(group.get("name", "head")).startswith("head")
    ]
    state.step += 1
    return StepDone(
        step=state.step, epoch=state.epochs_done + 1, loss=loss_sum / weight, weight=weight, grad_norm=grad_norm,
        lr=max(body, default=0.0), head_lr=rates[-1], images=batch.size,
    )  # fmt: skip


def _accumulate(state: TrainState, batch: Batch, rules: StepRules) -> tuple[float, float]:
    """Backward of every micro-batch's sum of losses; the step's sums of losses and weights."""
    loss_function, device = rules.loss_function(), device_of(state.model)
    inputs = batch.inputs(device, MEMORY_FORMATS[rules.memory_format])  # (B, C, H, W)
    targets = batch.targets.to(device)
    loss_sum, weight_sum = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for piece in _pieces(len(targets), rules.accumulate):
        with autocast(device, rules.precision):
            outputs = state.model(inputs[piece])
        losses, weights = _losses(loss_function, outputs, targets[piece], first=state.step == 0)
        total = (losses * weights).sum()
        scaled = total / len(targets)  # by the images for now: the sum of weights is known only after the last piece
        (state.scaler.scale(scaled) if state.scaler else scaled).backward()  # type: ignore[no-untyped-call]
        loss_sum += total.detach().double().cpu()
        weight_sum += weights.detach().double().sum().cpu()
    if not weight_sum > 0:
        raise NonFiniteError(f"step {state.step + 1}: all loss weights of the batch are zero; images: {_names(batch)}")
    return float(loss_sum), float(weight_sum)


def _pieces(size: int, accumulate: int) -> Iterator[slice]:
    each = -(-size // accumulate)
    return (slice(first, min(first + each, size)) for first in range(0, size, each))


def _losses(loss_function: LossFunction, outputs: object, targets: Tensor, *, first: bool) -> tuple[Tensor, Tensor]:
    """Losses and weights per sample (B,), over all of the model's outputs in training."""
    shares = training_outputs(outputs)
    if first:
        check_first_outputs(shares[0][1], targets)
    losses, weights = torch.zeros(()), torch.ones(())
    for number, (share, scores) in enumerate(shares):
        made = loss_function(scores, targets)
        value, weights = made if isinstance(made, tuple) else (made, torch.ones_like(made))
        if value.shape != targets.shape[:1] or weights.shape != value.shape:
            raise DataError(
                f"the loss returned {tuple(value.shape)} (weights {tuple(weights.shape)}) for {len(targets)} "
                "images; return one value per "
                f"image, shape ({len(targets)},), e.g. with reduction='none'"
            )
        losses = share * value if number == 0 else losses + share * value
    return losses.float(), weights.detach().float()


def training_outputs(outputs: object) -> list[tuple[float, Tensor]]:
    """(share of the loss, scores) of each output.

    One tensor; main and auxiliary heads (a named tuple); or equal heads (a plain tuple).
    """
    if isinstance(outputs, Tensor):
        return [(1.0, outputs)]
    if isinstance(outputs, tuple):
        scores = [output for output in outputs if isinstance(output, Tensor)]
        main = getattr(outputs, "logits", None)  # torchvision's Inception and GoogLeNet: the others are auxiliaries
        if isinstance(main, Tensor):
            return [(1.0, main), *((_AUXILIARY_WEIGHT, score) for score in scores if score is not main)]
        return [(1 / len(scores), score) for score in scores]
    raise DataError(
        f"the model returns {type(outputs).__name__}, not a tensor of scores; wrap it so that forward returns (B, K)"
    )


def _finish_gradient(state: TrainState, batch: Batch, rules: StepRules, weight: float) -> float:
    """Mean over weights, penalties, unscale, clip; the norm before clipping."""
    trained = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    factor = len(batch.targets) / weight
    if factor != 1.0:
        torch._foreach_mul_([parameter.grad for parameter in trained if parameter.grad is not None], factor)
    extra = penalty(state.model, rules.penalties, start=state.start)
    if extra is not None:
        (state.scaler.scale(extra) if state.scaler else extra).backward()  # type: ignore[no-untyped-call]
    if state.scaler:
        state.scaler.unscale_(state.optimizer)
    with_gradient = [parameter for parameter in trained if parameter.grad is not None]
    norm = float(nn.utils.get_total_norm([parameter.grad for parameter in with_gradient if parameter.grad is not None]))
    if rules.clip_norm is not None and norm > rules.clip_norm:
        nn.utils.clip_grads_with_norm_(
            with_gradient, rules.clip_norm, torch.tensor(norm, device=device_of(state.model))
        )
    if rules.clip_value is not None:
        nn.utils.clip_grad_value_(with_gradient, rules.clip_value)
    return norm


def _usable(state: TrainState, batch: Batch, loss: float, grad_norm: float) -> bool:
    """Whether to take the step; an fp16 overflow lowers the scale and the same step is tried again."""
    finite = torch.isfinite(torch.tensor([loss, grad_norm]))
    if bool(finite.all()):
        return True
    if state.scaler is None or not finite[0]:
        raise NonFiniteError(_complaint(state, batch, loss, grad_norm))
    state.scaler.step(state.optimizer)  # skipped by the scaler, which saw the overflow when it unscaled
    state.scaler.update()
    return False


def _complaint(state: TrainState, batch: Batch, loss: float, grad_norm: float) -> str:
    rates = ", ".join(
        f"{group.get('name', number)} {group['lr']:.3g}" for number, group in enumerate(state.optimizer.param_groups)
    )
    return (
        f"step {state.step + 1}: loss {loss}, gradient norm {grad_norm}: not finite, so the step was not taken. "
        f"Images: {_names(batch)}. "
        f"Rates: {rates}. Try a lower rate (--lr), clipping (--batch.clip_norm 1.0) or --precision fp32"
    )


def _names(batch: Batch) -> str:
    shown = ", ".join(batch.keys[:8])
    return shown + (f" and {len(batch.keys) - 8} more" if len(batch.keys) > 8 else "")


def _update(state: TrainState) -> None:
    if state.scaler:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.step()
    if state.average is not None:
        state.average.update(state.model, step=state.step)
