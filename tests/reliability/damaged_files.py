"""Damaged checkpoints and bundles: ways to damage a folder, and what it is read as afterwards."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from headstart.errors import Error
from headstart.models.folder import WEIGHTS
from headstart.models.sources import open_model
from headstart.models.weights import read_safetensors
from headstart.runs.bundle import open_run
from headstart.runs.checkpoint import read_checkpoint, restore, save
from headstart.storage.durable import MANIFEST, read_folder, write_folder
from headstart.storage.tensors import pack_tensors
from tests.reliability.saves import move, small_state

Files = Mapping[str, bytes]
Read = Callable[[Path], object]
KINDS = (
    "flipped", "flipped", "flipped", "cut", "inserted", "deleted", "zeroed", "removed", "emptied", "swapped",
    "exchanged", "manifest of another", "mixed", "renamed",
)  # fmt: skip


def damage(folder: Path, other: Path, draw: random.Random) -> tuple[str, Path]:
    """Damage a folder in one way, with the help of another generation of it; what was done, and where it is now."""
    kind = draw.choice(KINDS)
    names = sorted(path.name for path in folder.iterdir())
    path = folder / draw.choice(names)
    if kind == "renamed":
        return kind, folder.rename(folder.with_name(f"step-{draw.randrange(10**8):08d}"))
    if kind in ("removed", "swapped", "exchanged", "manifest of another", "mixed"):
        _move_files(kind, path, other, draw, names)
        return f"{path.name} {kind}", folder
    path.write_bytes(_changed(kind, path.read_bytes(), draw))
    return f"{path.name} {kind}", folder


def _move_files(kind: str, path: Path, other: Path, draw: random.Random, names: list[str]) -> None:
    folder = path.parent
    if kind == "removed":
        path.unlink()
    elif kind == "exchanged":
        second = folder / draw.choice([name for name in names if name != path.name])
        one, two = path.read_bytes(), second.read_bytes()
        path.write_bytes(two)
        second.write_bytes(one)
    else:
        some = {"swapped": [path.name], "manifest of another": [MANIFEST]}.get(
            kind, draw.sample(names, draw.randrange(2, len(names)))
        )
        for name in some:
            shutil.copyfile(other / name, folder / name)


def _changed(kind: str, data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    end = min(len(data), place + draw.choice([1, 2, 8, 512]))
    match kind:
        case "flipped":
            return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
        case "cut":
            return data[:place]
        case "inserted":
            return data[:place] + draw.randbytes(end - place) + data[place:]
        case "deleted":
            return data[:place] + data[end:]
        case "zeroed":
            return data[:place] + bytes(end - place) + data[end:]
        case _:
            return b""


def judged(one: Path, other: Path, read: Read, whole: tuple[object, object], draw: random.Random) -> str:
    """What comes of a damaged copy of ``one``: refused, same, or what went wrong.

    ``whole``: what the two undamaged generations are read as.
    """
    root = one.parent / "damaged"
    shutil.copytree(one, root / one.name)
    try:
        done, folder = damage(root / one.name, other, draw)
        names = [folder.name] if done == "renamed" else [path.name for path in one.iterdir()]
        try:
            found = read(folder)
        except Error as error:
            named = str(root) in str(error) and any(name in str(error) for name in names)
            return "refused" if named else f"{done}: refused without a name: {error}"
        return "same" if found in whole else f"{done}: read as something else"
    finally:
        shutil.rmtree(root)


def checkpoints(work: Path) -> tuple[Path, Path]:
    """Two checkpoints of one model."""
    folders = []
    for step in (1, 2):
        state = small_state()
        move(state, step, 1, is_best=True)
        folders.append(save(state, work / str(step)))
    return folders[0], folders[1]


def read_as_checkpoint(folder: Path) -> object:
    """What a resume finds in the folder that holds it, put into a state."""
    found = read_checkpoint(folder.parent)
    state = small_state()
    assert found is not None
    restore(state, folder.parent)
    return dict(found.files), pack_tensors(state.model.state_dict()), state.step


def bundles(run: Path, work: Path) -> tuple[Path, Path]:
    """A finished run's bundle, and one with other weights and metrics that is as good."""
    work.mkdir()
    files = read_folder(run / "model")
    one, two = work / "one", work / "two"
    write_folder(one, files)
    tensors = read_safetensors(files[WEIGHTS], where="the bundle").tensors
    changed = {name: value + 0.5 if value.is_floating_point() else value for name, value in tensors.items()}
    facts = files["headstart.json"].replace(b'"accuracy": ', b'"accuracy":  ')
    write_folder(two, {**files, WEIGHTS: pack_tensors(changed), "headstart.json": facts})
    return one, two


def read_as_run(folder: Path) -> object:
    """What predictions would be made with."""
    opened = open_run(folder)
    return pack_tensors(opened.model.state_dict()), dict(opened.facts), opened.task, opened.preprocess


def read_as_model(folder: Path) -> object:
    """What another run would start from."""
    opened = open_model(str(folder))
    return pack_tensors(opened.module.state_dict()), opened.bundle, opened.preprocess
