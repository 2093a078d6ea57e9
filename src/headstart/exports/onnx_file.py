"""``model.onnx``, for ONNX Runtime and everything else that reads ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from headstart.errors import RunError
from headstart.exports.about import KEY, to_text
from headstart.exports.check import Runner

FILE = "model.onnx"
_LARGEST_FILE = 1_900_000_000  # bytes of weights; protobuf ends at 2 GiB, and what is larger has them in a second file


def write_onnx(program: ExportedProgram, folder: Path, *, about: Mapping[str, Any]) -> None:
    """Write the program as ONNX, with its facts as metadata of the model.

    Raises: RunError: the exporter gave it up, with its own reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own parts
            made = torch.onnx.export(
                program, dynamo=True, input_names=["images"], output_names=[about["output"]], verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RunError(f"the model cannot be exported: torch.onnx says: {' '.join(lines)[:300]}") from error
    assert made is not None
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with paths of this machine
    made.model.metadata_props.clear()
    made.model.metadata_props[KEY] = to_text(about)
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    made.save(folder / FILE, external_data=size > _LARGEST_FILE)


def open_onnx(folder: Path) -> Runner:
    """The file in ONNX Runtime on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()

    def run(images: NDArray[np.generic]) -> NDArray[np.float32]:
        answers: NDArray[np.float32] = session.run(None, {entry.name: images})[0]
        return answers

    return run
