"""Attention by its formula: timm's own bits, only where a gradient goes back, wherever the model was cut."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

import headstart as hs
from headstart.config.schema import Sgd
from headstart.optim.optimizers import make_optimizer
from headstart.surgery.boundary import find_boundary
from headstart.surgery.freeze import freeze
from headstart.training.attention import attending, has_attention
from headstart.training.rules import StepRules
from headstart.training.step import train_step

SMALL: dict[str, dict[str, Any]] = {
    "vit": {"architecture": "vit_tiny_patch16_224", "img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "beit": {  # with a mask that is learnt
        "architecture": "beit_base_patch16_224", "img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2,
    },
}  # fmt: skip


def small(kind: str) -> nn.Module:
    options = dict(SMALL[kind])
    torch.manual_seed(0)
    return timm.create_model(options.pop("architecture"), num_classes=3, **options).train()


def by_timm(model: nn.Module) -> nn.Module:
    """timm's own switch."""
    found = copy.deepcopy(model)
    for part in found.modules():
        if has_attention(part):
            part.fused_attn = False
    return found


def fused_calls(run: Any) -> int:
    """Calls of torch's attention while ``run`` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        run()
    return sum(event.count for event in seen.key_averages() if event.key == "aten::scaled_dot_product_attention")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", list(SMALL))
def test_a_step_by_the_formula_is_timms_own(noise, kind: str, precision: str) -> None:
    model, batch = small(kind), noise(6, size=32)
    states = []
    for module, how in ((model, "plain"), (by_timm(model), "fused"), (copy.deepcopy(model), "fused")):
        group = {"params": list(module.parameters()), "lr": 0.1, "weight_decay": 0.0, "name": "all"}
        state = hs.TrainState(module, make_optimizer([group], Sgd()))
        train_step(state, batch, rules=StepRules(precision=precision, attention=how))
        states.append(torch.cat([value.detach().flatten() for value in module.parameters()]))
    ours, theirs, fused = states
    assert torch.equal(ours, theirs)
    if (kind, precision) != ("beit", "fp32"):  # there torch computes the formula itself, for the mask's gradient
        assert not torch.equal(ours, fused)
    assert torch.allclose(ours, fused, atol=1e-4 if precision == "fp32" else 1e-2)


def test_without_a_gradient_it_stays_fused() -> None:
    model, images = small("vit"), torch.rand(2, 3, 32, 32)
    with attending("plain"):
        assert fused_calls(lambda: model(images)) == 0
        with torch.no_grad():
            assert fused_calls(lambda: model(images)) == 2
        for name, value in model.named_parameters():
            value.requires_grad = not name.startswith(("patch_embed", "pos_embed", "cls_token", "blocks.0"))
        assert fused_calls(lambda: model(images)) == 1
    assert fused_calls(lambda: model(images)) == 2


def test_the_part_behind_a_boundary_follows_too() -> None:
    model, images = small("vit"), torch.rand(11, 3, 32, 32)
    boundary = find_boundary(model, freeze(model, until="blocks.0"), example=images)
    activations = boundary.prefix(images)
    suffix = boundary.train_suffix.train()
    with attending("plain"):
        assert fused_calls(lambda: suffix(*activations)) == 0
        ours = suffix(*activations)
    assert torch.equal(ours, boundary_by_timm(model, images))


def boundary_by_timm(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The first block fused, as frozen ones are; the second one by timm's switch."""
    found = copy.deepcopy(model)
    found.blocks[1].attn.fused_attn = False
    return found(images)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.ones(4, 4, dtype=torch.bool)}])
def test_what_the_formula_does_not_do_is_left_to_torch(options: dict[str, Any]) -> None:
    query, key, value = torch.randn(3, 2, 4, 8, requires_grad=True).unbind(0)
    expected = functional.scaled_dot_product_attention(query, key, value, **options)
    with attending("plain"):
        assert torch.equal(functional.scaled_dot_product_attention(query, key, value, **options), expected)


def test_mask_scale_and_dropout() -> None:
    query, key, value = torch.randn(3, 2, 64, 8, dtype=torch.float64, requires_grad=True).unbind(0)
    mask = torch.randn(64, 64, dtype=torch.float64)
    expected = functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
    with attending("plain"):
        assert torch.allclose(functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3), expected)
        ones = torch.ones_like(value)
        dropped = functional.scaled_dot_product_attention(query, key, ones, dropout_p=0.5)
    assert abs(float(dropped.detach().mean()) - 1) < 0.2 and float(dropped.detach().std()) > 0.01
