"""Freezing: weights, buffers and behaviour stay, through everything that training does."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import timm
import torch
import torchvision
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from headstart.config.schema import Names, Stages, Until
from headstart.errors import ModelError
from headstart.surgery.freeze import freeze, freeze_by
from headstart.surgery.head import head_parameters, replace_head
from headstart.surgery.layout import find_layout

MODELS = [
    ("test_resnet", 64),
    ("test_vit", 160),
    ("test_efficientnet", 64),
    ("test_convnext", 64),
    ("test_byobnet", 64),
]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = timm.create_model(name, pretrained=False, drop_path_rate=0.2)
    replace_head(module, outputs=3, dropout=0.3)
    for parameter in module.parameters():
        if parameter.ndim == 1 and (parameter == 0).all():
            nn.init.normal_(parameter, std=0.5)  # a scale that starts at zero lets no gradient through
    return module


def train_five_steps(module: nn.Module, size: int) -> None:
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.1)
    for step in range(5):
        module.train()
        images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(step)) + step
        module(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


@pytest.mark.parametrize("rule", ["backbone", "conv", "norm", "first stages", "names"])
@pytest.mark.parametrize(("name", "size"), MODELS)
def test_training_moves_what_is_trainable_and_not_one_bit_of_what_is_frozen(name: str, size: int, rule: str):
    module = build(name)
    middle = find_layout(module).stages[1].name
    given = {"first stages": Until(until=middle), "names": Names(names=(f"{middle}*",))}.get(rule, rule)
    if name == "test_vit" and rule == "conv":
        assert freeze_by(module, given).tensors == ("patch_embed.proj.weight", "patch_embed.proj.bias")
    frozen = freeze_by(module, given)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    train_five_steps(module, size)
    now = module.state_dict()
    assert all(torch.equal(before[key], now[key]) for key in frozen.tensors if key in now)
    still = [
        key
        for key, parameter in module.named_parameters()
        if key not in frozen.tensors and torch.equal(before[key], now[key])
    ]
    assert still == []
    moving = [key for key in now if key.endswith("running_mean") and key not in frozen.tensors]
    assert not any(torch.equal(before[key], now[key]) for key in moving)
    assert frozen.parameters == sum(p.numel() for p in module.parameters() if not p.requires_grad)
    assert frozen.of == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("name", "size"), MODELS)
def test_frozen_features_do_not_depend_on_batch_mates_or_chance(name: str, size: int):
    module = build(name)
    frozen = freeze(module, rule="backbone")
    assert frozen.rule == "backbone"
    features: list[Tensor] = []
    head = module.get_submodule(find_layout(module).heads[0])
    head.register_forward_pre_hook(lambda _part, inputs: features.append(inputs[0].detach()))
    torch.set_num_threads(1)
    one, other = torch.randn(2, 3, size, size).split(1)
    module.train()
    with torch.no_grad():
        module(torch.cat([one, other]))
        module(torch.cat([one, other * 50 + 9]))
    assert torch.equal(features[0][0], features[1][0])
    freeze(module, rule="none")
    module.train()
    with torch.no_grad():
        module(torch.cat([one, other]))
        module(torch.cat([one, other * 50 + 9]))
    assert not torch.equal(features[2][0], features[3][0])


@pytest.mark.parametrize(("name", "size"), MODELS)
@pytest.mark.parametrize("rule", ["none", "conv"])
def test_frozen_statistics_stay_while_everything_else_trains(name: str, size: int, rule: str):
    module = build(name)
    plain, frozen = freeze(module, rule=rule), freeze(module, rule=rule, norm_statistics="frozen")
    statistics = {key for key, _ in module.named_buffers() if "running_" in key or "num_batches" in key}
    assert set(frozen.tensors) - set(plain.tensors) == statistics - set(plain.tensors)
    assert (frozen.parameters, frozen.of) == (plain.parameters, plain.of)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    train_five_steps(module, size)
    now = module.state_dict()
    assert all(torch.equal(before[key], now[key]) for key in frozen.tensors if key in now)
    assert not any(torch.equal(before[key], p) for key, p in module.named_parameters() if key not in frozen.tensors)
    freeze(module, rule="none")
    module.train()
    assert all(part.training for part in module.modules())


def test_random_layers_sleep_before_the_boundary_and_work_after_it():
    module = build("test_vit")
    freeze(module, until="blocks.2")
    module.train()
    assert not module.blocks[2].training
    assert not module.blocks[2].drop_path1.training
    assert module.blocks[3].drop_path1.training
    assert module.head.training
    assert module.training


def test_a_dropout_that_stands_alone_sleeps_in_a_frozen_prefix_only():
    module = timm.create_model("test_vit", pretrained=False, pos_drop_rate=0.3, drop_rate=0.3)
    freeze(module, until="blocks.0")
    module.train()
    assert not module.pos_drop.training
    assert module.head_drop.training
    freeze(module, names=["patch_embed.*", "blocks.0"])
    module.train()
    assert module.pos_drop.training
    assert not module.blocks[0].drop_path1.training


def test_conv_leaves_batch_norm_training_and_norm_freezes_its_statistics_too():
    module = build("test_resnet")
    freeze(module, rule="conv")
    module.train()
    assert module.bn1.training
    assert module.bn1.weight.requires_grad
    assert not module.layer1[0].conv1.weight.requires_grad
    frozen = freeze(module, rule="norm")
    module.train()
    assert not module.bn1.training
    assert not module.bn1.weight.requires_grad
    assert module.layer1[0].conv1.weight.requires_grad
    assert module.layer1[0].conv1.training
    assert "bn1.running_var" in frozen.tensors


def test_until_takes_all_that_executes_before_and_the_module_itself():
    module = torchvision.models.resnet18(weights=None)
    frozen = freeze(module, until="layer2.0.conv1")
    assert {name.split(".")[0] for name in frozen.tensors} == {"conv1", "bn1", "layer1", "layer2"}
    assert "layer2.0.conv1.weight" in frozen.tensors
    assert "layer2.0.bn1.weight" not in frozen.tensors
    assert freeze(module, until="layer2").tensors == freeze(module, stages=3).tensors
    assert freeze_by(module, Stages(stages=3)).rule == "stages:3"


@pytest.mark.parametrize("kind", ["bias", "norm"])
@pytest.mark.parametrize(("name", "size"), MODELS)
def test_but_trains_the_head_and_one_kind_and_no_statistics_move(name: str, size: int, kind: str):
    module = build(name)
    frozen = freeze(module, rule=f"except:{kind}", norm_statistics="batch")
    assert frozen.rule == f"except:{kind}"
    head = set(head_parameters(module))
    places = find_layout(module).tensors
    ours = {place.name for place in places if (place.name.endswith("bias") if kind == "bias" else place.kind == "norm")}
    trained = head | {key for key, _ in module.named_parameters() if key in ours}
    assert {key for key, parameter in module.named_parameters() if parameter.requires_grad} == trained
    before = copy.deepcopy(module.state_dict())
    for one in (module, copy.deepcopy(module), ModelEmaV3(module).module):
        train_five_steps(one, size)
        now = one.state_dict()
        assert {key for key in now if not torch.equal(before[key], now[key])} == trained
        assert not any(part.training for part in one.modules() if isinstance(part, nn.BatchNorm2d))


def test_but_bias_and_but_norm_of_a_model_without_them_are_errors():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ModelError, match="freeze except:bias: the model's backbone has no biases; use --recipe probe"):
        freeze(plain, rule="except:bias")
    with pytest.raises(ModelError, match="freeze except:norm: the model's backbone has no norm layers with weights"):
        freeze(plain, rule="except:norm")


def test_a_rule_sets_exactly_its_state_and_leaves_no_trace_when_lifted():
    module = build("test_resnet")
    names = list(module.state_dict())
    freeze(module, rule="backbone")
    assert not module.layer1.training
    assert list(module.state_dict()) == names
    frozen = freeze(module, until="layer1")
    assert not module.layer1.training
    assert module.layer2.training
    assert all(p.requires_grad == (key not in frozen.tensors) for key, p in module.named_parameters())
    assert freeze(module, rule="none").tensors == ()
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(part.training for part in module.modules())
    assert not any("train" in vars(part) for part in module.modules())


def test_copies_and_averages_stay_frozen_by_themselves():
    module = build("test_resnet")
    freeze(module, rule="backbone")
    pickled = io.BytesIO()
    pickle.dump(module, pickled)
    twins = [copy.deepcopy(module), ModelEmaV3(module).module, pickle.loads(pickled.getvalue())]
    freeze(module, rule="none")
    for twin in twins:
        twin.train()
        assert twin.training
        assert twin.fc.training
        assert not any(part.training for part in twin.layer1.modules())
        assert not twin.bn1.training
    assert module.train().layer1.training


def test_a_frozen_module_stays_in_eval_when_it_is_trained_directly():
    module = build("test_resnet")
    freeze(module, rule="backbone")
    assert module.layer1.train() is module.layer1
    assert not any(part.training for part in module.layer1.modules())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"until": "layr2"}, ["until:layr2", "layer2"]),
        ({"names": ["layer1.*", "blok.*"]}, ["names:blok.*", "matches no parameter and no module"]),
        ({"names": ["*"]}, ["nothing is left to train", "head"]),
        ({"until": "fc"}, ["until:fc", "it is of the head", "until:layer4"]),
        ({"names": ["fc"]}, ["names:fc", "freezes the head, fc, which is new", "--freeze backbone"]),
        ({"names": ["fc.*", "layer1"]}, ["freezes the head"]),
        ({"stages": 9}, ["stages:9", "5 stages", "layer4"]),
        ({"rule": "bckbone"}, ["'bckbone'", "backbone", "until:NAME"]),
        ({}, ["exactly one"]),
        ({"rule": "conv", "stages": 2}, ["exactly one"]),
    ],
)
def test_a_rule_that_matches_nothing_or_everything_is_refused(options: dict, words: list[str]):
    module = build("test_resnet")
    with pytest.raises(ModelError) as caught:
        freeze(module, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_layer_within_the_head_is_no_depth_and_a_part_of_the_head_may_be_frozen():
    module = timm.create_model("test_resnet", pretrained=False)
    replace_head(module, outputs=3, hidden=(4,))
    with pytest.raises(ModelError, match=r"until:fc\.0: it is of the head"):
        freeze(module, until="fc.0")
    assert freeze(module, names=["*.bias"]).parameters > 0
    assert module.fc[3].weight.requires_grad


def test_a_kind_that_the_model_lacks_is_refused():
    with torch.device("meta"):
        module = torchvision.models.squeezenet1_1(weights=None)
    with pytest.raises(ModelError, match="no norm layers"):
        freeze(module, rule="norm")


def test_the_backbone_of_a_model_with_several_heads_leaves_all_of_them():
    module = timm.create_model("deit_tiny_distilled_patch16_224", pretrained=False)
    freeze(module, rule="backbone")
    left = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert left == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
