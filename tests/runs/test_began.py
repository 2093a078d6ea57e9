"""Resumed is what was: weights, start, the module's and the loss's own code are those that the run began with."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import headstart as hs
from headstart.data.transforms.own import OwnTransforms
from headstart.errors import ConfigError, StorageError
from headstart.models.sources import open_model
from headstart.planning.began import began_with, name_weights_by_digest
from headstart.runs.checkpoint import read_checkpoint


class Stopped(Exception):
    """A kill, after the first checkpoint."""


def stop_when_saved(event: object) -> None:
    if type(event).__name__ == "Saved":
        raise Stopped


class Net(nn.Module):
    """Two convolutions with a scale between them that is an attribute."""

    scale = 1.0

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 8, 3, 2), nn.Linear(8, 5)
        self.shift = 0.0
        self.register_buffer("offset", torch.zeros(6, 1, 1), persistent=False)

    def forward(self, pixels):
        inner = torch.relu(self.one(pixels) + self.offset) * self.scale + self.shift
        return self.fc(torch.relu(self.two(inner)).mean((2, 3)))


def changed(change: Callable[[Net], Any], seed: int = 0) -> Net:
    net = Net(seed)
    change(net)
    return net


def element(net: Net) -> None:
    net.two.weight.data[1, 2, 0, 0] += 1e-6


def hook(net: Net) -> None:
    net.two.register_forward_hook(lambda module, args, output: output * 1.5)


def method(net: Net) -> None:
    net.forward = lambda pixels: Net.forward(net, pixels * 2)


MODULES = {
    "other weights": (lambda: Net(seed=1), "weights"),
    "one element": (lambda: changed(element), "weights"),
    "a buffer that is not stored": (lambda: changed(lambda net: net.offset.fill_(0.1)), "weights"),
    "an attribute": (lambda: changed(lambda net: setattr(net, "shift", 0.5)), "the module's own code"),
    "a hook": (lambda: changed(hook), "the module's own code"),
    "a method": (lambda: changed(method), "the module's own code"),
    "what trains": (lambda: changed(lambda net: net.one.requires_grad_(False)), "the module's own code"),
}


@pytest.fixture
def options(settings, tmp_path) -> Callable[..., hs.Config]:
    def make(**sections: Any) -> hs.Config:
        base = {"model": {"image_size": 32}, "recipe": "full", "precision": "fp32", "memory_format": "contiguous"}
        made = settings(**sections)
        return hs.load_config(made | base | {"model": sections.get("model", base["model"])})

    return make


def killed(config: hs.Config, **given: Any) -> None:
    with pytest.raises(Stopped):
        hs.train(config, **given, watch=stop_when_saved)


def weights_of(run: hs.train) -> bytes:
    return (run.path / "model" / "model.safetensors").read_bytes()


def recorded(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / name).read_text())


def test_a_resume_with_another_module_is_refused_by_what_differs_and_with_the_same_one_goes_on(
    options, tmp_path
) -> None:
    whole = hs.train(options(out=str(tmp_path / "whole")), model=Net())
    config = options()
    killed(config, model=Net())
    for name, (make, differs) in MODULES.items():
        with pytest.raises(
            ConfigError, match=rf"plan.json: .*\(the SHA-256 of (the )?{differs} was \w+, is \w+.*inexact"
        ) as no:
            hs.train(config, model=make(), resume=True)
        assert "--allow-inexact" in str(no.value), name
    assert weights_of(hs.train(config, model=Net(), resume=True)) == weights_of(whole)


def test_a_change_that_is_accepted_is_recorded_and_the_first_weights_stay_named(options, tmp_path) -> None:
    """The start of L2-SP too stays what it was: the run ends as one whose module did not change."""
    sections: dict[str, Any] = {"penalties": {"l2_start": 1.0}}
    whole = hs.train(options(**sections, out=str(tmp_path / "whole")), model=Net())
    config = options(**sections)
    killed(config, model=Net())
    began = recorded(tmp_path / "run", "plan.json")["model"]["weights"]["sha256"]
    step = read_checkpoint(tmp_path / "run" / "checkpoints").counters["step"]
    run = hs.train(config, model=Net(seed=1), resume=True, allow_inexact=True)
    assert weights_of(run) == weights_of(whole)
    now = recorded(run.path, "plan.json")
    assert now["model"]["weights"]["sha256"] == began != now["began"]["weights"]
    (entry,) = recorded(run.path, "environment.json")["inexact"]
    assert entry == {"step": step, "changed": {"weights": [began, now["began"]["weights"]]}}
    report, card = (run.path / "report.html").read_text(), (run.path / "model" / "README.md").read_text()
    assert began in report and f"after step {step} the SHA-256 of the weights was {began[:12]}, then " in report
    assert f"(weights with SHA-256 `{began}`)" in card


def test_another_file_under_the_same_name_is_refused(options, tmp_path) -> None:
    small = {"name": "timm/resnet18", "image_size": 32, "options": {"channels": [8, 8, 16, 16]}}
    torch.manual_seed(3)
    made = open_model("timm/resnet18", weights="none", options=small["options"]).module
    file = tmp_path / "weights.safetensors"
    save_file(made.state_dict(), file)
    config = options(model=small | {"weights": str(file)}, penalties={"l2_start": 1.0})
    killed(config)
    before = file.read_bytes()
    tensors = load_file(file)
    tensors["layer1.0.conv1.weight"][0, 0, 0, 0] += 1.0
    save_file(tensors, file)
    with pytest.raises(ConfigError, match=r"the SHA-256 of the weights was \w{12}, is \w{12}"):
        hs.train(config, resume=True)
    file.write_bytes(before)
    assert hs.train(config, resume=True).metrics


def per_sample(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def smoothed(outputs, targets, *, share=0.1):
    return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=share)


def with_closure(value: float) -> Callable[..., Any]:
    return lambda outputs, targets: per_sample(outputs, targets) * value


class Weighted(nn.Module):
    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none") * self.weights[targets]


def with_other_default() -> Callable[..., Any]:
    def smoothed(outputs, targets, *, share=0.2):
        return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=share)

    return smoothed


def test_each_loss_has_its_own_digest_and_the_same_one_the_same(net) -> None:
    opened = name_weights_by_digest(open_model(net()))
    losses = [
        None, per_sample, smoothed, with_other_default(), with_closure(1.0), with_closure(2.0), Weighted(1.0, 1.0, 2.0),
        Weighted(1.0, 2.0, 1.0), functools.partial(smoothed, share=0.3), functools.partial(smoothed, share=0.4),
    ]  # fmt: skip
    found = [began_with(opened, own=True, loss=loss, transforms=OwnTransforms())["loss"] for loss in losses]
    assert len(set(found)) == len(found)
    again = [with_closure(2.0), Weighted(1.0, 2.0, 1.0), functools.partial(smoothed, share=0.4)]
    assert [began_with(opened, own=True, loss=loss, transforms=OwnTransforms())["loss"] for loss in again] == [
        found[5],
        found[7],
        found[9],
    ]
    learnt = Weighted(1.0, 2.0, 1.0)
    learnt.weights.requires_grad_().grad = torch.ones(3)
    assert began_with(opened, own=True, loss=learnt, transforms=OwnTransforms())["loss"] == found[7]


def test_a_resume_with_another_loss_or_without_it_is_refused(options) -> None:
    config = options()
    killed(config, model=Net(), loss=with_closure(1.0))
    for loss, now in ((with_closure(2.0), r"\w{12}\b"), (per_sample, r"\w{12}\b"), (None, "not recorded")):
        with pytest.raises(ConfigError, match=rf"the SHA-256 of the loss's own code was \w+, is {now}"):
            hs.train(config, model=Net(), loss=loss, resume=True)
    assert hs.train(config, model=Net(), loss=with_closure(1.0), resume=True).metrics


def test_a_run_from_before_its_beginning_was_recorded_goes_on(options, tmp_path) -> None:
    config = options()
    killed(config, model=Net())
    plan = recorded(tmp_path / "run", "plan.json")
    del plan["began"], plan["digest"]
    plan["model"]["weights"]["sha256"] = None
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan, indent=1))
    run = hs.train(config, model=Net(), resume=True)
    assert recorded(run.path, "plan.json")["model"]["weights"]["sha256"] is None
    assert recorded(run.path, "plan.json")["began"]["weights"]


def test_a_plan_that_was_edited_or_is_missing_is_refused(options, tmp_path) -> None:
    config, run = options(), tmp_path / "run"
    killed(config, model=Net())
    plan = recorded(run, "plan.json")
    text = (run / "plan.json").read_text()
    for section, name, value in (("choices", "evaluation", {}), ("data", "digest", "0"), ("preprocess", "mean", [0])):
        (run / "plan.json").write_text(json.dumps({**plan, section: plan[section] | {name: value}}))
        with pytest.raises(StorageError, match=r"plan.json: was edited since the run wrote it; put it back"):
            hs.train(config, model=Net(), resume=True)
    (run / "plan.json").write_text(json.dumps(plan))  # spaces and lines are nothing
    for name in ("plan.json", "environment.json"):
        kept = (run / name).read_text()
        (run / name).unlink()
        with pytest.raises(ConfigError, match=rf"{name}: is missing, so that nothing says what the run began with"):
            hs.train(config, model=Net(), resume=True)
        (run / name).write_text(kept)
    (run / "plan.json").write_text(text)
    (run / "environment.json").unlink()
    assert hs.train(config, model=Net(), resume=True, allow_inexact=True).metrics


def test_a_model_folder_whose_preprocessing_was_edited_is_refused(options, tmp_path) -> None:
    """Its weights are the same; what the network sees is not."""
    import timm

    folder = tmp_path / "folder"
    made = timm.create_model("resnet18", channels=(8, 8, 16, 16), num_classes=5)
    made.pretrained_cfg = made.pretrained_cfg | {"input_size": (3, 32, 32)}
    timm.models._hub.save_for_hf(made, folder, model_args={"channels": [8, 8, 16, 16]}, safe_serialization=True)
    config = options(model={"name": str(folder)})
    killed(config)
    described = json.loads((folder / "config.json").read_text())
    described["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=r"preprocess.mean was \[0.485, 0.456, 0.406\], is \[0.1, 0.2, 0.3\]"):
        hs.train(config, resume=True)
