"""Run folders, checkpoints and bundles from somebody else: links, names that lead out, figures that cannot be."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from corpus import Artefact, World, train
from corpus_weights import _saved, payloads

from headstart.storage.durable import MANIFEST, json_bytes, write_folder

Change = Callable[[dict[str, Any]], object]


def _resume(world: World, run: Path) -> tuple[str, ...]:
    return train(world, "--resume", out=str(run))


def _opened(world: World, run: Path) -> tuple[tuple[str, ...], ...]:
    """What reads a bundle."""
    image = str(world.photos / "cat" / "0.png")
    return (
        ("predict", str(run), image),
        ("evaluate", str(run), str(world.photos)),
        ("describe", str(run)),
        train(world, "--weights", "pretrained", model=str(run)),
        _resume(world, run),
    )


def _rewritten(folder: Path, name: str, change: Change) -> None:
    """Change a JSON file of a folder with a manifest, and make the manifest fit again: whoever tampers can do that."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    facts = json.loads(files[name])
    change(facts)
    files[name] = json_bytes(facts)
    write_folder(folder, files)


def _set(*path: str | int, to: object) -> Change:
    def change(facts: dict[str, Any]) -> None:
        holder: Any = facts
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = to

    return change


def _drop(key: str) -> Change:
    return lambda facts: facts.pop(key)


BUNDLES: dict[str, Change] = {
    "outputs-huge": _set("head", "now", to=10**13),
    "outputs-negative": _set("head", "now", to=-3),
    "hidden-huge": _set("head", "hidden", to=[10**12]),
    "hidden-text": _set("head", "hidden", to=["os.system"]),
    "head-at": _set("head", "at", to="__class__.__init__"),
    "activation": _set("head", "activation", to="eval"),
    "architecture": _set("model", "architecture", to="os.system"),
    "library": _set("model", "library", to="evil_package"),
    "option-path": _set("model", "options", to={"checkpoint_path": "/etc/passwd"}),
    "option-list": _set("model", "options", to=["x"]),
    "classes-huge": _set("model", "num_outputs", to=10**13),
    "size-huge": _set("preprocess", "height", to=10**9),
    "preprocess-list": _set("preprocess", to=[]),
    "no-evaluation": _drop("evaluation"),
    "evaluation-more": _set(
        "evaluation", to={"batch_size": 8, "precision": "fp32", "memory_format": "contiguous", "x": 1}
    ),
    "memory-format": _set("evaluation", "memory_format", to="__class__"),
    "precision": _set("evaluation", "precision", to="os.system"),
    "batch-text": _set("evaluation", "batch_size", to="8; import os"),
    "batch-zero": _set("evaluation", "batch_size", to=0),
    "no-task": _drop("task"),
    "task-kind": _set("task", "kind", to="exec"),
    "task-more": _set("task", "x", to=1),
    "classes-numbers": _set("task", "classes", to=[1, {"a": 2}]),
    "classes-fewer": _set("task", "classes", to=["cat"]),
    "format": _set("format", to=99),
}
UNUSED = ("no-", "evaluation", "memory", "precision", "batch", "task", "classes-numbers", "classes-fewer")
CHECKPOINTS: dict[str, Change] = {
    "phase-beyond": _set("phase", to=999),
    "phase-text": _set("phase", to="__import__('os')"),
    "step-negative": _set("step", to=-(10**18)),
    "no-best": _drop("best"),
    "best-text": _set("best", to="x"),
    "no-optimizer": _drop("optimizer"),
    "plain-of-others": _set("optimizer", "plain", to={"no.such": {"x": 1}}),
    "groups-text": _set("optimizer", "groups", to="x"),
    "scaler": _set("scaler", to={"x": 1}),
}
PLANS: dict[str, Change] = {
    "task-list": _set("task", to=[]),
    "task-kind": _set("task", "kind", to="exec"),
    "classes-text": _set("task", "classes", to="__class__"),
    "classes-numbers": _set("task", "classes", to=[1, None]),
    "phases-text": _set("phases", to=["{{ 7*7 }}"]),
    "decisions-text": _set("decisions", to=["x"]),
    "weights-text": _set("model", "weights", to="x"),
    "groups-text": _set("phases", 0, "groups", to="x"),
    "counts-list": _set("data", "class_counts", to=["x"]),
    "unreadable-text": _set("data", "unreadable", to="x"),
    "mean-text": _set("preprocess", "mean", to="x"),
    "parameters-dict": _set("model", "parameters", to={"a": 1}),
    "no-data": _drop("data"),
}


def _tampered(world: World) -> Iterator[Artefact]:
    for name, change in BUNDLES.items():
        run = world.copied_run(f"bundle-{name}")
        _rewritten(run / "model", "headstart.json", change)
        kinds = 2 if name.startswith(UNUSED) else 3  # describe and train --model have no use for it
        yield Artefact(name=f"bundle {name}", commands=_opened(world, run)[:kinds], owns=(run,))
    for name, change in CHECKPOINTS.items():
        run = world.copied_run(f"checkpoint-{name}")
        (run / "result.json").unlink()
        for folder in (run / "checkpoints").glob("step-*"):
            _rewritten(folder, "state.json", change)
        yield Artefact(name=f"checkpoint {name}", commands=(_resume(world, run),), owns=(run,))
    for name, change in PLANS.items():
        run = world.copied_run(f"plan-{name}")
        facts = json.loads((run / "plan.json").read_bytes())
        change(facts)
        (run / "plan.json").write_bytes(json_bytes(facts))
        yield Artefact(name=f"plan {name}", commands=(("report", str(run)),), codes=frozenset({0, 2, 4}), owns=(run,))


def _records(world: World) -> Iterator[Artefact]:
    """Records replaced by something else."""
    bomb = pickle.dumps(payloads(world.mark("record"))["touch"])
    contents = {
        "pickle": bomb, "nothing": b"", "list": b"[]", "text": b'"x"', "number": b"1e999", "deep": b"[" * 200_000,
        "nan": b'{"metrics": {"accuracy": NaN}, "epoch": {}, "seconds": "x", "test_metrics": 3}',
    }  # fmt: skip
    for file in ("plan.json", "environment.json", "result.json", "config.yaml", "events.jsonl", "predictions.csv"):
        for kind, content in contents.items():
            run = world.copied_run(f"record-{file}-{kind}")
            (run / file).write_bytes(content)
            commands = (("report", str(run)), _resume(world, run))
            yield Artefact(name=f"record {file} {kind}", commands=commands, codes=frozenset({0, 2, 4}), owns=(run,))
    events = [
        {"event": "epoch", "epoch": 1, "metrics": "x"}, {"event": ["epoch"], "epoch": 1}, {"epoch": 1},
        {"event": "step", "step": 1, "loss": "<script>", "lr": {}}, {"event": "epoch", "epoch": 10**30, "metrics": None},  # noqa: E501
    ]  # fmt: skip
    for place, event in enumerate(events):
        run = world.copied_run(f"event-{place}")
        (run / "result.json").unlink()
        with (run / "events.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")
        commands = (("report", str(run)), _resume(world, run))
        yield Artefact(name=f"event {place}", commands=commands, codes=frozenset({0, 2, 4}), owns=(run,))


def _links(world: World) -> Iterator[Artefact]:
    """Links in a run folder that lead to the reader's own files; writing or reading through them is refused."""
    secret = world.home / "id_rsa"
    for name in (
        ".lock", ".new-report.html", ".new-config.yaml", ".new-events.jsonl", "log.txt", "events.jsonl", "config.yaml",
        "plan.json", "environment.json", "result.json", "predictions.csv", "metrics.csv", "report.html",
    ):  # fmt: skip
        for kind in ("link", "pipe"):
            run = world.copied_run(f"{kind}-{name}")
            (run / name).unlink(missing_ok=True)
            (run / "result.json").unlink(missing_ok=True)
            (run / name).symlink_to(secret) if kind == "link" else os.mkfifo(run / name)
            commands = (("report", str(run)), _resume(world, run))
            yield Artefact(name=f"{kind} {name}", commands=commands, codes=frozenset({0, 2, 4}), owns=(run,))
    for name in ("checkpoints", "model"):
        run = world.copied_run(f"link-{name}")
        (run / "result.json").unlink()
        shutil.rmtree(run / name)
        (run / name).symlink_to(world.home / "empty")
        yield Artefact(
            name=f"link {name}", commands=(_resume(world, run),), codes=frozenset({4}), told="it is a link", owns=(run,)
        )
    for name, target in (("file", secret), ("zero", Path("/dev/zero"))):
        run = world.copied_run(f"link-weights-{name}")
        (run / "model" / "model.safetensors").unlink()
        (run / "model" / "model.safetensors").symlink_to(target)
        yield Artefact(name=f"link weights {name}", commands=_opened(world, run)[:4], owns=(run,))


def _manifests(world: World) -> Iterator[Artefact]:
    entry = {"size": len(world.home.joinpath("id_rsa").read_bytes()), "sha256": "0" * 64}
    names = ("../../../home/id_rsa", str(world.home / "id_rsa"), "..", ".", "a/b", "a\\b", "\u202egnp.exe", "")
    for place, name in enumerate(names):
        run = world.copied_run(f"manifest-{place}")
        facts = json.loads((run / "model" / MANIFEST).read_bytes())
        facts["files"][name] = entry
        _with_digest(facts)
        (run / "model" / MANIFEST).write_bytes(json_bytes(facts))
        yield Artefact(name=f"manifest {place}", commands=_opened(world, run)[:4], codes=frozenset({4}), owns=(run,))
    for kind, content in {
        "list": b"[]", "digest": b'{"files": {}, "digest": "x"}', "pickle": pickle.dumps(payloads(world.mark("mf"))["touch"]),  # noqa: E501
        "deep": b"[" * 200_000, "size": b'{"files": {"a": {"size": 1e400, "sha256": 1}}, "digest": ""}',
    }.items():  # fmt: skip
        run = world.copied_run(f"manifest-{kind}")
        (run / "model" / MANIFEST).write_bytes(content)
        yield Artefact(name=f"manifest {kind}", commands=_opened(world, run)[:4], codes=frozenset({4}), owns=(run,))
    run = world.copied_run("pickled-checkpoint")
    (run / "result.json").unlink()
    for folder in (run / "checkpoints").glob("step-*"):
        shutil.rmtree(folder)
        write_folder(folder, {
            "model.safetensors": _saved({"a": payloads(world.mark("pickled-checkpoint"))["touch"]}),
            "optimizer.safetensors": b"", "state.json": b"{}",
        })  # fmt: skip
    yield Artefact(name="pickled checkpoint", commands=(_resume(world, run),), codes=frozenset({4}), owns=(run,))


def _with_digest(facts: dict[str, Any]) -> None:
    from headstart.storage.durable import _digest

    facts["digest"] = _digest(facts["files"])


def artefacts(world: World) -> Iterator[Artefact]:
    yield from _tampered(world)
    yield from _records(world)
    yield from _links(world)
    yield from _manifests(world)
