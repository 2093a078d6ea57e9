"""How fast a head of numbers may learn: a step moves an output by a part of its deviation, whatever its features."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import headstart as hs
from headstart.config.schema import AdamW, RmsProp, Sgd
from headstart.planning.head_rate import find_limit, measure_features
from headstart.planning.phases import make_phases
from headstart.surgery.head import replace_head


@pytest.fixture
def features() -> torch.Tensor:
    """64 rows of 500 features as a pooled activation has them: positive, with a mean that all images share."""
    draw = torch.Generator().manual_seed(0)
    return (torch.randn(64, 500, generator=draw) * 0.5 + 0.4).clamp_min(0)


@pytest.fixture
def numbers(colours: Path, tmp_path: Path) -> Path:
    """A table of some pictures, each with a number and a tag or two."""
    rows = ["image,price,tags"]
    for place, path in enumerate(sorted(colours.rglob("*.png"))[::2]):
        tags = '"a,b"' if place % 3 else "ab"[place % 2]
        rows.append(f"{path.relative_to(colours).as_posix()},{100.5 + 3 * place},{tags}")
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "rows.csv"


def test_a_step_of_adam_moves_an_output_by_the_limit(features: torch.Tensor) -> None:
    head = nn.Linear(500, 1)
    limit = find_limit(features, AdamW())
    assert limit is not None
    before = head(features).detach()
    optimizer = torch.optim.AdamW([head.weight], lr=limit, weight_decay=0.0)
    (head(features) - before + 1.0).mean().backward()  # every output is to fall
    optimizer.step()
    assert float((before - head(features).detach()).mean()) == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_converges_at_the_limit_and_not_at_the_rate_of_a_probe(features: torch.Tensor, nesterov: bool) -> None:
    limit = find_limit(features, Sgd(nesterov=nesterov))
    assert limit is not None
    truth = features[:, 0] - features[:, 0].mean()

    def train(lr: float) -> float:
        head = nn.Linear(500, 1)
        optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9, nesterov=nesterov)
        for _ in range(100):
            optimizer.zero_grad()
            loss = nn.functional.huber_loss(head(features)[:, 0], truth)
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert train(limit) < float(truth.var())
    assert train(0.15) > 3 * float(truth.var())


def test_the_limit_falls_with_the_size_of_the_features_and_with_momentum() -> None:
    ones = torch.ones(4, 1000)
    assert find_limit(ones, AdamW()) == 4e-4
    assert find_limit(10 * ones, AdamW()) == 4e-5
    assert find_limit(-ones, AdamW()) == 4e-4
    assert find_limit(ones, RmsProp()) == 4e-4
    assert find_limit(ones, RmsProp(momentum=0.5)) == 2e-4
    assert find_limit(ones, Sgd(momentum=0.9)) == 2e-4
    assert find_limit(10 * ones, Sgd(momentum=0.9)) == 2e-6
    assert find_limit(torch.zeros(4, 10), AdamW()) is None
    assert find_limit(torch.full((4, 10), torch.inf), AdamW()) is None


def test_what_reaches_the_head_is_measured_and_the_module_is_left_as_it_was(colours: Path) -> None:
    opened = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}, image_size=32)
    batch = next(iter(hs.open_images(str(colours), like=opened, batch_size=8).val.epoch(0)))
    model = opened.module.eval()
    inputs = batch.inputs(torch.device("cpu"), torch.contiguous_format)
    state = copy.deepcopy(model.state_dict())
    (found,) = measure_features(model, "fc", batch)
    assert found.shape[1:] == (model.fc.in_features,)
    torch.testing.assert_close(model.fc(found), model(inputs))
    assert not model.fc._forward_pre_hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    class Convolved(nn.Module):
        """Its head is a convolution, whose maps are averaged afterwards."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(images)).mean((2, 3))

    other = Convolved().eval()
    (maps,) = measure_features(other, "head", batch)
    outputs = maps @ other.head.weight[:, :, 0, 0].T + other.head.bias
    torch.testing.assert_close(outputs, other(inputs))


def test_only_rates_that_nobody_asked_for_are_held() -> None:
    model = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
    replace_head(model, outputs=1)

    def head_rates(**sections: object) -> list[float]:
        plans, _ = make_phases(hs.load_config(sections), model, batch_size=64, pretrained=True, head_limit=2e-4)
        return [plan.head_lr for plan in plans]

    assert head_rates(recipe="lp_ft") == [2e-4, 2e-4]
    assert head_rates(recipe="full") == [2e-4]
    assert head_rates(recipe="probe", optimizer={"head_lr": 0.01}) == [0.01]
    assert head_rates(recipe="probe", optimizer={"lr": 1e-3}) == [1e-2]
    plans, decisions = make_phases(
        hs.load_config({"recipe": "probe"}), model, batch_size=64, pretrained=True, head_limit=None
    )
    assert plans[0].head_lr == 5e-3
    scratch, _ = make_phases(hs.load_config({}), model, batch_size=64, pretrained=False, head_limit=2e-4)
    assert scratch[0].head_lr == 1e-3  # its features are not these for long
    assert "numbers" not in next(one.reason for one in decisions if one.name == "rates")
    _, decisions = make_phases(
        hs.load_config({"recipe": "probe"}), model, batch_size=64, pretrained=True, head_limit=2e-4
    )
    assert next(one.reason for one in decisions if one.name == "rates").endswith("at most 0.0002, by its features")


def test_a_run_of_numbers_has_the_limit_in_its_plan_and_others_have_none(settings, numbers, colours) -> None:
    data = {"source": str(numbers), "images": str(colours), "target": ["price"]}
    sections = settings(data=data, recipe="probe") | {"model": {"name": "starter", "image_size": 32}}
    plan = hs.plan(hs.load_config(sections)).document
    limit = plan["choices"]["head_limit"]
    assert 0 < plan["phases"][0]["head_lr"] <= limit
    assert json.loads(json.dumps(limit)) == limit
    sections["data"] = data | {"target": "tags"}
    sections["task"] = {"kind": "multilabel"}
    assert "head_limit" not in hs.plan(hs.load_config(sections)).document["choices"]


def test_a_run_that_began_without_a_limit_goes_on_without_one() -> None:
    from headstart.planning.draft import Draft
    from headstart.planning.head_rate import limit_head_rate

    draft = Draft(config=hs.load_config({}), emit=lambda event: None, recorded={"epochs": [3]})
    assert limit_head_rate(draft) is draft
    assert replace(draft, recorded={}) != draft
