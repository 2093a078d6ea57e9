"""Run folders as a finished run leaves them, one per task, with tiny pictures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

EPOCHS, STEPS_PER_EPOCH = 6, 8
FakeRun = Callable[..., Path]


@pytest.fixture
def fake_run(tmp_path: Path) -> FakeRun:
    """Makes RUN and its data: ``fake_run("classify", names=(...))``."""

    def make(
        task: str, *, names: Sequence[str] = ("ant", "bee", "cat"), images: int = 45, finished: bool = True
    ) -> Path:
        source, run = tmp_path / "data", tmp_path / "run"
        run.mkdir()
        rows = {"classify": _classify, "multilabel": _multilabel, "regress": _regress}[task](names, images)
        for row in rows:
            _picture(source / row["id"])
        (run / "config.yaml").write_text(f"data:\n  source: {json.dumps(str(source))}\nseed: 42\n", encoding="utf-8")
        _json(run / "plan.json", _plan(task, names, source, images))
        _json(run / "environment.json", {"python": "3.11.9", "torch": "2.15.0", "headstart": "0.1.0", "threads": 2})
        events = _events(task, _final(task, names, rows), several=len(names) > 1)
        (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
        if finished:
            metrics = events[-2]["metrics"]
            kept = {"epoch": EPOCHS, "weights": "trained"}
            _json(run / "result.json", {"task": task, "seconds": 73.4, "metrics": metrics, **kept})
            with (run / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        return run

    return make


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    _json(path, value)


@pytest.fixture(name="edit_json")
def _edit_json() -> Callable[[Path, Callable[[Any], None]], None]:
    return edit_json


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(40, 220, (4, 5, 3), dtype=np.uint8))
    small.resize((200, 150), Image.Resampling.BICUBIC).save(path, format="PNG")


def _classify(names: Sequence[str], images: int) -> list[dict[str, str]]:
    rows = []
    for index in range(images):
        truth = names[index % len(names)]
        said = names[(index + 1) % len(names)] if index % 9 == 4 else truth
        confidence = f"{0.5 + 0.49 * (index % 7) / 7:.4f}"
        rows.append({"id": f"img{index:03}.png", "truth": truth, "prediction": said, "confidence": confidence})
    return rows


def _multilabel(names: Sequence[str], images: int) -> list[dict[str, str]]:
    rng = np.random.default_rng(1)
    rows = []
    for index in range(images):
        true = [name for place, name in enumerate(names) if (index + place) % (place + 2) == 0]
        probability = {name: float(np.clip(0.4 * (name in true) + rng.uniform(0, 0.6), 0, 1)) for name in names}
        said = [name for name in names if probability[name] > 0.5]
        rows.append({
            "id": f"img{index:03}.png", "truth": ";".join(true), "prediction": ";".join(said),
            **{f"p:{name}": f"{probability[name]:.6f}" for name in names},
        })  # fmt: skip
    return rows


def _regress(names: Sequence[str], images: int) -> list[dict[str, str]]:
    rng = np.random.default_rng(2)
    rows = []
    for index in range(images):
        row = {"id": f"img{index:03}.png"}
        for place, name in enumerate(names):
            truth = float(rng.uniform(1, 9)) * 10 ** (5 - 4 * place)
            row[f"truth:{name}"], row[f"prediction:{name}"] = f"{truth}", f"{truth * rng.uniform(0.7, 1.3)}"
        rows.append(row)
    return rows


def _events(task: str, final: float, *, several: bool) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for epoch in range(1, EPOCHS + 1):
        phase = 0 if epoch <= 2 else 1
        if epoch in (1, 3):
            events.append({"event": "phase", "phase": phase, "name": ("head", "all")[phase]})
        for step in range((epoch - 1) * STEPS_PER_EPOCH + 1, epoch * STEPS_PER_EPOCH + 1):
            rate = 1e-3 * (1 - step / (EPOCHS * STEPS_PER_EPOCH + 1))
            events.append({
                "event": "step", "step": step, "epoch": epoch, "phase": phase, "images": 64, "seconds": 0.1,
                "loss": 1.1 * math.exp(-step / 15), "grad_norm": 3 / step,
                "lr": rate / 10 if phase else None, "head_lr": rate,
            })  # fmt: skip
        events.append({
            "event": "epoch", "epoch": epoch, "step": epoch * STEPS_PER_EPOCH, "phase": phase,
            "train_loss": 1.1 * math.exp(-epoch / 2), "metrics": _metrics(task, final, epoch, several=several),
            "average_metrics": None,
            "seconds": 8.0, "images_per_second": 64.0, "input_seconds": 6.0,
        })  # fmt: skip
    return [*events, {"event": "finished", "step": EPOCHS * STEPS_PER_EPOCH, "seconds": 73.4}]


def _final(task: str, names: Sequence[str], rows: Sequence[dict[str, str]]) -> float:
    """The main metric of the predictions, by scikit-learn where it is not a mean."""
    if task == "classify":
        return float(np.mean([row["truth"] == row["prediction"] for row in rows]))
    if task == "multilabel":
        truth = [[name in row["truth"].split(";") for name in names] for row in rows]
        return float(average_precision_score(truth, [[float(row[f"p:{name}"]) for name in names] for row in rows]))
    found = []
    for name in names:
        truth, said = (np.array([float(row[f"{column}:{name}"]) for row in rows]) for column in ("truth", "prediction"))
        found.append(float(abs(truth - said).mean() / (abs(truth - np.median(truth)).mean() if names[1:] else 1)))
    return float(np.mean(found))


def _metrics(task: str, final: float, epoch: int, *, several: bool) -> dict[str, float]:
    short = math.exp(-epoch / 2) - math.exp(-EPOCHS / 2)  # 0 in the last epoch
    if task == "classify":
        return {"accuracy": final - 0.6 * short, "macro_f1": final - 0.01 - 0.6 * short, "nll": 0.2 + short}
    if task == "multilabel":
        return {"mean_average_precision": final - 0.6 * short, "macro_f1": 0.8 - 0.6 * short, "nll": 0.2 + short}
    mae = final * (1 + short)
    if several:
        return {"relative_mae": mae, "relative_rmse": 1.1 * mae, "r2": 0.88 - short, "mae:price": 1.5}
    return {"mae": mae, "rmse": 1.3 * mae, "r2": 0.88 - short, "baseline_mae": 2.5 * final, "baseline_rmse": 3 * final}


def _plan(task: str, names: Sequence[str], source: Path, images: int) -> dict[str, Any]:
    key = "targets" if task == "regress" else "classes"
    counts = {} if task == "regress" else {"train": dict.fromkeys(names, 60), "val": dict.fromkeys(names, images // 3)}
    phase = {"lr": 1e-4, "head_lr": 1e-3, "layer_decay": 0.75, "first_step": 0, "steps": 16}
    groups = [{"name": "head", "lr": 1e-3, "weight_decay": 0.02, "parameters": 3843}]
    return {
        "decisions": [{"name": "precision", "value": "fp32", "reason": "auto: this device is a CPU"}],
        "task": {"kind": task, key: list(names), "mean": [0.0] * len(names), "std": [1.0] * len(names), "log": False},
        "model": {
            "spec": "timm/mobilenetv2_100.ra_in1k", "library": "timm", "architecture": "mobilenetv2_100", "options": {},
            "parameters": 2_227_715, "coverage": "312 of 314 tensors loaded, head new",
            "weights": {"kind": "pretrained", "where": "hf-hub", "sha256": "ab" * 32, "licence": "apache-2.0"},
        },
        "preprocess": {
            "height": 224, "width": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
            "interpolation": "bicubic", "crop_pct": 0.875, "source": "the weights' own",
        },
        "head": {"kind": "linear", "hidden": [], "activation": "relu", "dropout": 0.0, "path": "classifier",
                 "was": 1000, "now": len(names), "others": [], "removed": []},
        "phases": [
            {"name": "head", "freeze": "backbone", "epochs": 2, **phase, "trainable_parameters": 3843,
             "frozen_parameters": 2_223_872, "frozen_modules": ["conv_stem", "bn1", "blocks"], "groups": groups},
            {"name": "all", "freeze": "none", "epochs": 4, **phase, "trainable_parameters": 2_227_715,
             "frozen_parameters": 0, "frozen_modules": [], "groups": groups},
        ],
        "data": {
            "source": str(source), "train": 180, "val": images, "test": 0, "class_counts": counts,
            "unreadable": [{"path": "broken.png", "reason": "truncated"}],
            "duplicates": [["img001.png", "img002.png"]], "notes": ["Split by seed 42, stratified."],
        },
        "steps_per_epoch": STEPS_PER_EPOCH, "batch_size": 64, "precision": "fp32", "device": "cpu", "seed": 42,
    }  # fmt: skip
