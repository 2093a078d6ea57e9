"""What each tracker has of a run, read through its own library: a list of (step, name, value) in order."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Logged = list[tuple[int, str, float]]
_BLOCK, _HEADER = 32 * 1024, 7  # of the log format of LevelDB, which offline runs of W&B are in


def read_tensorboard(run: Path, _: str) -> Logged:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return [(event.step, tag, event.value) for tag in read.Tags()["scalars"] for event in read.Scalars(tag)]


def read_mlflow(_: Path, run_id: str) -> Logged:
    from mlflow import MlflowClient

    client = MlflowClient()
    assert [file.path for file in client.list_artifacts(run_id)] == ["report.html"]
    assert client.get_run(run_id).info.status == "FINISHED"
    names = client.get_run(run_id).data.metrics
    return [(each.step, name, each.value) for name in names for each in client.get_metric_history(run_id, name)]


def read_trackio(_: Path, run_id: str) -> Logged:
    import trackio

    rows = trackio.SQLiteStorage.get_logs("headstart", run_id)
    facts = ("step", "timestamp")
    return [(row["step"], name, value) for row in rows for name, value in row.items() if name not in facts]


def read_wandb(run: Path, run_id: str) -> Logged:
    from wandb.proto.wandb_internal_pb2 import Record

    found: Logged = []
    for file in sorted((run / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")):
        for data in _records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                found += [(row["_step"], name, value) for name, value in row.items() if not name.startswith("_")]
            if record.WhichOneof("record_type") == "summary":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update
                }
                found += [(-1, name, value) for name, value in row.items() if name.startswith("final_")]
    return found


def _items(found: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found}


def _records(content: bytes) -> Iterator[bytes]:
    place, parts = _HEADER, b""
    while place + _HEADER <= len(content):
        if _BLOCK - place % _BLOCK < _HEADER:
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if kind == 0:
            return
        parts += content[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


READERS = {
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
    "wandb": read_wandb,
}
