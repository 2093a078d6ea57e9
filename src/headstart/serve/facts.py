"""What a service says of its model: the task, the names, the metrics of validation, the input, the licence."""

from __future__ import annotations

from typing import Any

from headstart.prediction.predictor import Predictor
from headstart.serve.settings import MEGABYTE, Settings
from headstart.tasks.kinds import find_kind


def describe_model(predictor: Predictor, settings: Settings) -> dict[str, Any]:
    """The facts as plain JSON values."""
    opened, task = predictor.runs[0], predictor.task
    kind, model, preprocess = find_kind(task.kind), opened.facts["model"], opened.preprocess
    return {
        "task": task.kind,
        "title": kind.title,
        "nouns": kind.nouns,
        "names": list(task.names),
        "thresholds": dict(kind.list_thresholds(task)),
        "metrics": {name: float(value) for name, value in opened.facts["metrics"].items() if isinstance(value, float)},
        "model": model["spec"],
        "licence": model.get("licence") or "unknown",
        "input": {"height": preprocess.height, "width": preprocess.width, "channels": preprocess.channels},
        "limit": kind.limit,
        "limits": {
            "images": settings.max_images,
            "megabytes_per_image": settings.max_file_bytes / MEGABYTE,
            "megabytes": settings.max_request_bytes / MEGABYTE,
            "seconds": settings.max_seconds,
        },
        "versions": dict(opened.facts["versions"]),
    }
