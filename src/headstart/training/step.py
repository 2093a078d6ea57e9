"""One optimizer step, from images to weights: the order is the point.

micro-batches (sum of losses) -> unscale -> norm -> divide by the step's total weight -> penalties -> finite? -> clip
-> step -> finite? -> average
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from headstart.ambient import own_arithmetic, seeded
from headstart.config.schema import Loss, Penalties
from headstart.data.loader import Batch
from headstart.data.randomness import derived_seed
from headstart.distributed.collectives import raised_by_all, summed
from headstart.distributed.ddp import reducing, replicated, share_statistics
from headstart.distributed.fsdp import is_sharded
from headstart.distributed.processes import current
from headstart.errors import DataError, NonFiniteError, RunError
from headstart.optim.penalties import penalty
from headstart.surgery.fixed_values import NotReplayable
from headstart.surgery.halves import Suffix
from headstart.surgery.head import model_scores
from headstart.tasks.losses import LossFunction, check_first_outputs, check_labels, loss_by_name, make_loss, wide
from headstart.training.activation_checkpointing import recomputing
from headstart.training.attention import Attention, attending
from headstart.training.companions import make_companions
from headstart.training.compile import Compile, compiled, compiler_errors
from headstart.training.finite import check_rates, check_weights, complaint, names, norms
from headstart.training.precision import MEMORY_FORMATS, Precision, autocast, device_of
from headstart.training.state import (
    Kept,
    Parts,
    TrainState,
    check_foreign,
    is_known,
    keep_state,
    note_written,
    parts_of,
    put_back,
    update_average,
)
from headstart.turns import own_turn

_MOST_OVERFLOWS = 20  # fp16: from 2**16 this many halvings reach 2**-4, where no healthy loss overflows


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """How a step is made. ``loss`` is a name, a config value, or a function (outputs, targets) -> one loss per sample
    (B,), or (losses, weights); its outputs are at least float32. The loss of a step is the sum of losses x weights over
    the sum of weights, however the step is cut. ``recompute``: a block's activations are not kept (see ``recompute``);
    ``attention``: how it is computed (see ``attention``); ``compile``: how the model is compiled (see ``compiled``);
    ``evaluation_precision``: where it is not training's. ``average_steps``: keep an average of the weights whose past
    counts half after so many steps. What rules need of a state (that average, the loss scaler of fp16, the start of
    ``penalties.l2_start``) is made at the first step with them.
    """

    loss: str | Loss | LossFunction = "cross_entropy"
    penalties: Penalties = Penalties()  # noqa: RUF009  frozen
    precision: Precision = "fp32"
    memory_format: str = "contiguous"
    attention: Attention = "fused"
    accumulate: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None
    recompute: bool = False
    seed: int = 0
    compile: Compile = "never"
    evaluation_precision: Precision | None = None
    average_steps: float | None = None

    @property
    def evaluated_in(self) -> Precision:
        """Precision of validation, evaluation and prediction."""
        return self.evaluation_precision or self.precision

    def loss_function(self) -> LossFunction:
        """The loss as a function.  Raises: ConfigError: no such loss."""
        return self._made

    @cached_property
    def _made(self) -> LossFunction:
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
    micro_batches: int = 1


def train_step(state: TrainState, batch: Batch, *, rules: StepRules, steps_in_epoch: int = 0) -> StepDone:
    """Make one optimizer step on ``batch``, in ``rules.accumulate`` micro-batches, with the rates that the groups
    have now.

    Dropout draws from (seed, step, rank): nothing random is carried from step to step. Of several processes each gives
    its part of the batch, and all make the same step. Where an accelerator's memory runs out, this step and all later
    ones are made in twice as many micro-batches: the same mathematics.

    Raises: NonFiniteError: a rate, the loss, the gradient or (after the step) a weight is NaN or infinite (fp16: after
    20 halvings of the loss scale).
    """
    with own_turn(), own_arithmetic():
        return _step(state, batch, rules, steps_in_epoch)


def _step(state: TrainState, batch: Batch, rules: StepRules, steps_in_epoch: int) -> StepDone:
    begun = time.monotonic()
    check_rates(state, batch)
    parts = _ready(state, rules)
    everywhere = parts.may_draw or not is_known(rules.loss)
    with seeded(_step_seed(state, rules), device=parts.device, everywhere=everywhere) as seed_again:
        loss, weight, grad_norm = _gradient(state, parts, batch, rules, seed_again)
        _clip(parts, rules, grad_norm)
        _update(state)
    check_weights(state, parts, batch)
    groups = state.optimizer.param_groups
    body = [group["lr"] for group in groups if str(group.get("name")).partition(" ")[0] != "head"]
    state.step += 1
    return StepDone(
        step=state.step, epoch=state.epochs_done + 1, loss=loss, weight=weight, grad_norm=grad_norm,
        lr=max(body, default=0.0), head_lr=groups[-1]["lr"], images=_images(batch),
        seconds=time.monotonic() - begun, steps_in_epoch=steps_in_epoch,
        micro_batches=max(rules.accumulate, state.micro_batches),
    )  # fmt: skip


def _ready(state: TrainState, rules: StepRules) -> Parts:
    """The state's parts, once it has what these rules need of it."""
    before, parts = state.parts, parts_of(state)
    if parts.rules is not rules or (state.scaler is None and rules.precision == "fp16"):
        make_companions(
            state, before, penalties=rules.penalties, precision=rules.precision, average_steps=rules.average_steps
        )
        parts.rules = rules
    return parts


def _gradient(
    state: TrainState, parts: Parts, batch: Batch, rules: StepRules, seed_again: Callable[[], None]
) -> tuple[float, float, float]:
    """The gradient of the step's mean loss in place; that loss, the step's weight, and the gradient's norm."""
    kept, taken = keep_state(parts, rules.loss), False
    try:
        for _ in range(_MOST_OVERFLOWS):
            sums = _sums(state, parts, batch, rules, lambda: _begin_again(kept, seed_again))
            loss, weight, grad_norm = _finish_gradient(state, parts, batch, rules, sums)
            taken = _usable(state, batch, loss, grad_norm)
            if taken:
                note_written(parts, kept)
                return loss, weight, grad_norm
            _begin_again(kept, seed_again)
        raise NonFiniteError(complaint(state, batch, loss, grad_norm))
    finally:
        if not taken:
            put_back(kept)


def _begin_again(kept: Kept, seed_again: Callable[[], None]) -> None:
    """A step that is tried again must not count twice, in batch statistics or elsewhere, and draws the same numbers."""
    put_back(kept)
    seed_again()


def _sums(
    state: TrainState, parts: Parts, batch: Batch, rules: StepRules, begin_again: Callable[[], None]
) -> list[Tensor]:
    """The micro-batches' sums of losses and of weights, one after the other, with the gradients in place; where memory
    runs out, in twice as many micro-batches.

    Raises: RunError: memory runs out with two images at a time, or in one of several processes.
    """
    while True:
        for parameter in parts.trained:
            parameter.grad = None
        count = max(rules.accumulate, state.micro_batches)
        try:
            again = rules.recompute and state.suffix is None
            with attending(rules.attention), recomputing(state.model, wanted=again), compiler_errors(rules.compile):
                return _accumulate(state, parts, batch, rules, count)
        except torch.OutOfMemoryError as error:
            images = -(-len(batch.targets) // count)
            if images <= 2 or current().several:
                raise RunError(
                    f"step {state.step + 1}: {device_of(state.model)} has no memory left with {images} images at a "
                    f"time ({str(error).splitlines()[0][:120]}); give --batch.accumulate {2 * count}, a smaller "
                    "--batch-size or --image-size, or a smaller model"
                ) from error
        begin_again()
        torch.accelerator.empty_cache()  # does nothing where there is none
        state.micro_batches = 2 * count


def _step_seed(state: TrainState, rules: StepRules) -> int:
    rank = current().rank
    if rank:
        return derived_seed("step", rules.seed, state.step, rank)
    return (rules.seed << 24) + state.step & 0x7FFF_FFFF_FFFF_FFFF


def _accumulate(state: TrainState, parts: Parts, batch: Batch, rules: StepRules, count: int) -> list[Tensor]:
    """Backward of each of ``count`` micro-batches' sum of losses; its sum of losses and its sum of weights."""
    loss_function, device = rules.loss_function(), parts.device
    arguments = batch.arguments(device, MEMORY_FORMATS[rules.memory_format], parts.dtype)  # (B, ...)
    targets, size, sums = batch.targets.to(device), batch.targets.shape[0], list[Tensor]()
    forward, images = _forward(state), _images(batch) / current().world_size
    how: Compile = "never" if isinstance(forward, Suffix) else rules.compile  # its stand-ins are not the compiler's
    state.compiled = compiled(forward, state.compiled, how)
    for piece in _pieces(size, count):
        with reducing(forward, last=piece.stop == size):
            with _refused_by_all(state), autocast(device, rules.precision):
                outputs = state.compiled.call(*[_cut(argument, piece) for argument in arguments])
            shares, answers = model_scores(state.model, outputs), _cut(targets, piece)
            check_labels(shares[0][1], _cut(batch.targets, piece))
            if state.step == 0:
                check_first_outputs(shares[0][1], answers)
            losses, weights = _losses(loss_function, shares, answers)
            if piece.stop > batch.size:  # copies that fill a part up: they count for nothing
                real = torch.arange(piece.start, piece.stop, device=device) < batch.size
                weights = real.to(losses.dtype) if weights is None else weights * real
            share, *found = _shares(losses, weights, images)
            with _refusing_for_all(state):
                losses.backward(state.scaler.scale(share) if state.scaler else share)  # type: ignore[no-untyped-call]
        sums += found
    return sums


def _refused_by_all(state: TrainState) -> AbstractContextManager[None]:
    """Within, what cannot run from the cache on one process is refused by all of them, which then do without it."""
    return raised_by_all(NotReplayable) if isinstance(state.suffix, Suffix) else nullcontext()


@contextmanager
def _refusing_for_all(state: TrainState) -> Iterator[None]:
    """Within a backward pass, in which the others are on their way to a sum of gradients: a refusal ends the run."""
    try:
        yield
    except NotReplayable as error:
        if not current().several:
            raise
        raise RunError(
            f"step {state.step + 1}: {str(error).removeprefix('model: ')}; begin anew with --cache.use never"
        ) from error


def _forward(state: TrainState) -> nn.Module:
    """The model, or its part behind the boundary where batches begin there; over several processes, what averages its
    gradients.
    """
    model = state.model if state.suffix is None else state.suffix
    if not current().several or is_sharded(model):
        return model
    state.replica = replicated(model, state.replica)
    return state.replica.module


def _images(batch: Batch) -> int:
    """Of the whole step, over all processes."""
    return batch.total or batch.targets.shape[0]


def _pieces(size: int, accumulate: int) -> Iterator[slice]:
    """At most ``accumulate`` slices, as even as can be; none of a single image (BatchNorm cannot take it)."""
    count = max(1, min(accumulate, size // 2))
    return (slice(size * place // count, size * (place + 1) // count) for place in range(count))


def _cut(values: Tensor, piece: slice) -> Tensor:
    return values if piece.stop - piece.start == values.shape[0] else values[piece]


def _losses(
    loss_function: LossFunction, shares: list[tuple[float, Tensor]], targets: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Losses over all of the model's outputs, and weights by the main one, per sample (B,); None: all are 1."""
    made = [_per_sample(loss_function(wide(scores), targets), count=targets.shape[0]) for _, scores in shares]
    losses, weights = made[0]
    if len(shares) > 1:
        losses = torch.stack([share * value for (share, _), (value, _) in zip(shares, made, strict=True)]).sum(0)
    losses = wide(losses)
    return losses, None if weights is None else weights.detach().to(losses.dtype)


def _shares(losses: Tensor, weights: Tensor | None, images: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each image's share of the step's loss (B,), and the sums of losses and of weights.

    By the images for now: the sum of weights is known only after the last piece.
    """
    if weights is None:
        ones, count = _ones(len(losses), losses.dtype, losses.device)
        return ones / images, losses.detach().sum(), count
    return weights / images, (losses.detach() * weights).sum(), weights.sum()


@lru_cache(maxsize=16)
def _ones(count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights (B,) of images that all count the same, and their sum."""
    ones = torch.ones(count, dtype=dtype, device=device)
    return ones, ones.sum()


def _per_sample(made: object, *, count: int) -> tuple[Tensor, Tensor | None]:
    """Losses and weights (B,) from what a loss function returned."""
    value, weights = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    parts = (value,) if weights is None else (value, weights)
    found = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    if any(shape != (count,) for shape in found):
        about = f" (weights {found[1]})" if len(found) > 1 else ""
        raise DataError(
            f"the loss returned {found[0]}{about} for {count} images; return one value per image, shape ({count},), "
            "e.g. with reduction='none'"
        )
    assert isinstance(value, Tensor) and (weights is None or isinstance(weights, Tensor))
    return value, weights


def _finish_gradient(
    state: TrainState, parts: Parts, batch: Batch, rules: StepRules, sums: list[Tensor]
) -> tuple[float, float, float]:
    """Unscale, mean over weights, penalties; the mean loss, the weight, and the norm of the gradient."""
    if state.scaler:
        state.scaler.unscale_(state.optimizer)
    check_foreign(state, parts)
    gradients = parts.gradients()
    read = torch.stack([*sums, *norms(gradients)]).tolist()  # the one wait for the device
    loss_sum, weight, norm = sum(read[: len(sums) : 2]), sum(read[1 : len(sums) : 2]), math.hypot(*read[len(sums) :])
    if current().several:
        loss_sum, weight = summed(torch.tensor([loss_sum, weight], dtype=torch.float64)).tolist()
    if not weight > 0:
        raise NonFiniteError(f"step {state.step + 1}: all loss weights of the batch are zero; images: {names(batch)}")
    factor = _images(batch) / weight
    if factor != 1.0:
        torch._foreach_mul_(gradients, factor)
    extra = penalty(state.model, rules.penalties, start=state.start)
    if extra is None:
        return loss_sum / weight, weight, norm * factor
    _add_gradient(extra, parts.trained)
    return loss_sum / weight, weight, math.hypot(*torch.stack(norms(parts.gradients())).tolist())


def _clip(parts: Parts, rules: StepRules, norm: float) -> None:
    """All gradients made smaller by one factor where their norm is above ``clip_norm``; then each of their values."""
    if rules.clip_norm is not None and (factor := rules.clip_norm / (norm + 1e-6)) < 1:  # as torch's clip_grad_norm_
        torch._foreach_mul_(parts.gradients(), factor)
    if rules.clip_value is not None:
        nn.utils.clip_grad_value_(parts.trained, rules.clip_value)


def _add_gradient(value: Tensor, trained: Sequence[Tensor]) -> None:
    """What ``value.backward()`` would add, past the hooks that average over processes: it is the same on all."""
    trained = [parameter for parameter in trained if parameter.requires_grad]
    for parameter, more in zip(trained, torch.autograd.grad(value, trained, allow_unused=True), strict=True):
        if more is not None:
            parameter.grad = more if parameter.grad is None else parameter.grad.add_(more)


def _usable(state: TrainState, batch: Batch, loss: float, grad_norm: float) -> bool:
    """Whether to take the step; an fp16 overflow lowers the scale and the same step is tried again."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return True
    if state.scaler is None or not math.isfinite(loss):
        raise NonFiniteError(complaint(state, batch, loss, grad_norm))
    state.scaler.update()  # it saw the overflow when it unscaled
    return False


def _update(state: TrainState) -> None:
    if state.scaler:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.step()
    if current().several:
        share_statistics(state.model)
    if state.average is not None:
        update_average(state.average, state.model, step=state.step)
