"""The boundary: both halves together are the model, to the bit, in training and in evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from headstart.errors import ModelError
from headstart.surgery.boundary import Boundary, find_boundary
from headstart.surgery.freeze import Frozen, freeze
from headstart.surgery.head import replace_head
from headstart.surgery.layout import find_layout

MODELS = {
    "timm/test_resnet": 64,
    "timm/test_vit": 160,
    "timm/test_convnext": 64,
    "timm/test_efficientnet": 64,
    "timm/swin_tiny_patch4_window7_224": 224,
    "timm/levit_128s": 224,
    "timm/deit_tiny_distilled_patch16_224": 224,
    "timm/coat_lite_tiny": 224,
    "torchvision/swin_t": 64,
    "torchvision/googlenet": 64,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    library, _, plain = name.partition("/")
    if library == "timm":
        module: nn.Module = timm.create_model(plain, pretrained=False, drop_path_rate=0.2)
    else:
        options = {"init_weights": False} if plain == "googlenet" else {}
        module = torchvision.models.get_model(plain, weights=None, **options)
    for parameter in module.parameters():
        if parameter.ndim == 1 and (parameter == 0).all():
            nn.init.normal_(parameter, std=0.1)
    replace_head(module, outputs=3, dropout=0.3)
    return module


def halves(module: nn.Module, share: float) -> tuple[Frozen, Boundary]:
    frozen = freeze(module, stages=max(1, round(share * len(find_layout(module).stages))))
    return frozen, find_boundary(module, frozen)


def parts_of(result: object) -> list[Tensor]:
    return [part for part in (result if isinstance(result, tuple) else (result,)) if isinstance(part, Tensor)]


def equal(one: object, other: object) -> bool:
    return all(torch.equal(a, b) for a, b in zip(parts_of(one), parts_of(other), strict=True))


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_both_halves_are_the_model_to_the_bit_in_evaluation_and_training_with_its_gradients(name: str, share: float):
    module, images = build(name), torch.randn(2, 3, MODELS[name], MODELS[name])
    _, boundary = halves(module, share)
    module.eval()
    with torch.no_grad():
        assert equal(boundary.eval_suffix.eval()(*boundary.prefix.eval()(images)), module(images))
    found = []
    for run in (module, lambda inputs: boundary.train_suffix(*boundary.prefix(inputs))):
        state = copy.deepcopy(module.state_dict())
        module.train()
        torch.manual_seed(5)
        outputs = run(images)
        sum(part.square().sum() for part in parts_of(outputs)).backward()
        gradients = {path: parameter.grad for path, parameter in module.named_parameters()}
        found.append((outputs, gradients, copy.deepcopy(module.state_dict())))
        module.zero_grad()
        module.load_state_dict(state)
    (first, grads, after), (second, other_grads, other_after) = found
    assert equal(first, second)
    assert {path for path, grad in grads.items() if grad is not None} == {
        path for path, grad in other_grads.items() if grad is not None
    }
    assert all(torch.equal(grad, other_grads[path]) for path, grad in grads.items() if grad is not None)
    assert all(torch.equal(after[path], other_after[path]) for path in after)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/test_convnext", "torchvision/swin_t"])
def test_what_crosses_depends_on_neither_batch_mates_nor_mode_nor_chance(name: str):
    module = build(name)
    _, boundary = halves(module, 0.5)
    one, other = torch.randn(2, 3, MODELS[name], MODELS[name]).split(1)
    with torch.no_grad():
        alone = boundary.prefix.train()(torch.cat([one, other]))
        mates = boundary.prefix.train()(torch.cat([one, other * 40 + 7]))
        quiet = boundary.prefix.eval()(torch.cat([one, other]))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, mates, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone, quiet, strict=True))
    assert not any(torch.equal(a[1], b[1]) for a, b in zip(alone, mates, strict=True))


def test_looking_for_a_boundary_leaves_the_model_as_it_was_and_holds_its_own_layers():
    module = build("timm/test_resnet")
    frozen = freeze(module, until="layer2")
    names, attributes = list(module.state_dict()), set(vars(module))
    modes = {path: part.training for path, part in module.named_modules()}
    boundary = find_boundary(module, frozen)
    assert list(module.state_dict()) == names
    assert set(vars(module)) == attributes
    assert {path: part.training for path, part in module.named_modules()} == modes
    own = {id(parameter) for parameter in module.parameters()}
    assert {id(parameter) for parameter in boundary.prefix.parameters()} < own
    assert {id(p) for p in boundary.train_suffix.parameters()} == {
        id(p) for p in module.parameters() if p.requires_grad
    }
    assert boundary.labels == ("layer2.0.act2",)


class Small(nn.Module):
    """A convolution, a norm and a linear layer, and between them what the test says."""

    def __init__(self, between: Callable[[Small, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.drop, self.between = nn.Dropout(0.5), between

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.between(self, images, self.conv(images)))


def small(between: Callable[[Small, Tensor, Tensor], Tensor], *names: str) -> tuple[Small, Boundary]:
    module = Small(between)
    frozen = freeze(module, names=names)
    return module, find_boundary(module, frozen, example=torch.zeros(1, 3, 8, 8))


def test_the_number_of_images_is_taken_from_what_crosses_not_from_the_images():
    def between(module: Small, images: Tensor, maps: Tensor) -> Tensor:
        return module.norm(maps).mean((2, 3)).reshape(images.shape[0], -1)

    module, boundary = small(between, "conv")
    assert boundary.labels == ("conv",)
    module.eval()
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 8, 8)
        assert torch.equal(boundary.eval_suffix.eval()(*boundary.prefix(images)), module(images))


def test_what_crosses_has_one_row_per_image():
    def between(module: Small, _: Tensor, maps: Tensor) -> Tensor:
        windows = maps.reshape(-1, 4, 3, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 4, 2, 2)  # nine per image
        return module.drop(module.norm(windows)).mean((2, 3)).reshape(maps.shape[0], 9, 4).sum(1)

    module, boundary = small(between, "conv", "norm")
    module.eval()
    assert [len(tensor) for tensor in boundary.prefix(torch.randn(3, 3, 8, 8))] == [3]
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(boundary.eval_suffix(*boundary.prefix(images)), module(images))


def test_a_sum_of_a_sum_of_itself_is_walked_once_not_every_way_there_is():
    def between(_: Small, __: Tensor, maps: Tensor) -> Tensor:
        pooled = maps.mean((2, 3))
        for _unused in range(60):  # 2**60 ways from the last to the first
            pooled = (pooled + pooled.detach()) / 2
        return functional.dropout(pooled, 0.5, training=True) + functional.dropout(maps, 0.5).mean((2, 3))

    _, boundary = small(between, "conv")
    assert boundary.labels == ("conv",)  # the sums cost nothing to make again


class Masked(nn.Module):
    """Takes an optional mask, as Hiera does, and has layers for it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hide, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        maps = self.conv(images)
        if mask is not None:
            maps = self.hide(maps) * mask.view(-1, 1, 1, 1)
        return self.fc(maps.mean((2, 3)))


def test_an_argument_that_is_not_given_keeps_its_default_in_the_graph():
    module, images = Masked().eval(), torch.randn(2, 3, 8, 8)
    layout = find_layout(module, example=images)
    assert (layout.how, layout.modules) == ("fx", ("conv", "fc"))
    boundary = find_boundary(module, freeze(module, until="conv"), example=images)
    assert torch.equal(boundary.eval_suffix(*boundary.prefix(images)), module(images))


@pytest.mark.parametrize(
    ("between", "label"),
    [
        (lambda m, _, maps: m.norm(maps).mean((2, 3)), "conv"),
        (lambda m, _, maps: m.drop(maps).mean((2, 3)), "conv"),
        (lambda m, _, maps: functional.dropout(maps, 0.5, m.training).mean((2, 3)), "conv"),
        (lambda _, __, maps: functional.relu(maps).mean((2, 3)), "mean"),
        (lambda m, _, maps: functional.dropout(maps, 0.0, m.training).mean((2, 3)), "mean"),
        (lambda _, __, maps: (maps + torch.rand_like(maps)).mean((2, 3)), "conv"),
    ],
)
def test_the_cut_is_before_the_first_thing_that_trains_or_is_random(between: Callable, label: str):
    _, boundary = small(between, "conv")
    assert boundary.labels == (label,)


def test_a_frozen_norm_is_before_the_cut_and_one_with_moving_statistics_is_behind_it():
    module = build("timm/test_resnet")
    assert find_boundary(module, freeze(module, rule="conv")).labels[0] == "conv1.0"
    frozen = freeze(module, rule="conv", norm_statistics="frozen")
    assert find_boundary(module, frozen).labels[0] == "conv1.0"  # its weights still train
    assert find_boundary(module, freeze(module, rule="backbone")).labels == ("global_pool.flatten",)


class Scaled(nn.Module):
    """A frozen convolution; behind it scales that forward reads as they are: of the module's own, and of a part's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.gain = nn.Conv2d(3, 4, 3), nn.Module(), nn.Parameter(torch.ones(4))
        self.head.add_module("scales", nn.ParameterList([torch.ones(4)]))
        self.head.add_module("fc", nn.Linear(4, 2))

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.conv(images).mean((2, 3)) * self.gain
        return self.head.fc(pooled * self.head.scales[0])


def test_a_tensor_that_the_graphs_read_is_missed_by_name_however_deep_it_is_and_whatever_replaced_it():
    module = Scaled()
    frozen = freeze(module, names=["conv"])
    boundary = find_boundary(module, frozen, example=torch.zeros(1, 3, 8, 8))
    assert set(boundary.held) == {"gain", "head.scales.0"}
    assert boundary.find_replaced(module) is None
    scale = module.head.scales[0]
    for replaced in (nn.ParameterList([torch.ones(4)]), nn.ParameterList(), nn.Identity()):
        module.head.scales = replaced
        assert boundary.find_replaced(module) == "head.scales.0"
    module.head.scales = nn.ParameterList([scale])
    assert boundary.find_replaced(module) is None
    del module.head
    assert boundary.find_replaced(module) == "head.scales.0"
    del module.gain
    assert boundary.find_replaced(module) == "gain"


def test_without_anything_frozen_before_what_trains_there_is_no_boundary():
    module = build("timm/test_resnet")
    with pytest.raises(ModelError, match="freeze norm: nothing that is frozen executes before what trains"):
        find_boundary(module, freeze(module, rule="norm"))
    with pytest.raises(ModelError, match="no boundary"):
        find_boundary(module, freeze(module, names=["layer3"]))


def test_a_model_that_cannot_be_traced_has_no_boundary_and_the_error_says_why():
    def between(_: Small, __: Tensor, maps: Tensor) -> Tensor:
        return (maps if maps.sum() > 0 else -maps).mean((2, 3))

    with pytest.raises(ModelError, match=r"torch\.fx cannot trace it, so it has no boundary: TraceError"):
        small(between, "conv")
