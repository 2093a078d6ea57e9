"""``ranks``: runs a case of ranks.py in several processes; and pictures for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability import processes


@pytest.fixture(scope="session")
def ranks() -> Iterator[processes.Ranks]:
    """``ranks("gradients", world=2, ...)``: what each rank gave or raised."""
    with processes.ranks() as run:
        yield run


@pytest.fixture(scope="session")
def few(tmp_path_factory) -> str:
    """14 pictures in three classes: 11 to train on, in batches of 8 and 3."""
    return processes.pictures(tmp_path_factory.mktemp("few"), 5, 5, 4)


@pytest.fixture(scope="session")
def many(tmp_path_factory) -> str:
    """Pictures enough for 101 to be looked at."""
    return processes.pictures(tmp_path_factory.mktemp("many"), 43, 42, 42)
