"""One optimizer step, from images to weights: the order is the point.

micro-batches (forward, losses, backward) -> unscale -> mean over the step's weights -> penalties -> finite? -> clip
-> optimizer -> average -> finite?

What surrounds it lives next door: ``around_step`` (turns of threads, seeds, another try), and what only some runs need
in ``forward_context`` (several processes, compiling, recomputing, attention, precision).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor, nn

from headstart.config.schema import Penalties
from headstart.data.batch import Batch
from headstart.distributed.collectives import all_reduce_sum
from headstart.distributed.ddp import share_statistics
from headstart.errors import DataError, NonFiniteError
from headstart.events import StepDone
from headstart.optim.penalties import penalty
from headstart.private_names import foreach_mul_
from headstart.surgery.head import model_scores
from headstart.tasks.losses import LossFunction, check_first_outputs, check_labels, wide
from headstart.training.around_step import ModuleIndex, check_foreign, refuse_or_retry, retry_step, take_for_good
from headstart.training.average import update_average
from headstart.training.finite import names, refuse_weights
from headstart.training.forward_context import Forward, forward_context
from headstart.training.precision import MEMORY_FORMATS
from headstart.training.rules import StepRules
from headstart.training.state import TrainState


@retry_step
def train_step(state: TrainState, batch: Batch, *, rules: StepRules, steps_in_epoch: int = 0) -> StepDone:
    """Make one optimizer step on a batch, with the rates that the optimizer's groups have now.

    Gradients that the parameters have before are dropped; ``rules.accumulate`` cuts a step into micro-batches.
    Dropout draws from (seed, step, process): nothing random is carried from step to step. Of several processes each
    gives its part of the batch, and all make the same step. Where an accelerator's memory runs out, this step and all
    later ones are made in twice as many micro-batches: the same mathematics.

    Args:
        ``state``: The model, its optimizer and the counters, which are changed.
        ``batch``: Images (B, C, H, W) with their targets: an ``hs.Batch``, as iterating over ``images.train.epoch(0)``
            gives them, or a pair of tensors (images, targets), as a torch ``DataLoader`` gives it, whose images are
            floats that go into the model as they are.
        ``rules``: How the step is made: the loss, precision, micro-batches and clipping.
        ``steps_in_epoch``: How many steps the epoch has, for the event; 0 where that is not known.

    Returns:
        What was done: the loss, the gradient's norm and the rates.

    Raises:
        NonFiniteError: A rate, the loss, the gradient or (after the step) a weight is NaN or infinite (fp16: after 20
            halvings of the loss scale).
        DataError: The batch is of another kind, or its images are integers without a mean and deviation.

    Example:
        >>> import headstart as hs, torch
        >>> opened = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]})
        >>> images = hs.open_images("photos", like=opened, batch_size=4)
        >>> swap = hs.replace_head(opened.module, outputs=2)
        >>> state = hs.TrainState(opened.module, torch.optim.SGD(opened.module.parameters(), lr=0.01))
        >>> done = hs.train_step(state, next(iter(images.train.epoch(0))), rules=hs.StepRules())
        >>> done.step, done.images
        (1, 4)
    """
    index: ModuleIndex = state.index
    loss_function = rules.loss_per_image
    for parameter in index.trained:
        parameter.grad = None
    inputs = batch.arguments(index.device, MEMORY_FORMATS[rules.memory_format], index.dtype)  # (B, ...) each
    targets, sums = batch.targets.to(index.device), list[Tensor]()

    # Micro-batches: a forward pass, a loss per image, and the backward pass of each image's share.
    slices = micro_batches(len(targets), max(rules.accumulate, state.micro_batches))
    with _forward(state, index, rules, calls=len(slices)) as forward:
        for rows in slices:
            outputs = forward(*[_cut(value, rows) for value in inputs])
            losses, weights = _losses(state, loss_function, outputs, _cut(targets, rows), _cut(batch.targets, rows))
            if rows.stop > batch.size:  # copies that fill a micro-batch up: they count for nothing
                real = torch.arange(rows.start, rows.stop, device=index.device) < batch.size
                weights = real.to(losses.dtype) if weights is None else weights * real
            share, *sums_here = _shares(losses, weights, _images(batch) / index.processes.world_size)
            losses.backward(state.scaler.scale(share) if state.scaler else share)  # type: ignore[no-untyped-call]
            sums += sums_here

    # The gradient of the mean: the sum over all images, divided by the sum of their weights; then the penalties.
    if state.scaler:
        state.scaler.unscale_(state.optimizer)
    loss, weight, norm = _mean(state, index, batch, sums)
    if rules.penalties.l1 or rules.penalties.l2_start:
        norm = _add_penalties(state, index, rules.penalties, norm)

    # Finite? An overflow of fp16 is tried again with another scale; what else is not finite ends here.
    if not (math.isfinite(loss) and math.isfinite(norm)):
        refuse_or_retry(state, batch, loss, norm)
    take_for_good(index)

    # Clip, move the weights, let the average follow.
    _clip(index, rules, norm)
    _move(state, index)
    if not index.weights_are_finite():
        refuse_weights(state, batch)
    state.step += 1
    lr, head_lr = _rates(state)
    return StepDone(
        step=state.step, epoch=state.epochs_done + 1, loss=loss, weight=weight, grad_norm=norm, lr=lr, head_lr=head_lr,
        images=_images(batch), seconds=time.monotonic() - index.began, steps_in_epoch=steps_in_epoch,
        micro_batches=max(rules.accumulate, state.micro_batches),
    )  # fmt: skip


def _forward(state: TrainState, index: ModuleIndex, rules: StepRules, *, calls: int) -> AbstractContextManager[Forward]:
    """The model, or its part behind the boundary where batches begin there, with what these rules put around it."""
    model = state.model if state.suffix is None else state.suffix
    if rules.are_plain and not index.is_distributed:
        return nullcontext(model)
    return forward_context(state, model, rules, calls=calls)


def micro_batches(size: int, accumulate: int) -> list[slice]:
    """At most ``accumulate`` slices of a batch, as even as can be; none has a single image (BatchNorm takes none)."""
    count = max(1, min(accumulate, size // 2))
    return [slice(size * number // count, size * (number + 1) // count) for number in range(count)]


def _cut(values: Tensor, rows: slice) -> Tensor:
    return values if rows.stop - rows.start == values.shape[0] else values[rows]


def _images(batch: Batch) -> int:
    """How many images the whole step has, over all processes."""
    return batch.total or batch.targets.shape[0]


def _losses(
    state: TrainState, loss_function: LossFunction, outputs: object, targets: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Losses (B,) over all of the model's outputs, and weights (B,) by the main one; None where all are 1.

    ``labels``: the targets on the CPU, where looking at them costs no waiting.
    """
    shares = [(1.0, outputs)] if isinstance(outputs, Tensor) else model_scores(state.model, outputs)
    check_labels(shares[0][1], labels)
    if state.step == 0:
        check_first_outputs(shares[0][1], targets)
    per_output = [_per_image(loss_function(wide(scores), targets), count=targets.shape[0]) for _, scores in shares]
    losses, weights = per_output[0]
    if len(shares) > 1:
        losses = torch.stack([share * value for (share, _), (value, _) in zip(shares, per_output, strict=True)]).sum(0)
    losses = wide(losses)
    return losses, None if weights is None else weights.detach().to(losses.dtype)


def _per_image(returned: object, *, count: int) -> tuple[Tensor, Tensor | None]:
    """Losses and weights (B,) from what a loss function returned."""
    value, weights = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    tensors = (value,) if weights is None else (value, weights)
    shapes = [tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__ for tensor in tensors]
    if any(shape != (count,) for shape in shapes):
        about = f" (weights {shapes[1]})" if len(shapes) > 1 else ""
        raise DataError(
            f"the loss returned {shapes[0]}{about} for {count} images; return one value per image, shape ({count},), "
            "e.g. with reduction='none'"
        )
    assert isinstance(value, Tensor) and (weights is None or isinstance(weights, Tensor))
    return value, weights


def _shares(losses: Tensor, weights: Tensor | None, images: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each image's share of the step's loss (B,), and the sums of losses and of weights.

    The share is by the number of images for now: the sum of weights is known only after the last micro-batch.
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


def _mean(state: TrainState, index: ModuleIndex, batch: Batch, sums: Sequence[Tensor]) -> tuple[float, float, float]:
    """Turn the gradient of the sum into that of the mean; return the mean loss, the weight, and the gradient's norm."""
    check_foreign(state, index)
    gradients = index.gradients()
    read = torch.stack([*sums, *index.norms(gradients)]).tolist()  # the one wait for the device
    loss_sum, weight, norm = sum(read[: len(sums) : 2]), sum(read[1 : len(sums) : 2]), math.hypot(*read[len(sums) :])
    if index.is_distributed:
        loss_sum, weight = all_reduce_sum(torch.tensor([loss_sum, weight], dtype=torch.float64)).tolist()
    if not weight > 0:
        raise NonFiniteError(f"step {state.step + 1}: all loss weights of the batch are zero; images: {names(batch)}")
    factor = _images(batch) / weight
    if factor != 1.0:
        foreach_mul_(gradients, factor)
    return loss_sum / weight, weight, norm * factor


def _add_penalties(state: TrainState, index: ModuleIndex, penalties: Penalties, norm: float) -> float:
    """Add the penalties' gradient, the same on all processes, past the hooks that average it; return the new norm."""
    total = penalty(state.model, penalties, start=state.start)
    if total is None:
        return norm
    trained = [parameter for parameter in index.trained if parameter.requires_grad]
    for parameter, gradient in zip(trained, torch.autograd.grad(total, trained, allow_unused=True), strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return math.hypot(*torch.stack(index.norms(index.gradients())).tolist())


def _clip(index: ModuleIndex, rules: StepRules, norm: float) -> None:
    """Scale all gradients by one factor where their norm is above ``clip_norm``; then limit each of their values."""
    if rules.clip_norm is not None and (factor := rules.clip_norm / (norm + 1e-6)) < 1:  # as torch's clip_grad_norm_
        foreach_mul_(index.gradients(), factor)
    if rules.clip_value is not None:
        nn.utils.clip_grad_value_(index.trained, rules.clip_value)


def _move(state: TrainState, index: ModuleIndex) -> None:
    """Make the optimizer's step, and the average's."""
    if state.scaler:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.step()
    if index.is_distributed:
        share_statistics(state.model)
    if state.average is not None:
        update_average(state.average, state.model, step=state.step)


def _rates(state: TrainState) -> tuple[float, float]:
    """The largest rate of the groups that are not the head's (0: there are none), and the last group's."""
    groups = state.optimizer.param_groups
    body = [group["lr"] for group in groups if str(group.get("name")).partition(" ")[0] != "head"]
    return max(body, default=0.0), groups[-1]["lr"]
