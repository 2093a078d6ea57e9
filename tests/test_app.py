"""``train`` from the data to the run folder: same seed, same bits; the three tasks; what is refused, and when."""

from __future__ import annotations

import csv
import json
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

import headstart as hs
from headstart import app
from headstart.config.schema import Data
from headstart.errors import ConfigError, DataError, ModelError, StorageError
from headstart.planning import memory
from headstart.predictor import evaluate_run, predict_paths

QUICK = {"recipe": "full", "epochs": 1}


def weights(run) -> bytes:
    return (run.path / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> Path:
    """A table of 30 pictures whose brightness is two numbers and two tags."""
    root = tmp_path_factory.mktemp("table")
    draw = np.random.default_rng(1)
    with (root / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "price", "size", "tags"])
        for place in range(30):
            level = 20 + 7 * place
            pixels = np.clip(level + draw.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{place:02}.png")
            tags = ",".join(name for name, is_it in (("dark", place < 18), ("bright", place >= 12)) if is_it)
            writer.writerow([f"{place:02}.png", 10 ** (level / 60), 3.5 * place, tags])
    return root / "rows.csv"


def test_a_run_leaves_its_folder_and_gives_the_metrics_of_its_bundle(settings) -> None:
    run = hs.train(hs.load_config(settings(stop={"patience": 3})))
    names = {path.name for path in run.path.iterdir() if path.name != ".lock"}
    assert names == {
        "config.yaml", "plan.json", "environment.json", "events.jsonl", "metrics.csv", "log.txt", "checkpoints",
        "model", "predictions.csv", "result.json", "report.html",
    }  # fmt: skip
    result = json.loads((run.path / "result.json").read_text())
    assert (run.task, run.metrics, run.seconds) == (result["task"], result["metrics"], result["seconds"])
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    epochs = {event["epoch"]: event["metrics"] for event in events if event["event"] == "epoch"}
    assert run.metrics == epochs[result["epoch"]]
    assert hs.load_config(run.path / "config.yaml") == hs.load_config(settings(stop={"patience": 3}))
    assert not run.model.training


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_does_not(settings, tmp_path) -> None:
    mixed = {**QUICK, "augment": {"mixup": 0.2}, "head": {"kind": "linear", "dropout": 0.3}}
    runs = {}
    for name, more in (("a", {}), ("b", {}), ("workers", {"workers": 2}), ("seed", {"seed": 43})):
        torch.rand(len(name))  # what was drawn before makes no difference
        runs[name] = hs.train(hs.load_config(settings(**mixed, **more, out=str(tmp_path / name))))
    assert weights(runs["a"]) == weights(runs["b"]) == weights(runs["workers"]) != weights(runs["seed"])
    assert runs["a"].metrics == runs["workers"].metrics


def test_planning_says_the_same_twice_and_writes_nothing(settings, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = hs.load_config(settings())
    one, other = hs.plan(config), hs.plan(config)
    assert one.to_dict() == other.to_dict()
    assert json.loads(json.dumps(one.to_dict()))["phases"][0]["name"] == "probe"
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_not_touched_without_resume(settings) -> None:
    config = hs.load_config(settings(**QUICK))
    run = hs.train(config)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(
        ConfigError, match=r"out: a run is in .*run already; go on with it by --resume, or choose anothe"
    ):
        hs.train(config)
    said = []
    again = hs.train(config, resume=True, watch=said.append)
    assert [event.text for event in said] == [
        f"{run.path} is finished already; go on with more --epochs, or begin anew with another --out"
    ]
    assert again.metrics == run.metrics
    assert weights(again) == weights(run)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before


def test_a_run_is_resumed_with_its_own_options_only(settings) -> None:
    hs.train(hs.load_config(settings(**QUICK)))
    with pytest.raises(
        ConfigError,
        match=r"other options \(precision: the run has auto, now fp32; seed: the run has 42, now 7\); resume it with",
    ):
        hs.train(hs.load_config(settings(**QUICK, precision="fp32", seed=7)), resume=True)


def test_a_run_is_resumed_with_its_own_data_only(settings, colours, tmp_path) -> None:
    source = shutil.copytree(colours, tmp_path / "colours")
    config = hs.load_config(settings(**QUICK, data={"source": str(source)}))
    run = hs.train(config)
    (run.path / "result.json").unlink()
    (source / "red" / "03.png").unlink()
    with pytest.raises(ConfigError, match=r"the data have changed since the run began \(train was \d+, is \d+"):
        hs.train(config, resume=True)


def test_a_folder_of_other_things_is_not_written_into(settings, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("...")
    with pytest.raises(
        ConfigError, match=r"out: .*run holds other files \(thesis.tex\); choose another folder, e.g. --out"
    ):
        hs.train(hs.load_config(settings()))
    with pytest.raises(ConfigError, match=r"out: .*thesis.tex is a file; choose another run folder"):
        hs.train(hs.load_config(settings(out=str(tmp_path / "run" / "thesis.tex"))))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_run_is_not_written_into_its_own_data(settings, colours) -> None:
    for out in (colours, colours / "red" / "run"):
        with pytest.raises(
            ConfigError, match=r"is inside the data \(.*colours\); choose another folder, e.g. --out \S+/runs/colours$"
        ):
            hs.train(hs.load_config(settings(out=str(out))))
    assert not (colours / "red" / "run").exists()


def test_a_test_split_is_measured_at_the_end_and_only_then(settings) -> None:
    config = hs.load_config(settings(**QUICK, data={"test": 0.2}))
    run = hs.train(config)
    assert {"accuracy", "macro_f1", "nll"} <= set(run.test_metrics)
    assert '"test_metrics"' not in (run.path / "events.jsonl").read_text()
    again = hs.train(config, resume=True)
    assert (again.test_metrics, again.note) == (run.test_metrics, run.note)
    assert run.note == "epoch 1 (trained weights)"


MISTAKES = {
    "no data": ({"data": {"source": "/nowhere"}}, DataError, "/nowhere"),
    "no model": ({"model": {"name": "timm/resnet81", "options": {}}}, ModelError, "timm has no model 'resnet81'"),
    "no layer": ({"freeze": "until:layer9"}, ModelError, "freeze until:layer9: the model has no such module"),
    "no class": ({"loss": {"kind": "cross_entropy", "class_weights": {"rde": 2.0}}}, ConfigError, "is called rde"),
    "other task": ({"loss": {"kind": "mse"}}, ConfigError, "loss.kind: mse does not fit the task classify"),
    "no optimizer": ({"optimizer": {"kind": "timm", "name": "adamm", "lr": 0.1}}, ConfigError, "no optimizer 'adamm'"),
    "no option": (
        {"optimizer": {"kind": "timm", "name": "lamb", "lr": 0.1, "options": {"x": 1}}}, ConfigError, "timm's lamb",
    ),
    "no parameter": ({"penalties": {"l1": 0.1, "l1_on": ["layer9*"]}}, ConfigError, "'layer9*' matches no parameter"),
    "no device": ({"device": "cuda:77"}, ConfigError, "device: 'cuda:77' cannot be used here"),
    "too short": ({"epochs": 1}, ConfigError, "epochs: lp_ft needs at least 2 (head, then all); give --epochs 2"),
    "no numbers": ({"task": {"kind": "regress"}}, DataError, "regress"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_before_anything_is_written(settings, tmp_path, mistake) -> None:
    sections, kind, said = MISTAKES[mistake]
    with pytest.raises(kind) as caught:
        hs.train(hs.load_config(settings(**sections)))
    assert said in str(caught.value)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_module_and_a_loss_of_ones_own_are_trained(net, settings) -> None:
    calls = []

    def my_loss(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(targets))
        return F.cross_entropy(outputs, targets, reduction="none"), torch.ones(len(targets))

    model = net(classes=10, norm=True)
    before = model.conv1.weight.detach().clone()
    run = hs.train(hs.load_config(settings(model={"name": "auto", "options": {}})), model=model, loss=my_loss)
    assert run.model.fc.out_features == 3 and model.fc.out_features == 10
    assert sum(calls) == 2 * 30
    assert torch.equal(model.conv1.weight, before) and not torch.equal(run.model.conv1.weight, before)
    plan = json.loads((run.path / "plan.json").read_text())
    assert {"name": "loss", "value": "my_loss", "reason": "as given in Python"} in plan["decisions"]


def test_a_head_named_by_hand_is_trained_where_none_is_found(settings) -> None:
    class Capped(torch.nn.Module):
        """Its scores go through a function that no head is looked for behind."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.score = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.Linear(8, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 30 * torch.tanh(self.score(self.conv(images).relu().mean((2, 3))) / 30)

    sections = settings(model={"name": "auto", "options": {}})
    with pytest.raises(ModelError, match=r"the head is not clear: .* name the layer to replace with head.at"):
        hs.train(hs.load_config(sections), model=Capped())
    run = hs.train(hs.load_config(sections | {"head": {"kind": "linear", "at": "score"}}), model=Capped())
    assert run.model.score.out_features == 3


@pytest.mark.parametrize("log", [False, True])
def test_two_numbers_are_learned_end_to_end(settings, numbers, log) -> None:
    data = {"source": str(numbers), "target": ["price", "size"], "log": log}
    if log:
        data["target"] = ["price"]
    run = hs.train(hs.load_config(settings(data=data, epochs=12, recipe="full", optimizer={"lr": 0.01})))
    assert run.task == "regress"
    share = run.metrics["mae"] / run.metrics["baseline_mae"] if log else run.metrics["relative_mae"]
    assert share < 0.75
    logged = {"mae_log10", "baseline_mae_log10"}
    assert logged <= set(run.metrics) if log else not logged & set(run.metrics)
    assert ("mae:size" in run.metrics) == (not log)
    with (run.path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with numbers.open(newline="") as file:
        truth = {row["image"]: row for row in csv.DictReader(file)}
    for row in rows:
        assert float(row["truth:price"]) == float(truth[row["id"]]["price"])
    (said,) = predict_paths(run.path, [numbers.parent / rows[0]["id"]])
    assert said.values["price"] == float(rows[0]["prediction:price"])
    assert evaluate_run(run.path, Data(source=str(numbers))).metrics == run.metrics


def test_tags_are_learned_end_to_end(settings, numbers) -> None:
    data = {"source": str(numbers), "target": "tags"}
    sections = settings(data=data, task={"kind": "multilabel"}, epochs=10, recipe="full", optimizer={"lr": 0.01})
    run = hs.train(hs.load_config(sections))
    assert run.task == "multilabel"
    assert run.metrics["mean_average_precision"] > 0.8
    with (run.path / "predictions.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert list(row) == ["id", "truth", "prediction", "p:bright", "p:dark", "sha256"]
    (said,) = predict_paths(run.path, [numbers.parent / row["id"]])
    assert dict(said.labels) == {name: float(row[f"p:{name}"]) for name in ("bright", "dark")}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_end_to_end(settings, precision) -> None:
    run = hs.train(hs.load_config(settings(**QUICK, precision=precision, memory_format="channels_last")))
    state = json.loads(next((run.path / "checkpoints").glob("step-*/state.json")).read_text())
    assert (state["scaler"] is not None) == (precision == "fp16")
    assert {value.dtype for value in run.model.parameters()} == {torch.float32}


def test_mixed_labels_and_the_focal_loss_go_together(settings) -> None:
    """Mixed labels of classes are not tags: the loss of the first step is that of three equal classes."""
    sections = settings(**QUICK, augment={"mixup": 0.4}, loss={"kind": "focal", "gamma": 0.0})
    run = hs.train(hs.load_config(sections))
    first = json.loads((run.path / "events.jsonl").read_text().splitlines()[1])
    assert first["loss"] == pytest.approx(np.log(3), rel=0.1)


def test_a_disk_that_fails_stops_the_run_which_goes_on_when_there_is_room(settings) -> None:
    config = hs.load_config(settings())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen = []

    def fill_up(event: object) -> None:
        if isinstance(event, hs.EpochDone) or type(event).__name__ == "Saved":
            seen.append(event)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    try:
        with pytest.raises(StorageError) as caught:
            hs.train(config, watch=fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written: File too large" in str(caught.value)
    assert caught.value.exit_code == 4
    assert hs.train(config, resume=True).metrics


def test_early_stopping_ends_the_run_with_the_best_epochs_bundle(settings) -> None:
    sections = settings(
        recipe="full", epochs=9, stop={"patience": 1}, optimizer={"lr": 1e-12}, average={"kind": "none"}
    )
    run = hs.train(hs.load_config(sections))
    result = json.loads((run.path / "result.json").read_text())
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    done = [event["epoch"] for event in events if event["event"] == "epoch"]
    assert len(done) == result["epoch"] + 1 < 9


def test_what_is_freed_is_kept_where_there_is_room(settings, monkeypatch) -> None:
    said, measure = [], memory.measure
    monkeypatch.setattr(app, "keep_no_memory", lambda: said.append("no"))
    monkeypatch.setattr(memory, "measure", lambda *given, **options: measure(*given, **options | {"limit": 2**40}))
    for free, expected in ((2**40, []), (None, []), (1, ["no"])):
        monkeypatch.setattr(memory, "available_bytes", lambda free=free: free)
        monkeypatch.setattr(memory.MemoryNeed, "at_least", lambda *_: 0)
        monkeypatch.setattr(memory.MemoryNeed, "about", lambda *_: 1)
        said.clear()
        hs.train(hs.load_config(settings(**QUICK, out=f"{settings()['out']}-{free}")))
        assert said == expected


@pytest.mark.parametrize("named", [{"name": "timm/resnet18"}, {"options": {"channels": [8, 8, 16, 16]}}])
def test_what_names_another_model_beside_the_one_that_is_given_is_asked_back(settings, net, named) -> None:
    given = settings(model={"name": "auto", "image_size": 32, "options": {}} | named)
    (option,) = named
    with pytest.raises(
        ConfigError, match=rf"model\.{option}: .*a module was given \(own:Sequential\).* leave"
    ) as caught:
        hs.plan(hs.load_config(given), model=net())
    assert f"leave model.{option} out" in str(caught.value)
    given["model"] = {"name": "own:Sequential", "image_size": 32}
    (model,) = [one for one in hs.plan(hs.load_config(given), model=net()).decisions if one.name == "model"]
    assert (model.value, model.reason) == ("own:Sequential", "the module as given")


def test_weights_of_a_file_are_not_left_out_without_a_word_where_a_module_is_given(settings, net, tmp_path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({name: value + 1 for name, value in net().state_dict().items()}, file)
    given = settings(model={"name": "auto", "image_size": 32, "options": {}, "weights": str(file)})
    with pytest.raises(ConfigError, match=r"model\.weights: .* load it first") as caught:
        hs.plan(hs.load_config(given), model=net())
    said = re.search(r"e\.g\. model=(.*), and leave", str(caught.value))
    assert said is not None
    loaded = eval(said[1], {"hs": hs, "module": net()})
    assert torch.equal(loaded.conv1.weight, net().conv1.weight + 1)
    del given["model"]["weights"]
    hs.plan(hs.load_config(given), model=loaded)
