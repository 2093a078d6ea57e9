"""Activation checkpointing: the same numbers with less memory."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from headstart.training.activation_checkpointing import find_blocks, recomputing
from headstart.training.rules import StepRules
from headstart.training.state import TrainState
from headstart.training.step import train_step

BATCHES, SIZE, VIT_SIZE = 3, 64, 160


class Power(nn.Module):
    """A layer whose output in training depends on a buffer that the pass itself moves on, and on chance."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 8)
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.drop(self.norm(self.first(x))))


class Powers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.rows, self.fc = nn.AdaptiveAvgPool2d(2), nn.Sequential(Power(), Power()), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.pool(x).flatten(1)
        return self.fc(self.rows(torch.cat([flat, flat], dim=1)[:, :8]))


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Powers() if name == "powers" else timm.create_model(name, num_classes=3, drop_path_rate=0.2)


def trained(
    net: nn.Module, batches, *, recompute: bool, accumulate: int = 1
) -> tuple[list[str], dict[str, torch.Tensor]]:
    state = TrainState(net, torch.optim.SGD([value for value in net.parameters() if value.requires_grad], lr=0.05))
    rules = StepRules(recompute=recompute, accumulate=accumulate)
    losses = [train_step(state, batch, rules=rules).loss.hex() for batch in batches]
    return losses, net.state_dict()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["powers", "resnet10t", "test_vit", "test_convnext", "test_efficientnet"])
def test_losses_weights_and_statistics_are_the_same_bits(noise, name: str, accumulate: int) -> None:
    net, batches = (
        model(name),
        [noise(8, size=VIT_SIZE if "vit" in name else SIZE, seed=place) for place in range(BATCHES)],
    )
    assert len(find_blocks(net)) >= 2
    plain, wanted = trained(copy.deepcopy(net), batches, recompute=False, accumulate=accumulate)
    losses, found = trained(net, batches, recompute=True, accumulate=accumulate)
    assert losses == plain
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_a_frozen_part_is_not_computed_twice(noise) -> None:
    net, calls = model("resnet10t"), []
    for parameter in (*net.conv1.parameters(), *net.bn1.parameters(), *net.layer1.parameters()):
        parameter.requires_grad = False
    net.layer1[0].conv1.register_forward_hook(lambda *_: calls.append("frozen"))
    net.layer4[0].conv1.register_forward_hook(lambda *_: calls.append("trained"))
    trained(net, [noise(8, size=SIZE)], recompute=True)
    assert sorted(calls) == ["frozen", "trained", "trained"]


def test_less_is_kept_for_the_backward_pass() -> None:
    net, images = model("resnet10t"), torch.zeros(4, 3, 64, 64)

    def kept(*, wanted: bool) -> int:
        sizes: dict[int, int] = {}

        def note(value: torch.Tensor) -> torch.Tensor:
            sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value), recomputing(net, wanted=wanted):
            outputs = net(images)
        assert outputs.requires_grad
        return sum(sizes.values())

    weights = sum(value.nbytes for value in net.parameters())
    assert kept(wanted=True) - weights < 0.6 * (kept(wanted=False) - weights)


def test_the_model_is_itself_again_afterwards() -> None:
    net = model("test_vit")
    with recomputing(net):
        assert all("forward" in vars(block) for block in find_blocks(net))
    assert not any("forward" in vars(part) for part in net.modules())


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("resnet50", "Bottleneck", 16), ("vit_tiny_patch16_224", "Block", 12), ("convnext_atto", "ConvNeXtBlock", 12),
     ("swin_tiny_patch4_window7_224", "SwinTransformerBlock", 12), ("mobilenetv3_small_100", "InvertedResidual", 10)],
)  # fmt: skip
def test_blocks_are_what_papers_call_so(name: str, kind: str, count: int) -> None:
    with torch.device("meta"):
        found = find_blocks(timm.create_model(name))
    assert sum(type(block).__name__ == kind for block in found) == count
