"""Malicious artefacts, made anew in a folder of the tests' own; nothing of the kind is committed.

``artefacts(world)`` gives each with the commands that could read it. A payload that runs leaves a marker.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = ("--image-size", "32", "--recipe", "full", "--epochs", "1", "--workers", "0", "--device", "cpu")
MODEL = "timm/test_resnet"
PARTS = ("weights", "runs", "configs", "data")
SECRET = "a private key that no command may copy, show or overwrite"


@dataclass(frozen=True, kw_only=True)
class World:
    """Folders: ``home`` must stay as it is, ``work`` holds the artefacts, ``marks`` shows what was executed."""

    home: Path
    work: Path
    marks: Path
    photos: Path
    run: Path
    """A finished run of ``photos``."""

    def at(self, name: str) -> Path:
        """A place for an artefact, its folder made."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def mark(self, name: str) -> Path:
        """The file that a payload of this name would make."""
        return self.marks / name.replace("/", "_")

    def copied_run(self, name: str) -> Path:
        """A copy of the finished run to tamper with; links in it are ours."""
        target = self.at(name)
        shutil.copytree(self.run, target, symlinks=True)
        config = target / "config.yaml"
        config.write_text(config.read_text().replace(f"out: {self.run}", f"out: {target}"))
        return target


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """What is typed, with the exit codes and the words that are right; ``owns`` are folders that may change."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    codes: frozenset[int] = frozenset({2, 4})
    told: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    owns: tuple[Path, ...] = ()


def train(
    world: World, *words: str, out: str = "", data: Path | str | None = None, model: str = MODEL
) -> tuple[str, ...]:
    """``headstart train`` of the small model with some words more."""
    weights = () if "--weights" in words else ("--weights", "none")
    where = out or str(world.work / "out" / f"{len(list(world.work.iterdir()))}")
    named = ("--model", model) if model else ()
    return ("train", str(data or world.photos), *named, *weights, *SMALL, "--out", where, *words)


def plan(world: World, *words: str, data: Path | str | None = None, model: str = MODEL) -> tuple[str, ...]:
    """``headstart plan`` likewise."""
    weights = () if "--weights" in words else ("--weights", "none")
    return ("plan", str(data or world.photos), *(("--model", model) if model else ()), *weights, *SMALL, *words)


def everywhere(world: World, path: Path) -> tuple[tuple[str, ...], ...]:
    """Every command that takes a path, given this one in each of its places."""
    text = str(path)
    return (
        train(world, "--weights", text),
        ("describe", MODEL, "--weights", text),
        train(world, model=text),
        ("describe", text),
        train(world, data=path),
        plan(world, data=path),
        ("train", str(world.photos), "--config", text),
        ("evaluate", str(world.run), text),
        ("evaluate", text, str(world.photos)),
        ("predict", str(world.run), text),
        ("predict", text, str(world.photos)),
        ("report", text),
    )


def make_world(root: Path) -> World:
    """The folders and some pictures; the run is still to be trained."""
    world = World(
        home=root / "home", work=root / "work", marks=root / "marks", photos=root / "photos", run=root / "runs" / "good"
    )
    for folder in (world.home, world.work, world.marks):
        folder.mkdir(parents=True)
    (world.home / "id_rsa").write_text(SECRET)
    (world.home / "empty").mkdir()
    (world.home / "folder").mkdir()
    (world.home / "folder" / "step-00000001").mkdir()
    (world.home / "folder" / "step-00000001" / "kept.txt").write_text(SECRET)
    draw(world.photos)
    Image.new("RGB", (40, 40), (9, 9, 9)).save(world.home / "private.png")
    return world


def draw(root: Path, *, each: int = 6, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Class folders with distinct noisy pictures."""
    noise = np.random.default_rng(0)
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            pixels = np.clip(noise.normal(60 + 120 * place, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def artefacts(world: World, parts: tuple[str, ...] = PARTS) -> Iterator[Artefact]:
    """All of them, or those of some parts."""
    for part in parts:
        yield from import_module(f"corpus_{part}").artefacts(world)
