"""The description: its facts, and that its text fits a terminal."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from headstart.config.schema import Until
from headstart.models.describe import describe


def test_a_spec_is_described_with_shapes_head_and_rules():
    what = describe("timm/test_resnet", freeze=Until(until="layer2"))
    assert what.parameters == sum(p.numel() for p in timm.create_model("test_resnet").parameters())
    stages = {row.name: row for row in what.rows}
    assert list(stages) == ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert stages["fc"].in_head
    assert stages["fc"].outputs == (1, 1000)
    assert sum(row.parameters for row in what.rows) == what.parameters
    rules = {effect.rule: effect.frozen for effect in what.rules}
    assert rules["backbone"].parameters == what.parameters - stages["fc"].parameters
    assert rules["until:layer4"].parameters == rules["backbone"].parameters
    text = str(what)
    assert "timm/test_resnet" in text
    assert "fc (linear," in text
    assert "traced with torch.fx" in text
    assert "freeze until:layer2" in text
    assert "mean 0.5" in text or "mean 0.485" in text


def test_the_text_is_at_most_a_hundred_columns_wide_and_groups_what_repeats():
    for name in ("vit_tiny_patch16_224", "densenet121", "convnext_atto", "deit_tiny_distilled_patch16_224"):
        with torch.device("meta"):
            module = timm.create_model(name, pretrained=False)
        text = str(describe(module, freeze="conv"))
        assert max(map(len, text.splitlines())) <= 100
    with torch.device("meta"):
        text = str(describe(timm.create_model("vit_tiny_patch16_224", pretrained=False)))
    assert "1-11" in text
    assert "11 x Block" in text


def test_multiply_adds_are_counted_for_a_known_model():
    with torch.device("meta"):
        module = timm.create_model("resnet18", pretrained=False)
    count = describe(module).multiply_adds
    assert count is not None
    assert abs(count - 1.814e9) < 0.01e9


class TwoHeads(nn.Module):
    """Two outputs of different size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.one = nn.Linear(8, 10)
        self.two = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.conv(images).mean((2, 3))
        return self.one(pooled), self.two(pooled)


def test_a_model_whose_head_is_not_clear_is_described_all_the_same():
    text = str(describe(TwoHeads()))
    assert "head is not clear" in text
    assert "one (8 -> 10)" in text
    assert "backbone" in text
