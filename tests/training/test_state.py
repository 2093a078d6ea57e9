"""What a state notices between two steps: parameters and parts in place of others, groups, what trains."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import headstart as hs
from headstart.errors import ConfigError, ModelError, NonFiniteError

RULES = hs.StepRules(clip_norm=0.5)


def sgd(model: nn.Module, **options) -> hs.TrainState:
    groups = [{"params": list(part.parameters())} for part in model if any(True for _ in part.parameters())]
    return hs.TrainState(model, torch.optim.SGD(groups, lr=0.1, **options))


def values(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def with_new_head(state: hs.TrainState) -> None:
    state.model.fc = nn.Linear(16, 3)
    state.optimizer.param_groups[-1]["params"] = list(state.model.fc.parameters())


def with_new_bias(state: hs.TrainState) -> None:
    state.model.conv1.bias = nn.Parameter(torch.ones(8))
    state.optimizer.param_groups[0]["params"][1] = state.model.conv1.bias


def with_added_layer(state: hs.TrainState) -> None:
    state.model.append(nn.Linear(3, 3))
    state.optimizer.add_param_group({"params": list(state.model[-1].parameters())})


def with_less(state: hs.TrainState) -> None:
    state.model.conv1.requires_grad_(False)
    del state.optimizer.param_groups[0]


def in_double(state: hs.TrainState) -> None:
    state.model.double()


CHANGES = [with_new_head, with_new_bias, with_added_layer, with_less, in_double]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_put_in_place_of_parameters_trains_from_the_next_step_on(net, noise, change) -> None:
    """With gradients of nobody's step in the new ones: equal to a state that is made anew, to the bit."""
    state = sgd(net(norm=True))
    hs.train_step(state, noise(8), rules=RULES)
    torch.manual_seed(1)
    change(state)
    twin = copy.deepcopy(state.model)
    fresh = sgd(twin, foreach=False)
    if change is with_less:
        del fresh.optimizer.param_groups[0]
    fresh.step = state.step
    for parameter in state.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3) if parameter.requires_grad else None
    for seed in range(3):
        ours = hs.train_step(state, noise(8, seed=seed), rules=RULES)
        theirs = hs.train_step(fresh, noise(8, seed=seed), rules=RULES)
        assert (ours.loss, ours.grad_norm) == (theirs.loss, theirs.grad_norm)
    assert torch.equal(values(state.model), values(twin))


def replace_part(state: hs.TrainState) -> None:
    state.model.fc = nn.Linear(16, 3)


def replace_parameter(state: hs.TrainState) -> None:
    state.model.fc.weight = nn.Parameter(torch.ones(3, 16))


def drop_from_group(state: hs.TrainState) -> None:
    state.optimizer.param_groups[-1]["params"].pop()


def unfreeze(state: hs.TrainState) -> None:
    state.model.conv1.requires_grad_(True)


def add_inside(state: hs.TrainState) -> None:
    state.model.flat.extra = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (replace_part, r"\(2 of those that it has are not the model's\), .*: fc.weight, fc.bias; put"),
        (replace_parameter, r"\(1 of those that it has are not the model's\), .*: fc.weight; put them in one"),
        (drop_from_group, r"no group of the optimizer, so that they would never move: fc.bias; put them in one"),
        (unfreeze, r"conv1.weight, conv1.bias; put .*add_param_group.* or freeze them"),
        (add_inside, r"flat.extra.weight, flat.extra.bias"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("before", [0, 2])
def test_what_trains_but_is_in_no_group_is_named_at_the_next_step(net, noise, change, named, before) -> None:
    model = net()
    model.conv1.requires_grad_(False)
    trained = [value for value in model.parameters() if value.requires_grad]
    state = hs.TrainState(model, torch.optim.SGD(trained, lr=0.1))
    for seed in range(before):
        hs.train_step(state, noise(4, seed=seed), rules=RULES)
    change(state)
    unchanged = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=rf"^step {before + 1}: these train .*{named}"):
        hs.train_step(state, noise(4), rules=RULES)
    assert state.step == before
    assert all(torch.equal(value, unchanged[name]) for name, value in model.state_dict().items())


def test_freezing_is_a_way_out(net, noise) -> None:
    model = net()
    state = hs.TrainState(model, torch.optim.SGD(model.fc.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match=r"conv1.weight, conv1.bias, conv2.weight, conv2.bias; put"):
        hs.train_step(state, noise(4), rules=RULES)
    hs.freeze(model, rule="backbone")
    assert hs.train_step(state, noise(4), rules=RULES).step == 1


def test_a_parameter_in_two_groups_is_named(net, noise) -> None:
    state = sgd(net())
    state.optimizer.param_groups[0]["params"].append(state.model.fc.bias)
    with pytest.raises(ConfigError, match=r"step 1: these are in the optimizer's groups more than once.*: fc.bias; "):
        hs.train_step(state, noise(4), rules=RULES)


def test_parameters_that_nothing_uses_any_more_are_refused(net, noise) -> None:
    state = sgd(net())
    hs.train_step(state, noise(4), rules=RULES)
    state.model.fc = nn.Linear(16, 3).requires_grad_(False)
    with pytest.raises(ConfigError, match=r"step 2: the optimizer has 2 parameters .*\(shapes \(3, 16\), \(3,\)\)"):
        hs.train_step(state, noise(4), rules=RULES)


def test_a_loss_may_bring_parameters_of_its_own(net, noise) -> None:
    state, scale = sgd(net()), nn.Parameter(torch.tensor(1.0))
    state.optimizer.add_param_group({"params": [scale]})
    loss = lambda outputs, targets: nn.functional.cross_entropy(scale * outputs, targets, reduction="none")  # noqa: E731
    for _ in range(2):
        hs.train_step(state, noise(8), rules=hs.StepRules(loss=loss))
    assert scale != 1


def test_a_losss_own_parameter_that_is_exchanged_is_noticed(net, noise) -> None:
    state, scales = sgd(net()), [nn.Parameter(torch.tensor(1.0)) for _ in range(2)]
    state.optimizer.add_param_group({"params": [scales[0]]})
    for scale in scales:
        state.optimizer.param_groups[-1]["params"] = [scale]
        scale.grad = torch.tensor(1e3)  # of nobody's step
        loss = lambda o, t, scale=scale: nn.functional.cross_entropy(scale * o, t, reduction="none")  # noqa: E731
        hs.train_step(state, noise(8), rules=hs.StepRules(loss=loss))
        assert 0 < abs(float(scale.detach()) - 1) < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("later", [False, True])
def test_weights_in_half_precision_are_refused_at_the_step_and_train_once_they_are_whole(net, noise, dtype, later):
    state = sgd(net())
    if later:
        hs.train_step(state, noise(8), rules=RULES)
    state.model.to(dtype)
    before = values(state.model)
    with pytest.raises(ModelError, match=r"parameters are b?float16, .* call model\.float\(\) first .*hs\.StepRules"):
        hs.train_step(state, noise(8), rules=RULES)
    assert torch.equal(values(state.model), before)
    state.model.float()
    hs.train_step(state, noise(8), rules=hs.StepRules(precision="bf16"))
    assert not torch.equal(values(state.model), before.float())


class Emptied(nn.Sequential):
    """Its own ``train`` forgets what forward notes; each note is the number of those before it."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(12, 2))
        self.notes: list[int] = []

    def train(self, mode: bool = True) -> Emptied:
        super().train(mode)
        self.notes.clear()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.notes.append(len(self.notes))
        return super().forward(images)


def test_what_entering_training_mode_forgets_is_put_back_once_after_a_checkpoint_was_read(tmp_path) -> None:
    batch = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 1, 0])
    state = sgd(Emptied())
    for _ in range(2):
        hs.train_step(state, batch, rules=RULES)
    hs.save(state, tmp_path)
    resumed = sgd(Emptied().eval())
    hs.restore(resumed, tmp_path)
    hs.train_step(resumed, batch, rules=RULES)
    assert resumed.model.notes == [0, 1, 2]
    resumed.model.eval()
    hs.train_step(resumed, batch, rules=RULES)
    assert resumed.model.notes == [0]


def test_what_is_no_optimizer_and_one_that_needs_a_closure_are_refused_before_anything_moves(net, noise):
    model = net()
    before = [value.detach().clone() for value in model.parameters()]
    for given, said in (
        (None, "state.optimizer is NoneType, no optimizer"),
        ([1], "state.optimizer is list, no optimizer"),
        (torch.optim.LBFGS(model.parameters()), "LBFGS computes the loss several times in a step, by a closure that"),
    ):
        with pytest.raises(ConfigError, match=said):
            hs.train_step(hs.TrainState(model, given), noise(4), rules=hs.StepRules())
    assert all(map(torch.equal, before, model.parameters()))
    hs.train_step(hs.TrainState(model, torch.optim.AdamW(model.parameters())), noise(4), rules=hs.StepRules())


class Hollow(nn.Linear):
    """A module of the user's own that is false, and counts."""

    def __init__(self) -> None:
        super().__init__(16, 3)
        self.calls = 0

    def __len__(self) -> int:
        return 0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(features) * (float("nan") if self.calls > 1 else 1.0)


def test_a_step_that_is_not_taken_leaves_no_trace_in_a_module_that_is_false(net, noise):
    model = net()
    model.fc = Hollow()
    state = hs.TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    hs.train_step(state, noise(4), rules=hs.StepRules())
    with pytest.raises(NonFiniteError):
        hs.train_step(state, noise(4), rules=hs.StepRules())
    assert model.fc.calls == 1
