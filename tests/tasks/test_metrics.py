"""Metrics where libraries have an opinion of their own."""

from __future__ import annotations

import pytest
import torch

from headstart.tasks.metrics import measure, selection_key
from headstart.tasks.task import TaskSpec

NUMBERS = TaskSpec(kind="regress", targets=("y",), mean=(0.002,), std=(0.001,))


def test_r2_of_small_numbers_is_that_of_large_ones() -> None:
    truth = torch.linspace(0.001, 0.003, 20)[:, None]
    for values in (truth, 0.004 - truth, torch.full_like(truth, 0.002), truth + 0.0003):
        large = TaskSpec(kind="regress", targets=("y",), mean=(2.0,), std=(1.0,))
        small = measure(NUMBERS, values, truth)["r2"]
        assert small == pytest.approx(measure(large, values * 1000, truth * 1000)["r2"], abs=1e-4)


def test_a_single_tag_has_an_average_precision() -> None:
    task = TaskSpec(kind="multilabel", classes=("red",))
    scores = torch.tensor([[0.9], [0.2], [0.8], [0.1]])
    assert measure(task, scores, torch.tensor([[1.0], [0.0], [1.0], [0.0]]))["mean_average_precision"] == 1.0


def test_targets_of_different_units_count_alike_for_what_is_best() -> None:
    task = TaskSpec(kind="regress", targets=("price", "rooms"), mean=(3e5, 4.0), std=(1e5, 1.0))
    truth = torch.tensor([[2e5, 3.0], [4e5, 5.0]])
    rooms_right = measure(task, torch.tensor([[2e5 + 1, 3.0], [4e5 + 1, 5.0]]), truth)
    rooms_wrong = measure(task, torch.tensor([[2e5, 5.0], [4e5, 3.0]]), truth)
    assert rooms_right["mae"] < 2
    assert selection_key(task, rooms_right) > selection_key(task, rooms_wrong)
