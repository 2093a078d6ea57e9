"""How many images are evaluated at a time: as asked, or measured where it pays; the choice stays with the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import headstart as hs
from headstart.data.batch import Batch
from headstart.errors import ConfigError
from headstart.planning import evaluation
from headstart.planning.preflight import prepare
from headstart.timing import Timing
from headstart.training.rules import StepRules

SIZE = 16  # of the training batches


class Clock:
    """Moved by the modules alone: what they take does not depend on what else this machine does."""

    def __init__(self) -> None:
        self.now = 0.0

    def seconds(self) -> float:
        """Since some moment, as of any clock."""
        self.now += 1e-6
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation is timed by ``CLOCK``."""
    monkeypatch.setattr(evaluation, "clock_for", lambda _: CLOCK.seconds)


class Small(nn.Module):
    """Fast for at most 8 images at a time, eight times as slow for more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.seen = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8, 3), []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        CLOCK.now += 0.001 * len(images) * (1 if len(images) <= 8 else 8)
        return self.fc(self.conv(images).mean((2, 3)))


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest run is worth measuring."""
    monkeypatch.setattr(evaluation, "_SHARE", float("inf"))
    monkeypatch.setattr(evaluation, "_SHORT_SECONDS", 0.0)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the batches that are timed; what the module itself notes then is put back."""
    found: list[int] = []
    time_passes = evaluation.time_passes

    def noted(module: nn.Module, batches: Mapping[int, Batch], *rest: StepRules, warm: int) -> dict[int, Timing]:
        assert not module.training
        found.extend(len(batch.pixels) for batch in batches.values() if len(batch.pixels) not in found)
        return time_passes(module, batches, *rest, warm=warm)

    monkeypatch.setattr(evaluation, "time_passes", noted)
    return found


def ready(settings, module: nn.Module | None = None, **sections):
    model = {"model": {"image_size": 32}} if module is not None else {}
    batch = {"size": SIZE} | sections.pop("batch", {})
    config = hs.load_config(settings(recipe="full", batch=batch, **sections) | model)
    return prepare(config, module=module, loss=None, emit=lambda _: None)


def told(made) -> dict[str, tuple[str, str]]:
    return {one.name: (one.value, one.reason) for one in made.plan.decisions}


HALF = {"val": 0.5}  # of 36 images


def test_a_short_run_evaluates_as_it_trains(settings) -> None:
    made = ready(settings, data=HALF)
    assert (made.images.val.batch_size, made.training_plan.cache.batch_size) == (SIZE, SIZE)
    assert "evaluation" not in told(made)


@pytest.mark.parametrize("evaluation", ["auto", 100_000])
@pytest.mark.parametrize("val", [0.2, 0.5])
def test_no_more_are_evaluated_at_a_time_than_there_are(settings, evaluation, val: float) -> None:
    made = ready(settings, batch={"size": 100_000, "evaluation": evaluation}, data={"val": val})
    images = made.images
    assert images.val.batch_size == max(8, len(images.val.samples)) < 20
    assert made.training_plan.cache.batch_size == len(images.train.samples)
    assert [len(batch.pixels) for batch in images.val.epoch(0)] == [images.val.batch_size]
    if evaluation == "auto":
        assert "evaluation" not in told(made)
    else:
        assert told(made)["evaluation"][1] == "asked for 100,000, and there are no more"


def test_no_more_are_evaluated_at_a_time_than_there_is_memory_for(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "has_room_for", lambda _, images: images <= 5)
    made = ready(settings, data=HALF)
    assert (made.images.val.batch_size, made.training_plan.cache.batch_size) == (4, 4)
    assert told(made)["evaluation"] == ("4 images at a time", "auto: there is too little memory for more")
    with pytest.raises(
        ConfigError, match=r"too little memory to evaluate 12 images at a time; give --batch\.evaluation 3"
    ):
        ready(settings, data=HALF, batch={"evaluation": 12})
    assert ready(settings, data=HALF, batch={"evaluation": 3}).images.val.batch_size == 3


def test_a_run_that_began_with_larger_batches_goes_on_with_them(settings) -> None:
    recorded = {"evaluation": {"size": 50, "precision": None, "why": ""}}
    config = hs.load_config(settings(recipe="full", batch={"size": SIZE}))
    again = prepare(config, module=None, loss=None, emit=lambda _: None, recorded=recorded)
    assert (again.images.val.batch_size, again.training_plan.cache.batch_size) == (50, 50)


def test_what_is_asked_for_is_done_and_changes_no_step(settings, tmp_path: Path) -> None:
    runs = [
        hs.train(hs.load_config(settings(batch={"size": SIZE, "evaluation": size}, out=str(tmp_path / str(size)))))
        for size in (SIZE, 3)
    ]
    plan, facts = (json.loads((runs[1].path / name).read_text()) for name in ("plan.json", "model/headstart.json"))
    assert {"name": "evaluation", "value": "3 images at a time", "reason": "as asked"} in plan["decisions"]
    assert facts["evaluation"]["batch_size"] == 3
    assert runs[0].metrics["accuracy"] == runs[1].metrics["accuracy"]
    assert runs[0].metrics["nll"] == pytest.approx(runs[1].metrics["nll"], rel=1e-4)


@pytest.mark.usefixtures("pays")
def test_the_fastest_is_taken_and_used(settings, sizes) -> None:
    made = ready(settings, Small(), data=HALF)
    value, reason = told(made)["evaluation"]
    assert value.startswith("8 images at a time") and "ms an image at 8" in reason and "at 16" in reason
    assert (made.images.val.batch_size, made.images.train.batch_size) == (8, SIZE)
    assert sizes[:2] == [8, 16] and 24 not in sizes


class Slow1st(Small):
    """Each number of images is slow when it comes for the first time; more at a time are faster."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training:
            CLOCK.now += 0.002 if len(images) in self.seen else 0.05
            self.seen.append(len(images))
        return self.fc(self.conv(images).mean((2, 3)))


@pytest.mark.usefixtures("pays")
def test_a_short_first_pass_is_not_what_counts(settings) -> None:
    made = ready(settings, Slow1st(), batch={"size": 24}, data={"val": 0.7})
    assert made.images.val.batch_size == 24


class Timed(nn.Module):
    """Takes ``seconds(images)`` in evaluation."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self.conv, self.fc, self.seconds = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8, 3), seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training:
            CLOCK.now += self.seconds(len(images))
        return self.fc(self.conv(images).mean((2, 3)))


@pytest.mark.usefixtures("pays")
def test_more_at_a_time_are_not_tried_where_they_are_no_faster(settings, sizes) -> None:
    made = ready(settings, Timed(lambda images: 0.01 * images), batch={"size": 24}, data={"val": 0.7})
    value, reason = told(made)["evaluation"]
    assert value.startswith("8 images at a time") and "more are not faster" in reason
    assert sizes[:2] == [8, 16] and 24 not in sizes


@pytest.mark.usefixtures("pays")
def test_the_training_size_stays_where_more_are_faster(settings, sizes) -> None:
    made = ready(settings, Timed(lambda _: 0.1), batch={"size": 24}, data={"val": 0.7})
    assert made.images.val.batch_size == 24
    assert {8, 16, 24} <= set(sizes)


@pytest.mark.usefixtures("pays")
def test_a_batch_may_be_larger_than_the_data(settings) -> None:
    made = ready(settings, Small(), batch={"size": 50})
    assert (made.images.val.batch_size, made.images.train.batch_size) == (8, 50)


@pytest.mark.usefixtures("pays")
def test_the_choice_stays_when_the_run_goes_on(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ready(settings, Small())
    choices = json.loads(json.dumps(made.plan.to_dict()["choices"]))
    monkeypatch.setattr(evaluation, "_measure_evaluation", lambda *_: pytest.fail("measured again"))
    again = prepare(made.config, module=Small(), loss=None, emit=lambda _: None, recorded=choices)
    assert again.images.val.batch_size == 8


class Halved(nn.Module):
    """In evaluation it takes ``seconds`` in bf16, 0.04 in fp32; in bf16 its outputs are ``off`` by so much.

    ``seen``: whether it was in bf16, where it is ``noted``.
    """

    def __init__(self, off: float = 0.001, seconds: float = 0.02, noted: bool = True) -> None:
        super().__init__()
        self.conv, self.fc, self.off, self.seconds = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8, 3), off, seconds
        self.noted, self.seen = noted, dict[bool, list[bool]]({True: [], False: []})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        half = torch.is_autocast_enabled("cpu")
        if self.noted:
            self.seen[self.training].append(half)
        if not self.training:
            CLOCK.now += self.seconds if half else 0.04
        with torch.autocast("cpu", enabled=False):
            return self.fc(self.conv(images).mean((2, 3))) * (1 + self.off * half)


@pytest.mark.usefixtures("pays")
def test_what_trains_in_fp32_may_be_evaluated_in_bf16(settings, tmp_path: Path) -> None:
    module = Halved()
    made = ready(settings, module, cache={"use": "never"})
    value, reason = told(made)["evaluation"]
    assert value.endswith(", bf16") and "ms an image in bf16" in reason and "outputs 0.1% off" in reason
    again = prepare(made.config, module=Halved(), loss=None, emit=lambda _: None, recorded=made.document["choices"])
    assert again.training_plan.rules.evaluated_in == "bf16" and again.training_plan.rules.precision == "fp32"
    model = {"model": {"image_size": 32}}
    config = settings(recipe="full", batch={"size": SIZE}, cache={"use": "never"}, out=str(tmp_path / "run"))
    run = hs.train(hs.load_config(config | model), model=module)
    assert run.model.seen[True] and not any(run.model.seen[True]), "training is in fp32"
    facts = json.loads((run.path / "model" / "headstart.json").read_text())
    assert facts["evaluation"]["precision"] == "bf16" and facts["evaluation"]["batch_size"] == 8
    assert not module.seen[True] and not module.seen[False]


def test_only_brief_passes_take_turns(settings) -> None:
    """A pass that will take 0.2 s is made once, beside what is known of fewer images."""
    made = ready(settings, Small(), cache={"use": "never"})
    trial = evaluation._Trial(made.opened.module, made.images.train, made.training_plan.rules)
    for each, sizes in ((0.012, {8, 16}), (0.013, {16})):  # seconds an image
        assert set(trial.compare(8, 16, known=Timing(seconds=(each,)))) == sizes


@pytest.mark.usefixtures("pays")
def test_numbers_are_not_evaluated_in_bf16(settings, colours, tmp_path: Path) -> None:
    paths = sorted(colours.rglob("*.png"))
    rows = [f"{path.relative_to(colours)},{place}.5" for place, path in enumerate(paths)]
    (tmp_path / "table.csv").write_text("\n".join(["image,size", *rows]))
    source = {"source": str(tmp_path / "table.csv"), "images": str(colours), "image": "image", "target": "size"}
    config = settings(recipe="full", cache={"use": "never"}, data=source) | {"model": {"image_size": 32}}
    made = prepare(hs.load_config(config), module=Halved(), loss=None, emit=lambda _: None)
    assert made.images.task.kind == "regress" and made.training_plan.rules.evaluated_in == "fp32"


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize(
    ("module", "sections"),
    [
        (Halved(off=0.1), {}),
        (Halved(off=float("nan")), {}),
        (Halved(seconds=0.04), {}),
        (Halved(), {"precision": "fp32"}),
        (Halved(noted=False), {"recipe": "probe"}),
    ],
    ids=["disagrees", "nan", "no faster", "fp32 asked", "cached"],
)
def test_bf16_is_not_taken_where_it_does_not_fit(settings, module, sections) -> None:
    kept = {"use": "always"} if "recipe" in sections else {"use": "never"}
    config = settings(**({"recipe": "full", "batch": {"size": SIZE}, "cache": kept} | sections))
    model = {"model": {"image_size": 32}}
    made = prepare(hs.load_config(config | model), module=module, loss=None, emit=lambda _: None)
    assert made.training_plan.rules.evaluated_in == "fp32"
    assert any(phase.cached for phase in made.training_plan.phases) == ("recipe" in sections)
