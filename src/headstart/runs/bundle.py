"""The bundle: weights, labels, preprocessing and head recipe in one folder that timm can load too where the head is
linear.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from torch import nn

from headstart.config.schema import Config, MlpHead
from headstart.data.used_images import USED_IMAGES, UsedImages
from headstart.errors import DataError, ModelError
from headstart.isolation import own_arithmetic
from headstart.machine import available_bytes
from headstart.models.answers import remember_answers
from headstart.models.folder import BUNDLE, WEIGHTS, read_bundle
from headstart.models.preprocess import Preprocess
from headstart.models.sources import OpenedModel, open_model
from headstart.models.weights import read_own_tensors
from headstart.private_names import find_config_writer
from headstart.reports.model_card import model_card
from headstart.runs.bundle_path import find_bundle
from headstart.runs.own_file import own_files, restore_own
from headstart.storage.buffers import Content
from headstart.storage.durable import explain_os_errors, json_bytes, read_folder, write_folder
from headstart.storage.tensors import make_buffers
from headstart.surgery.freeze import find_frozen, unfreeze
from headstart.surgery.generators import keep_generators
from headstart.surgery.head import HeadSwap, head_parameters, replace_head
from headstart.surgery.module_copy import InPlace, copy_module
from headstart.surgery.outputs import declare_scores
from headstart.surgery.own_state import load_tensors, read_saved_tensors
from headstart.tasks.task import TaskSpec
from headstart.training.precision import MEMORY_FORMATS, Precision


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """How the bundle was evaluated; the same settings give the same bits.

    Attributes:
        ``batch_size``: Images per batch.
        ``precision``: The precision of the forward pass.
        ``memory_format``: The order of the model's tensors in memory.
        ``equal_sizes``: Smaller batches, ascending, in which an image has these bits, too.
    """

    batch_size: int
    precision: Precision
    memory_format: str
    equal_sizes: tuple[int, ...] = ()

    def size_for(self, images: int) -> int:
        """The smallest batch that has room for so many images and gives them the bits of evaluation; else its own."""
        return next((size for size in self.equal_sizes if size >= images), self.batch_size)


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """A finished run's model with everything needed to use it.

    Attributes:
        ``path``: The bundle's folder.
        ``model``: The module in evaluation mode.
        ``task``: The task with the names of its classes, tags or targets.
        ``preprocess``: How images become the model's input: size, framing, mean and standard deviation.
        ``evaluated``: The arithmetic, the memory format and the batch size that validation had.
        ``facts``: The content of the bundle's ``headstart.json``.

    Example:
        >>> import headstart as hs
        >>> opened = hs.open_run("runs/photos")
        >>> opened.task.classes, opened.preprocess.height
        (('cat', 'dog'), 32)
    """

    path: Path
    model: nn.Module = field(repr=False)
    task: TaskSpec
    preprocess: Preprocess
    evaluated: Evaluated
    facts: Mapping[str, Any] = field(repr=False)


def bundle_facts(
    opened: OpenedModel,
    swap: HeadSwap,
    config: Config,
    *,
    task: TaskSpec,
    evaluated: Evaluated,
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """The content of headstart.json."""
    head, data = config.head, config.data
    mlp = head if isinstance(head, MlpHead) else None
    recipe = {
        "kind": head.kind, "hidden": list(mlp.hidden) if mlp else [], "activation": mlp.activation if mlp else None,
        "dropout": head.dropout, "at": head.at, "scores": head.scores,
        "path": swap.path, "now": swap.now,
    }  # fmt: skip
    model = {
        "spec": opened.spec, "library": opened.library, "architecture": opened.architecture,
        "options": dict(opened.options), "num_outputs": opened.num_outputs, "licence": opened.weights.licence,
    }  # fmt: skip
    return {
        "format": 1, "task": task.to_dict(), "model": model, "head": recipe, "preprocess": opened.preprocess.to_dict(),
        "columns": {"image": data.image, "target": data.target, "tags_separator": data.tags_separator},
        "evaluation": vars(evaluated), "metrics": dict(metrics), "metric": config.metric,
        "versions": {name: version(name) for name in ("headstart", "torch", "torchvision", "timm")},
    }  # fmt: skip


def write_bundle(
    path: Path,
    model: nn.Module,
    facts: dict[str, Any],
    *,
    plan: Mapping[str, Any],
    result: Mapping[str, Any],
    used: UsedImages,
) -> None:
    """Write the bundle folder, whole or not at all.  Raises: StorageError: it cannot be written."""
    tensors, own = own_files({"model": model})
    files: dict[str, Content] = tensors | {
        "model.safetensors": make_buffers(read_saved_tensors(model)),
        "config.json": json_bytes(_make_config(model, facts)),
        USED_IMAGES: used.to_buffers(),
        "headstart.json": json_bytes(facts | ({"own": own} if own else {})),
        "README.md": model_card(facts, plan=plan, result=result).encode("utf-8", "backslashreplace"),
    }
    write_folder(path, files)


def _make_config(model: nn.Module, facts: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json: timm's local-dir layout for its models; library and architecture for others."""
    about, preprocess = facts["model"], Preprocess.from_dict(facts["preprocess"])
    if about["library"] != "timm":
        return {"library": about["library"], "architecture": about["architecture"], "num_classes": facts["head"]["now"]}
    data_config = {
        "input_size": (preprocess.channels, preprocess.height, preprocess.width),
        "mean": preprocess.mean, "std": preprocess.std,
        "interpolation": preprocess.interpolation, "crop_pct": preprocess.crop_pct, "crop_mode": preprocess.crop_mode,
    }  # fmt: skip
    names = list(facts["task"]["classes"] or facts["task"]["targets"])
    with explain_os_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        find_config_writer()(
            model, str(path), {"label_names": names}, model_args=about["options"], data_config=data_config
        )
        config: dict[str, Any] = json.loads(path.read_text())
    return config


def open_run(path: str | Path, *, model: nn.Module | InPlace | None = None) -> OpenedRun:
    """Return the model of a finished run, ready to predict, with every file checked against its manifest.

    The global generators of torch, Python and NumPy stay as they are.

    Args:
        ``path``: The run's folder, or the bundle in it.
        ``model``: For an architecture of your own, the module as it was given to ``hs.train``. What is opened is a copy
            of it, or of ``hs.InPlace(module)`` the module itself.

    Returns:
        The ``model`` in evaluation mode, its ``task`` with the classes, the ``preprocess`` of its images, how it was
        ``evaluated``, and the ``facts`` of its ``headstart.json``.

    Raises:
        ModelError: No finished run is there, or the weights do not fit the module that was given.
        StorageError: A file is damaged.

    Example:
        >>> import headstart as hs
        >>> opened = hs.open_run("runs/photos")
        >>> opened.task.classes, opened.model.training
        (('cat', 'dog'), False)
    """
    folder = find_bundle(Path(path))
    with own_arithmetic(), keep_generators():
        if model is not None:
            return _load_onto(folder, model.module if isinstance(model, InPlace) else _copy_model(model))
        opened = open_model(str(folder.absolute()))  # a relative timm/NAME/model would be read as a spec
    assert opened.bundle is not None
    return _open_with_weights(folder, opened.module, opened.bundle)


def read_used_images(bundle: Path) -> UsedImages | None:
    """The images of the run whose bundle this is; None where an earlier headstart wrote it, which did not record them.

    Raises: StorageError: the file is damaged. ModelError: it is not one that headstart wrote.
    """
    content = read_folder(bundle, only=USED_IMAGES).get(USED_IMAGES)
    return None if content is None else UsedImages.from_bytes(content, where=str(bundle / USED_IMAGES))


def describe_trained(run: Path, model: nn.Module) -> OpenedRun:
    """What ``open_run`` gives, around the module that the run has left in memory.

    Raises: ModelError: no finished run is there. StorageError: a file is damaged.
    """
    folder = find_bundle(run)
    bundle = read_bundle(folder)
    assert bundle is not None
    return _open_with_weights(folder, model, bundle.facts)


def _copy_model(model: nn.Module) -> nn.Module:
    instead = "open the run with the module itself: hs.open_run(run, model=hs.InPlace(module))"
    return copy_module(model, free_bytes=available_bytes(), instead=instead)


def _load_onto(folder: Path, model: nn.Module) -> OpenedRun:
    bundle, fixed = read_bundle(folder), find_frozen(model)
    assert bundle is not None
    facts, head = bundle.facts, bundle.facts["head"]
    activation = head["activation"] or "relu"
    if (scores := head.get("scores", "auto")) != "auto":
        declare_scores(model, scores)
    if not head.get("kept"):
        replace_head(
            model, outputs=head["now"], hidden=head["hidden"], activation=activation, dropout=head["dropout"],
            at=head["at"],
        )  # fmt: skip
    try:
        load_tensors(model, read_own_tensors(bundle.files[WEIGHTS], where=str(folder)))
    except RuntimeError as error:
        raise ModelError(
            f"{folder}: the weights do not fit the module that was given: {' '.join(str(error).split())}"
        ) from error
    restore_own(model, "model", bundle.files, facts.get("own"))
    unfreeze(model, fixed=fixed.without(head_parameters(model)))
    return _open_with_weights(folder, model, facts)


def _open_with_weights(folder: Path, module: nn.Module, facts: Mapping[str, Any]) -> OpenedRun:
    task, evaluated = _read_description(folder / BUNDLE, facts)
    remember_answers(module, facts)
    return OpenedRun(
        path=folder,
        model=module.to(memory_format=MEMORY_FORMATS[evaluated.memory_format]).eval(),
        task=task,
        preprocess=Preprocess.from_dict(facts["preprocess"]),
        evaluated=evaluated,
        facts=facts,
    )


def _read_description(where: Path, facts: Mapping[str, Any]) -> tuple[TaskSpec, Evaluated]:
    """The task and how it was evaluated.  Raises: ModelError: not what headstart writes, or not this model's."""
    try:
        task, evaluated = TaskSpec.from_dict(facts["task"]), Evaluated(**facts["evaluation"])
        evaluated = replace(evaluated, equal_sizes=tuple(evaluated.equal_sizes))
        now = facts["head"]["now"]
    except (KeyError, TypeError, AttributeError, DataError) as error:
        raise ModelError(f"{where}: {error}; not a bundle that this headstart wrote") from error
    size = evaluated.batch_size
    good = isinstance(size, int) and size > 0
    good = good and all(isinstance(smaller, int) and 0 < smaller < size for smaller in evaluated.equal_sizes)
    if not good or evaluated.precision not in get_args(Precision):
        raise ModelError(f"{where}: evaluation {facts['evaluation']} is not one that headstart wrote")
    if not isinstance(evaluated.memory_format, str) or evaluated.memory_format not in MEMORY_FORMATS:
        raise ModelError(f"{where}: memory format {evaluated.memory_format!r}; accepted: {', '.join(MEMORY_FORMATS)}")
    if task.num_outputs != now:
        raise ModelError(f"{where}: {task.num_outputs} names for {now} outputs; the labels are not those of the model")
    return task, evaluated
