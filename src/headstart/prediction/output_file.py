"""Predictions of any number of images in a file, which a kill at any moment neither doubles nor loses.

Each batch's rows are appended to ``OUT.partial``, one JSON object a line, below a line that says whose predictions of
which images these are. The same call again goes on behind the last whole batch; at the end the rows become ``OUT``, in
one rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from headstart.data.sources.as_given import GivenImages
from headstart.errors import ConfigError, StorageError
from headstart.prediction.outputs import View, average_outputs
from headstart.prediction.parquet import Sink, load_parquet
from headstart.prediction.record import describe_output
from headstart.prediction.rows import Columns, as_dict
from headstart.reports.csv import csv_text
from headstart.storage.durable import explain_os_errors, open_log, read_file, write_chunks
from headstart.tasks.kinds import find_kind
from headstart.wording import option

_ROWS = 10_000  # that are turned into the file's own form at a time
_ANSWERS = {"error", "labels", "values"}  # of which each row has one
_DIFFERENCES = {
    "headstart": "versions of headstart",
    "views": "runs, views or images a batch",
    "images": "images (names, sizes, times or their order)",
    "top": "numbers of classes a row",
}
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a file of predictions holds.

    Attributes:
        ``rows``: How many images it is about.
        ``resumed``: How many of them an earlier call had computed.
        ``unreadable``: Path and reason of those that could not be read, in order.
    """

    rows: int
    resumed: int
    unreadable: tuple[tuple[str, str], ...]


def write_predictions(views: Sequence[View], out: Path, *, top: int, on_rows: Callable[[int, int], object]) -> Written:
    """Write what the views say of their images to ``out``: .csv, .jsonl or .parquet.

    ``top``: how many classes a row gives. ``on_rows``: called with (images done, images in all) after each batch.

    Raises: ConfigError: an earlier call's rows are of other images or of another model. StorageError: no room.
    """
    partial, batches = out.with_name(f"{out.name}.partial"), views[0].batches
    samples, task = batches.samples, batches.task
    step = math.lcm(*(view.batches.batch_size for view in views))
    descriptor = open_log(partial, needed=len(samples) * 100)
    try:
        _lock(descriptor, partial)
        identity = _identify(views, top)
        if not (lines := _go_on(partial, identity, names=[sample.key for sample in samples], step=step)):
            os.ftruncate(descriptor, 0)
            _append(descriptor, partial, [identity])
        resumed = done = max(0, lines - 1)
        outputs = average_outputs(views, first=resumed) if resumed < len(samples) else iter(())
        while rows := [as_dict(describe_output(output, task), top=top) for output in islice(outputs, step)]:
            _append(descriptor, partial, rows)
            done += len(rows)
            on_rows(done, len(samples))
        kind = find_kind(task.kind)
        columns = Columns(
            names=task.names, gives_numbers=kind.gives_numbers, gives_tags=bool(kind.list_thresholds(task)), top=top
        )
        write_chunks(out, _FORMS[out.suffix.lower()](columns, _read_rows(partial)))
        unreadable = tuple((str(row["path"]), str(row["error"])) for row in _read_rows(partial) if "error" in row)
        with explain_os_errors(partial):
            partial.unlink()
    finally:
        os.close(descriptor)
    return Written(rows=len(samples), resumed=resumed, unreadable=unreadable)


def _lock(descriptor: int, partial: Path) -> None:
    """Take the file, which the system frees when this process ends.

    Raises: ConfigError: another process is writing it, or has ended just now. StorageError: its file system has no
    locks.
    """
    try:
        with explain_os_errors(partial):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.fstat(descriptor).st_nlink > 0  # who had it until now has removed it
    except StorageError as error:
        if not isinstance(error.__cause__, BlockingIOError):
            raise
        taken = False
    if not taken:
        raise ConfigError(f"{partial}: another process is writing it; wait for it, or give another {option('out')}")


def _identify(views: Sequence[View], top: int) -> dict[str, Any]:
    """Whose predictions, and of which images; in another order they are others."""
    source = views[0].batches.source
    assert isinstance(source, GivenImages), type(source)
    looked = [
        {
            "bundle": hashlib.sha256(read_file(view.opened.path / "MANIFEST.json")).hexdigest(),
            "batch": view.batches.batch_size,
            "mirrored": view.change is not None,
        }
        for view in views
    ]
    return {"headstart": version("headstart"), "views": looked, "images": source.digest(), "top": top}


def _go_on(partial: Path, identity: Row, *, names: Sequence[str], step: int) -> int:
    """How many lines of the file stay: the first, and rows of whole batches of the images of these names, in order;
    what follows is cut off.

    Raises: ConfigError: they are of other images or of another model.
    """
    ends = [0]
    with explain_os_errors(partial), partial.open("rb") as file:
        if (begun := _read_line(first := file.readline())) is None:
            return 0
        _refuse_others(partial, begun, identity)
        ends.append(len(first))
        for name, line in zip(names, file, strict=False):
            row = _read_line(line)
            if row is None or row.get("path") != name or _ANSWERS.isdisjoint(row):
                break
            ends.append(ends[-1] + len(line))
        rows = len(ends) - 2
        kept = 1 + (rows if rows == len(names) else rows - rows % step)
        os.truncate(partial, ends[kept])
    return kept


def _refuse_others(partial: Path, begun: Row, identity: Row) -> None:
    """Raises: ConfigError: an earlier call's rows are other ones."""
    what = [words for name, words in _DIFFERENCES.items() if begun.get(name) != identity[name]]
    if what:
        raise ConfigError(
            f"{partial}: the rows of an earlier call are of other {' and '.join(what)} than this one's; give those "
            f"to go on, remove the file to begin anew, or give another {option('out')}"
        )


def _read_line(line: bytes) -> dict[str, Any] | None:
    """The object of a whole line; None of one that a kill or a crash has cut short."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _append(descriptor: int, path: Path, rows: Sequence[Row]) -> None:
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    with explain_os_errors(path, needed=len(data)):
        while data:
            data = data[os.write(descriptor, data) :]


def _read_rows(partial: Path) -> Iterator[Row]:
    with explain_os_errors(partial), partial.open("rb") as file:
        for line in islice(file, 1, None):
            yield json.loads(line)


def _as_csv(columns: Columns, rows: Iterator[Row]) -> Iterator[bytes]:
    header = csv_text([], header=columns.header)
    yield header.encode("utf-8", "surrogateescape")
    while part := list(islice(rows, _ROWS)):
        text = csv_text([columns.row(row) for row in part], header=columns.header)
        yield text.removeprefix(header).encode("utf-8", "surrogateescape")


def _as_jsonl(_: Columns, rows: Iterator[Row]) -> Iterator[bytes]:
    return (json.dumps(row).encode() + b"\n" for row in rows)


def _as_parquet(columns: Columns, rows: Iterator[Row]) -> Iterator[bytes]:
    """Raises: ConfigError: pyarrow is not installed."""
    pa, pq = load_parquet()
    numbers = columns.numeric
    schema = pa.schema(
        [(name, pa.float64() if number else pa.string()) for name, number in zip(columns.header, numbers, strict=True)]
    )
    sink = Sink()
    with pq.ParquetWriter(sink, schema) as writer:
        while part := list(islice(rows, _ROWS)):
            cells = zip(*(columns.row(row) for row in part), strict=True)
            arrays = [pa.array(values, type=field.type) for values, field in zip(cells, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            yield sink.take()
    yield sink.take()


_FORMS: dict[str, Callable[[Columns, Iterator[Row]], Iterator[bytes]]] = {
    ".csv": _as_csv,
    ".jsonl": _as_jsonl,
    ".parquet": _as_parquet,
}
