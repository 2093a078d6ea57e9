"""Two ranks in one test."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

_SECONDS_FOR_A_RANK = 20.0


@pytest.fixture
def on_two_ranks(tmp_path: Path) -> Callable[[Callable[[int], Any]], list[Any]]:
    """What ``work(rank)`` gives (JSON) on rank 0 and on rank 1: ``on_two_ranks(work)``.

    Both are forks of the test's process, which keeps no trace of them; they cannot run a backward pass.
    """

    def run(work: Callable[[int], Any]) -> list[Any]:
        ranks = [_forked(tmp_path / "store", rank, work) for rank in (0, 1)]
        told = []
        for child, reader in ranks:
            with os.fdopen(reader) as answer:
                told.append(answer.read())
            os.waitpid(child, 0)
        failed = [f"rank {rank}: {text.removeprefix('!')}" for rank, text in enumerate(told) if text[:1] in ("", "!")]
        assert not failed, "\n".join(failed)
        return [json.loads(text) for text in told]

    return run


def _forked(store: Path, rank: int, work: Callable[[int], Any]) -> tuple[int, int]:
    """A process and what its answer is read from: JSON, or a mark and what went wrong."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    with os.fdopen(writer, "w") as answer:
        try:
            with _joined(store, rank):
                text = json.dumps(work(rank))
        except BaseException:
            text = f"!{traceback.format_exc()}"
        answer.write(text)
    os._exit(0)


@contextmanager
def _joined(store: Path, rank: int) -> Iterator[None]:
    limit, place = timedelta(seconds=_SECONDS_FOR_A_RANK), dist.FileStore(str(store), 2)
    dist.init_process_group("gloo", store=place, rank=rank, world_size=2, timeout=limit)
    try:
        yield
        dist.barrier()  # nobody leaves while the other still needs it
    finally:
        dist.destroy_process_group()
