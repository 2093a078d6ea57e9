"""Parameter groups: complete, disjoint, with the rate of the depth and the decay of the kind."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from headstart.errors import ConfigError
from headstart.optim.groups import param_groups
from headstart.surgery.freeze import freeze
from headstart.surgery.head import head_parameters, replace_head
from headstart.surgery.layout import find_layout
from headstart.surgery.lora import add_lora

MODELS = {
    "vit": ("test_vit", {}),
    "resnet": ("resnet18", {"channels": (8, 8, 16, 16)}),
    "mobilenet": ("mobilenetv3_small_050", {}),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> nn.Module:
    name, options = MODELS[request.param]
    made = timm.create_model(name, pretrained=False, **options)
    replace_head(made, outputs=3, hidden=(8,))
    return made


def by_name(groups) -> dict[str, dict]:
    return {name: group for group in groups for name in group["names"]}


@pytest.mark.parametrize("rule", [{"rule": "none"}, {"rule": "backbone"}, {"rule": "norm"}, {"stages": 1}])
def test_every_trainable_tensor_is_in_one_group_and_frozen_ones_in_none(model, rule) -> None:
    freeze(model, **rule)
    grouped = [id(parameter) for group in param_groups(model, lr=1e-3) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_rates_never_rise_from_output_to_input(model) -> None:
    freeze(model, rule="none")
    groups = by_name(param_groups(model, lr=1e-3, head_lr=1e-2, layer_decay=0.5))
    places = [place for place in find_layout(model).tensors if place.name in groups]
    depths = [(place.stage, groups[place.name]["lr"]) for place in places]
    assert [rate for _, rate in sorted(depths)] == sorted(rate for _, rate in depths)
    stages = len(find_layout(model).stages)
    assert min(rate for _, rate in depths) == pytest.approx(1e-3 * 0.5 ** (stages - 1))
    assert {groups[name]["lr"] for name in head_parameters(model)} == {1e-2}
    assert max(rate for stage, rate in depths if stage < stages) == 1e-3


def test_norms_biases_tokens_and_position_embeddings_are_not_decayed(model) -> None:
    freeze(model, rule="none")
    for name, group in by_name(param_groups(model, lr=1e-3, weight_decay=0.1)).items():
        owner = model.get_submodule(name.rpartition(".")[0])
        is_weight = isinstance(owner, nn.Linear | nn.Conv2d) and name.endswith("weight")
        assert group["weight_decay"] == (0.1 if is_weight else 0.0), name


def test_the_table_of_a_small_network_is_this(net) -> None:
    groups = param_groups(net(norm=True), lr=0.1, head_lr=0.5, layer_decay=0.1, weight_decay=0.02)
    table = {name: (group["lr"], group["weight_decay"]) for name, group in by_name(groups).items()}
    assert table == {
        "conv1.weight": (pytest.approx(0.01), 0.02), "conv1.bias": (pytest.approx(0.01), 0.0),
        "bn1.weight": (pytest.approx(0.01), 0.0), "bn1.bias": (pytest.approx(0.01), 0.0),
        "conv2.weight": (0.1, 0.02), "conv2.bias": (0.1, 0.0),
        "fc.weight": (0.5, 0.02), "fc.bias": (0.5, 0.0),
    }  # fmt: skip
    assert [group["name"] for group in groups][-2:] == ["head (no decay)", "head"]


def test_without_a_head_rate_the_head_has_the_last_stages(net) -> None:
    rates = by_name(param_groups(net(), lr=0.1, layer_decay=0.5))
    assert rates["fc.weight"]["lr"] == rates["conv2.weight"]["lr"] == 0.1


def test_torchs_schedulers_keep_the_rates_apart(net) -> None:
    optimizer = torch.optim.SGD(param_groups(net(), lr=0.1, head_lr=0.5, layer_decay=0.1))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    before = [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [rate * 0.5 for rate in before]


def test_a_shared_tensor_is_grouped_once(net) -> None:
    model = net()
    model.conv2 = nn.Conv2d(8, 8, 3)
    model.again = model.conv2
    model.fc = nn.Linear(8, 3)
    order = ["conv1", "act1", "conv2", "again", "pool", "flat", "fc"]
    tied = nn.Sequential()
    for name in order:
        tied.add_module(name, getattr(model, name))
    grouped = [name for group in param_groups(tied, lr=0.1) for name in group["names"]]
    assert sorted(grouped) == sorted(name for name, _ in tied.named_parameters())


@pytest.mark.parametrize(
    "rates",
    [
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": 1, "head_lr": -1},
        {"lr": 1, "head_lr": 0.0},
        {"lr": 1, "layer_decay": 0},
        {"lr": 1, "layer_decay": 1.5},
    ],
)
def test_rates_that_are_not_positive_are_refused(net, rates) -> None:
    with pytest.raises(ConfigError, match=r"rates are positive, the decay is in \(0, 1\]"):
        param_groups(net(), **rates)


def test_nothing_to_train_is_refused(net) -> None:
    with pytest.raises(ConfigError, match=r"nothing is trainable: .* choose another freeze rule"):
        param_groups(net().requires_grad_(False), lr=0.1)


def test_what_the_model_lists_in_no_weight_decay_is_not_decayed(net) -> None:
    model = net()
    model.no_weight_decay = lambda: {"conv1.weight", "conv2.nothing"}
    decays = {
        name: group["weight_decay"] for name, group in by_name(param_groups(model, lr=0.1, weight_decay=0.1)).items()
    }
    assert decays["conv1.weight"] == 0.0 and decays["conv2.weight"] == 0.1
    model.no_weight_decay = ("conv2.weight",)  # an attribute is no list that timm would read
    decays = {
        name: group["weight_decay"] for name, group in by_name(param_groups(model, lr=0.1, weight_decay=0.1)).items()
    }
    assert decays["conv1.weight"] == decays["conv2.weight"] == 0.1


def test_tokens_and_position_embeddings_are_not_decayed_though_the_model_lists_none() -> None:
    model = timm.create_model("test_vit", pretrained=False)
    model.no_weight_decay = set
    groups = by_name(param_groups(model, lr=0.1, weight_decay=0.1))
    assert [groups[name]["weight_decay"] for name in ("pos_embed", "cls_token", "patch_embed.proj.weight")] == [
        0,
        0,
        0.1,
    ]


def test_a_norm_over_several_axes_is_not_decayed(net) -> None:
    model = net()
    model.act1 = nn.Sequential(nn.ReLU(), nn.LayerNorm((8, 112, 112)))
    groups = by_name(param_groups(model, lr=0.1, weight_decay=0.1))
    assert groups["act1.1.weight"]["weight_decay"] == 0.0


def test_adapters_are_not_decayed_and_have_the_rate_of_their_layer() -> None:
    pytest.importorskip("peft")
    model = timm.create_model("test_vit", pretrained=False)
    replace_head(model, outputs=3)
    add_lora(model, rank=2, alpha=4.0)
    freeze(model, rule="except:lora")
    groups = by_name(param_groups(model, lr=0.1, head_lr=0.5, layer_decay=0.5, weight_decay=0.1))
    layout = find_layout(model)
    adapters = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items() if "lora_" in name}
    last = len(layout.stages) - 1
    assert adapters == {name: (0.1 * 0.5 ** (last - layout.stage_of(name)), 0.0) for name in adapters}
    assert len({rate for rate, _ in adapters.values()}) > 1
    assert groups["head.weight"]["weight_decay"] == 0.1


def test_a_weight_that_the_head_shares_with_a_layer_before_it_has_that_layers_rate(net) -> None:
    model = nn.Sequential(net(classes=4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[4].weight = model[2].weight
    groups = by_name(param_groups(model, lr=0.1, head_lr=0.5, layer_decay=0.5, weight_decay=0.1))
    rates = {name: group["lr"] for name, group in groups.items() if not name.startswith("0.")}
    assert rates == {"2.weight": 0.1, "2.bias": 0.1, "4.bias": 0.5}
    assert {group["lr"] for name, group in groups.items() if name.startswith("0.")} == {0.05}


def test_without_decay_a_stage_is_one_group_and_its_full_rate_is_kept(net) -> None:
    groups = param_groups(net(), lr=0.1, head_lr=0.5, layer_decay=0.1)
    assert [group["name"] for group in groups] == ["conv1", "conv2", "head"]
    assert (
        [group["initial_lr"] for group in groups]
        == [group["lr"] for group in groups]
        == pytest.approx([0.01, 0.1, 0.5])
    )
    assert {group["weight_decay"] for group in groups} == {0.0}
