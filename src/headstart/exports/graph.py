"""The module that is exported: preprocessing, the run's model, and what turns its scores into answers.

B batch, H and W of pictures, h and w of the model's input, C channels, K classes or tags, T targets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from headstart.errors import ConfigError, RunError
from headstart.exports.framing import WRITABLE, Framing
from headstart.machine import available_bytes
from headstart.models.preprocess import Preprocess
from headstart.runs.bundle import OpenedRun
from headstart.surgery.head import model_scores
from headstart.surgery.module_copy import copy_module
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec
from headstart.wording import option

_EXAMPLE = (50, 60)  # a picture's height and width while it is traced; any other size is as good
_REASON = 300  # characters of an exporter's reason that are passed on


class ServedModel(nn.Module):
    """Images to probabilities (B, K) or numbers in original units (B, T).

    ``framing`` None: images are floats (B, C, h, w), normalised; else uint8 (B, H, W, C) of any size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, *, task: TaskSpec, preprocess: Preprocess, framing: Framing | None) -> None:
        super().__init__()
        self.framing, self.model, self.task, self.preprocess = framing, model, task, preprocess
        self.input_shape = (preprocess.channels, preprocess.height, preprocess.width)
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the activated outputs of ``images``."""
        inputs = images if self.framing is None else (self.framing(images) / 255 - self.mean) / self.std
        return self.answer(inputs)

    def answer(self, inputs: Tensor) -> Tensor:
        """Return the activated outputs of what the model takes, (B, C, h, w)."""
        parts = model_scores(self.model, self.model(inputs))
        main = parts[0][1] if parts[0][0] == 1.0 else torch.stack([part for _, part in parts]).mean(0)
        return find_kind(self.task.kind).activate(self.task, main.float())


def make_served_model(opened: OpenedRun, *, inside: bool) -> ServedModel:
    """A copy of the run's model in float32 on the CPU, with its preprocessing (``inside``) and its answers around it.

    Raises: ConfigError: the preprocessing is something that no file can hold. ModelError: the model cannot be copied.
    """
    preprocess = opened.preprocess
    if inside:
        _refuse_unwritable(opened)
    instead = f"close what else is open, or give the run's folder: hs.export({str(opened.path)!r}, ...)"
    copied = copy_module(opened.model, free_bytes=available_bytes(), instead=instead)
    model = copied.to("cpu", torch.float32).to(memory_format=torch.contiguous_format)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    framing = Framing(preprocess) if inside else None
    return ServedModel(model, task=opened.task, preprocess=preprocess, framing=framing).eval()


def _refuse_unwritable(opened: OpenedRun) -> None:
    outside = option("preprocess", "outside")
    if opened.facts.get("framing") is not None:
        raise ConfigError(
            f"{opened.path}: the run was validated with a transform of your own, a function in Python that no file can "
            f"hold; export the model alone: {outside}"
        )
    if opened.preprocess.interpolation not in WRITABLE:
        raise ConfigError(
            f"preprocess: {opened.preprocess.interpolation} resampling is Pillow's own, and is not written into files "
            f"(accepted: bilinear, bicubic); export the model alone: {outside}"
        )


def trace(served: ServedModel) -> ExportedProgram:
    """The module as a graph of torch's operations, for batches and pictures of any size.

    Raises: RunError: the exporter gave it up, with its own reason.
    """
    batch = Dim("batch", min=1)
    channels, height, width = served.input_shape
    if served.framing is None:
        example, sizes = torch.zeros(2, channels, height, width), {0: batch}
    else:
        example = torch.zeros(2, *_EXAMPLE, channels, dtype=torch.uint8)
        sizes = {0: batch, 1: Dim("height", min=1), 2: Dim("width", min=1)}
    try:
        with torch.no_grad():
            program = torch.export.export(served, (example,), dynamic_shapes=(sizes,), strict=False)
    except Exception as error:  # the model's own code runs in it, and torch raises dozens of kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:_REASON] if lines else type(error).__name__
        raise RunError(f"the model cannot be exported: torch.export says: {reason}") from error
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program
