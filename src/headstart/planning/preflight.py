"""Open, read, decide: all that must be known before the first step, and the plan that says it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from headstart.config.rules import freeze_text
from headstart.config.schema import Config, Head, MlpHead
from headstart.data.images import Images, load_images
from headstart.data.loader import Batches
from headstart.data.sources.listing import list_source
from headstart.data.workers import check_room
from headstart.errors import ConfigError
from headstart.events import Decided, Decision, Plan, ScanProgress, Watch
from headstart.models.sources import OpenedModel, open_model
from headstart.optim.penalties import select_l1_parameters
from headstart.planning.about import about_data, about_steps, details, outputs_text
from headstart.planning.activation_cache import choose_cache
from headstart.planning.activation_checkpointing import choose_recompute
from headstart.planning.began import about_weights, began_with, name_weights_by_digest
from headstart.planning.compile import choose_compile
from headstart.planning.decisions import check_precision, choose_allocator, choose_device, choose_model
from headstart.planning.distributed import check_parallel, choose_parallel
from headstart.planning.evaluation import choose_evaluation
from headstart.planning.given import copy_given, explain_fixed, mark_changed
from headstart.planning.loading import choose_workers
from headstart.planning.memory import check_memory
from headstart.planning.own_state import check_own_state
from headstart.planning.peft import adapt, lora_document
from headstart.planning.phases import make_phases
from headstart.planning.precision import Workload, choose_arithmetic
from headstart.storage.disk_cache import cache_folder, check_cache_folder
from headstart.surgery.freeze import Fixed, find_frozen
from headstart.surgery.generators import seed_generators
from headstart.surgery.head import HeadSwap, head_parameters, replace_head
from headstart.surgery.lora import adapter_size
from headstart.surgery.module_copy import InPlace
from headstart.surgery.no_trace import no_trace
from headstart.surgery.outputs import declare_scores
from headstart.surgery.whole_module import refuse_half
from headstart.tasks.losses import LossFunction, make_loss, resolve_loss
from headstart.training.activation_cache import CacheRules
from headstart.training.phases import PhasePlan, TrainingPlan, freeze_phase, phase_optimizer
from headstart.training.precision import MEMORY_FORMATS
from headstart.training.rules import StepRules

Choices = Mapping[str, Any]
"""What was measured and chosen when a run began, by option."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run ready for its first step. ``can_retain_memory``: there is memory for what is freed and kept, too."""

    config: Config
    plan: Plan
    opened: OpenedModel
    swap: HeadSwap
    images: Images
    course: TrainingPlan
    device: torch.device
    sharded: bool
    can_retain_memory: bool

    @property
    def document(self) -> dict[str, Any]:
        """The content of plan.json."""
        return self.plan.document


def prepare(
    config: Config, *, module: nn.Module | InPlace | None, loss: LossFunction | None, emit: Watch,
    recorded: Choices | None = None,
) -> Prepared:  # fmt: skip
    """Open the model, read every image, replace the head, decide the rest; nothing is written.

    Of a module that is given a copy is prepared, unless it is ``InPlace``; the global generators are seeded in any
    case. ``recorded``: the choices that were measured when the run began; they stay.

    Raises: ConfigError, ModelError, DataError: the user's mistakes.
    """
    device, chosen_device = choose_device(config)
    check_precision(config, device)
    check_parallel(config, device)
    list_source(config.data, kind=config.task.kind)  # a mistake in the data must not wait for a download
    opened, chosen_model = _open(config, device, module)
    began = began_with(opened, own=module is not None, loss=loss)
    images = _read_images(config, opened, device, emit)
    function, chosen_loss = _loss(config, images, loss)
    swap, fixed = _new_head(config, opened, images)
    if isinstance(module, InPlace):
        mark_changed(module.module)
    adapters, chosen_lora = adapt(config, opened.module)
    batch, pretrained = min(images.train.batch_size, max(1, len(images.train.samples))), opened.weights.kind != "none"
    phases, chosen_phases = make_phases(config, opened.module, batch_size=batch, pretrained=pretrained)
    work = Workload(phases=tuple(replace(one, fixed=fixed) for one in phases), loss=function, images=images)
    select_l1_parameters(opened.module, config.penalties)
    opened.module.to(device)
    sharded, chosen_parallel = choose_parallel(config, opened.module, device)
    course, images, measured, choices, can_retain_memory = _plan_measured(
        config, opened, work, recorded=recorded or {}, possible=not sharded
    )
    decisions = (
        chosen_device, *choose_allocator(device),
        chosen_model, *_about_model(opened, swap, config.head), *chosen_lora, *about_data(images),
        chosen_loss, *chosen_phases, *explain_fixed(opened.module, fixed), *about_steps(config, images), *measured,
        *choose_recompute(config, opened.module), *chosen_parallel,
    )  # fmt: skip
    document = _document(decisions, opened, images, course) | {
        "device": str(device), "seed": config.seed, "choices": choices, "began": began,
        "head": _head_document(config.head, swap), "lora": lora_document(config, adapters),
    }  # fmt: skip
    plan = Plan(decisions=decisions, document=document)
    emit(Decided(plan))
    return Prepared(
        config=config, plan=plan, opened=opened, swap=swap, images=images, course=course, device=device,
        sharded=sharded, can_retain_memory=can_retain_memory,
    )  # fmt: skip


def _plan_measured(
    config: Config, opened: OpenedModel, work: Workload, *, recorded: Choices, possible: bool
) -> tuple[TrainingPlan, Images, tuple[Decision, ...], Choices, bool]:
    """As ``_course``, with what memory says, and whether there is room for what is freed and kept, too. Whatever was
    tried, the first step finds the module as it is before.
    """
    batch = min(work.images.train.batch_size, max(1, len(work.images.train.samples)))
    with no_trace(opened.module):
        course, images, measured, choices = _course(config, opened, work, recorded=recorded, possible=possible)
        can_retain_memory, about_memory = check_memory(
            config, opened.module, course, opened.preprocess, batch_size=batch
        )
    opened.module.to(memory_format=MEMORY_FORMATS[course.rules.memory_format])
    return course, images, (*measured, *about_memory), choices, can_retain_memory


def _course(
    config: Config, opened: OpenedModel, work: Workload, *, recorded: Choices, possible: bool
) -> tuple[TrainingPlan, Images, tuple[Decision, ...], Choices]:
    """Arithmetic, cache, evaluation and loading chosen, by measurement where they are left to us; the weights are in
    that order of memory, the images in those batches.
    """
    module, batch = opened.module, config.batch
    chosen, about, kept = choose_arithmetic(
        config, module, work, recorded=recorded.get("arithmetic"), possible=possible
    )
    module.to(memory_format=MEMORY_FORMATS[chosen.memory_format])
    rules = StepRules(
        loss=work.loss, penalties=config.penalties, precision=chosen.precision, memory_format=chosen.memory_format,
        attention=chosen.attention, accumulate=batch.accumulate, clip_norm=batch.clip_norm,
        clip_value=batch.clip_value, seed=config.seed, recompute=config.activation_checkpointing,
    )  # fmt: skip
    limit = int(config.cache.limit_gb * 1e9)
    where = CacheRules(folder=cache_folder(), model=opened.spec, dtype=config.cache.dtype, limit_bytes=limit)
    course = TrainingPlan(
        phases=work.phases, optimizer=config.optimizer, schedule=config.schedule, rules=rules,
        patience=config.stop.patience, cache=where,
    )  # fmt: skip
    course, about_state, unsaved = check_own_state(module, course, work.images)
    course, cached, choices = choose_cache(
        config, module, course, work.images, recorded=recorded.get("cache"), possible=possible
    )
    if config.cache.decoded or any(phase.cached for phase in course.phases):
        check_cache_folder(asked=config.cache.use == "always")
    course, images, size, evaluated = choose_evaluation(
        config, module, course, work.images, recorded=recorded.get("evaluation"), possible=possible
    )
    images, loading = choose_workers(config, module, course, images, possible=possible)
    course, compiling, compile_ = choose_compile(
        config, module, course, images, recorded=recorded.get("compile"), possible=possible
    )
    measured = {"arithmetic": kept, "cache": choices, "evaluation": evaluated, "compile": compile_}
    measured |= {"unsaved_state": list(unsaved)} if unsaved else {}
    return course, images, (*about, *about_state, cached, *size, *loading, *compiling), measured


def _read_images(config: Config, opened: OpenedModel, device: torch.device, emit: Watch) -> Images:
    """Every image decoded once, and room for what loading processes hand over."""
    images = load_images(config, opened.preprocess, on_decoded=lambda done, total: emit(ScanProgress(done, total)))
    images = _for_accelerator(images, device) if device.type != "cpu" else images
    check_room(workers=images.train.workers, batch_bytes=_batch_bytes(images.train))
    return images


def _for_accelerator(images: Images, device: torch.device) -> Images:
    """CUDA copies from pinned memory; every accelerator makes random changes of whole batches itself."""
    pinned = device.type == "cuda"
    dataset = replace(images.train.images, augment_on_device=True)
    train, val = replace(images.train, dataset=dataset, pinned=pinned), replace(images.val, pinned=pinned)
    return replace(images, train=train, val=val, test=images.test and replace(images.test, pinned=pinned))


def _batch_bytes(batches: Batches) -> int:
    """Of the pixels that a loading process hands over at once, 8 bits each."""
    shape = batches.preprocess
    return batches.batch_size * shape.channels * shape.height * shape.width


def _open(config: Config, device: torch.device, module: nn.Module | InPlace | None) -> tuple[OpenedModel, Decision]:
    model = config.model
    size = None if model.image_size == "auto" else model.image_size
    given = None if model.preprocess == "auto" else model.preprocess
    seed_generators(config.seed)  # random weights are a function of the seed
    if module is not None:
        if not isinstance(module, nn.Module | InPlace):
            raise ConfigError(f"model: {module!r} is no module; give an instance of nn.Module, e.g. model=Net()")
        opened = name_weights_by_digest(open_model(copy_given(module), image_size=size, preprocess=given))
        return opened, Decision("model", opened.spec, "the module as given" + _list_left_out(config, opened))
    name, decision = choose_model(config, device)
    opened = open_model(
        name, weights=model.weights, weights_part=model.weights_part, image_size=size, preprocess=given,
        options=model.options,
    )  # fmt: skip
    return opened, decision


def _list_left_out(config: Config, opened: OpenedModel) -> str:
    """What of the section ``model`` has no use where a module is given.

    Raises: ConfigError: weights from a file, which the module would have to be given before.
    """
    model = config.model
    if model.weights not in ("pretrained", "none"):
        raise ConfigError(
            f"model.weights: a module was given, and {model.weights} is not loaded into it; load it first, e.g. "
            f"model=hs.open_model(module, weights={model.weights!r}).module, and leave model.weights out"
        )
    unused = {"name": model.name if model.name not in ("auto", opened.spec) else None, "options": model.options}
    shown = [f"model.{name} {value}" for name, value in unused.items() if value]
    return f"; {' and '.join(shown)} {'is' if len(shown) == 1 else 'are'} not used" if shown else ""


def _new_head(config: Config, opened: OpenedModel, images: Images) -> tuple[HeadSwap, Fixed]:
    """The head replaced, a function of the seed; and what of the rest was frozen before."""
    seed_generators(config.seed)
    fixed = find_frozen(opened.module)
    swap = _swap(opened, config.head, images.task.num_outputs)
    refuse_half(opened.module)
    return swap, fixed.without(head_parameters(opened.module))


def _swap(opened: OpenedModel, head: Head, outputs: int) -> HeadSwap:
    if head.scores != "auto":
        declare_scores(opened.module, head.scores)
    had_none = set(head_parameters(opened.module)) <= set(opened.coverage.missing) if head.at == "auto" else False
    mlp = head if isinstance(head, MlpHead) else MlpHead(hidden=())
    swap = replace_head(
        opened.module, outputs=outputs, hidden=mlp.hidden, activation=mlp.activation, dropout=head.dropout, at=head.at
    )
    return replace(swap, was=0) if had_none else swap


def _loss(config: Config, images: Images, given: LossFunction | None) -> tuple[LossFunction, Decision]:
    if given is not None:
        return given, Decision("loss", getattr(given, "__name__", "a function"), "as given in Python")
    resolved = resolve_loss(config.loss, task=images.task.kind)
    function = make_loss(resolved, classes=images.classes, counts=images.train.class_counts(), task=images.task.kind)
    why = f"auto: the task is {images.task.kind}" if config.loss.kind == "auto" else "as asked"
    return function, Decision("loss", resolved.kind + details(resolved), why)


def _about_model(opened: OpenedModel, swap: HeadSwap, head: Head) -> tuple[Decision, ...]:
    also = "".join(f", also {path}" for path in swap.others) + "".join(
        f", without the activation {path}" for path in swap.removed
    )
    before = f"{swap.was:,} -> " if swap.was else "new, "
    return (
        Decision("weights", opened.weights.where, about_weights(opened)),
        Decision(
            "head", f"{swap.path}: {before}{outputs_text(swap.now)}{details(head)}{also}", "found in the traced graph"
        ),
        Decision("image size", f"{opened.preprocess.height} x {opened.preprocess.width}", opened.preprocess.source),
    )


def _document(
    decisions: tuple[Decision, ...], opened: OpenedModel, images: Images, course: TrainingPlan
) -> dict[str, Any]:
    steps = len(images.train)
    splits = {"train": images.train, "val": images.val, "test": images.test}
    return {
        "decisions": [vars(decision) for decision in decisions],
        "task": images.task.to_dict(),
        "model": {
            "spec": opened.spec, "library": opened.library, "architecture": opened.architecture,
            "options": dict(opened.options), "coverage": str(opened.coverage), "weights": vars(opened.weights),
            "parameters": sum(part.numel() for part in opened.module.parameters()) - adapter_size(opened.module),
        },
        "preprocess": opened.preprocess.to_dict(),
        "phases": [_phase_document(opened.module, course, phase, steps) for phase in course.phases],
        "data": {
            "source": str(images.source.absolute()), "root": str(images.root.absolute()),
            "digest": _data_digest(images), "notes": list(images.notes),
            **{name: len(split.samples) if split else 0 for name, split in splits.items()},
            "class_counts": {name: split.class_counts() for name, split in splits.items() if split},
            "unreadable": [{"path": one.key, "reason": one.reason} for one in images.scan.unreadable],
            "duplicates": [list(keys) for keys in images.scan.duplicates],
        },
        "steps_per_epoch": steps, "batch_size": images.train.batch_size, "precision": course.rules.precision,
    }  # fmt: skip


def _data_digest(images: Images) -> str:
    """SHA-256 over every image's split, name, contents and target: a resume must find the same data."""
    digest = hashlib.sha256()
    for name, split in (("train", images.train), ("val", images.val), ("test", images.test)):
        for sample in split.samples if split else ():
            digest.update(repr((name, sample.key, images.scan.hashes[sample.key], sample.target)).encode())
    return digest.hexdigest()


def _phase_document(module: nn.Module, course: TrainingPlan, phase: PhasePlan, steps: int) -> dict[str, Any]:
    frozen = freeze_phase(module, phase)
    groups = phase_optimizer(module, phase, course.optimizer).param_groups  # made here, so that mistakes are found here
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
            for group in groups
        ],
    }  # fmt: skip


def _head_document(head: Head, swap: HeadSwap) -> dict[str, Any]:
    mlp = head if isinstance(head, MlpHead) else None
    return {
        "kind": head.kind, "hidden": list(mlp.hidden) if mlp else [], "activation": mlp.activation if mlp else None,
        "dropout": head.dropout, "at": head.at, "path": swap.path, "was": swap.was, "now": swap.now,
        "others": list(swap.others), "removed": list(swap.removed),
    }  # fmt: skip
