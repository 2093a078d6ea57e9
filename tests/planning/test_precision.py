"""Precision and memory format: as asked, or measured where it pays; what was chosen stays when a run goes on."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

import headstart as hs
from headstart.planning import precision as arithmetic
from headstart.planning.draft import Draft
from headstart.planning.precision import Arithmetic, choose_arithmetic
from headstart.planning.preflight import Prepared, prepare

PAYS = {"_FEW_PASSES": 0, "_SHORT_SECONDS": 0.0, "_REPEATS": 1}


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest run is worth measuring."""
    for name, value in PAYS.items():
        monkeypatch.setattr(arithmetic, name, value)


def draft_of(made: Prepared, config: hs.Config, module: nn.Module | None = None, **changes: Any) -> Draft:
    """The draft of a run as it is before its arithmetic is chosen, perhaps with another module or other phases."""
    opened = made.opened if module is None else replace(made.opened, module=module)
    rules = replace(made.training_plan.rules, precision="fp32", memory_format="contiguous", attention="fused")
    training_plan = replace(made.training_plan, rules=rules, **changes)
    return Draft(
        config=config, emit=lambda _: None, device=made.device, opened=opened, images=made.images,
        training_plan=training_plan, loss=made.training_plan.rules.loss_function(),
    )  # fmt: skip


def arithmetic_of(draft: Draft) -> Arithmetic:
    rules = draft.rules
    return Arithmetic(precision=rules.precision, memory_format=rules.memory_format, attention=rules.attention)


def chosen(plan: Any) -> dict[str, tuple[str, str]]:
    names = ("precision", "memory_format", "attention")
    return {one.name: (one.value, one.reason) for one in plan.decisions if one.name in names}


def test_a_short_run_is_not_measured(settings):
    found = chosen(hs.plan(hs.load_config(settings())))
    few = "auto: 72 image passes are too few to measure others"
    assert found == {"precision": ("fp32", few), "memory_format": ("contiguous", "auto: see precision")}


@pytest.mark.parametrize(
    ("options", "passes"),
    [({}, 30 * 4 + 6), ({"cache": {"use": "never"}}, 360), ({"cache": {"views": 2}}, 30 * 2 + 6),
     ({"augment": {"preset": "none"}}, 36), ({"augment": {"preset": "none", "flip": "alternating"}}, 66),
     ({"augment": {"mixup": 0.2}}, 360)],
)  # fmt: skip
def test_what_may_be_cached_is_counted_once(settings, options: dict[str, Any], passes: int):
    found = chosen(hs.plan(hs.load_config(settings(recipe="probe", epochs=10, **options))))
    assert found["precision"][1] == f"auto: {passes} image passes are too few to measure others"


def test_what_is_asked_for_is_done(settings):
    asked = {"precision": "bf16", "memory_format": "channels_last"}
    told = {name: (value, "as asked") for name, value in asked.items()}
    assert chosen(hs.plan(hs.load_config(settings(**asked)))) == told
    found = chosen(hs.plan(hs.load_config(settings(**asked, attention="plain"))))
    assert found.pop("attention")[1].startswith("as asked; none of the layers is known to have a choice")
    assert found == told


@pytest.mark.usefixtures("pays")
def test_every_candidate_is_measured_and_only_what_is_left_open(settings):
    reasons = chosen(hs.plan(hs.load_config(settings())))["precision"][1]
    assert "fp32 contiguous" in reasons and "images/s" in reasons
    half = chosen(hs.plan(hs.load_config(settings(precision="fp32"))))
    assert half["precision"] == ("fp32", "as asked")
    assert "bf16" not in half["memory_format"][1]


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize(("share", "images"), [(0.0, 4), (1e9, 8)])
def test_a_long_run_is_measured_on_up_to_half_a_batch(settings, monkeypatch, share: float, images: int):
    """MobileNetV3 in channels_last is 1.14 times as fast as contiguous with 4 images, 1.4 times with 32."""
    monkeypatch.setattr(arithmetic, "_STEP_SECONDS", 0.0)
    monkeypatch.setattr(arithmetic, "_HOPELESS", 1e9)
    monkeypatch.setattr(arithmetic, "_SHARE", share)
    reasons = chosen(hs.plan(hs.load_config(settings(recipe="full", batch={"size": 16}))))["precision"][1]
    assert reasons.endswith(f", {images} images at a time")


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize(("recipe", "found"), [("full", True), ("probe", False)])
def test_plain_attention_is_measured_where_attention_learns(settings, monkeypatch, recipe: str, found: bool):
    monkeypatch.setattr(arithmetic, "_HOPELESS", 1e9)
    options = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = {"name": "timm/vit_tiny_patch16_224", "weights": "none", "image_size": 32, "options": options}
    reasons = chosen(hs.plan(hs.load_config(settings(recipe=recipe, model=model))))["precision"][1]
    assert ("plain attention" in reasons) == found
    assert "fp32 contiguous, plain" not in reasons


@pytest.mark.usefixtures("pays")
def test_measuring_leaves_model_and_chance_as_they_were(settings):
    config = hs.load_config(settings(memory_format="contiguous"))
    made = prepare(config, module=None, loss=None, emit=lambda _: None)
    module, before = made.opened.module, copy.deepcopy(made.opened.module.state_dict())
    draft = draft_of(made, config)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    modes = [part.training for part in module.modules()]
    choose_arithmetic(draft)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert [part.training for part in module.modules()] == modes


@pytest.mark.usefixtures("pays")
def test_copies_hold_nothing_afterwards_though_they_may_live_on(settings, monkeypatch: pytest.MonkeyPatch):
    """timm's models refer to themselves: only Python's collector, some time later, would free the copies."""
    kept: list[nn.Module] = []
    make = arithmetic._copy_per_order

    def copies(*arguments: Any) -> Any:
        found = make(*arguments)
        kept.extend(found.values())
        return found

    monkeypatch.setattr(arithmetic, "_copy_per_order", copies)
    made = prepare(hs.load_config(settings(recipe="full")), module=None, loss=None, emit=lambda _: None)
    assert kept
    values = [value for model in kept for value in (*model.parameters(), *model.buffers())]
    assert sum(value.untyped_storage().nbytes() for value in values) == 0
    assert all(value.grad is None for value in values)
    assert all(value.numel() for value in made.opened.module.parameters())


@pytest.mark.usefixtures("pays")
def test_what_a_copy_shares_with_the_model_stays(settings):
    class Shared(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Shared:
            return self

    made = prepare(hs.load_config(settings(recipe="full")), module=None, loss=None, emit=lambda _: None)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Shared(8, 3))
    before = module[3].weight.detach().clone()
    choose_arithmetic(replace(draft_of(made, hs.load_config(settings()), module), loss=cross_entropy))
    assert torch.equal(module[3].weight, before)


class Fast(nn.Module):
    """Slow in fp32, fast in bf16; ``wrong``: and then something else."""

    steps: ClassVar[list[torch.dtype]] = []  # of its copies, too

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.conv, self.fc, self.wrong = nn.Conv2d(3, 8, 3), nn.Linear(8, 3), wrong

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv(images)
        if self.training:
            self.steps.append(features.dtype)
        if features.dtype == torch.float32:
            work = torch.randn(600, 600)
            for _ in range(8):
                work = functional.softmax(work @ work, dim=1)
        elif self.wrong:
            features = features * 1.5 + 1
        return self.fc(features.mean((2, 3)))


class Spoiled(Fast):
    """Slow once in bf16: something else had the machine."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = super().forward(images)
        if self.training and self.steps.count(torch.bfloat16) == 1 and self.steps[-1] == torch.bfloat16:
            end = time.thread_time() + 0.5
            while time.thread_time() < end:
                pass
        return found


@pytest.mark.usefixtures("pays")
def test_one_spoiled_moment_decides_nothing(settings) -> None:
    made = prepare(hs.load_config(settings(precision="fp32")), module=None, loss=None, emit=lambda _: None)
    torch.manual_seed(0)
    Fast.steps.clear()
    config = hs.load_config(settings(memory_format="contiguous"))
    draft = draft_of(
        made, config, Spoiled(wrong=False), phases=(replace(made.training_plan.phases[-1], freeze="none"),)
    )
    found = choose_arithmetic(replace(draft, loss=cross_entropy))
    assert found.rules.precision == "bf16", found.decisions[0].reason


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize("wrong", [False, True])
def test_the_fastest_is_taken_if_it_gives_the_same(settings, wrong: bool):
    config = hs.load_config(settings(memory_format="contiguous"))
    made = prepare(hs.load_config(settings(precision="fp32")), module=None, loss=None, emit=lambda _: None)
    draft = draft_of(made, config, Fast(wrong=wrong), phases=(replace(made.training_plan.phases[-1], freeze="none"),))
    torch.manual_seed(0)
    Fast.steps.clear()
    found = choose_arithmetic(replace(draft, loss=cross_entropy))
    assert Fast.steps.count(torch.float32) == 2  # too slow to be timed again
    assert Fast.steps.count(torch.bfloat16) > 3
    assert arithmetic_of(found) == Arithmetic(precision="fp32" if wrong else "bf16", memory_format="contiguous")
    assert "off)" in found.decisions[0].reason


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def test_what_was_chosen_stays_when_the_run_goes_on(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Chosen by measurement in the first life; in the second one the run would be too short to measure."""

    class Killed(Exception):
        pass

    def kill(event: object) -> None:
        if isinstance(event, hs.StepDone) and event.step == 3:
            raise Killed

    config = hs.load_config(settings(recipe="full", checkpoint={"every_steps": 1, "every_seconds": 0.0}))
    measured = (Arithmetic(precision="bf16", memory_format="channels_last"), "it was the fastest")
    with monkeypatch.context() as patch:
        patch.setattr(arithmetic, "_measure_precision", lambda *_: measured)
        with pytest.raises(Killed):
            hs.train(config, watch=kill)
        whole = hs.train(hs.load_config(settings(recipe="full", out=str(tmp_path / "whole"))))
    resumed = hs.train(config, resume=True)
    plan = json.loads((resumed.path / "plan.json").read_text())
    assert plan["precision"] == "bf16"
    assert plan["choices"]["arithmetic"] == {
        "precision": "bf16", "memory_format": "channels_last", "attention": "fused",
        "why": "it was the fastest",
    }  # fmt: skip
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
