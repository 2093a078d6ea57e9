from __future__ import annotations

import json
import math

import pytest
import torch

from headstart.errors import DataError
from headstart.tasks.regress import make_spec
from headstart.tasks.task import TaskSpec


def test_a_task_survives_json() -> None:
    for task in (
        TaskSpec(kind="classify", classes=("no", "ñ")),
        TaskSpec(kind="regress", targets=("x", "y"), mean=(0.1, 2.0), std=(1.0, 3.0), log=True),
    ):
        assert TaskSpec.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_outputs_are_counted_by_kind() -> None:
    assert TaskSpec(kind="multilabel", classes=("a", "b", "c")).num_outputs == 3
    assert TaskSpec(kind="regress", targets=("x",), mean=(0.0,), std=(1.0,)).num_outputs == 1


@pytest.mark.parametrize("log", [False, True])
def test_scaling_has_mean_zero_and_deviation_one_and_is_inverted(log: bool) -> None:
    rows = [(10.0, 3e6), (1000.0, 4e5), (100.0, 7e5)]
    task = make_spec(("x", "y"), rows, log)
    scaled = task.standardise(torch.tensor(rows))
    torch.testing.assert_close(scaled.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.std(0, unbiased=False), torch.ones(2))
    torch.testing.assert_close(task.original(scaled), torch.tensor(rows))
    if log:
        assert task.mean[0] == pytest.approx(2.0)
        assert task.std[0] == pytest.approx(math.sqrt(2 / 3))


def test_a_constant_number_is_refused() -> None:
    with pytest.raises(DataError, match="'x' is 3 in each of the 2 training images"):
        make_spec(("x",), [(3.0,), (3.0,)], False)
