"""Low-rank adapters: nothing changes when they come, only they and the head train, and merging changes no output."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from headstart.errors import ConfigError, ModelError
from headstart.optim.groups import param_groups
from headstart.surgery.freeze import freeze
from headstart.surgery.head import find_head, head_parameters, replace_head
from headstart.surgery.layout import find_layout
from headstart.surgery.lora import add_lora, merge_lora
from headstart.surgery.lora_targets import find_lora_targets

MODELS = [("test_vit", 160), ("test_resnet", 64), ("test_convnext", 64), ("test_efficientnet", 64)]
each_model = pytest.mark.parametrize(("name", "size"), MODELS)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = timm.create_model(name, pretrained=False)
    replace_head(module, outputs=3)
    for parameter in module.parameters():
        if parameter.ndim == 1 and (parameter == 0).all():
            nn.init.normal_(parameter, std=0.5)  # a scale that starts at zero lets no gradient through
    return module


def noise(size: int, *, seed: int = 0, count: int = 4) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) + seed


def scores(module: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return module.eval()(images)


def train(module: nn.Module, size: int, *, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(param_groups(module, lr=1e-2, weight_decay=0.1))
    for step in range(steps):
        module.train()
        module(noise(size, seed=step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


def disturb(module: nn.Module) -> None:
    """Adapters as if they had been trained: B is zero at first."""
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)


def places(module: nn.Module) -> dict[str, tuple[str, int]]:
    """Kind and stage of every tensor that is no adapter's, under its plain name."""
    found = (place for place in find_layout(module).tensors if place.kind != "adapter")
    return {place.name.replace(".base_layer.", "."): (place.kind, place.stage) for place in found}


@each_model
def test_adapters_change_no_output_and_nothing_that_is_known_of_the_model(name: str, size: int) -> None:
    module = build(name)
    before, known, layout = scores(module, noise(size)), places(module), find_layout(module)
    module.train()
    plan = add_lora(module, rank=4, alpha=8.0)
    assert all(part.training for part in module.modules())
    assert torch.equal(scores(module, noise(size)), before)
    twin = copy.deepcopy(module)  # whose layout is traced anew
    for adapted in (module, twin):
        now = find_layout(adapted)
        assert places(adapted) == known
        assert (now.how, now.heads) == ("fx", layout.heads)
        assert [(stage.name, stage.modules) for stage in now.stages] == [(s.name, s.modules) for s in layout.stages]
        adapters = {place.name for place in now.tensors if place.kind == "adapter"}
        assert adapters == {key for key, _ in adapted.named_parameters() if ".lora_" in key}
        assert len(adapters) == 2 * len(plan.layers)
        for path in plan.layers:
            assert now.stage_of(f"{path}.lora_A.default.weight") == known[f"{path}.weight"][1]
    assert find_layout(twin).tensors == find_layout(module).tensors


@each_model
def test_only_head_and_adapters_train_and_not_one_bit_of_the_rest_moves(name: str, size: int) -> None:
    module = build(name)
    add_lora(module, rank=4, alpha=8.0, dropout=0.1)
    frozen = freeze(module, rule="except:lora")
    trainable = {key for key, parameter in module.named_parameters() if parameter.requires_grad}
    assert trainable == {*head_parameters(module), *(key for key, _ in module.named_parameters() if ".lora_" in key)}
    groups = param_groups(module, lr=1e-3, head_lr=1e-2, layer_decay=0.5, weight_decay=0.1)
    grouped = [key for group in groups for key in group["names"]]
    assert sorted(grouped) == sorted(trainable)
    assert {group["weight_decay"] for group in groups if any(".lora_" in key for key in group["names"])} == {0.0}
    rates = [group["lr"] for group in groups]
    assert rates == sorted(rates)
    before = copy.deepcopy(module.state_dict())
    for one in (module, copy.deepcopy(module), ModelEmaV3(module).module):
        train(one, size)
        now = one.state_dict()
        assert {key for key in before if not torch.equal(before[key], now[key])} == trainable
    assert set(before) - trainable <= set(frozen.tensors)
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert not any(part.training for part in norms)
    assert any(".lora_dropout." in path and part.training for path, part in module.named_modules())


@each_model
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_merged_weights_are_plain_timms_and_give_the_adapters_outputs(name, size, dtype, most) -> None:
    module = build(name).to(dtype)
    untrained = scores(module, noise(size).to(dtype))
    add_lora(module, rank=4, alpha=8.0)
    freeze(module, rule="except:lora")
    train(module.float(), size)
    module.to(dtype)
    adapted = scores(module, noise(size).to(dtype))
    assert (adapted - untrained).abs().max() > 100 * most
    paths = merge_lora(module)
    assert paths
    assert (scores(module, noise(size).to(dtype)) - adapted).abs().max() <= most * adapted.abs().max().clamp(min=1)
    plain = timm.create_model(name, pretrained=False, num_classes=3).to(dtype)
    assert list(module.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(scores(plain, noise(size).to(dtype)), scores(module, noise(size).to(dtype)))
    assert {type(part) for part in module.modules()} == {type(part) for part in plain.modules()}
    assert not hasattr(module, "peft_config")
    assert merge_lora(module) == ()


def check_law(module: nn.Module, images: Tensor, **options) -> tuple[str, ...]:
    """Adapters change the outputs, merged weights give the same, names are as before; the adapted layers."""
    names, before = list(module.state_dict()), scores(module, images)
    plan = add_lora(module, rank=2, alpha=4.0, **options)
    assert torch.equal(scores(module, images), before)
    disturb(module)
    adapted = scores(module, images)
    assert not torch.allclose(adapted, before)
    merge_lora(module)
    assert torch.allclose(scores(module, images), adapted, atol=1e-5)
    assert list(module.state_dict()) == names
    return plan.layers


class Borrower(nn.Module):
    """A layer whose weight is used without calling it, a tied pair, one of each that is fit, and one never executed."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.fc, self.spare = nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(8, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.both, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = images.mean(3).flatten(1)[:, :8]
        x = self.fc(F.linear(x, self.qkv.weight, bias=self.qkv.bias).relu())
        x = self.second(self.first(x))
        x = self.both(x) @ self.both.weight.T
        return self.head(x)


class Untraceable(nn.Module):
    """Branches on values, so that torch.fx sees nothing and hooks look."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(images)).mean((2, 3))
        x = self.fc(x) if x.sum() > -1e9 else x
        return self.out(x)


class Convolutions(nn.Module):
    """Every way in which a convolution may not be plain, and names that end alike."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.grouped = nn.Conv2d(3, 8, 3, 2, padding="valid"), nn.Conv2d(8, 8, 3, groups=2)
        self.dilated, self.mirrored = (
            nn.Conv2d(8, 8, 3, dilation=2),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        )
        self.inner = nn.Sequential()
        self.inner.plain = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.inner.plain(self.mirrored(self.dilated(self.grouped(self.plain(images)))))
        return self.head(x.relu().mean((2, 3)))


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.again = nn.ModuleList([self.a])
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.again[0](self.a(images.mean(3).flatten(1)[:, :8]).relu()))


def small_beit() -> nn.Module:
    return Beit(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=2, num_classes=3, init_values=1.0)


def small_torchvision_vit() -> nn.Module:
    vit = VisionTransformer(
        image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=3
    )
    nn.init.normal_(vit.heads.head.weight)  # it starts at zero
    return vit


BY_WEIGHT, GROUPED = "its weight is used without calling the layer", "a grouped convolution"
SKIPPED: list[tuple[Callable[[], nn.Module], dict[str, str]]] = [
    (Borrower, {
        "qkv": BY_WEIGHT, "both": BY_WEIGHT, "spare": "it is not executed as a module",
        "first": "second has the same weight", "second": "first has the same weight",
    }),
    (Convolutions, {"grouped": GROUPED, "dilated": "a dilated convolution",
                    "mirrored": "a convolution with reflect padding"}),
    (small_beit, {"blocks.0.attn.qkv": BY_WEIGHT}),
    (small_torchvision_vit, {"encoder.layers.encoder_layer_0.self_attention.out_proj": BY_WEIGHT}),
    (Untraceable, {}),
    (Twice, {}),
]  # fmt: skip


@pytest.mark.parametrize(("make", "skipped"), SKIPPED, ids=lambda value: getattr(value, "__name__", ""))
def test_layers_whose_adapter_would_be_ignored_or_wrong_are_skipped_with_the_reason(make, skipped) -> None:
    torch.manual_seed(0)
    module = make().eval()
    before = scores(module, noise(32))
    plan = find_lora_targets(module, rank=2, targets="auto")
    assert {layer.path: layer.reason for layer in plan.skipped} == skipped
    assert torch.equal(scores(module, noise(32)), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert check_law(module, noise(32)) == plan.layers


def test_weight_standardised_convolutions_are_skipped_because_their_sum_is_not_the_sum() -> None:
    plan = find_lora_targets(build("test_nfnet"), rank=4, targets="auto")
    reasons = {layer.reason for layer in plan.skipped}
    assert reasons == {"ScaledStdConv2d computes with its weight in its own way", GROUPED}
    assert plan.layers
    assert all(".attn" in path for path in plan.layers)


def test_padding_like_tensorflows_is_a_convolution_like_others() -> None:
    module = timm.create_model("tf_mobilenetv3_small_minimal_100", pretrained=False, num_classes=3)
    layers = check_law(module, noise(64), targets=["conv_stem", "blocks.1"])
    assert type(module.conv_stem).__name__ == "Conv2dSame"
    assert "conv_stem" in layers


def test_a_shared_layer_gets_one_adapter_under_all_its_names() -> None:
    module = Twice()
    assert add_lora(module, rank=2, alpha=2.0).layers == ("a",)
    assert module.a is module.again[0]
    assert hasattr(module.a, "lora_A")


def test_a_layer_is_taken_by_its_whole_name() -> None:
    """peft takes a list as the ends of names: ``plain`` would mean ``inner.plain`` too."""
    module = Convolutions()
    assert add_lora(module, rank=2, alpha=2.0, targets=["plain"]).layers == ("plain",)
    assert not hasattr(module.inner.plain, "lora_A")


def test_targets_name_layers_or_what_holds_them() -> None:
    module = build("test_vit")
    assert find_lora_targets(module, rank=4, targets=["blocks.0.attn", "*.mlp.fc1"]).layers == (
        "blocks.0.attn.qkv", "blocks.0.attn.proj", *(f"blocks.{block}.mlp.fc1" for block in range(6)),
    )  # fmt: skip


def test_the_head_is_found_beside_adapters_in_a_model_that_torch_fx_cannot_trace() -> None:
    module = Untraceable()
    replace_head(module, outputs=5)
    add_lora(module, rank=2, alpha=2.0)
    assert find_layout(module).how == "hooks"
    assert find_head(module).paths == ("out",)
    freeze(module, rule="except:lora")
    trainable = {name.partition(".")[0] for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trainable == {"conv", "fc", "out"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"rank": 1000},
            r"lora.rank: 1000 is above every layer's size; give at most 64 \(that of .*\), e.g. --",
        ),
        ({"rank": 65, "targets": ["*.qkv"]}, r"lora.rank: 65 is above every layer's size; give at most 64"),
        (
            {"rank": 4, "targets": ["blocks.0.attn.qvk"]},
            r"'blocks.0.attn.qvk' matches no module; did you mean blocks.0.attn.qkv",
        ),
        ({"rank": 4, "targets": ["head"]}, r"lora.targets: 'head' matches the head alone, which trains whole; name"),
        (
            {"rank": 4, "targets": ["norm"]},
            r"lora.targets: 'norm' matches no linear layer or convolution \(norm",
        ),
    ],
)
def test_what_cannot_be_adapted_as_asked_is_one_clear_error_and_changes_nothing(options, said) -> None:
    module = build("test_vit")
    names = list(module.state_dict())
    with pytest.raises(ConfigError, match=said):
        add_lora(module, **{"alpha": 8.0, **options})
    assert list(module.state_dict()) == names


def test_small_layers_are_skipped_by_themselves_and_refused_when_they_are_asked_for() -> None:
    module = build("test_resnet")
    plan = find_lora_targets(module, rank=30, targets="auto")
    small = [layer.path for layer in plan.skipped]
    assert {layer.reason for layer in plan.skipped} == {"smaller than the rank"}
    assert "conv1.0" in small or "conv1" in small
    with pytest.raises(ConfigError, match=r"lora.rank: 30 is above the size of conv1.*; give at most \d+, or leave"):
        find_lora_targets(module, rank=30, targets=["*"])


def test_a_model_that_no_adapter_fits_is_an_error_with_the_reasons() -> None:
    with pytest.raises(ConfigError, match=r"no layer can have adapters \(qkv: its weight is used without calling"):
        find_lora_targets(Borrower(), rank=2, targets=["qkv"])
    bare = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(ConfigError, match="backbone has no linear layer and no convolution; use --recipe full"):
        find_lora_targets(bare, rank=2, targets="auto")


def test_adapters_are_not_put_beside_adapters_and_not_frozen_around_without_them() -> None:
    module = Convolutions()
    with pytest.raises(ModelError, match=r"freeze except:lora: the model has no adapters; add them with add_lora"):
        freeze(module, rule="except:lora")
    add_lora(module, rank=2, alpha=2.0)
    with pytest.raises(ModelError, match=r"has adapters already; merge_lora\(model\) makes plain layers"):
        add_lora(module, rank=2, alpha=2.0)


def test_the_start_of_the_adapters_is_a_function_of_the_seed() -> None:
    starts = []
    for seed in (0, 0, 1):
        module = Convolutions()
        torch.manual_seed(seed)
        add_lora(module, rank=2, alpha=2.0)
        starts.append(module.plain.lora_A["default"].weight.detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_without_peft_the_error_says_what_to_type() -> None:
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "import torch, headstart as hs\n"
        "try: hs.add_lora(torch.nn.Linear(2, 2), rank=1, alpha=1.0)\n"
        "except hs.Error as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = "recipe: lora needs peft; install it with: pip install 'headstart[lora]'"
    assert done.stdout.strip() == f"ConfigError {said}"
