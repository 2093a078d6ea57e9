"""The global generators of random numbers: torch's, Python's and NumPy's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from headstart.isolation import own_turn


@contextmanager
def keep_generators() -> Iterator[None]:
    """Whatever is drawn or seeded within: afterwards the generators of torch (of each accelerator that is in use, too),
    Python and NumPy go on from where they were.
    """
    with own_turn():  # within a step of another thread they would be that step's
        python, numpy, ours = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        with own_turn():
            random.setstate(python)
            np.random.set_state(numpy)
            torch.random.set_rng_state(ours)
            if cuda:
                torch.cuda.set_rng_state_all(cuda)


def seed_generators(seed: int) -> None:
    """Set all of them to what follows from ``seed``."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # torch.manual_seed notes a traceback (0.1 ms) for each kind of device that is not there
        torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
