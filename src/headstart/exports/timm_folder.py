"""A folder that plain timm opens: ``timm.create_model("local-dir:FOLDER", pretrained=True)``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from headstart.errors import ModelError
from headstart.exports.check import Runner
from headstart.exports.graph import ServedModel
from headstart.models.folder import CONFIG, WEIGHTS, read_bundle
from headstart.reports.model_card import loads_in_timm
from headstart.runs.bundle import OpenedRun


def refuse_other_head(opened: OpenedRun) -> None:
    """Raises: ModelError: timm cannot build the model again."""
    model, head = opened.facts["model"], opened.facts["head"]
    if not loads_in_timm(model, head):
        why = (
            f"its head ({head.get('kind')}) is not one linear layer in timm's own place"
            if model.get("library") == "timm"
            else f"it is a model of {model.get('library')}"
        )
        raise ModelError(f"{opened.path}: timm cannot build this model again, for {why}; export it to onnx or pt2")


def write_timm_folder(opened: OpenedRun, folder: Path) -> None:
    """Write timm's local-dir layout: config.json with preprocessing and names, model.safetensors.

    Raises: ModelError: timm cannot build the model again. StorageError: the bundle is damaged.
    """
    refuse_other_head(opened)
    bundle = read_bundle(opened.path)
    assert bundle is not None
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes(bundle.files[name])


def open_timm_folder(folder: Path, served: ServedModel) -> Runner:
    """The model as timm opens the folder, with the answers of ``served``."""
    model = timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True).eval()
    again = ServedModel(model, task=served.task, preprocess=served.preprocess, framing=None)

    def run(images: NDArray[np.generic]) -> NDArray[np.float32]:
        with torch.no_grad():
            answers: NDArray[np.float32] = again(torch.from_numpy(images)).numpy()
        return answers

    return run
