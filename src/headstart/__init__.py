"""Fine-tune a pretrained image model from timm or torchvision: the public names, imported when they are first used."""

from __future__ import annotations

import random
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstart.app import finish, plan, repeat, train
    from headstart.config.load import load_config
    from headstart.config.schema import Config
    from headstart.data.batch import Batch
    from headstart.data.images import Images, audit, open_images
    from headstart.data.scan import Scan
    from headstart.data.sources.labels import label_images
    from headstart.data.sources.source import Record, Source
    from headstart.errors import Error
    from headstart.events import (
        CacheGivenUp,
        CacheNote,
        CacheProgress,
        DataNote,
        Decided,
        Decision,
        EpochDone,
        Event,
        Finished,
        Note,
        PhaseStarted,
        Plan,
        Saved,
        ScanProgress,
        StepDone,
    )
    from headstart.exports.export import Export, export
    from headstart.models.describe import Description, describe
    from headstart.models.sources import OpenedModel, open_model
    from headstart.optim.groups import param_groups
    from headstart.prediction.embedding import Embeddings
    from headstart.prediction.predictor import Predictor
    from headstart.prediction.record import Prediction
    from headstart.predictor import evaluate, predict
    from headstart.reports.report import report
    from headstart.runs.bundle import OpenedRun, open_run
    from headstart.runs.checkpoint import restore, save
    from headstart.runs.run import Run
    from headstart.surgery.freeze import Frozen, freeze
    from headstart.surgery.head import Head, HeadSwap, find_head, replace_head
    from headstart.surgery.lora import add_lora, merge_lora
    from headstart.surgery.lora_targets import LoraPlan
    from headstart.surgery.module_copy import InPlace
    from headstart.surgery.outputs import declare_scores
    from headstart.tasks.own_ratings import Rating
    from headstart.training.evaluate import Evaluation, Predictions
    from headstart.training.fit import fit
    from headstart.training.rules import StepRules
    from headstart.training.state import TrainState
    from headstart.training.step import train_step

__all__ = [
    "Batch",
    "CacheGivenUp",
    "CacheNote",
    "CacheProgress",
    "Config",
    "DataNote",
    "Decided",
    "Decision",
    "Description",
    "Embeddings",
    "EpochDone",
    "Error",
    "Evaluation",
    "Event",
    "Export",
    "Finished",
    "Frozen",
    "Head",
    "HeadSwap",
    "Images",
    "InPlace",
    "LoraPlan",
    "Note",
    "OpenedModel",
    "OpenedRun",
    "PhaseStarted",
    "Plan",
    "Prediction",
    "Predictions",
    "Predictor",
    "Rating",
    "Record",
    "Run",
    "Saved",
    "Scan",
    "ScanProgress",
    "Source",
    "StepDone",
    "StepRules",
    "TrainState",
    "add_lora",
    "audit",
    "declare_scores",
    "describe",
    "evaluate",
    "export",
    "find_head",
    "finish",
    "fit",
    "freeze",
    "label_images",
    "load_config",
    "merge_lora",
    "open_images",
    "open_model",
    "open_run",
    "param_groups",
    "plan",
    "predict",
    "repeat",
    "replace_head",
    "report",
    "restore",
    "save",
    "train",
    "train_step",
]

_HOMES = {
    "app": ("finish", "plan", "repeat", "train"),
    "config.load": ("load_config",),
    "config.schema": ("Config",),
    "data.batch": ("Batch",),
    "data.images": ("Images", "audit", "open_images"),
    "data.scan": ("Scan",),
    "data.sources.labels": ("label_images",),
    "data.sources.source": ("Record", "Source"),
    "errors": ("Error",),
    "events": (
        "CacheGivenUp",
        "CacheNote",
        "CacheProgress",
        "DataNote",
        "Decided",
        "Decision",
        "EpochDone",
        "Event",
        "Finished",
        "Note",
        "PhaseStarted",
        "Plan",
        "Saved",
        "ScanProgress",
        "StepDone",
    ),
    "exports.export": ("Export", "export"),
    "models.describe": ("Description", "describe"),
    "surgery.freeze": ("Frozen", "freeze"),
    "surgery.head": ("Head", "HeadSwap", "find_head", "replace_head"),
    "surgery.lora": ("add_lora", "merge_lora"),
    "surgery.lora_targets": ("LoraPlan",),
    "models.sources": ("OpenedModel", "open_model"),
    "optim.groups": ("param_groups",),
    "prediction.embedding": ("Embeddings",),
    "prediction.predictor": ("Predictor",),
    "prediction.record": ("Prediction",),
    "predictor": ("evaluate", "predict"),
    "runs.bundle": ("OpenedRun", "open_run"),
    "runs.run": ("Run",),
    "tasks.own_ratings": ("Rating",),
    "training.evaluate": ("Evaluation", "Predictions"),
    "runs.checkpoint": ("restore", "save"),
    "reports.report": ("report",),
    "surgery.module_copy": ("InPlace",),
    "surgery.outputs": ("declare_scores",),
    "training.fit": ("fit",),
    "training.state": ("TrainState",),
    "training.rules": ("StepRules",),
    "training.step": ("train_step",),
}


def __getattr__(name: str) -> object:
    """A public name from the module that defines it: ``import headstart`` alone imports no torch. What is drawn from
    Python's generator on the way (rich does) is put back: the caller's numbers do not depend on what came first.
    """
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'headstart' has no attribute {name!r}")
    drawn = random.getstate()
    try:
        if home.partition(".")[0] not in ("config", "errors", "events"):
            import_module("headstart.lazy_imports").load_libraries()
        return getattr(import_module(f"headstart.{home}"), name)
    finally:
        random.setstate(drawn)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
