"""Everything is decided before the first step, and said: plan.json's content and the reasons."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import headstart as hs
from headstart.planning.model import CPU_MODEL, GPU_MODEL, name_model
from headstart.planning.preflight import prepare

KEYS = {
    "decisions", "task", "model", "preprocess", "phases", "data", "steps_per_epoch", "batch_size", "precision",
    "device", "seed", "head", "lora", "choices", "began", "warnings",
}  # fmt: skip


@pytest.fixture
def planned(settings):
    def make(**sections):
        return hs.plan(hs.load_config(settings(**sections)))

    return make


def said(plan) -> dict[str, tuple[str, str]]:
    return {decision.name: (decision.value, decision.reason) for decision in plan.decisions}


def test_the_document_says_everything_and_is_json(planned) -> None:
    document = planned(head={"kind": "mlp", "hidden": [4], "dropout": 0.1}).to_dict()
    assert json.loads(json.dumps(document)).keys() == KEYS
    assert document["task"]["classes"] == ["blue", "green", "red"]
    data = document["data"]
    assert (data["train"] + data["val"], data["test"]) == (36, 0)
    assert sum(data["class_counts"]["train"].values()) == data["train"]
    head = document["head"]
    assert (head["kind"], head["hidden"], head["path"], head["was"], head["now"]) == ("mlp", [4], "fc", 1000, 3)
    assert document["steps_per_epoch"] == -(-data["train"] // 8)


def test_phases_say_their_steps_groups_and_what_is_frozen(planned) -> None:
    document = planned(epochs=3).to_dict()
    probe, finetune = document["phases"]
    steps, total = document["steps_per_epoch"], document["model"]["parameters"]
    assert (probe["first_step"], probe["steps"], finetune["first_step"], finetune["steps"]) == (
        0,
        steps,
        steps,
        2 * steps,
    )
    for phase in (probe, finetune):
        assert phase["trainable_parameters"] + phase["frozen_parameters"] == total
        assert sum(group["parameters"] for group in phase["groups"]) == phase["trainable_parameters"]
    assert probe["trainable_parameters"] == 16 * 3 + 3
    assert "layer1" in probe["frozen_modules"]
    assert all("bn" in name or "downsample" in name for name in finetune["frozen_modules"])
    assert finetune["frozen_parameters"] == 0


def test_every_decision_has_a_reason(planned) -> None:
    found = said(planned())
    assert all(value and reason for value, reason in found.values())
    assert found["device"] == ("cpu", "as asked")
    assert found["task"] == ("classify: 3 outputs (blue, green, red)", "from the data")
    assert found["loss"] == ("cross_entropy", "auto: the task is classify")
    assert found["optimizer"] == ("adamw", "weight decay 0.02, decoupled, none on norms and biases")
    assert found["precision"][0] == "fp32"


@pytest.mark.parametrize(
    ("sections", "value", "reason"),
    [
        ({}, "each batch's statistics", "auto: random weights have no statistics to keep"),
        ({"norm_statistics": "batch"}, "each batch's statistics",
         "as asked; 8 images at a time make noisy statistics"),
        ({"norm_statistics": "batch", "batch": {"size": 16}}, "each batch's statistics", "as asked"),
        ({"norm_statistics": "frozen"}, "frozen pretrained statistics", "as asked"),
    ],
)  # fmt: skip
def test_what_batch_norms_normalise_with_is_said_and_planned(planned, sections, value, reason) -> None:
    plan = planned(**sections)
    assert said(plan)["batch norm"] == (value, reason)
    last = plan.to_dict()["phases"][-1]
    assert last["norm_statistics"] == ("frozen" if value.startswith("frozen") else "batch")
    assert ("bn1" in last["frozen_modules"]) == value.startswith("frozen")
    assert last["frozen_parameters"] == 0


def test_nothing_is_said_of_batch_norms_where_none_trains(planned) -> None:
    for fine in (
        {"recipe": "probe"}, {"recipe": "full", "freeze": "norm"}, {"model": {"name": "timm/test_vit", "options": {}}},
    ):  # fmt: skip
        assert "batch norm" not in said(planned(**fine))


def test_choices_that_are_not_the_defaults_are_said(planned) -> None:
    found = said(planned(
        loss={"kind": "cross_entropy", "label_smoothing": 0.1}, optimizer={"kind": "sgd", "momentum": 0.5},
        penalties={"l1": 0.01}, stop={"patience": 2}, recipe="full", epochs=5,
    ))  # fmt: skip
    assert found["loss"][0] == "cross_entropy, label_smoothing 0.1"
    assert found["optimizer"][0] == "sgd, momentum 0.5"
    assert found["penalties"][0] == "l1 0.01 on head, l2_start 0"
    assert found["stop"][0].startswith("after 2 epochs of the last phase")


def test_the_model_is_prepared_as_the_plan_says(settings) -> None:
    seen = []
    config = hs.load_config(settings(memory_format="channels_last"))
    ready = prepare(config, module=None, loss=None, emit=seen.append)
    assert ready.opened.module.fc.out_features == 3
    assert ready.opened.module.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    kinds = [type(event).__name__ for event in seen]
    assert kinds[-1] == "Decided"
    scanned = [event for event in seen if isinstance(event, hs.ScanProgress)][-1]
    assert (scanned.done, scanned.total) == (36, 36)


class OwnNet(nn.Module):
    """Code of the user's own: what planning does to its weights is undone afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).mean((2, 3)))


def test_a_module_of_ones_own_can_be_in_another_order_in_memory(settings) -> None:
    config = hs.load_config({**settings(memory_format="channels_last"), "model": {"image_size": 32}})
    net = OwnNet()
    ready = prepare(config, module=net, loss=None, emit=lambda _: None).opened.module
    assert ready.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ready.conv.weight, net.conv.weight)
    assert net.conv.weight.is_contiguous()


def test_random_weights_are_a_function_of_the_seed(settings) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(seed)
        module = prepare(hs.load_config(settings(seed=seed)), module=None, loss=None, emit=lambda _: None).opened.module
        return torch.cat([value.flatten() for value in module.parameters()])

    one, same, other = weights(1), weights(1), weights(2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_without_a_name_the_model_follows_the_device() -> None:
    config = hs.load_config({})
    assert name_model(config, torch.device("cpu"))[0] == CPU_MODEL
    spec, decision = name_model(config, torch.device("cuda"))
    assert (spec, decision.reason.startswith("auto: an accelerator")) == (GPU_MODEL, True)
    named = hs.load_config({"model": {"name": "timm/test_vit"}})
    assert name_model(named, torch.device("cpu"))[0] == "timm/test_vit"
