"""What a step looks up once of a model and its optimizer, and what it puts back when it is not taken."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import headstart as hs
from headstart.errors import NonFiniteError
from headstart.training import around_step
from headstart.training.around_step import index_of, take_snapshot
from headstart.training.state import TrainState
from headstart.training.step import train_step

RULES = hs.StepRules()
REFUSED = hs.StepRules(loss=lambda outputs, targets: outputs.sum(1) * float("nan"))


def sgd(model: nn.Module) -> TrainState:
    trained = [value for value in model.parameters() if value.requires_grad]
    return TrainState(model, torch.optim.SGD(trained, lr=0.1))


# ---- what is looked up, and when again


def wrap_the_model(state: TrainState) -> None:
    state.model = nn.Sequential(state.model)


def make_the_optimizer_again(state: TrainState) -> None:
    state.optimizer = torch.optim.SGD(state.optimizer.param_groups[0]["params"], lr=0.1)


def reorder_a_group(state: TrainState) -> None:
    state.optimizer.param_groups[0]["params"].reverse()


def replace_a_part(state: TrainState) -> None:
    state.model.act1 = nn.ReLU()


def replace_a_frozen_parameter(state: TrainState) -> None:
    state.model.conv1.weight = nn.Parameter(torch.ones(8, 3, 3, 3), requires_grad=False)


def freeze_a_parameter(state: TrainState) -> None:
    state.model.fc.bias.requires_grad_(False)


def put_a_part_into_eval(state: TrainState) -> None:
    state.model.bn1.eval()


def compute_in_double(state: TrainState) -> None:
    state.model.double()


CHANGES = [
    wrap_the_model, make_the_optimizer_again, reorder_a_group, replace_a_part, replace_a_frozen_parameter,
    freeze_a_parameter, put_a_part_into_eval, compute_in_double,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_is_looked_up_once_and_again_after_each_change(net, change: Callable[[TrainState], None]) -> None:
    model = net(norm=True)
    model.conv1.requires_grad_(False)
    model.conv2.bias = None
    state = sgd(model)
    first = index_of(state)
    assert index_of(state) is first
    change(state)
    second = index_of(state)
    assert second is not first
    assert index_of(state) is second


def test_a_model_is_looked_up_again_within_a_process_group(net) -> None:
    state = sgd(net())
    first = index_of(state)
    assert first.in_group is False
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        assert index_of(state) is not first
        assert state.index.in_group is True
    finally:
        dist.destroy_process_group()


def test_the_norm_of_nothing_is_zero(net) -> None:
    index = index_of(sgd(net()))
    assert index.gradients() == []
    assert [float(value) for value in index.norms([])] == [0.0]
    assert [float(value) for value in index.norms([torch.tensor([3.0, -4.0]), torch.tensor([[2.0]])])] == [5.0, 2.0]


@pytest.mark.parametrize("outside", [False, True])
def test_a_single_parameter_trains_also_where_it_is_the_losss_own(noise, outside: bool) -> None:
    scale, batch = nn.Parameter(torch.ones(3)), noise(8)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.codes = nn.Parameter(torch.arange(4), requires_grad=False)  # whole numbers do not say what is computed with
    if not outside:
        model.append(nn.Linear(3, 3, bias=False)).requires_grad_(False)
        scale = model[2].weight.requires_grad_(True)
    before = scale.detach().clone().requires_grad_(True)
    factor = scale if outside else torch.ones(3)
    loss = lambda outputs, targets: F.cross_entropy(outputs * factor, targets, reduction="none")  # noqa: E731
    train_step(TrainState(model, torch.optim.SGD([scale], lr=0.1)), batch, rules=hs.StepRules(loss=loss))
    means = batch.inputs(torch.device("cpu"), torch.contiguous_format).mean((2, 3))
    F.cross_entropy(means * before if outside else means @ before.T, batch.targets).backward()
    torch.testing.assert_close(scale.detach(), before.detach() - 0.1 * before.grad)


# ---- whose code draws from Python's generator


def draw(*_: object) -> None:
    draw.seen.append(random.random())


def own_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    draw()
    return F.cross_entropy(outputs, targets, reduction="none")


def draw_forward(model: nn.Module) -> None:
    inner = model.act1.forward
    model.act1.forward = lambda maps: draw() or inner(maps)


DRAWING: dict[str, Callable[[nn.Module], object]] = {
    "a hook": lambda model: model.conv1.register_forward_hook(draw),
    "a pre-hook": lambda model: model.conv1.register_forward_pre_hook(draw),
    "a replaced forward": draw_forward,
    "a loss": lambda model: own_loss,
    "a part of a loss": lambda model: partial(own_loss),
}


@pytest.mark.parametrize("name", DRAWING)
def test_what_the_users_own_code_draws_is_a_function_of_the_step(net, noise, name: str) -> None:
    draw.seen = []
    for before in (1, 2):
        model = net()
        made = DRAWING[name](model)
        rules = hs.StepRules(loss=made) if "loss" in name else RULES
        random.seed(before)
        train_step(sgd(model), noise(8), rules=rules)
        after = random.random()
        random.seed(before)
        assert after == random.random(), "the caller's generator is where it was"
    first, second = draw.seen
    assert first == second


# ---- what is put back


class Counting(nn.Module):
    """Counts its calls in a buffer, a list and a plain tensor, and is always in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.plain = torch.zeros(1)
        self.register_buffer("calls", torch.zeros(()))

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(len(images))
        self.plain.add_(1)
        return images


def test_a_step_that_is_not_taken_leaves_statistics_and_parts_in_eval_as_they_were(net, noise) -> None:
    for model in (net(norm=True), nn.Sequential(Counting(), net(norm=True))):
        state = sgd(model)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(NonFiniteError):
            train_step(state, noise(8), rules=REFUSED)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        train_step(state, noise(8), rules=RULES)
        assert any(not torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert (model[0].calls, model[0].plain, model[0].seen) == (1, 1, [8])


def count_in_forward(model: nn.Module, calls: list[int]) -> None:
    inner = model.act1.forward
    model.act1.forward = lambda maps: calls.append(len(maps)) or inner(maps)


COUNTED: dict[str, Callable[[nn.Module, list[int]], object]] = {
    "a replaced forward": count_in_forward,
    "a hook": lambda model, calls: model.act1.register_forward_hook(lambda *_: calls.append(1)),
    "a pre-hook": lambda model, calls: model.act1.register_forward_pre_hook(lambda *_: calls.append(1)),
    "a backward hook": lambda model, calls: model.act1.register_full_backward_hook(lambda *_: calls.append(1)),
    "a backward pre-hook": lambda model, calls: model.act1.register_full_backward_pre_hook(lambda *_: calls.append(1)),
    "a parameter's hook": lambda model, calls: model.fc.weight.register_hook(lambda _: calls.append(1)),
    "a parameter's hook after adding": lambda model, calls: model.fc.weight.register_post_accumulate_grad_hook(
        lambda _: calls.append(1)
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_code_of_the_users_counts_in_a_step_that_is_not_taken_is_put_back(net, noise, name: str) -> None:
    model, calls = nn.Sequential(Counting(), net()), [7]
    COUNTED[name](model[1], calls)
    state = sgd(model)
    with pytest.raises(NonFiniteError):
        train_step(state, noise(8), rules=REFUSED)
    assert calls == [7]
    train_step(state, noise(8), rules=RULES)
    assert len(calls) == 2


def test_a_snapshot_holds_what_own_code_reaches_and_nothing_of_libraries(net, noise) -> None:
    model = nn.Sequential(Counting(), net(norm=True))
    model[1].conv1.around = [model[1].bn1, model[1].fc.weight]  # of a library's module: nobody writes to it
    model[0].beside = [model[1].bn1, model[1].fc.weight, model[1].bn1.running_mean, ["own"]]
    state = sgd(model)
    held = [content.target for content in take_snapshot(index_of(state), "cross_entropy").own.values()]
    assert any(value is model[0] for value in held) and ["own"] in [value for value in held if type(value) is list]
    others = [*model[1].modules(), *model.parameters(), *model.buffers(), model[1].conv1.around]
    assert not any(value is other for value in held for other in others)


def test_a_snapshot_copies_tensors_that_own_code_reaches_but_not_its_parameters(net) -> None:
    """These are moved by the optimizer, and a copy of each would cost their memory."""
    model = nn.Sequential(Counting(), net())
    model[0].hidden = [nn.Parameter(torch.zeros(3))]
    own = take_snapshot(index_of(sgd(model)), "cross_entropy").own
    assert torch.equal(own[id(model[0].plain)].own.copied, model[0].plain)
    assert own[id(model[0].hidden[0])].own.copied is None


def test_parameters_are_copied_until_a_step_has_shown_which_are_written_to(net, noise) -> None:
    model = nn.Sequential(Counting(), net())
    state = sgd(model)
    assert len(take_snapshot(index_of(state), "cross_entropy").parameters) == 6
    train_step(state, noise(8), rules=RULES)
    assert state.index.written == ()
    assert take_snapshot(index_of(state), "cross_entropy").parameters == []


def write(bias: nn.Parameter) -> None:
    bias.data.add_(1)


@pytest.mark.parametrize("before", [0, 2])
def test_what_a_hook_that_comes_later_writes_to_a_parameter_is_put_back(net, noise, before: int) -> None:
    model = net()
    model.fc.requires_grad_(False)
    state = sgd(model)
    for seed in range(before):
        train_step(state, noise(8, seed=seed), rules=RULES)
    model.conv1.register_forward_hook(lambda *_: write(model.fc.bias))
    was = model.fc.bias.detach().clone()
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            train_step(state, noise(8), rules=REFUSED)
        assert torch.equal(model.fc.bias, was)
    train_step(state, noise(8), rules=RULES)
    assert torch.equal(model.fc.bias, was + 1)


def test_parameters_of_up_to_four_gibibytes_are_copied() -> None:
    """Without memory: they are on ``meta``."""
    for numbers, copied in ((2**30, 1), (2**30 + 1, 0)):
        large = nn.Parameter(torch.empty(numbers, device="meta"), requires_grad=False)
        assert len(around_step._own_parameters(SimpleNamespace(held=[large, None]))) == copied


def test_memory_that_runs_out_while_weights_move_ends_the_step(net, noise) -> None:
    """The optimizer may have moved some of them: there is no way back to where the step began."""
    state = sgd(net())

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    state.optimizer.register_step_pre_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        train_step(state, noise(8), rules=RULES)
    assert (state.step, state.micro_batches) == (0, 0)


def test_an_overflow_is_tried_twenty_times(net, noise) -> None:
    state = sgd(net())
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    state.model.conv1.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="gradient norm"):
        train_step(state, noise(8), rules=hs.StepRules(precision="fp16"))
    assert state.scaler.get_scale() == 2.0**-4
