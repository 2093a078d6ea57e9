"""A transform and metrics of one's own are plain functions; what they draw is a function of seed, image and epoch."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import headstart as hs
from headstart.cli.main import main
from headstart.data.transforms.own import OwnTransform
from headstart.errors import ConfigError, DataError

SMALL = {"recipe": "full", "epochs": 2, "checkpoint": {"every_steps": 1}}


class Stop(Exception):
    pass


def noisy(pixels: Tensor) -> Tensor:
    """A change that draws from all three generators."""
    shift = random.randrange(20) + int(np.random.randint(20)) + int(torch.randint(20, ()))
    return (pixels.int() + shift).clamp(0, 255).to(torch.uint8)


def dark(pixels: Tensor) -> Tensor:
    return pixels // 2


def top_2(outputs: Tensor, truth: Tensor) -> Tensor:
    return (outputs.topk(2, dim=1).indices == truth[:, None]).any(1).float().mean()


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.fixture
def trained(settings, tmp_path: Path) -> Callable[..., hs.Run]:
    """A run in a folder of its own: ``trained("name", transform=noisy)``."""

    def run(name: str, *, sections: dict[str, Any] = SMALL, **given: Any) -> hs.Run:
        return hs.train(hs.load_config(settings(**sections, out=str(tmp_path / name))), **{"watch": None} | given)

    return run


def test_what_a_transform_draws_depends_on_seed_image_and_epoch_alone(trained, tmp_path: Path) -> None:
    """With loading processes, interrupted, and whatever was drawn before."""
    plain, once = trained("plain"), trained("once", transform=noisy)
    state = random.getstate(), np.random.get_state()[1].tolist()
    again = trained("again", transform=noisy, sections=SMALL | {"workers": 2})
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state
    assert weights(once.path) == weights(again.path) != weights(plain.path)
    seen = 0

    def stop(event: object) -> None:
        nonlocal seen
        seen += isinstance(event, hs.StepDone)
        if seen == 3:
            raise Stop

    with pytest.raises(Stop):
        trained("cut", transform=noisy, watch=stop)
    for other in (dark, None):
        with pytest.raises(ConfigError, match="the SHA-256 of the transform's own code was"):
            trained("cut", transform=other, resume=True)
    assert weights(trained("cut", transform=noisy, resume=True).path) == weights(once.path)


def test_a_frozen_part_is_cached_behind_the_transform_and_not_mixed_up(trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    probe = {"recipe": "probe", "epochs": 2, "cache": {"use": "always", "views": 1}, "augment": {"preset": "none"}}
    runs = [trained(name, sections=probe, transform=how) for name, how in (("a", None), ("b", dark), ("c", dark))]
    bits = [weights(run.path) for run in runs]
    assert bits[1] == bits[2] != bits[0]
    assert (
        weights(trained("d", sections=probe | {"cache": {"use": "never", "views": 1}}, transform=dark).path) != bits[0]
    )


@pytest.mark.parametrize(
    ("function", "gave"),
    [
        (lambda pixels: pixels.float(), r"torch\.float32 \(3, 4, 4\)"),
        (lambda pixels: pixels[:1], r"torch\.uint8 \(1, 4, 4\)"),
        (lambda pixels: pixels.numpy(), "ndarray"),
    ],
)
def test_a_transform_that_gives_something_else_is_refused(function, gave: str) -> None:
    with pytest.raises(DataError, match=rf"transform: it gave {gave}; accepted is .* torch\.uint8 \(3, 4, 4\)"):
        OwnTransform(function)(torch.zeros(3, 4, 4, dtype=torch.uint8), seed=1)


def test_own_metrics_stand_beside_the_others_in_every_epoch_and_in_the_result(trained) -> None:
    told = []
    run = trained("run", metrics={"top_2": top_2}, watch=told.append)
    epochs = [event.metrics for event in told if isinstance(event, hs.EpochDone)]
    assert all(found["accuracy"] <= found["top_2"] <= 1 for found in epochs) and len(epochs) == 2
    assert run.metrics["top_2"] in [found["top_2"] for found in epochs]
    with (run.path / "metrics.csv").open(newline="") as file:
        assert [float(row["val_top_2"]) for row in csv.DictReader(file)] == [found["top_2"] for found in epochs]


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"accuracy": top_2}, "metrics: accuracy is one of headstart's own; give yours another name, e.g. my_accuracy"),
        ({"top": 0.5}, "metrics: top is of type float; give a function"),
        ({"all": lambda outputs, _: outputs}, "metrics: all gave type Tensor; accepted is one number"),
    ],
)
def test_metrics_that_cannot_be_are_refused(trained, metrics, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        trained("run", metrics=metrics)


class Counted:
    """A metric that grows by one with every evaluation of a run."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: Tensor, truth: Tensor) -> int:
        self.calls += 1
        return self.calls


@pytest.mark.parametrize(("better", "best"), [("higher", 2), ("lower", 1)])
def test_an_own_metric_chooses_the_epoch_by_its_direction(trained, better: str, best: int) -> None:
    sections = SMALL | {"metric": "count", "stop": {"patience": 1}}
    run = trained("run", sections=sections, metrics={"count": (Counted(), better)})
    assert run.note.startswith(f"epoch {best} ")


def test_the_report_shows_an_own_metric_like_one_of_headstarts(trained) -> None:
    metrics = {"top_2": (top_2, "higher"), "dollars": lambda *_: 224900.25}
    run = trained("run", sections=SMALL | {"metric": "top_2"}, metrics=metrics)
    assert run.headline.startswith(f"top_2: {run.metrics['top_2']:.4g} on the ")
    page = (run.path / "report.html").read_text()
    assert "<p>top_2, on the validation images</p>" in page and "Validation top_2" in page
    rated = json.loads((run.path / "result.json").read_text())["own_metrics"]["val"]
    interval = f"{rated['top_2']['low']:.4g} to {rated['top_2']['high']:.4g}"
    guess = f"always the classes&#39; shares: {rated['top_2']['baseline']:.4g}"
    assert run.headline.endswith(f"(95 % interval {interval}; {guess.replace('&#39;', chr(39))})")
    assert f"95 % interval {interval}</span>" in page and "always the classes&#39; shares" in page
    assert "interval of your own" not in page and rated["dollars"]["low"] == 224900.25
    assert '<th scope="row">top_2 <span class="range">your own; higher is better</span></th>' in page
    assert (
        '<th scope="row">dollars <span class="range">your own</span></th><td class="n" data-label="value">224,900</td>'
        in page
    )
    assert (
        "<code>headstart predict" in page
        and "hs.repeat(" in page
        and "metrics=metrics" in page
        and "<code>headstart train" not in page
    )


def test_a_metric_of_unknown_direction_or_name_chooses_nothing(trained, settings, tmp_path: Path) -> None:
    sections = SMALL | {"metric": "top_2"}
    for metrics, why in (
        (None, r"metric: 'top_2' is unknown \(accepted: auto, .* hs\.train\(config, metrics={\"top_2\": \(f, "),
        ({"top2": top_2}, "metric: 'top_2' is unknown; did you mean top2?"),
        ({"top_2": top_2}, r"metric: top_2 .* is not known; say it .* metrics={\"top_2\": \(f, \"higher\"\)}, or"),
        ({"top_2": (top_2, "max")}, r"metrics: top_2: 'max' says no direction; accepted: \"higher\" or \"lower\""),
        ({"top_2:a": top_2}, "metrics: 'top_2:a' is no name"),
    ):
        with pytest.raises(ConfigError, match=why):
            trained("run", sections=sections, metrics=metrics)
        with pytest.raises(ConfigError, match=why):
            hs.plan(hs.load_config(settings(**sections)), metrics=metrics)
    assert not (tmp_path / "run").exists()
    assert hs.load_config(flags={"metric": "Macro F1"}).metric == "macro_f1"


def test_a_run_with_an_own_metric_goes_on_with_the_same_function_alone(trained, tmp_path: Path) -> None:
    sections, seen = SMALL | {"metric": "top_2"}, 0

    def stop(event: object) -> None:
        nonlocal seen
        seen += isinstance(event, hs.StepDone | hs.EpochDone)
        if isinstance(event, hs.StepDone) and event.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        trained("cut", sections=sections, metrics={"top_2": (top_2, "higher")}, watch=stop)
    for metrics, why in (
        ({"top_2": (Counted(), "higher")}, "the SHA-256 of the metric's own code was"),
        ({"top_2": (top_2, "lower")}, "the metric's direction was higher, is lower"),
    ):
        with pytest.raises(ConfigError, match=why):
            trained("cut", sections=sections, metrics=metrics, resume=True)
    with pytest.raises(ConfigError, match=r"hs\.finish\('.*cut', metrics={\"top_2\": \(f, \"higher\"\)}\)"):
        hs.finish(tmp_path / "cut", watch=None)
    stopped = hs.finish(tmp_path / "cut", metrics={"top_2": (top_2, "higher")}, watch=None)
    assert stopped.headline.startswith("top_2: ")
    assert trained("cut", sections=sections, metrics={"top_2": (top_2, "higher")}, resume=True).metrics["top_2"] > 0


def test_commands_refuse_an_own_metric_before_they_look_at_data(trained, capsys) -> None:
    run = trained("run", sections=SMALL | {"metric": "top_2"}, metrics={"top_2": (top_2, "higher")})
    for line in (["train", "nowhere", "--metric", "top_2"], ["train", "--repeat", str(run.path)]):
        assert main(line) == 2
        said = capsys.readouterr().err
        assert "metric: 'top_2' is unknown" in said and 'metrics={"top_2": (f, "higher")}' in said


def test_a_transform_for_validation_is_asked_for_again_by_evaluate_and_predict(trained, colours, capsys) -> None:
    given: dict[str, Any] = {"transform": {"train": noisy, "val": dark}, "watch": None}
    run, plain = trained("run", **given), trained("plain", transform=noisy)
    assert run.metrics != plain.metrics and weights(run.path) == weights(plain.path)
    assert hs.evaluate(run.path, colours, transform=dark).metrics == run.metrics
    assert hs.evaluate(run, colours, transform={"train": noisy, "val": dark}).metrics == run.metrics
    image = sorted(colours.rglob("*.png"))[0]
    (framed,), (bare,) = hs.predict(run, [image], transform=dark), hs.predict(plain, [image])
    assert framed.labels != bare.labels
    for ask, line in (
        (lambda **more: hs.evaluate(run.path, colours, **more), "hs.evaluate('{}', DATA, transform=g)"),
        (lambda **more: hs.predict(run, [image], **more), "hs.predict('{}', IMAGES, transform=g)"),
    ):
        with pytest.raises(ConfigError) as missing:
            ask()
        assert line.format(run.path / "model") in str(missing.value)
        with pytest.raises(ConfigError, match=r"the SHA-256 of its code was \w{12} when .* is \w{12}"):
            ask(transform=noisy)
    for words in (["evaluate", str(run.path), str(colours)], ["predict", str(run.path), str(image)]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "the run was validated with a transform of your own" in said and "transform=g)" in said
    page = (run.path / "report.html").read_text()
    assert ", IMAGES, transform=transform)" in page and "headstart predict" not in page


def test_a_run_validated_with_a_transform_asks_for_it_where_it_is_trained_on(
    trained, settings, colours, tmp_path: Path, capsys
) -> None:
    run = trained("run", transform={"val": dark})
    onwards = SMALL | {"model": {"name": str(run.path), "weights": "pretrained", "options": {}}}
    in_memory = SMALL | {"model": {"name": "auto", "weights": "pretrained", "options": {}}}
    for ask in (
        lambda: trained("on", sections=onwards),
        lambda: trained("on", sections=onwards, transform=noisy),
        lambda: hs.plan(hs.load_config(settings(**onwards))),
        lambda: trained("on", sections=in_memory, model=run.model),
    ):
        with pytest.raises(ConfigError, match=r'model: .* was validated .*: hs\.train\(config, transform={"val": g}\)'):
            ask()
    assert main(["train", str(colours), "--model", str(run.path), "--out", str(tmp_path / "on")]) == 2
    assert 'transform={"val": g}' in capsys.readouterr().err and not (tmp_path / "on").exists()
    for opened in (hs.open_model(str(run.path)), hs.open_run(run.path)):
        with pytest.raises(ConfigError, match=r'like: .* hs\.open_images\(\.\.\., transform={"val": g}\)'):
            hs.open_images(colours, like=opened)
    plan = hs.plan(hs.load_config(settings(**onwards)), transform={"val": dark})
    assert not [decision for decision in plan.decisions if "transform" in decision.value]
    told = list[str]()
    other = trained(
        "on", sections=onwards, transform={"val": lambda pixels: pixels}, watch=lambda event: told.append(str(event))
    )
    assert any("by another transform of your own" in text for text in told)
    assert hs.evaluate(other, colours, transform={"val": lambda pixels: pixels}).metrics == other.metrics


def test_a_run_that_changed_training_images_alone_takes_no_transform_elsewhere(trained, colours) -> None:
    run = trained("run", transform=noisy)
    assert hs.evaluate(run.path, colours).metrics == run.metrics
    with pytest.raises(ConfigError, match="was validated without one"):
        hs.evaluate(run.path, colours, transform=noisy)


def test_open_images_takes_transforms_and_evaluate_metrics(colours) -> None:
    opened = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}, image_size=32)
    like, none = opened.preprocess, {"augment": "none", "val": 0.25}
    plain = hs.open_images(colours, like=like, **none)
    changed = hs.open_images(colours, like=like, transform={"train": dark, "val": lambda pixels: 255 - pixels}, **none)
    for split, change in (("train", dark), ("val", lambda pixels: 255 - pixels)):
        was, now = (next(iter(getattr(images, split).epoch(0))) for images in (plain, changed))
        assert torch.equal(now.pixels[: now.size], change(was.pixels[: was.size]))
    hs.replace_head(opened.module, outputs=len(plain.classes))
    own = {"top_2": (top_2, "higher")}
    found = hs.evaluate(opened.module, plain.val, metrics=own)
    assert found.metrics["top_2"] >= found.metrics["accuracy"]
    pairs = [(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))]
    assert "top_2" in hs.evaluate(opened.module, pairs, metrics=own).metrics
    with pytest.raises(ConfigError, match="transform: not accepted with a module"):
        hs.evaluate(opened.module, plain.val, transform=dark)
    for wrong, why in (({"test": dark}, "'test' is no split of it"), ({"val": 3}, "val is of type int")):
        with pytest.raises(ConfigError, match=f"transform: {why}"):
            hs.open_images(colours, like=like, transform=wrong)
