"""A finished run's model as a file of another format, checked before it is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from headstart.config.home import expand_home
from headstart.data.sources.as_given import AnyImages
from headstart.errors import ConfigError
from headstart.exports.about import describe_export
from headstart.exports.check import (
    TOLERANCE,
    Runner,
    TorchModel,
    compare,
    measure_difference,
    measure_speed,
    refuse_difference,
)
from headstart.exports.formats import Exactness, FormatName, Placement, check_format
from headstart.exports.graph import ServedModel, make_served_model, trace
from headstart.exports.hub_folder import open_hub_folder, write_hub_folder
from headstart.exports.onnx_file import open_onnx, write_onnx
from headstart.exports.openvino_file import open_openvino, write_openvino
from headstart.exports.pictures import choose_pictures, find_run_folder
from headstart.exports.scripts import write_script, write_timm_script
from headstart.exports.timm_folder import open_timm_folder, refuse_other_head, write_timm_folder
from headstart.exports.torch_program import open_program, write_program
from headstart.isolation import own_arithmetic
from headstart.prediction.predictor import AnyRun, open_on
from headstart.reports.model_card import loads_in_timm
from headstart.runs.bundle import OpenedRun
from headstart.storage.durable import explain_os_errors, json_bytes
from headstart.training.evaluate import predict
from headstart.wording import option

_Writer = Callable[..., None]
_GRAPHS: Mapping[str, tuple[_Writer, Callable[[Path], Runner]]] = {
    "onnx": (write_onnx, open_onnx),
    "openvino": (write_openvino, open_openvino),
    "pt2": (write_program, open_program),
}


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export that was written, and what its comparison with PyTorch showed.

    Attributes:
        ``path``: The folder that holds it.
        ``to``: Its format.
        ``file``: The model's file in it, or the folder itself where it is one.
        ``size``: Bytes of all its files.
        ``preprocess``: Whether preprocessing is inside or outside of it.
        ``precision``: The precision of its arithmetic.
        ``images``: How many images it was compared on.
        ``difference``: The largest difference from PyTorch in float32: of probabilities, or for numbers in standard
            deviations of the training targets. At most 0.001 in fp32.
        ``worst``: The image and the batch of the largest difference.
        ``own_difference``: The same from the run's own predictions, in the precision in which it was validated, and of
            photos that are decoded at a part of their size.
        ``torch_speed``: Images per second of PyTorch, from decoded pictures to answers, in the threads that torch has.
        ``speed``: The same of the export.
        ``notes``: Sentences on what to know.

    Example:
        >>> import headstart as hs
        >>> made = hs.export("runs/photos", to="pt2", out="cats-and-dogs")
        >>> made.to, made.file.name, made.difference < 0.001
        ('pt2', 'model.pt2', True)
    """

    path: Path
    to: FormatName
    file: Path
    size: int
    preprocess: str
    precision: str
    images: int
    difference: float
    worst: str
    own_difference: float
    torch_speed: float
    speed: float
    notes: tuple[str, ...] = ()


def export(
    run: AnyRun,
    *,
    to: FormatName,
    out: str | Path | None = None,
    preprocess: Placement = "auto",
    precision: Exactness = "fp32",
    images: AnyImages | None = None,
) -> Export:
    """Write a finished run's model in another format, once it gives what PyTorch gives.

    The export is run on real images, each alone as large as it is, and in batches of 2 and 5. Where it differs from
    PyTorch by more than 0.001, nothing is left on the disk. Beside the model's file there are ``model.json`` with what
    the outputs mean, and ``predict.py``, which uses it without headstart.

    Args:
        ``run``: The run's folder or bundle, what ``hs.train`` returned, or what ``hs.open_run`` gave.
        ``to``: The format: onnx, openvino, pt2 (``torch.export``), timm (a folder for ``timm.create_model``), or
            hub-folder (the same with a model card, to be uploaded).
        ``out``: The folder to write; None: ``exports/`` and the format's name in the run's folder.
        ``preprocess``: inside: the file takes uint8 pixels (B, H, W, C) of any size; outside: it takes what the model
            takes, float32 (B, C, h, w), normalised; auto: inside where the format can hold it.
        ``precision``: The arithmetic: fp32.
        ``images``: Images to compare on, as ``hs.predict`` takes them; None: the run's own validation or test images.

    Returns:
        Where it is, how far it is from PyTorch, and how fast both are.

    Raises:
        ConfigError: An option is wrong, what the format needs is not installed, or ``out`` is there already.
        ModelError: There is no finished run.
        DataError: There are no images to compare on.
        RunError: The model cannot be exported, or the export differs; nothing was written.
        StorageError: It cannot be written.

    Example:
        >>> import headstart as hs
        >>> made = hs.export("runs/photos", to="pt2")
        >>> str(made.path), made.images, made.difference < 0.001
        ('runs/photos/exports/pt2', 4, True)
    """
    form = check_format(to, preprocess=preprocess, precision=precision)
    opened = open_on(run, "cpu" if isinstance(run, str | Path) else "auto")
    inside = form.has_graph and preprocess != "outside"
    target = _choose_target(opened, out, name=f"{to}-outside" if form.has_graph and not inside else to)
    if to == "timm":
        refuse_other_head(opened)
    pictures = choose_pictures(opened, images)
    about = describe_export(opened, inside=inside, precision=precision)
    how = opened.evaluated
    own = predict(opened.model, pictures.batches, precision=how.precision, memory_format=how.memory_format).outputs
    with own_arithmetic(), _write_whole(target) as folder:
        served = make_served_model(opened, inside=inside)
        torch_model = TorchModel(served, opened.preprocess)
        runner = _write(opened, served, folder, to=to, about=about)
        compared = compare(runner, torch_model, pictures, task=opened.task, inside=inside)
        refuse_difference(compared, title=form.title)
        speeds = measure_speed(runner, torch_model, pictures, inside=inside)
    apart = float(measure_difference(opened.task, compared.answers, own).max())
    return Export(
        path=target,
        to=to,
        file=target / form.file,
        size=sum(path.stat().st_size for path in target.iterdir()),
        preprocess=about["preprocess"],
        precision=precision,
        images=len(pictures.pixels),
        difference=compared.difference,
        worst=compared.worst,
        own_difference=apart,
        torch_speed=speeds[0],
        speed=speeds[1],
        notes=_list_notes(opened, apart, which=pictures.which),
    )


def _write(opened: OpenedRun, served: ServedModel, folder: Path, *, to: FormatName, about: dict[str, Any]) -> Runner:
    """Write all files of the export, and open it as it was written."""
    script, open_it = "", None
    if to in _GRAPHS:
        write, read = _GRAPHS[to]
        write(trace(served), folder, about=about)
        script, open_it = write_script(to, about, opened.preprocess), partial(read, folder)
    else:
        (write_timm_folder if to == "timm" else write_hub_folder)(opened, folder)
        if loads_in_timm(opened.facts["model"], opened.facts["head"]):
            script, open_it = write_timm_script(about, opened.task), partial(open_timm_folder, folder, served)
    (folder / "model.json").write_bytes(json_bytes(about))
    if script:
        (folder / "predict.py").write_text(script, encoding="utf-8")
    return open_it() if open_it is not None else open_hub_folder(folder, served)


def _list_notes(opened: OpenedRun, apart: float, *, which: str) -> tuple[str, ...]:
    notes = [f"compared on images of: {which}"]
    if opened.facts.get("framing") is not None:
        notes.append("the run was validated with a transform of your own, which predict.py has not")
    if opened.evaluated.precision != "fp32":
        notes.append(
            f"the run was validated in {opened.evaluated.precision}, and the export computes in fp32: from the run's "
            f"own predictions it differs by up to {apart:.2g}"
        )
    elif apart > TOLERANCE:
        notes.append(
            f"from the run's own predictions it differs by up to {apart:.2g}, for headstart decodes large photos at a "
            "part of their size; predict.py does so, too"
        )
    return tuple(notes)


def _choose_target(opened: OpenedRun, out: str | Path | None, *, name: str) -> Path:
    """The folder that is to be written.  Raises: ConfigError: it is there already."""
    run = find_run_folder(opened.path)
    usual = run / "exports" / name if run is not None else opened.path.with_name(f"{opened.path.name}-{name}")
    target = usual if out is None else expand_home(out)
    if os.path.lexists(target):
        raise ConfigError(
            f"out: {target} is there already; remove it, or choose another folder with {option('out', fill='FOLDER')}"
        )
    return target


@contextmanager
def _write_whole(target: Path) -> Iterator[Path]:
    """Within, a temporary folder beside ``target``, which becomes it at the end; after an error nothing is left."""
    there = next(folder for folder in target.absolute().parents if folder.is_dir())
    temp = there / f".{target.name}.{os.getpid()}.part"
    with explain_os_errors(target, undo=lambda: shutil.rmtree(temp, ignore_errors=True)):
        try:
            temp.mkdir()
            yield temp
            target.parent.mkdir(parents=True, exist_ok=True)
            temp.rename(target)
        finally:
            shutil.rmtree(temp, ignore_errors=True)
