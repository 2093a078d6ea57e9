"""Damaged images: twelve kinds of damage, mutants of six formats, and what a run and a decoder make of them."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import headstart as hs
from headstart.data.decoding.crops import Frame
from headstart.data.decoding.decode import UnreadableImage, decode_image
from headstart.data.decoding.lazy_image import LazyImage, render
from tests.reliability.lives import COLOURS, facts, settings

Damage = Callable[[Path, random.Random], None]
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tiff"}


def picture(draw: random.Random, *, colour: tuple[int, int, int] = (90, 120, 150), side: int = 24) -> Image.Image:
    """A noisy coloured square."""
    noise = np.random.default_rng(draw.randrange(2**32)).normal(0, 50, (side, side, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str) -> bytes:
    """The image as a file of this format."""
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def _cut(kind: str) -> Damage:
    def spoil(path: Path, draw: random.Random) -> None:
        whole = encoded(picture(draw), kind)
        path.write_bytes(whole[: draw.randrange(len(whole) // 4, len(whole) // 2)])

    return spoil


def _bytes(content: bytes) -> Damage:
    return lambda path, _: path.write_bytes(content) and None


def _noise(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(500))


def _pipe(path: Path, _: random.Random) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _flipped(path: Path, draw: random.Random) -> None:
    """One wrong byte in the pixels of a PNG, whose checksum tells."""
    content = bytearray(encoded(picture(draw), "PNG"))
    content[content.index(b"IDAT") + draw.randrange(20, 200)] ^= 0xFF
    path.write_bytes(content)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb(path: Path, _: random.Random) -> None:
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = _chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + pixels + _chunk(b"IEND", b""))


DAMAGES: dict[str, Damage] = {
    "JPEG cut": _cut("JPEG"), "PNG cut": _cut("PNG"), "WEBP cut": _cut("WEBP"), "GIF cut": _cut("GIF"),
    "BMP cut": _cut("BMP"), "TIFF cut": _cut("TIFF"), "empty": _bytes(b""), "web page": _bytes(b"<!doctype html><p>"),
    "random bytes": _noise, "PNG with a wrong byte": _flipped, "bomb": _bomb, "pipe": _pipe,
}  # fmt: skip


def drawn(root: Path, *, count: int, splits: tuple[str, ...], draw: random.Random) -> list[Path]:
    """So many pictures of six formats under root/SPLIT/CLASS; some named as another format, some of 16 bits."""
    paths = []
    for place in range(count):
        split, (name, colour) = splits[place % len(splits)], list(COLOURS.items())[place % len(COLOURS)]
        kind = list(SUFFIXES)[place % len(SUFFIXES)]
        suffix = ".png" if place % 10 == 3 else SUFFIXES[kind]
        path = root / split / name / f"{place:04}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if place % 50 == 7:
            grey = np.asarray(picture(draw, colour=colour).convert("L")).astype(np.uint16) * 257
            Image.fromarray(grey).save(path.with_suffix(".png"))
            path = path.with_suffix(".png")
        else:
            path.write_bytes(encoded(picture(draw, colour=colour), kind))
        paths.append(path)
    return paths


def spoil(paths: list[Path], *, count: int, draw: random.Random) -> dict[Path, str]:
    """Damage so many of the files, each kind in turn; which, and how."""
    chosen = draw.sample(paths, count)
    kinds = list(DAMAGES)
    found = {path: kinds[place % len(kinds)] for place, path in enumerate(chosen)}
    for path, kind in found.items():
        DAMAGES[kind](path, draw)
    return found


def skipped_like_absent(
    root: Path, *, images: int, damaged: int, splits: tuple[str, ...], seed: int
) -> tuple[int, int]:
    """How many damaged files are named with a reason in plan and report, and how many of the runs (0 and 2 loading
    processes) have the bits of the run without them."""
    draw = random.Random(seed)
    source = root / "data"
    spoiled = spoil(drawn(source, count=images, splits=splits, draw=draw), count=damaged, draw=draw)
    found: list[Path] = []
    for workers in (0, 2):
        run = root / f"skipped-{workers}"
        sections = {
            "data": {"unreadable": "skip", "unreadable_share": 0.2, "test": 0.1},
            "workers": workers,
            "recipe": "full",
            "epochs": 1,
        }
        hs.train(hs.load_config(settings(source, run, **sections)))
        found.append(run)
    named = {
        one["path"]: one["reason"] for one in json.loads((found[0] / "plan.json").read_text())["data"]["unreadable"]
    }
    page = (found[0] / "report.html").read_text()
    keys = {path: path.relative_to(source).as_posix() for path in spoiled}
    good = sum(bool(named.get(key)) and key in page for key in keys.values()) if len(named) == damaged else 0
    for path in spoiled:
        path.unlink()
    sections = {"data": {"test": 0.1}, "workers": 0, "recipe": "full", "epochs": 1}
    clean = facts(hs.train(hs.load_config(settings(source, root / "clean", **sections))).path)
    return good, sum(facts(run) == clean for run in found)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A file with a few bytes flipped, or cut short, or with bytes put in or taken out."""
    data, place = bytearray(content), draw.randrange(len(content))
    match draw.randrange(4):
        case 0:
            for _ in range(draw.choice((1, 1, 2, 8))):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case 1:
            del data[place:]
        case 2:
            data[place:place] = draw.randbytes(draw.randrange(1, 32))
        case _:
            del data[place : place + draw.randrange(1, 32)]
    return bytes(data)


def deaths(kind: str, *, mutants: int, seed: int) -> tuple[int, int]:
    """(processes that died, mutants that gave no picture) of a format; a process decodes until it dies."""
    draw = random.Random(f"{seed}/{kind}")
    files = [mutated(encoded(picture(draw, side=64), kind), draw) for _ in range(mutants)]
    died = refused = place = 0
    while place < mutants:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            _decode(files[place:], write)
        os.close(write)
        with os.fdopen(read, "rb") as told:
            said = told.read()
        _, status = os.waitpid(pid, 0)
        refused += said.count(b"-")
        died += status != 0
        place += len(said) + (status != 0)
    return died, refused


def _decode(files: list[bytes], write: int) -> None:
    """In a process of its own: one byte for each file, ``+`` a picture, ``-`` our error; anything else is a death."""
    code = 1
    try:
        for content in files:
            try:
                decode_image(content, where="x")
                opened = LazyImage(content, where="x")
                for shown in ((8, 8), (64, 64)):  # decoded to an eighth, and whole
                    frame = Frame(box=(0, 0, *opened.size), scaled=shown, shown=shown)
                    render(opened, frame, interpolation="bilinear", gap=1.0)
                os.write(write, b"+")
            except UnreadableImage:
                os.write(write, b"-")
        code = 0
    finally:
        os._exit(code)
