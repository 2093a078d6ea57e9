"""Laws that hold for every module, on random small ones: nested, shared, unused, equal-valued, bare parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from headstart.errors import ModelError
from headstart.optim.groups import param_groups
from headstart.storage.tensors import pack_tensors
from headstart.surgery.boundary import find_boundary
from headstart.surgery.freeze import freeze
from headstart.surgery.head import find_head, replace_head
from headstart.surgery.layout import find_layout

WIDTH = 4
PARTS = ["conv", "norm", "group_norm", "relu", "dropout", "scale", "nested", "shared", "twin", "branch", "attention"]


class Scale(nn.Module):
    """A parameter of its own, outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, WIDTH, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.gain


class Branch(nn.Module):
    """Two paths added, the first one's module given a name before the second's and executed after it."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.early = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.late(self.early(maps))


class Attention(nn.Module):
    """Tokens with torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.flatten(2).transpose(1, 2)
        mixed = self.mix(tokens, tokens, tokens, need_weights=False)[0]
        return mixed.transpose(1, 2).reshape(maps.shape)


class Random(nn.Module):
    """A stem, parts as drawn, a head; perhaps a layer that nobody uses and tensors that happen to be equal."""

    def __init__(self, kinds: list[str], *, unused: bool, equal: bool) -> None:
        super().__init__()
        if unused:
            self.never = nn.Linear(3, 2)
        self.fc = nn.Linear(WIDTH, 5)
        shared = nn.Conv2d(WIDTH, WIDTH, 1)
        self.body = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), *(self._part(kind, shared) for kind in kinds))
        if equal:
            with torch.no_grad():
                for parameter in self.body.parameters():
                    parameter.fill_(0.25)

    def _part(self, kind: str, shared: nn.Conv2d) -> nn.Module:
        if kind == "twin":  # one weight in two layers
            twin = nn.Conv2d(WIDTH, WIDTH, 1)
            twin.weight = shared.weight
            return twin
        made = {
            "conv": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            "norm": lambda: nn.BatchNorm2d(WIDTH),
            "group_norm": lambda: nn.GroupNorm(2, WIDTH),
            "relu": nn.ReLU,
            "dropout": lambda: nn.Dropout(0.5),
            "scale": Scale,
            "nested": lambda: nn.Sequential(
                nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH)), nn.GELU()
            ),
            "shared": lambda: shared,  # the same module, called again
            "branch": Branch,
            "attention": Attention,
        }
        return made[kind]()

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images).mean((2, 3)))


modules = st.builds(
    Random, st.lists(st.sampled_from(PARTS), min_size=1, max_size=7), unused=st.booleans(), equal=st.booleans()
)
shares = st.floats(0, 1)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@settings(max_examples=40, deadline=None)
@given(modules)
def test_every_tensor_has_one_place_and_layers_stand_in_the_order_in_which_they_are_called(module: Random):
    layout = find_layout(module, example=images())
    names = [name for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())]
    assert sorted(place.name for place in layout.tensors) == sorted(names)
    assert layout.heads == ("fc",)
    called: list[str] = []
    for path, part in module.named_modules():
        if not any(True for _ in part.children()) and any(True for _ in part.parameters()):
            part.register_forward_pre_hook(lambda _part, _inputs, path=path: called.append(path))
    module.eval()(images())
    orders = {place.module: place.order for place in layout.tensors}  # of a twin's own bias, after the shared weight
    first = [orders[path] for path in dict.fromkeys(called)]
    assert first == sorted(first)
    assert sum(stage.parameters for stage in layout.stages) + 25 == sum(p.numel() for p in module.parameters())


@settings(max_examples=40, deadline=None)
@given(modules, shares, st.sampled_from(["stages", "backbone", "conv"]))
def test_frozen_is_frozen_and_everything_else_trains_in_exactly_one_group(module: Random, share: float, rule: str):
    replace_head(module, outputs=2, hidden=(3,))
    stages = len(find_layout(module, example=images()).stages)
    count = max(1, round(share * stages))
    frozen = freeze(module, stages=count) if rule == "stages" else freeze(module, rule=rule)
    groups = param_groups(module, lr=1e-2, head_lr=1e-1, layer_decay=0.8, weight_decay=0.1)
    grouped = [parameter for group in groups for parameter in group["params"]]
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert len(grouped) == len({id(p) for p in grouped}) == len(trainable)
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in trainable}
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    ordered = [rates[place.name] for place in find_layout(module).tensors if place.name in rates]
    assert ordered == sorted(ordered)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.AdamW(groups)
    for step in range(3):
        module.train()
        torch.manual_seed(step)
        optimizer.zero_grad()
        module(images() + step).square().mean().backward()
        optimizer.step()
    now = module.state_dict()
    assert all(torch.equal(before[name], now[name]) for name in frozen.tensors if name in now)


@settings(max_examples=40, deadline=None)
@given(modules, shares)
def test_both_sides_of_a_boundary_are_the_model_to_the_bit(module: Random, share: float):
    stages = len(find_layout(module, example=images()).stages)
    frozen = freeze(module, stages=max(1, round(share * stages)))
    try:
        boundary = find_boundary(module, frozen, example=images())
    except ModelError as error:  # the stem itself trains: a layer that is shared with a later stage
        assert "nothing that is frozen executes before what trains" in str(error)
        return
    module.eval()
    with torch.no_grad():
        for count in (1, 3):
            halves = boundary.eval_suffix.eval()(*boundary.prefix.eval()(images(count)))
            assert torch.equal(halves, module(images(count)))
    module.train()
    state, results = copy.deepcopy(module.state_dict()), []
    for run in (module, lambda inputs: boundary.train_suffix(*boundary.prefix(inputs))):
        torch.manual_seed(7)
        results.append(run(images()))
        module.load_state_dict(state)
    assert torch.equal(*results)


@settings(max_examples=40, deadline=None)
@given(modules, st.integers(1, 9), st.sampled_from([(), (3,), (3, 4)]))
def test_a_new_head_changes_the_head_alone(module: Random, outputs: int, hidden: tuple[int, ...]):
    others = {name: tensor.clone() for name, tensor in module.state_dict().items() if not name.startswith("fc.")}
    swap = replace_head(module, outputs=outputs, hidden=hidden)
    assert (swap.path, swap.was, swap.now) == ("fc", 5, outputs)
    now = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("fc.")}
    assert pack_tensors(now) == pack_tensors(others)
    assert module.eval()(images()).shape == (3, outputs)
    assert find_head(copy.deepcopy(module)).outputs == outputs


def test_what_the_laws_are_tried_on_holds_every_kind_of_part():
    module = Random(PARTS, unused=True, equal=True)
    assert find_layout(module, example=images()).how == "fx"
    values = [parameter for parameter in module.body.parameters() if parameter.ndim == 1]
    assert all(torch.equal(values[0], value) for value in values if value.shape == values[0].shape)
    with pytest.raises(ModelError, match="nothing is left to train"):
        freeze(module, names=["*"])
