"""A folder as the Hugging Face hub wants it: a model card with results that it can list, and safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData
from numpy.typing import NDArray

from headstart.errors import StorageError
from headstart.exports.check import Runner
from headstart.exports.graph import ServedModel
from headstart.exports.pictures import find_run_folder
from headstart.models.folder import BUNDLE, CONFIG, WEIGHTS, read_bundle
from headstart.reports.model_card import model_card
from headstart.runs.bundle import OpenedRun, open_run
from headstart.runs.folder import read_result
from headstart.runs.own_file import OWN
from headstart.runs.plan_file import read_plan
from headstart.storage.durable import json_bytes, write_folder
from headstart.tasks.kinds import find_kind

CARD = "README.md"
_LOCAL = re.compile(r"(?<![\w.:/])(?:~|\.{1,2})?/(?:[^\s/:;,()'\"`]+/)*([^\s/:;,()'\"`]+)")
"""A path of this machine: all but its last part is left out of what is passed on."""


def write_hub_folder(opened: OpenedRun, folder: Path) -> None:
    """Write the bundle, without what only its own machine knows, and a card with ``model-index``.

    timm opens it where the head is linear, and ``headstart predict`` and ``hs.open_run`` do in any case.

    Raises: StorageError: the bundle or the run's record is damaged.
    """
    bundle = read_bundle(opened.path)
    assert bundle is not None
    facts = leave_out_paths(bundle.facts)
    files = {name: bundle.files[name] for name in (CONFIG, WEIGHTS)}
    own = {OWN: bundle.files[OWN]} if OWN in bundle.files else {}
    card = write_card(opened, facts).encode("utf-8", "backslashreplace")
    write_folder(folder, files | own | {BUNDLE: json_bytes(facts), CARD: card})


def write_card(opened: OpenedRun, facts: Mapping[str, Any]) -> str:
    """The card: the bundle's own, with ``model-index`` in its front matter, and what the model is meant for."""
    run = find_run_folder(opened.path)
    plan, result = (leave_out_paths(each) for each in (_read_records(run) if run is not None else ({}, {})))
    _, front, body = model_card(facts, plan=plan, result=result).split("---\n", 2)
    about = yaml.safe_load(front)
    source = Path(str(plan.get("data", {}).get("source") or "images")).name
    data = ModelCardData(
        **about, model_name=run.name if run is not None else opened.path.name,
        eval_results=_list_results(about, facts, result, source=source),
    )  # fmt: skip
    count = len(opened.task.names)
    does = find_kind(opened.task.kind).summary.format(n=count, s="" if count == 1 else "s")
    intended = (
        f"## Intended use\n\nIt {does}, "
        f"for images of the kind that it was trained on ({source}). It has not been tried on others, and where people "
        "depend on an answer, somebody has to look at it.\n\n"
    )
    return f"---\n{data.to_yaml()}\n---\n" + body.replace("## Limits\n", intended + "## Limits\n", 1)


def leave_out_paths(value: Any) -> Any:
    """JSON values whose texts name no folder of this machine; names of classes, tags and targets stay as they are."""
    if isinstance(value, Mapping):
        return {name: each if name == "task" else leave_out_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [leave_out_paths(each) for each in value]
    return _LOCAL.sub(r"\1", value) if isinstance(value, str) else value


def _read_records(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return read_plan(run) or {}, read_result(run)
    except StorageError as error:
        raise StorageError(f"{error}; or export the bundle alone: headstart export {run / 'model'}") from error


def _list_results(
    about: Mapping[str, Any], facts: Mapping[str, Any], result: Mapping[str, Any], *, source: str
) -> list[EvalResult]:
    """The metrics of the test images, else of validation, as the hub lists them."""
    split, metrics = "test", result.get("test_metrics")
    if not metrics:
        split, metrics = "validation", facts.get("metrics") or {}
    return [
        EvalResult(
            task_type=about.get("pipeline_tag", "image-regression"), dataset_type=source, dataset_name=source,
            dataset_split=split, metric_type=name, metric_value=value,
        )
        for name, value in metrics.items() if isinstance(value, int | float)
    ]  # fmt: skip


def open_hub_folder(folder: Path, served: ServedModel) -> Runner:
    """The model as headstart opens the folder, with the answers of ``served``."""
    again = ServedModel(open_run(folder).model, task=served.task, preprocess=served.preprocess, framing=None)

    def run(images: NDArray[np.generic]) -> NDArray[np.float32]:
        with torch.no_grad():
            answers: NDArray[np.float32] = again(torch.from_numpy(images)).numpy()
        return answers

    return run
