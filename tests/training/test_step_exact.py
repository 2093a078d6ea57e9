"""The small numbers of a step: what every count, bound, rate and seed is, held against the same written by hand."""

from __future__ import annotations

import copy
import dataclasses
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import headstart as hs
from headstart.config.schema import Penalties
from headstart.data.randomness import derive_seed
from headstart.errors import DataError, NonFiniteError, RunError
from headstart.events import StepDone
from headstart.surgery.halves import Suffix
from headstart.training.compile import Compiled
from headstart.training.precision import make_scaler
from headstart.training.rules import StepRules
from headstart.training.state import TrainState
from headstart.training.step import train_step

CPU = torch.device("cpu")


def sgd(model: nn.Module, lr: float = 0.1) -> TrainState:
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=lr))


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])


def by_hand(model: nn.Module, batch, **options) -> torch.Tensor:
    images = batch.inputs(CPU, torch.contiguous_format).to(next(model.parameters()).dtype)
    return F.cross_entropy(model(images), batch.targets, **options)


def test_rules_that_are_not_given_and_what_is_not_said_are_these() -> None:
    assert vars(StepRules()) == {
        "loss": "cross_entropy", "penalties": Penalties(), "precision": "fp32", "memory_format": "contiguous",
        "attention": "fused", "accumulate": 1, "clip_norm": None, "clip_value": None, "recompute": False, "seed": 0,
        "compile": "never", "evaluation_precision": None, "average_steps": None,
    }  # fmt: skip
    done = StepDone(step=1, epoch=1, loss=0.5, weight=2.0, grad_norm=1.0, lr=0.1, head_lr=0.2, images=2)
    assert (done.seconds, done.steps_in_epoch, done.micro_batches) == (0.0, 0, 1)


def test_validation_has_trainings_precision_where_it_has_none_of_its_own() -> None:
    assert StepRules(precision="bf16").evaluated_in == "bf16"
    assert StepRules(precision="bf16", evaluation_precision="fp32").evaluated_in == "fp32"


def test_a_step_says_when_it_was_what_it_took_and_with_which_rates(net, noise) -> None:
    model = net()
    rates = {"conv1": 0.01, "conv2": 0.02, "head (no decay)": 0.3, "head": 0.4}
    parts = [[*model.conv1.parameters()], [*model.conv2.parameters()], [model.fc.bias], [model.fc.weight]]
    groups = [{"params": part, "name": name, "lr": rates[name]} for part, name in zip(parts, rates, strict=True)]
    state = TrainState(model, torch.optim.SGD(groups), epochs_done=4, step=6)
    begun = time.monotonic()
    done = train_step(state, noise(5), rules=StepRules())
    assert 0 < done.seconds <= time.monotonic() - begun
    assert (done.step, done.epoch, done.images, done.steps_in_epoch, done.micro_batches) == (7, 5, 5, 0, 1)
    assert (done.lr, done.head_lr) == (0.02, 0.4)
    done = train_step(state, noise(5), rules=StepRules(accumulate=2), steps_in_epoch=9)
    assert (done.step, done.steps_in_epoch, done.micro_batches, state.step) == (8, 9, 2, 8)


@pytest.mark.parametrize("loss", [0.5, 2.0])
def test_weights_below_one_and_weights_of_one_half_change_no_mean(net, noise, loss) -> None:
    """With halves the step's weight is half the images, a single image's is below one: both means are the plain one."""
    for count in (1, 6):
        model = net().double()
        rules = StepRules(loss=lambda o, t: (F.cross_entropy(o, t, reduction="none"), torch.full((len(t),), loss)))
        state = sgd(copy.deepcopy(model), lr=0.0)
        done = train_step(state, noise(count), rules=rules)
        expected = by_hand(model, noise(count))
        expected.backward()
        assert done.weight == loss * count
        assert done.loss == pytest.approx(expected.item(), rel=1e-12)
        torch.testing.assert_close(gradients(state.model), gradients(model), rtol=1e-12, atol=0)


@pytest.mark.parametrize("accumulate", [3, 5])
def test_pieces_in_the_middle_of_a_batch_are_cut(net, noise, accumulate) -> None:
    """Of nine images in three pieces the middle one is 3 to 6, of ten in five 4 to 6: ends that add up to the size."""
    count = {3: 9, 5: 10}[accumulate]
    model, seen = net().double(), []
    state = sgd(copy.deepcopy(model), lr=0.0)
    rules = StepRules(
        accumulate=accumulate, loss=lambda o, t: seen.append(len(t)) or F.cross_entropy(o, t, reduction="none")
    )
    train_step(state, noise(count), rules=rules)
    by_hand(model, noise(count)).backward()
    assert seen == [count // accumulate] * accumulate
    torch.testing.assert_close(gradients(state.model), gradients(model), rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("clip", [5e-7, 1e-3])
def test_a_small_gradient_is_clipped_as_torch_does_it(net, noise, clip) -> None:
    """Torch adds 1e-6 to the norm before it divides, which counts where norms are as small."""
    model = net().double()
    state = sgd(copy.deepcopy(model), lr=0.0)
    tiny = StepRules(loss=lambda o, t: 1e-6 * F.cross_entropy(o, t, reduction="none"), clip_norm=clip)
    done = train_step(state, noise(8), rules=tiny)
    (1e-6 * by_hand(model, noise(8))).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    assert done.grad_norm == pytest.approx(norm.item(), rel=1e-12)
    torch.testing.assert_close(gradients(state.model), gradients(model), rtol=1e-10, atol=0)


def test_a_gradient_just_below_the_bound_stays(net, noise) -> None:
    state = sgd(net().double(), lr=0.0)
    norm = train_step(state, noise(8), rules=StepRules()).grad_norm
    before = gradients(state.model)
    train_step(state, noise(8), rules=StepRules(clip_norm=1.5 * norm))
    assert torch.equal(gradients(state.model), before)
    train_step(state, noise(8), rules=StepRules(clip_norm=0.75 * norm))
    assert gradients(state.model).norm().item() == pytest.approx(0.75 * norm, rel=1e-4)


def test_a_penalty_is_in_the_norm_not_in_the_loss_and_reaches_what_the_loss_does_not_use(net, noise) -> None:
    model = net().double()
    model.fc.spare = nn.Parameter(torch.full((2, 2), -3.0, dtype=torch.float64))
    model.fc.other = nn.Parameter(torch.ones(1, dtype=torch.float64))
    hand, state = copy.deepcopy(model), sgd(model, lr=0.0)
    rules = StepRules(accumulate=2, penalties=Penalties(l1=0.5, l1_on=("fc.spare", "conv1.weight")))
    done = train_step(state, noise(8), rules=rules)
    plain = by_hand(hand, noise(8))
    (plain + 0.5 * (hand.fc.spare.abs().sum() + hand.conv1.weight.abs().sum())).backward()
    assert done.loss == pytest.approx(plain.item(), rel=1e-12)
    assert done.grad_norm == pytest.approx(gradients(hand).norm().item(), rel=1e-12)
    assert model.fc.spare.grad.tolist() == [[-0.5, -0.5], [-0.5, -0.5]]
    assert model.fc.other.grad is None
    torch.testing.assert_close(gradients(model), gradients(hand), rtol=1e-10, atol=1e-15)


def masked(model: nn.Module, batch, *, seed: int) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return by_hand(model, batch)


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (0, 7), (3, 5), (2**39 + 3, 2), (2**50, 1)])
def test_dropout_draws_from_the_seed_and_the_step(net, noise, seed, step) -> None:
    """A run's bits are a function of this: 24 bits for the step, the seed above them, 63 in all."""
    model = net(dropout=0.5)
    state = sgd(copy.deepcopy(model))
    state.step = step
    done = train_step(state, noise(8), rules=StepRules(seed=seed))
    expected = masked(model, noise(8), seed=(seed * 2**24 + step) % 2**63)
    assert done.loss == pytest.approx(expected.item(), rel=1e-6)


class Done(dist.Work):
    """A message that has arrived."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()
        self.future = torch.futures.Future()
        self.future.set_result(tensors)

    def wait(self, timeout: object = None) -> bool:
        return True

    def get_future(self) -> torch.futures.Future:
        return self.future


class Twins(dist.ProcessGroup):
    """A group of two of which the other has the same numbers as this one; ``summed`` and ``sent``: how many numbers
    each message had.
    """

    summed: ClassVar[list[int]] = []
    sent: ClassVar[list[int]] = []

    def allreduce(self, tensors, options=None) -> Done:
        assert options is None or options.reduceOp == dist.ReduceOp.SUM
        Twins.summed += [tensor.numel() for tensor in tensors if tensor.is_floating_point()]
        return Done([tensor.mul_(2) for tensor in tensors])

    def allgather(self, outputs, inputs, options=None) -> Done:
        for output, value in zip(outputs[0], inputs * 2, strict=True):
            output.copy_(value)
        return Done(outputs[0])

    def broadcast(self, tensors, options=None) -> Done:
        Twins.sent += [tensor.numel() for tensor in tensors]
        return Done(tensors)

    def getBackendName(self) -> str:
        return "twins"


@contextmanager
def second_of_two() -> Iterator[None]:
    if "twins" not in dist.Backend.backend_list:
        dist.Backend.register_backend("twins", lambda store, rank, size, timeout: Twins(rank, size), devices=["cpu"])
    dist.init_process_group("twins", rank=1, world_size=2, store=dist.HashStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_another_process_draws_other_numbers(net, noise) -> None:
    model = net(dropout=0.5)
    state = sgd(copy.deepcopy(model))
    with second_of_two():
        done = train_step(state, noise(8), rules=StepRules(seed=3))
    expected = masked(model, noise(8), seed=derive_seed("step", 3, 0, 1))
    assert done.loss == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("loss", ["plain", "weighted"])
def test_two_processes_with_the_same_images_make_the_step_of_one(net, noise, loss, accumulate) -> None:
    """What is summed over both counts twice above and below; gradients are sent with the last piece only."""
    images = torch.arange(1.0, 9.0, dtype=torch.float64) if loss == "weighted" else torch.ones(8, dtype=torch.float64)
    rules = StepRules(
        loss=lambda o, t: (F.cross_entropy(o, t, reduction="none"), images[: len(t)]),
        accumulate=accumulate, clip_norm=0.1,
    )  # fmt: skip
    alone, shared, batch = sgd(net(norm=True).double()), sgd(net(norm=True).double()), noise(8)
    expected = [train_step(alone, batch, rules=rules) for _ in range(2)][1]
    with second_of_two():
        train_step(shared, dataclasses.replace(batch, total=16), rules=rules)
        del Twins.sent[:], Twins.summed[:]
        done = train_step(shared, dataclasses.replace(batch, total=16), rules=rules)
    assert Twins.summed == [sum(value.numel() for value in shared.model.parameters()), 2]
    assert Twins.sent == [16], "the mean and the variance of eight channels"
    assert (done.weight, done.images) == (2 * expected.weight, 16)
    assert (done.loss, done.grad_norm) == pytest.approx((expected.loss, expected.grad_norm), rel=1e-12)
    for value, other in zip(alone.model.state_dict().values(), shared.model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-10, atol=1e-15)


def note(file: Path, count: int) -> None:
    with file.open("a") as out:
        out.write(f"{count} ")


class Small(nn.Module):
    """Has memory for so many images at a time; notes how many it was asked for in a file, where no step
    takes it back.
    """

    def __init__(self, inner: nn.Module, *, most: int, asked: Path) -> None:
        super().__init__()
        self.inner, self.most, self.asked = inner, most, asked

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        note(self.asked, len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return self.inner(images)


def test_a_step_goes_down_to_two_images_and_draws_the_same_numbers_again(net, noise, tmp_path) -> None:
    state = sgd(Small(net(dropout=0.5), most=2, asked=tmp_path / "asked"))
    done = train_step(state, noise(6), rules=StepRules())
    assert (tmp_path / "asked").read_text() == "6 3 2 2 2 "
    assert (done.micro_batches, state.micro_batches) == (4, 4)
    afresh = sgd(Small(net(dropout=0.5), most=2, asked=tmp_path / "asked"))
    assert train_step(afresh, noise(6), rules=StepRules(accumulate=4)).loss == done.loss


def test_one_of_several_processes_does_not_try_in_smaller_pieces(net, noise, tmp_path) -> None:
    """The others would wait for its gradients."""
    state = sgd(Small(net(), most=7, asked=tmp_path / "asked"))
    with second_of_two(), pytest.raises(RunError, match=r"no memory left with 8 images at a time .*accumulate 2,"):
        train_step(state, noise(8), rules=StepRules())
    assert (tmp_path / "asked").read_text() == "8 "


def test_a_step_that_overflowed_draws_the_same_numbers_again(net, noise) -> None:
    state, steady = sgd(net(dropout=0.5)), sgd(net(dropout=0.5))
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**23)
    steady.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    rules = StepRules(precision="fp16")
    assert train_step(state, noise(8), rules=rules).loss == train_step(steady, noise(8), rules=rules).loss
    assert state.scaler.get_scale() < 2.0**23


def test_a_loss_that_is_not_finite_is_no_overflow(net, noise, tmp_path) -> None:
    state, called = sgd(net()), tmp_path / "called"
    state.scaler = make_scaler(CPU, "fp16")
    before = state.scaler.get_scale()
    rules = StepRules(precision="fp16", loss=lambda o, t: note(called, len(t)) or o.sum(1) * float("nan"))
    with pytest.raises(NonFiniteError, match="loss nan"):
        train_step(state, noise(8), rules=rules)
    assert (called.read_text(), state.scaler.get_scale()) == ("8 ", before)


def test_the_scale_grows_again_after_steps_without_an_overflow(net, noise) -> None:
    state = sgd(net())
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    scales = [
        train_step(state, noise(8), rules=StepRules(precision="fp16")) and state.scaler.get_scale() for _ in range(4)
    ]
    assert scales == [2.0**8, 2.0**9, 2.0**9, 2.0**10]


class Drawing(nn.Module):
    """Shifts its images by a number from Python's generator and one from NumPy's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images + random.random() + np.random.rand())


@pytest.mark.parametrize("where", ["model", "loss"])
def test_code_of_the_users_draws_from_the_steps_seed_wherever_it_stands(net, noise, where) -> None:
    def own(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets, reduction="none") + random.random() + np.random.rand()

    losses = []
    for before in (1, 2):
        random.seed(before)
        np.random.seed(before)
        made = (sgd(Drawing(net())), "cross_entropy") if where == "model" else (sgd(net()), own)
        losses.append(train_step(made[0], noise(8), rules=StepRules(loss=made[1])).loss)
        after = random.random(), np.random.rand()
        random.seed(before)
        np.random.seed(before)
        assert after == (random.random(), np.random.rand())
    assert losses[0] == losses[1]


def test_what_is_compiled_is_the_model_as_the_rules_say(net, noise) -> None:
    model, called = net(), []
    state = sgd(model)
    state.compiled = Compiled(model, "default", lambda images: called.append(len(images)) or model(images))
    train_step(state, noise(8), rules=StepRules(compile="default"))
    assert (called, state.compiled.how) == ([8], "default")
    train_step(state, noise(8), rules=StepRules())
    assert called == [8]


def test_probabilities_are_looked_for_at_the_first_step_only(net, noise) -> None:
    model = nn.Sequential(net(), nn.Softmax(1))
    with pytest.raises(DataError, match="probabilities"):
        train_step(sgd(model), noise(4), rules=StepRules())
    later = sgd(model)
    later.step = 1
    assert train_step(later, noise(4), rules=StepRules()).step == 2


def test_companions_that_are_there_are_not_made_again(net, noise) -> None:
    """A scaler that was taken away is made at the next step of fp16, not of fp32."""
    rules = StepRules(precision="fp16")
    state = sgd(net())
    train_step(state, noise(4), rules=rules)
    own, state.scaler = state.scaler, None
    assert own is not None
    train_step(state, noise(4), rules=rules)
    assert state.scaler is not None and state.scaler is not own
    other = hs.TrainState(state.model, state.optimizer)
    train_step(other, noise(4), rules=StepRules())
    assert other.scaler is None


class Block(nn.Module):
    """Three layers, worth computing twice; notes each call in a file."""

    def __init__(self, called: Path) -> None:
        super().__init__()
        self.layers, self.called = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)), called

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        note(self.called, len(values))
        return self.layers(values)


@pytest.mark.parametrize(
    ("recompute", "cut", "calls"), [(False, False, "4 "), (True, False, "4 4 "), (True, True, "4 ")]
)
def test_blocks_are_computed_twice_by_the_rule_alone_and_not_behind_a_boundary(
    noise, tmp_path, recompute, cut, calls
) -> None:
    called = tmp_path / "called"
    state = sgd(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), Block(called), nn.Linear(12, 3)))
    state.suffix = state.model if cut else None
    train_step(state, noise(4), rules=StepRules(recompute=recompute))
    assert called.read_text() == calls
    assert state.index is not None and state.index.written == (), "what forward does not write to is not copied again"


class Behind(Suffix):
    """The whole model as what is behind its boundary."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module

    def forward(self, *activations: torch.Tensor) -> torch.Tensor:
        return self.module(*activations)


def test_what_replays_a_models_own_code_is_not_compiled(net, noise) -> None:
    """The compiler does not know the stand-ins that it puts in the place of what was stored."""
    state = sgd(net())
    state.suffix = Behind(state.model)
    done = train_step(state, noise(8), rules=StepRules(compile="default"))
    assert state.compiled is not None and state.compiled.how == "never"
    assert done.loss == pytest.approx(by_hand(net(), noise(8)).item(), rel=1e-6)
