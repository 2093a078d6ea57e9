"""What rules need of a state is made at the first step with them: fp16's scaler, the start of L2-SP, the average."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import headstart as hs
from headstart.config.schema import Penalties
from headstart.errors import ConfigError
from headstart.training.state import make_average, update_average

PULLED = hs.StepRules(penalties=Penalties(l2_start=0.5))


def sgd(model: nn.Module, lr: float = 0.1) -> hs.TrainState:
    return hs.TrainState(model, torch.optim.SGD(model.parameters(), lr=lr))


@pytest.mark.parametrize(("precision", "made"), [("fp32", False), ("bf16", False), ("fp16", True)])
def test_fp16_scales_its_loss_and_the_others_do_not(net, noise, precision, made) -> None:
    state = sgd(net())
    rules = hs.StepRules(precision=precision, loss=lambda o, t: 1e-4 * F.cross_entropy(o, t, reduction="none"))
    hs.train_step(state, noise(8), rules=rules)
    assert (state.scaler is not None) == made
    zero = [float((value.grad == 0).float().mean()) for value in state.model.parameters()]
    assert max(zero) < 0.2, "without a scaled loss most of the first layer's are"


def test_a_scaler_of_ones_own_stays(net, noise) -> None:
    state = sgd(net())
    own = state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    hs.train_step(state, noise(8), rules=hs.StepRules(precision="fp16"))
    assert state.scaler is own


def test_l2_start_pulls_all_but_the_head_to_what_it_was_before_the_first_step(net, noise) -> None:
    """Three steps in float64 as written by hand."""
    state, hand = sgd(net().double()), net().double()
    start = {name: value.detach().clone() for name, value in hand.named_parameters() if not name.startswith("fc")}
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1)
    for seed in range(3):
        batch = noise(8, seed=seed)
        hs.train_step(state, batch, rules=PULLED)
        optimizer.zero_grad()
        images = batch.inputs(torch.device("cpu"), torch.contiguous_format).double()
        named = dict(hand.named_parameters())
        pulled = sum(((named[name] - value) ** 2).sum() for name, value in start.items())
        (F.cross_entropy(hand(images), batch.targets) + 0.25 * pulled).backward()
        optimizer.step()
    for name, value in hand.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    assert state.start.keys() == start.keys()
    assert all(torch.equal(state.start[name], value) for name, value in start.items())


def test_l2_start_with_nothing_but_the_head_training_is_the_plain_step(net, noise) -> None:
    pulled, plain = sgd(net()), sgd(net())
    for state in (pulled, plain):
        hs.freeze(state.model, rule="backbone")
    found, expected = (
        hs.train_step(state, noise(8), rules=rules) for state, rules in ((pulled, PULLED), (plain, hs.StepRules()))
    )
    assert (found.loss, found.grad_norm) == (expected.loss, expected.grad_norm)
    assert all(map(torch.equal, pulled.model.parameters(), plain.model.parameters()))


def test_a_part_that_is_unfrozen_later_is_pulled_to_where_it_was(net, noise) -> None:
    model = net()
    model.conv1.requires_grad_(False)
    state = sgd(model)
    first = model.conv1.weight.detach().clone()
    hs.train_step(state, noise(8), rules=PULLED)
    model.conv1.requires_grad_(True)
    for seed in range(3):
        hs.train_step(state, noise(8, seed=seed), rules=PULLED)
    assert torch.equal(state.start["conv1.weight"], first) and not torch.equal(model.conv1.weight, first)


def test_a_part_that_comes_later_starts_as_it_came_and_one_that_goes_is_forgotten(net, noise) -> None:
    state = sgd(net())
    kept = state.model.conv1.weight.detach().clone()
    hs.train_step(state, noise(8), rules=PULLED)
    state.model.conv2 = nn.Conv2d(8, 16, 3, 2, 1, bias=False)
    came = state.model.conv2.weight.detach().clone()
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=0.1)
    for seed in range(2):
        hs.train_step(state, noise(8, seed=seed), rules=PULLED)
    assert state.start.keys() == {"conv1.weight", "conv1.bias", "conv2.weight"}
    assert torch.equal(state.start["conv2.weight"], came) and torch.equal(state.start["conv1.weight"], kept)


def test_a_start_of_ones_own_stays_and_has_to_fit(net, noise) -> None:
    state = sgd(net())
    own = state.start = {"conv1.weight": torch.zeros(8, 3, 3, 3)}
    for seed in range(2):
        hs.train_step(state, noise(8, seed=seed), rules=PULLED)
    assert state.start is own
    other = sgd(net())
    other.start = {"conv9.weight": torch.zeros(8)}
    with pytest.raises(ConfigError, match=r"state.start: the model has no parameter conv9.weight; leave out"):
        hs.train_step(other, noise(8), rules=PULLED)


def test_the_start_is_that_of_the_first_step_that_pulls(net, noise) -> None:
    state = sgd(net())
    hs.train_step(state, noise(8), rules=hs.StepRules())
    assert not state.start
    now = copy.deepcopy(state.model.state_dict())
    hs.train_step(state, noise(8), rules=PULLED)
    assert all(torch.equal(value, now[name]) for name, value in state.start.items())


class NoHead(nn.Module):
    """Its scores are a sum: no layer makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * self.scale


def test_where_the_head_is_not_clear_l2_start_says_so(noise) -> None:
    with pytest.raises(ConfigError, match=r"penalties.l2_start: it holds all but the head .*; or give the start your"):
        hs.train_step(sgd(NoHead()), noise(8), rules=PULLED)
    state = sgd(NoHead())
    state.start = {"scale": torch.ones(3)}
    assert hs.train_step(state, noise(8), rules=PULLED).step == 1


def test_an_average_is_kept_for_rules_that_ask_for_one(net, noise) -> None:
    """By the formula, in float64: the model after the first two steps, then a share of what it was."""
    state, seen = sgd(net(norm=True).double()), []
    for seed in range(5):
        hs.train_step(state, noise(8, seed=seed), rules=hs.StepRules(average_steps=2.0))
        seen.append({name: value.clone() for name, value in state.model.state_dict().items()})
    decay = 0.5**0.5
    for name, value in state.average.module.state_dict().items():
        expected = seen[1][name]
        for step in seen[2:]:
            moved = step[name].is_floating_point()
            expected = decay * expected + (1 - decay) * step[name] if moved else step[name]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    assert not state.average.module.training


class Tied(nn.Module):
    """One weight under two names, and a buffer that two modules share."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(3, 3, bias=False, dtype=dtype) for _ in range(2))
        self.second.weight = self.first.weight
        self.register_buffer("seen", torch.zeros(2, dtype=dtype))
        self.first.register_buffer("seen", self.seen)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images.mean((2, 3))))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
def test_tied_tensors_are_averaged_once(dtype, tolerance) -> None:
    model = Tied(dtype)
    average = make_average(model, half_life=0.5, total_steps=4)
    expected = None
    for step in range(6):
        with torch.no_grad():
            model.first.weight.fill_(float(step))
            model.seen.fill_(float(step))
        update_average(average, model, step=step)
        expected = float(step) if step < 2 else expected * 0.5**0.5 + step * (1 - 0.5**0.5)
    for value in average.module.state_dict().values():
        torch.testing.assert_close(value, torch.full_like(value, expected), rtol=tolerance, atol=0)
    assert average.module.first.weight is average.module.second.weight


def test_small_changes_add_up_in_an_average_in_bfloat16_the_same_way_each_time() -> None:
    """A share of 1/1000 of a change of 1/8 is lost at each step if it is rounded to the nearest."""
    found = []
    for _ in range(2):
        model = nn.Linear(50, 50, bias=False).bfloat16()
        nn.init.ones_(model.weight)
        average = make_average(model, half_life=1.0, total_steps=700)
        with torch.no_grad():
            model.weight.fill_(1.125)
        for step in range(2, 302):
            update_average(average, model, step=step)
        found.append(average.module.weight.detach().float())
    assert torch.equal(*found)
    assert float(found[0].mean()) == pytest.approx(1.125 - 0.125 * 0.5 ** (300 / 700), abs=0.004)


def test_an_average_of_another_model_is_named(net, noise) -> None:
    state = sgd(net())
    rules = hs.StepRules(average_steps=10)
    hs.train_step(state, noise(8), rules=rules)
    state.model.fc = nn.Linear(16, 4)
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"state.average: it is of another model, fc.weight, fc.bias differ"):
        hs.train_step(state, noise(8), rules=rules)


@pytest.mark.parametrize(
    "rules",
    [
        hs.StepRules(precision="fp16"),
        hs.StepRules(penalties=Penalties(l2_start=0.5, l1=0.01)),
        hs.StepRules(average_steps=3.0),
    ],
    ids=["scaler", "start", "average"],
)
def test_what_the_state_made_is_saved_and_restored_into_a_state_that_has_none(net, noise, tmp_path, rules) -> None:
    """Stopped after two of five steps and restored elsewhere: the bits of the five."""

    def state() -> hs.TrainState:
        return sgd(net(norm=True, dropout=0.5))

    def train(made: hs.TrainState, seeds: range) -> hs.TrainState:
        for seed in seeds:
            hs.train_step(made, noise(8, seed=seed), rules=rules)
        return made

    whole = train(state(), range(5))
    hs.save(train(state(), range(2)), tmp_path)
    again = state()
    hs.restore(again, tmp_path)
    again = train(again, range(2, 5))
    models = [(whole.model, again.model)]
    if whole.average is not None:
        models.append((whole.average.module, again.average.module))
        assert whole.average.decay == again.average.decay
    for one, other in models:
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    assert whole.start.keys() == again.start.keys()
    if whole.scaler is not None:
        assert again.scaler.state_dict() == whole.scaler.state_dict()


def test_a_state_that_goes_back_to_before_its_first_step_makes_them_anew(net, noise, tmp_path) -> None:
    state = sgd(net())
    hs.save(state, tmp_path)
    rules = hs.StepRules(precision="fp16", average_steps=5)
    first = hs.train_step(state, noise(8), rules=rules)
    hs.restore(state, tmp_path)
    assert (state.scaler, state.average, state.average_decay) == (None, None, None)
    assert hs.train_step(state, noise(8), rules=rules).loss == first.loss
    assert state.scaler is not None and state.average is not None


def test_a_checkpoint_without_an_average_does_not_end_one(net, noise, tmp_path) -> None:
    state = sgd(net())
    hs.train_step(state, noise(8), rules=hs.StepRules())
    hs.save(state, tmp_path)
    state.average = make_average(state.model, half_life=1.0, total_steps=9)
    with pytest.raises(
        hs.Error, match=r"was saved without state.average; restore it into a state that is made the same"
    ):
        hs.restore(state, tmp_path)


def test_after_parameters_were_exchanged_a_state_can_be_saved(net, noise, tmp_path) -> None:
    """What the optimizer still holds of the old ones is nobody's."""
    model = net()
    state = hs.TrainState(model, torch.optim.AdamW(model.parameters()))
    hs.train_step(state, noise(8), rules=hs.StepRules())
    model.fc = nn.Linear(16, 3)
    state.optimizer.param_groups[0]["params"] = list(model.parameters())
    hs.train_step(state, noise(8), rules=hs.StepRules())
    hs.save(state, tmp_path)
    expected = hs.train_step(state, noise(8, seed=5), rules=hs.StepRules())
    hs.restore(state, tmp_path)
    found = hs.train_step(state, noise(8, seed=5), rules=hs.StepRules())
    assert (found.loss, found.grad_norm) == (expected.loss, expected.grad_norm)
