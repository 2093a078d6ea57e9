"""``model.xml`` and ``model.bin``, for OpenVINO."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from headstart.exports import onnx_file
from headstart.exports.about import KEY, to_text
from headstart.exports.check import Runner

FILE = "model.xml"


def write_openvino(program: ExportedProgram, folder: Path, *, about: Mapping[str, Any]) -> None:
    """Write the program as OpenVINO's own format, by way of ONNX, with its facts as ``rt_info`` of the model.

    Raises: RunError: the exporter gave it up, with its own reason.
    """
    import openvino

    with tempfile.TemporaryDirectory(dir=folder) as between:
        onnx_file.write_onnx(program, Path(between), about=about)
        model = openvino.Core().read_model(Path(between, onnx_file.FILE))
        model.set_rt_info(to_text(about), [KEY])
        openvino.save_model(model, folder / FILE, compress_to_fp16=False)
        del model  # it may read from the file that goes


def open_openvino(folder: Path) -> Runner:
    """The file on the CPU, in float32, with as many threads as torch has."""
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(folder / FILE, "CPU", exact)

    def run(images: NDArray[np.generic]) -> NDArray[np.float32]:
        answers: NDArray[np.float32] = compiled(images)[0]
        return answers

    return run
