"""Which images make up each batch: a pure function of seed, epoch, process and first batch.

B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headstart.data.randomness import epoch_order
from headstart.distributed.processes import SINGLE_PROCESS, Processes


@dataclass(frozen=True, kw_only=True)
class BatchIndices:
    """This process's share of one batch, as indices into the dataset.

    Attributes:
        ``number``: Which batch of the epoch it is, from 0 (in evaluation: which of this process's).
        ``indices``: First ``borrowed`` images of a neighbour, which are only mixed in; then ``size`` images of its own;
            then copies that fill it up to two rows.
        ``size``: How many images are this process's own.
        ``borrowed``: See ``indices``.
        ``total``: Images of all processes' shares; 0: this is all.
        ``is_padded``: Whether rows of zeros follow, up to the batch size.
    """

    number: int
    indices: tuple[int, ...]
    size: int
    borrowed: int = 0
    total: int = 0
    is_padded: bool = False


@dataclass(frozen=True, kw_only=True)
class EpochSampler:
    """The batches of each epoch over ``count`` images.

    With a ``seed`` (training): shuffled anew in each epoch, a last batch of one image merged into the one before, and
    each process takes its share of every batch. Without (evaluation): in order, the last batch padded to the others'
    shape, and each process takes every so many-th batch. ``mixes``: a share is preceded by its neighbour's last image.
    """

    count: int
    batch_size: int
    seed: int | None
    processes: Processes = SINGLE_PROCESS
    mixes: bool = False

    def __len__(self) -> int:
        """Batches per epoch, over all processes."""
        return len(_cut(range(self.count), size=self.batch_size, merge=self.seed is not None))

    def batches(self, epoch: int, *, first: int = 0) -> list[BatchIndices]:
        """This process's share of the epoch's batches, from number ``first`` on."""
        ours = self.processes
        if self.seed is None:
            batches = _cut(range(self.count), size=self.batch_size, merge=False)[ours.rank :: ours.world_size]
            return pad_groups(batches)[first:]
        order = epoch_order(self.count, seed=self.seed, epoch=epoch)
        batches = _cut(order, size=self.batch_size, merge=True)
        return [self._share(number, batch) for number, batch in enumerate(batches) if number >= first]

    def _share(self, number: int, batch: Sequence[int]) -> BatchIndices:
        """What this process computes of a batch: at least two rows (BatchNorm cannot take one), and before them the
        image that mixing takes from its neighbour (mixup rolls the batch by one row).
        """
        places = self.processes.slice(len(batch))
        own = [batch[place] for place in places]
        fill = batch[: max(0, min(2, len(batch)) - len(own))]
        borrowed = [batch[places.start - 1]] if self.mixes and self.processes.is_distributed else []
        indices = (*borrowed, *own, *fill)
        return BatchIndices(number=number, indices=indices, size=len(own), borrowed=len(borrowed), total=len(batch))


def pad_groups(groups: Sequence[Sequence[int]]) -> list[BatchIndices]:
    """A padded batch of each group of indices."""
    return [
        BatchIndices(number=number, indices=tuple(group), size=len(group), is_padded=True)
        for number, group in enumerate(groups)
    ]


def _cut(order: Sequence[int], *, size: int, merge: bool) -> list[list[int]]:
    """Batches of ``size`` and a remainder; ``merge`` puts a remainder of one image into the batch before."""
    batches = [list(order[start : start + size]) for start in range(0, len(order), size)]
    if merge and len(batches) > 1 and len(batches[-1]) == 1 < size:
        last = batches.pop()
        batches[-1] += last
    return batches
