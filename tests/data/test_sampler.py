"""Which images make up a batch: a pure function of seed, epoch, process and first batch."""

from __future__ import annotations

import pytest

from headstart.data.sampler import BatchIndices, EpochSampler
from headstart.distributed.processes import Processes

COUNTS = [(1, 1), (2, 8), (9, 4), (10, 3), (16, 16), (23, 5)]  # images, batch size


def shares(count: int, size: int, *, world: int, seed: int | None, **options) -> list[list[BatchIndices]]:
    """Each process's batches of epoch 3."""
    ranks = [Processes(rank=rank, world_size=world) for rank in range(world)]
    samplers = [EpochSampler(count=count, batch_size=size, seed=seed, processes=ours, **options) for ours in ranks]
    assert len({len(sampler) for sampler in samplers}) == 1
    return [sampler.batches(3) for sampler in samplers]


@pytest.mark.parametrize(("count", "size"), COUNTS)
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("mixes", [False, True])
def test_processes_share_each_training_batch_between_them(count: int, size: int, world: int, mixes: bool) -> None:
    (alone,) = shares(count, size, world=1, seed=7)
    split = shares(count, size, world=world, seed=7, mixes=mixes)
    for number, batch in enumerate(alone):
        parts = [share[number] for share in split]
        own = [part.indices[part.borrowed :][: part.size] for part in parts]
        assert tuple(index for some in own for index in some) == batch.indices[: batch.size]
        assert all(part.total == batch.size and part.number == number for part in parts)
        assert all(len(part.indices) - part.borrowed >= min(2, batch.size) for part in parts)
        assert all(part.borrowed == (mixes and world > 1) for part in parts)
    assert sorted(index for batch in alone for index in batch.indices) == list(range(count))


@pytest.mark.parametrize(("count", "size"), COUNTS)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_in_evaluation_each_image_is_in_one_batch_of_one_process_in_order(count: int, size: int, world: int) -> None:
    split = shares(count, size, world=world, seed=None)
    (alone,) = shares(count, size, world=1, seed=None)
    assert [index for batch in alone for index in batch.indices] == list(range(count))
    by_number = [split[number % world][number // world] for number in range(len(alone))]
    assert [batch.indices for batch in by_number] == [batch.indices for batch in alone]
    assert all(batch.is_padded and batch.size == len(batch.indices) for batch in alone)


@pytest.mark.parametrize("seed", [None, 7])
def test_a_first_batch_passes_over_those_before_it(seed: int | None) -> None:
    for rank in range(2):
        sampler = EpochSampler(count=23, batch_size=5, seed=seed, processes=Processes(rank=rank, world_size=2))
        whole = sampler.batches(1)
        for first in range(len(whole) + 1):
            assert sampler.batches(1, first=first) == whole[first:]


def test_order_follows_seed_and_epoch_and_nothing_else() -> None:
    sampler = EpochSampler(count=50, batch_size=8, seed=1)
    first = sampler.batches(0)
    sampler.batches(1)
    assert sampler.batches(0) == first == EpochSampler(count=50, batch_size=8, seed=1).batches(0)
    others = [sampler.batches(1), EpochSampler(count=50, batch_size=8, seed=2).batches(0)]
    assert all([batch.indices for batch in other] != [batch.indices for batch in first] for other in others)
