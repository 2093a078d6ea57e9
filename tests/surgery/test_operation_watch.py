"""Operations that make numbers of their arguments alone: the same at every call, and no random numbers drawn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from headstart.surgery.operation_watch import OperationWatch

CONSTANTS: dict[str, Callable[[], Tensor]] = {
    "arange": lambda: torch.arange(5), "eye": lambda: torch.eye(3), "full": lambda: torch.full((2, 3), 1.5),
    "linspace": lambda: torch.linspace(0, 1, 7), "logspace": lambda: torch.logspace(0, 1, 7),
    "ones": lambda: torch.ones(2), "scalar_tensor": lambda: torch.scalar_tensor(2.5),
    "tril_indices": lambda: torch.tril_indices(3, 3), "triu_indices": lambda: torch.triu_indices(3, 3),
    "zeros": lambda: torch.zeros(4), "as_strided_": lambda: torch.ones(6).as_strided_((2, 3), (3, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_is_the_same_from_every_state_of_the_generator(name: str):
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        with OperationWatch() as watch:
            made.append(CONSTANTS[name]())
        assert torch.equal(torch.get_rng_state(), before) and not watch.unknown
    assert torch.equal(*made)


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(2), lambda: torch.empty(2).exponential_(), lambda: torch.randperm(3)]
)
def test_what_draws_is_named(draw: Callable[[], Tensor]):
    with OperationWatch() as watch:
        draw()
    assert watch.unknown
