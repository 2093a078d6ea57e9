"""Changes of the files that a run leaves, of the weights that it began with, and of the cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import headstart as hs
from headstart.storage.durable import read_folder, write_folder
from tests.reliability.resume_changes.worlds import Change, World

Files = Callable[[World], object]


def _checkpoints(world: World) -> list[Path]:
    return sorted((world.run / "checkpoints").glob("step-*"))


def _flip(path: Path, place: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def _each(paths: Iterator[Path] | list[Path], change: Callable[[Path], object]) -> None:
    for path in paths:
        change(path)


def _json(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=1))


def _swap(one: Path, other: Path) -> None:
    kept = one.with_name("kept")
    one.rename(kept)
    other.rename(one)
    kept.rename(other)


def _forged(path: Path, change: Callable[[Any], object]) -> None:
    """state.json changed under a manifest that was made anew."""
    files = read_folder(path)
    counters = json.loads(files["state.json"])
    change(counters)
    write_folder(path, files | {"state.json": json.dumps(counters).encode()})


def _of_another_run(world: World) -> None:
    """The newest checkpoint of a run with another seed, whole and of the same shapes, in place of this one's."""
    given = world.given()
    other = world.root / "other"
    saved = []

    class Stopped(Exception):
        pass

    def watch(event: object) -> None:
        saved.extend([event] if type(event).__name__ == "Saved" else [])
        if len(saved) == 3:
            raise Stopped

    given.sections = given.sections | {"seed": 7, "out": str(other)}
    try:
        hs.train(given.config(), watch=watch)
    except Stopped:
        newest = sorted((other / "checkpoints").glob("step-*"))[-1]
        shutil.rmtree(_checkpoints(world)[-1])
        shutil.copytree(newest, world.run / "checkpoints" / newest.name)
    shutil.rmtree(other)


CHECKPOINTS: dict[str, Files] = {
    **{
        f"a bit of the newest {name}": lambda w, name=name: _flip(_checkpoints(w)[-1] / name)
        for name in ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")
    },
    **{
        f"the newest {name} gone": lambda w, name=name: (_checkpoints(w)[-1] / name).unlink()
        for name in ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")
    },
    "a bit of every optimizer.safetensors": lambda w: _each(
        _checkpoints(w), lambda p: _flip(p / "optimizer.safetensors")
    ),
    "the newest model file from the checkpoint before": lambda w: shutil.copy(
        _checkpoints(w)[-2] / "model.safetensors", _checkpoints(w)[-1] / "model.safetensors"
    ),
    "the newest checkpoint gone": lambda w: shutil.rmtree(_checkpoints(w)[-1]),
    "all checkpoints gone": lambda w: shutil.rmtree(w.run / "checkpoints"),
    "two checkpoints swapped": lambda w: _swap(_checkpoints(w)[-1], _checkpoints(w)[-2]),
    "a checkpoint under a later name": lambda w: _checkpoints(w)[-1].rename(w.run / "checkpoints" / "step-00000099"),
    "a checkpoint under another name": lambda w: _checkpoints(w)[-1].rename(w.run / "checkpoints" / "kept"),
    "a checkpoint of another run": _of_another_run,
    "last.json names an older one": lambda w: _json(
        w.run / "checkpoints" / "last.json", lambda v: v.update(folder="step-00000001", step=1)
    ),
    "last.json gone": lambda w: (w.run / "checkpoints" / "last.json").unlink(),
    "a phase that the run has not, forged": lambda w: _forged(_checkpoints(w)[-1], lambda v: v.update(phase=7)),
    "half a checkpoint beside them": lambda w: (w.run / "checkpoints" / ".new-step-00000009").mkdir(),
    "the checkpoints a link": lambda w: (
        (w.run / "checkpoints").rename(w.root / "moved"), (w.run / "checkpoints").symlink_to(w.root / "moved"),
    ),
}  # fmt: skip


def _plan(change: Callable[[Any], object]) -> Files:
    return lambda world: _json(world.run / "plan.json", change)


RECORDS: dict[str, Files] = {
    "plan.json: another choice": _plan(
        lambda p: p["choices"]["evaluation"].update(batch=1) or p["choices"].update(x=1)
    ),
    "plan.json: another digest of the data": _plan(lambda p: p["data"].update(digest="0" * 64)),
    "plan.json: other weights": _plan(lambda p: p["model"]["weights"].update(sha256="0" * 64)),
    "plan.json: another reason": _plan(lambda p: p["decisions"][0].update(reason="because")),
    "plan.json: other spaces": _plan(lambda p: None),
    "plan.json: half": lambda w: (w.run / "plan.json").write_text((w.run / "plan.json").read_text()[:300]),
    "plan.json gone": lambda w: (w.run / "plan.json").unlink(),
    "environment.json: half": lambda w: (w.run / "environment.json").write_text("{"),
    "environment.json gone": lambda w: (w.run / "environment.json").unlink(),
    "config.yaml gone": lambda w: (w.run / "config.yaml").unlink(),
    "config.yaml: a comment": lambda w: (w.run / "config.yaml").open("a").write("# mine\n"),
    "config.yaml: another seed": lambda w: (w.run / "config.yaml").write_text(
        (w.run / "config.yaml").read_text().replace("seed: 42", "seed: 43")
    ),
    "events.jsonl gone": lambda w: (w.run / "events.jsonl").unlink(),
    "metrics.csv gone": lambda w: (w.run / "metrics.csv").unlink(missing_ok=True),
    "log.txt gone": lambda w: (w.run / "log.txt").unlink(),
    "result.json made up": lambda w: (w.run / "result.json").write_text("{}"),
    "a lock left behind": lambda w: (w.run / ".lock").write_text("1"),
}
_MACHINE = (
    "python", "headstart", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "platform", "kernel",
    "cpu", "cores", "threads", "instruction_set", "instruction_limits", "world_size", "device", "device_name",
)  # fmt: skip


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Files:
    def made(world: World) -> None:
        tensors = load_file(world.root / "weights.safetensors")
        change(tensors)
        save_file(tensors, world.root / "weights.safetensors")

    return made


_FIRST = "conv1.weight"
WEIGHTS: dict[str, Files] = {
    "weights file: one element": _weights(lambda t: t[_FIRST].view(-1)[5].add_(1e-6)),
    "weights file: all zero": _weights(lambda t: t[_FIRST].zero_()),
    "weights file: half precision": _weights(lambda t: t.update({_FIRST: t[_FIRST].half()})),
    "weights file: another shape": _weights(lambda t: t.update({_FIRST: t[_FIRST][:4].clone()})),
    "weights file: a tensor less": _weights(lambda t: t.pop("layer1.0.bn1.weight")),
    "weights file: a tensor more": _weights(lambda t: t.update(extra=torch.zeros(3))),
    "weights file: a classifier's bias": _weights(lambda t: t["fc.bias"].add_(1)),
    "weights file: written again, the same": _weights(lambda t: None),
    "weights file: gone": lambda w: (w.root / "weights.safetensors").unlink(),
    "weights file: half": lambda w: (w.root / "weights.safetensors").write_bytes(b"half"),
}
CACHE: dict[str, Files] = {
    "cache: gone": lambda w: shutil.rmtree(w.root / "cache"),
    "cache: a bit of every file": lambda w: _each(_cached(w), lambda p: _flip(p, -1)),
    "cache: a bit in the middle of every file": lambda w: _each(_cached(w), lambda p: _flip(p, p.stat().st_size // 2)),
    "cache: every file cut": lambda w: _each(_cached(w), _cut),
    "cache: every file emptied": lambda w: _each(_cached(w), lambda p: (p.chmod(0o644), p.write_bytes(b""))),
}


def _cached(world: World) -> list[Path]:
    found = [path for path in (world.root / "cache").rglob("*") if path.is_file() and path.stat().st_size]
    assert found, "nothing is cached"
    return found


def _cut(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-3])


def file_changes() -> Iterator[Change]:
    """Of checkpoints, records, each fact of environment.json, the weights' file and the cache."""
    for name, change in {**CHECKPOINTS, **RECORDS, **WEIGHTS, **CACHE}.items():
        yield Change(name, lambda world, _, change=change: _done(change, world))
    for fact in _MACHINE:
        yield Change(f"environment.json: {fact}", lambda world, _, fact=fact: _other_fact(world, fact), (fact,))


def _done(change: Files, world: World) -> None:
    change(world)


def _other_fact(world: World, fact: str) -> None:
    def change(facts: Any) -> None:
        facts[fact] = facts[fact] + 1 if isinstance(facts[fact], int) else "another"

    _json(world.run / "environment.json", change)
