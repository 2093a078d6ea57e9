"""A draft as plan.json has it."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

from headstart.config.rules import freeze_text
from headstart.data.images import Images
from headstart.planning.about import plain_notes
from headstart.planning.draft import Draft
from headstart.surgery.lora import adapter_size
from headstart.training.phases import PhasePlan, TrainingPlan, freeze_phase, phase_optimizer


def make_document(draft: Draft) -> dict[str, Any]:
    """The content of plan.json."""
    opened, images, training_plan = draft.opened, draft.images, draft.training_plan
    steps = len(images.train)
    splits = {"train": images.train, "val": images.val, "test": images.test}
    return {
        "decisions": [vars(decision) for decision in draft.decisions],
        "warnings": [vars(caution) for caution in images.cautions],
        "task": images.task.to_dict(),
        "model": {
            "spec": opened.spec, "library": opened.library, "architecture": opened.architecture,
            "options": dict(opened.options), "coverage": str(opened.coverage), "weights": vars(opened.weights),
            "parameters": sum(part.numel() for part in opened.module.parameters()) - adapter_size(opened.module),
        },
        "preprocess": opened.preprocess.to_dict(),
        "phases": [_phase_document(opened.module, training_plan, phase, steps) for phase in training_plan.phases],
        "data": {
            "source": images.location, "root": str(images.root.absolute()) if images.root else None,
            "digest": _data_digest(images), "notes": plain_notes(images),
            **{name: len(split.samples) if split else 0 for name, split in splits.items()},
            "class_counts": {name: split.class_counts() for name, split in splits.items() if split},
            "unreadable": [{"path": image.key, "reason": image.reason} for image in images.scan.unreadable],
            "duplicates": [list(keys) for keys in images.scan.duplicates],
            "near_copies": [list(keys) for keys in images.scan.near_copies],
        },
        "steps_per_epoch": steps, "batch_size": images.train.batch_size, "precision": training_plan.rules.precision,
        "seed": draft.config.seed, "choices": dict(draft.choices), **draft.document,
    }  # fmt: skip


def _data_digest(images: Images) -> str:
    """SHA-256 over every image's split, name, contents and target: a resume must find the same data."""
    digest = hashlib.sha256()
    for name, split in (("train", images.train), ("val", images.val), ("test", images.test)):
        for sample in split.samples if split else ():
            digest.update(repr((name, sample.key, images.scan.hashes[sample.key], sample.target)).encode())
    return digest.hexdigest()


def _phase_document(module: nn.Module, training_plan: TrainingPlan, phase: PhasePlan, steps: int) -> dict[str, Any]:
    frozen = freeze_phase(module, phase)
    optimizer = phase_optimizer(module, phase, training_plan.optimizer)  # made, so that mistakes are found here
    return {
        "name": phase.name, "freeze": freeze_text(phase.freeze), "epochs": phase.epochs,
        "first_step": phase.first_epoch * steps, "steps": phase.epochs * steps,
        "lr": phase.lr, "head_lr": phase.head_lr, "layer_decay": phase.layer_decay,
        "norm_statistics": phase.norm_statistics, "views": phase.views, "cached": list(phase.cached),
        "trainable_parameters": frozen.of - frozen.parameters, "frozen_parameters": frozen.parameters,
        "frozen_modules": list(frozen.modules),
        "groups": [
            {"name": group["name"], "lr": group["lr"], "weight_decay": group["weight_decay"],
             "parameters": sum(parameter.numel() for parameter in group["params"])}
            for group in optimizer.param_groups
        ],
    }  # fmt: skip
