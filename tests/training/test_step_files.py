"""A step can be read: what one on the CPU runs lies in few files, and its order stands in one body."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

import torch

import headstart
from headstart.training import step as step_file
from headstart.training.state import TrainState
from headstart.training.step import StepRules, train_step

PACKAGE = Path(headstart.__file__).parent


def test_a_plain_step_runs_code_of_five_files_at_most(net, noise) -> None:
    model = net(norm=True)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    rules, batch = StepRules(), noise(8)
    train_step(state, batch, rules=rules)  # what is looked up once
    files: set[str] = set()

    def note(frame, event, _argument) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            files.add(path.relative_to(PACKAGE).as_posix())

    sys.setprofile(note)
    try:
        train_step(state, batch, rules=rules)
    finally:
        sys.setprofile(None)
    assert len(files) <= 5, files
    assert "training/step.py" in files


def test_the_order_of_a_step_stands_in_one_body() -> None:
    tree = ast.parse(inspect.getsource(step_file))
    body = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train_step")
    docstring = body.body[0]
    assert ast.get_docstring(body)
    assert body.end_lineno - body.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1) <= 60
