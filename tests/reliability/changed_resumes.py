"""What changes between a kill and ``--resume``: a change is made, the run goes on, and what comes of it is told."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import headstart as hs
from tests.reliability.resume_changes.config import config_changes
from tests.reliability.resume_changes.data import folder_changes, table_changes
from tests.reliability.resume_changes.files import file_changes
from tests.reliability.resume_changes.own import loss_changes, module_changes, process_changes
from tests.reliability.resume_changes.worlds import WORLDS, Change, World

KINDS: dict[str, tuple[str, Callable[[], Iterable[Change]]]] = {
    "own module": ("own", module_changes),
    "own loss": ("own", loss_changes),
    "process": ("own", process_changes),
    "config": ("own", config_changes),
    "images": ("named", folder_changes),
    "table": ("table", table_changes),
    "files": ("named", file_changes),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a change led to: refused, the same bits, or broken; and the words."""

    kind: str
    change: str
    verdict: str
    words: str


class Stopped(Exception):
    """A kill."""


def killed(world: World) -> None:
    """Make the run up to its third checkpoint."""
    saved = 0

    def watch(event: object) -> None:
        nonlocal saved
        saved += type(event).__name__ == "Saved"
        if saved == 3:
            raise Stopped

    given = world.given()
    try:
        hs.train(given.config(), model=given.model(), loss=given.loss, watch=watch)
    except Stopped:
        return
    raise AssertionError("the run ended before it was killed")


def results(run: Path) -> dict[str, bytes]:
    """The bits that a run is for."""
    return {name: (run / name).read_bytes() for name in ("model/model.safetensors", "predictions.csv")}


def resumed(world: World, change: Change, expected: dict[str, bytes], kind: str) -> Outcome:
    """Make a change, go on, and judge."""
    given, notes = world.given(), list[str]()
    with change.made(world, given):
        try:
            run = hs.train(
                given.config(), model=given.model(), loss=given.loss, resume=True,
                watch=lambda event: notes.append(getattr(event, "text", "")),
            )  # fmt: skip
        except hs.Error as error:
            said = str(error).replace(str(world.root), "")
            named = any(name in said for name in change.names or ("",)) and "cannot be written" not in said
            return Outcome(kind, change.name, "refused" if named else "refused, but not by name", said)
    found = results(run.path)
    differ = [name for name, value in expected.items() if found[name] != value]
    told = "; ".join(note for note in notes if "passed over" in note)
    return Outcome(kind, change.name, f"BROKEN: {', '.join(differ)}" if differ else "same bits", told)


@contextmanager
def killed_world(name: str, root: Path) -> Iterator[tuple[World, Path, dict[str, bytes]]]:
    """A world with a killed run, a copy of it, and the results of the run that was not killed."""
    world = WORLDS[name](root / name)
    whole = world.given()
    expected = results(hs.train(whole.config(), model=whole.model(), loss=whole.loss).path)
    shutil.rmtree(world.run)
    killed(world)
    copy = root / f"{name}-copy"
    shutil.copytree(world.root, copy, symlinks=True)
    yield world, copy, expected


def put_back(world: World, copy: Path) -> None:
    """The world as it was when the run was killed."""
    shutil.rmtree(world.root)
    shutil.copytree(copy, world.root, symlinks=True)


def outcomes(kinds: Iterable[str], *, only: Callable[[Change], bool] = lambda _: True) -> Iterator[Outcome]:
    """Each change of these kinds, tried."""
    with tempfile.TemporaryDirectory() as root:
        for name in WORLDS:
            wanted = [kind for kind in kinds if KINDS[kind][0] == name]
            if not wanted:
                continue
            with killed_world(name, Path(root)) as (world, copy, expected):
                for kind in wanted:
                    for change in filter(only, KINDS[kind][1]()):
                        put_back(world, copy)
                        yield resumed(world, change, expected, kind)
