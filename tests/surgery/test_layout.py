"""The traced layout: order, kinds, stages, and that looking changes nothing."""

from __future__ import annotations

import copy
import gc
import random
import weakref

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from headstart.surgery.layout import find_layout, forget_layout
from headstart.surgery.trace import run_for_shapes


def torchvision_on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = torchvision.models.get_model(name, weights=None)
    return module


def timm_on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = timm.create_model(name, pretrained=False)
    return module


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        ("vit_tiny_patch16_224", ["patch_embed", *(f"blocks.{index}" for index in range(12))]),
        ("convnext_atto", ["stem", *(f"stages.{index}" for index in range(4))]),
        ("mobilenetv3_small_050", ["conv_stem", *(f"blocks.{index}" for index in range(6)), "conv_head"]),
        ("swin_tiny_patch4_window7_224", ["patch_embed", *(f"layers.{index}" for index in range(4))]),
    ],
)
def test_stages_of_timm_models_are_the_pieces_that_their_authors_strung_together(name: str, stages: list[str]):
    assert [stage.name for stage in find_layout(timm_on_meta(name)).stages] == stages


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        ("mobilenet_v2", [f"features.{index}" for index in range(19)]),
        ("vit_b_16", ["conv_proj", *(f"encoder.layers.encoder_layer_{index}" for index in range(12))]),
        ("convnext_tiny", [f"features.{index}" for index in range(8)]),
    ],
)
def test_stages_of_torchvision_models(name: str, stages: list[str]):
    assert [stage.name for stage in find_layout(torchvision_on_meta(name)).stages] == stages


class Backwards(nn.Module):
    """Defined last to first, so that names and execution disagree."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.second = nn.Conv2d(4, 6, 3)
        self.first = nn.Conv2d(3, 4, 3)
        self.never = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.second(self.first(images)).mean((2, 3)))


def test_order_is_that_of_execution_and_unused_tensors_have_a_place():
    layout = find_layout(Backwards())
    used = [place.module for place in layout.tensors if place.module != "never"]
    assert list(dict.fromkeys(used)) == ["first", "second", "fc"]
    assert layout.heads == ("fc",)
    assert layout.find_tensor("never.weight").kind == "linear"
    assert {place.name for place in layout.tensors} == set(Backwards().state_dict())


class Interleaved(nn.Module):
    """Two lists that execute in turns, as in Twins."""

    def __init__(self) -> None:
        super().__init__()
        self.embeds = nn.ModuleList([nn.Conv2d(3 if index == 0 else 4, 4, 1) for index in range(2)])
        self.mixes = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(2)])
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        for embed, mix in zip(self.embeds, self.mixes, strict=True):
            images = mix(embed(images))
        return self.fc(images.mean((2, 3)))


def test_containers_that_execute_in_turns_are_cut_so_that_stages_follow_the_execution():
    layout = find_layout(Interleaved())
    assert [stage.name for stage in layout.stages] == ["embeds.0", "mixes.0", "embeds.1", "mixes.1"]
    orders = [place.stage for place in layout.tensors]
    assert orders == sorted(orders)


@pytest.mark.parametrize("name", ["resnet18", "twins_svt_small", "coat_lite_tiny", "levit_128s", "densenet121"])
def test_stages_hold_every_tensor_once_and_the_heads_tensors_come_after_the_last(name: str):
    module = timm_on_meta(name)
    layout = find_layout(module)
    head = sum(
        parameter.numel()
        for path, parameter in module.named_parameters()
        if path.startswith(tuple(head + "." for head in layout.heads))
    )
    assert sum(stage.parameters for stage in layout.stages) + head == sum(p.numel() for p in module.parameters())
    for place in layout.tensors:
        assert (place.stage == len(layout.stages)) == (place.kind == "head")
        assert (place.kind == "head") == place.name.startswith(tuple(head + "." for head in layout.heads))


def test_kinds_are_those_of_the_owning_modules():
    layout = find_layout(timm_on_meta("vit_tiny_patch16_224"))
    assert layout.find_tensor("patch_embed.proj.weight").kind == "conv"
    assert layout.find_tensor("blocks.0.attn.qkv.weight").kind == "linear"
    assert layout.find_tensor("blocks.0.norm1.bias").kind == "norm"
    assert layout.find_tensor("cls_token").kind == "token"
    assert layout.find_tensor("pos_embed").kind == "embedding"
    assert layout.find_tensor("head.weight").kind == "head"
    assert layout.find_tensor("cls_token").stage == 0
    assert layout.find_tensor("norm.weight").stage == len(layout.stages) - 1
    assert layout.stage_of("blocks.3.mlp.fc1") == layout.stage_of("blocks.3") == 4
    buffers = [p for p in find_layout(timm_on_meta("resnet18")).tensors if p.name == "bn1.running_mean"]
    assert [(place.kind, place.is_buffer) for place in buffers] == [("norm", True)]


def test_looking_changes_neither_modes_nor_random_numbers_nor_tensors():
    module = torchvision.models.swin_t(weights=None)
    module.train()
    module.features[1].eval()
    modes = {name: part.training for name, part in module.named_modules()}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    attributes = set(vars(module))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    find_layout(module)
    assert modes == {name: part.training for name, part in module.named_modules()}
    assert attributes == set(vars(module))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()


def test_within_a_module_that_is_not_looked_into_layers_stand_in_the_order_in_which_they_are_called():
    module = timm_on_meta("convit_tiny")  # its attention is one node of the graph, and holds pos_proj behind proj
    names = [name for name in find_layout(module).modules if name.startswith("blocks.0.attn.")]
    layers = [name.rpartition(".")[2] for name in names if "drop" not in name]
    assert layers == ["qk", "pos_proj", "v", "proj"]
    assert [name for name, _ in module.blocks[0].attn.named_children()][:4] == ["qk", "v", "attn_drop", "proj"]


class Untraceable(nn.Module):
    """Its path depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.body = nn.Conv2d(4, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        if maps.abs().sum() >= 0:
            maps = self.body(maps)
        return self.fc(maps.mean((2, 3)))


def test_a_model_that_cannot_be_traced_is_seen_through_hooks():
    module = Untraceable()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    layout = find_layout(module, example=torch.ones(2, 3, 16, 16))
    assert layout.how == "hooks"
    assert "control flow" in layout.reason
    assert [stage.name for stage in layout.stages] == ["stem", "body"]
    assert layout.heads == ("fc",)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_the_layout_is_kept_until_the_structure_changes_and_does_not_keep_the_module_alive():
    module = timm.create_model("test_resnet", pretrained=False)
    first = find_layout(module)
    assert find_layout(module) is first
    forget_layout(module)
    assert find_layout(module) is not first
    module.fc = nn.Sequential(nn.Linear(module.num_features, 4), nn.BatchNorm1d(4))
    assert find_layout(module).find_tensor("fc.0.weight").kind == "linear"
    assert find_layout(copy.deepcopy(module)).find_tensor("fc.0.weight").order > 0
    reference = weakref.ref(module)
    del module
    gc.collect()
    assert reference() is None


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.second = nn.Conv2d(3, 3, 1)
        self.second.weight = self.first.weight
        self.fc = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.second(self.first(images)).mean((2, 3)))


def test_a_shared_tensor_has_a_place_under_each_name_at_its_first_use():
    layout = find_layout(Tied())
    assert layout.find_tensor("second.weight").order == layout.find_tensor("first.weight").order
    assert layout.find_tensor("second.bias").order > layout.find_tensor("first.weight").order
    assert sum(stage.parameters for stage in layout.stages) == 9 + 3 + 3


class SharedModule(nn.Module):
    """One module under two names, as in CoaT."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)
        self.block = nn.Sequential(nn.BatchNorm2d(3), self.mix)
        self.fc = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.block(images).mean((2, 3)))


@pytest.mark.parametrize("kind", [SharedModule, Tied])
def test_a_run_for_shapes_leaves_the_tensors_that_were_there(kind: type[nn.Module]):
    module = kind()
    before = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    run = run_for_shapes(module, names={"fc"}, shape=(3, 8, 8), count=True)
    assert run.outputs == (1, 2)
    assert [(call.inputs, call.outputs) for call in run.calls] == [((1, 3), (1, 2))]
    assert run.multiply_adds is not None
    after = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    assert all(after[name] is before[name] for name in before)


def test_a_block_keeps_the_norm_that_it_begins_with():
    layout = find_layout(timm_on_meta("vit_tiny_patch16_224"))
    assert layout.stages[1].parameters == layout.stages[5].parameters
    assert layout.stage_of("blocks.4.norm1") == 5


def test_looking_leaves_no_traces_in_what_a_model_caches() -> None:
    model = timm.create_model("levit_128s", pretrained=False).eval()
    find_layout(model)
    assert all(not part.attention_bias_cache for part in model.modules() if hasattr(part, "attention_bias_cache"))
    copy.deepcopy(model).eval()


class Switched(nn.Module):
    """Two layers in an order that can be changed from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.turned = False

    def forward(self, x):
        x = x.flatten(1)[:, :12]
        x = self.first(self.second(x)) if self.turned else self.second(self.first(x))
        return self.fc(x)


def turn(net):
    net.turned = True


def replace_forward(net):
    net.forward = lambda x: net.fc(net.first(net.second(x.flatten(1)[:, :12])))


@pytest.mark.parametrize("change", [turn, replace_forward])
def test_a_changed_way_through_the_model_is_traced_anew(change):
    net = Switched()
    assert find_layout(net).modules[:2] == ("first", "second")
    change(net)
    assert find_layout(net).modules[:2] == ("second", "first")
