"""What an export says of itself, the same in every format: names of its outputs, what it takes, where it is from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from headstart.data.transforms.transforms import eval_transform
from headstart.exports.framing import Framing
from headstart.runs.bundle import OpenedRun
from headstart.tasks.kinds import find_kind

KEY = "headstart"
"""Under which a file's own metadata have it, as JSON."""


def describe_export(opened: OpenedRun, *, inside: bool, precision: str) -> dict[str, Any]:
    """The facts of an export, plain JSON values without any path of this machine."""
    task, preprocess = opened.task, opened.preprocess
    kind = find_kind(task.kind)
    image = {name: value for name, value in preprocess.to_dict().items() if name != "source"}
    targets, gap = Framing(preprocess).targets, eval_transform(preprocess).gap
    thresholds = kind.list_thresholds(task)
    return {
        "format": 1,
        "kind": task.kind,
        "names": list(task.names),
        **({"thresholds": dict(thresholds)} if thresholds else {}),
        "input": "uint8 (B, H, W, C), any size" if inside else "float32 (B, C, h, w), normalised",
        "output": name_output(opened),
        "preprocess": "inside" if inside else "outside",
        "image": image,
        # JPEG files may be decoded at a part of their size that is still as large as this, as headstart does
        "draft": [int(targets[1] * gap), int(targets[0] * gap)],
        "precision": precision,
        "architecture": opened.facts["model"]["architecture"],
        "versions": {name: version(name) for name in ("headstart", "torch")},
    }


def name_output(opened: OpenedRun) -> str:
    """What the output of an export is called."""
    return "values" if find_kind(opened.task.kind).gives_numbers else "probabilities"


def to_text(about: Mapping[str, Any]) -> str:
    """The facts as one line of JSON."""
    return json.dumps(about, ensure_ascii=False)
