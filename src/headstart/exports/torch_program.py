"""``model.pt2``: torch's own format of a program, which needs torch alone.

It is read here by ``torch.export.load`` only to check what was written a moment before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from headstart.exports.about import KEY, to_text
from headstart.exports.check import Runner

FILE = "model.pt2"


def write_program(program: ExportedProgram, folder: Path, *, about: Mapping[str, Any]) -> None:
    """Write the program with its facts."""
    torch.export.save(program, folder / FILE, extra_files={f"{KEY}.json": to_text(about)})


def open_program(folder: Path) -> Runner:
    """The program as it was written, ready to be called."""
    module = torch.export.load(folder / FILE).module()

    def run(images: NDArray[np.generic]) -> NDArray[np.float32]:
        with torch.no_grad():
            answers: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
        return answers

    return run
