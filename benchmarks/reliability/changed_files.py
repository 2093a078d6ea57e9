"""Image files that change while a run is under way, and what looking for that costs.

python -m benchmarks.reliability.changed_files [TRIALS]

A trial changes one file in one way at one moment of a run, puts it back, and asks for the bits of a run that nothing
disturbed: from the disturbed run, gone on with, and from a new one that finds its caches. A run may go on undisturbed
where nothing computed from the file can have changed: the same bytes again, or pictures that are in a cache already.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import headstart as hs
from benchmarks.reliability.results import keep
from headstart.data.reading import ChangedImage
from headstart.data.sources.files import read_file
from headstart.data.sources.source import MAX_BYTES
from headstart.models.preprocess import imagenet_preprocess

Bits = tuple[bytes, bytes]
"""Weights and predictions of a run."""
TRIALS = 60
CACHES = {
    "none": {"recipe": "full", "cache": {"use": "never"}},
    "activations": {"recipe": "probe", "cache": {"use": "always"}},
    "decoded": {"recipe": "full", "cache": {"use": "never", "decoded": True}},
}
MOMENTS = ("Decided", "PhaseStarted", "StepDone 1", "StepDone 4", "EpochDone 1", "Saved 3")
COLOURS = ("blue", "green", "red")


def other_picture(path: Path, draw: random.Random) -> None:
    """Another picture under this name."""
    noise = np.random.default_rng(draw.randrange(2**32)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def one_byte(path: Path, draw: random.Random) -> None:
    """One byte changed, size and time of the file as they were."""
    content, facts = bytearray(path.read_bytes()), path.stat()
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def cut_short(path: Path, draw: random.Random) -> None:
    """The first part of the file."""
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def replaced(path: Path, draw: random.Random) -> None:
    """Another file moved over it."""
    beside = path.with_name("new.tmp")
    other_picture(beside.with_suffix(".png"), draw)
    beside.with_suffix(".png").replace(path)


def removed(path: Path, _: random.Random) -> None:
    """No file."""
    path.unlink()


def the_same(path: Path, _: random.Random) -> None:
    """The same bytes, written again."""
    path.write_bytes(path.read_bytes())


CHANGES: tuple[Callable[[Path, random.Random], None], ...] = (
    other_picture, one_byte, cut_short, replaced, removed, the_same,
)  # fmt: skip


def pictures(folder: Path) -> Path:
    """Three classes of noisy pictures, split."""
    for split, each in (("train", 8), ("val", 4)):
        for number, colour in enumerate(COLOURS):
            (folder / split / colour).mkdir(parents=True)
            for place in range(each):
                noise = np.random.default_rng(100 * number + place + each).integers(0, 160, (32, 32, 3), dtype=np.uint8)
                noise[..., number] += 90
                Image.fromarray(noise).save(folder / split / colour / f"{place:02}.png")
    return folder


def run(
    source: Path, out: Path, cache: str, *, watch: Callable[[object], None] | None = None, resume: bool = False
) -> Bits:
    """A run of two epochs."""
    model = {"name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": [8, 8, 16, 16]}}
    options = {
        "data": {"source": str(source)}, "model": model, "batch": {"size": 8}, "epochs": 2, "workers": 0,
        "device": "cpu", "out": str(out), **CACHES[cache],
    }  # fmt: skip
    hs.train(hs.load_config(options), watch=watch, resume=resume)
    return (out / "model" / "model.safetensors").read_bytes(), (out / "predictions.csv").read_bytes()


def trial(number: int, folder: Path, wanted: dict[str, Bits]) -> tuple[str, bool]:
    """What happened, and whether all was right."""
    draw = random.Random(number)
    cache, moment, change = draw.choice(sorted(CACHES)), draw.choice(MOMENTS), draw.choice(CHANGES)
    source = folder / "data"
    victim = draw.choice(sorted(source.rglob("*.png")))
    right, (event, _, count) = victim.read_bytes(), moment.partition(" ")
    done = False

    def watch(seen: object) -> None:
        nonlocal done
        at = getattr(seen, "epoch" if event == "EpochDone" else "step", None)
        if not done and type(seen).__name__ == event and (not count or at == int(count)):
            done = True
            change(victim, draw)

    os.environ["HEADSTART_CACHE"] = str(folder / f"cache {number}")
    out = folder / f"run {number}"
    try:
        run(source, out, cache, watch=watch)
        told = "went on"
    except ChangedImage as error:
        told = "stopped" if victim.name in str(error) and error.exit_code == 1 else f"stopped oddly: {error}"
    victim.write_bytes(right)
    equal = [
        run(source, out, cache, resume=True) == wanted[cache],
        run(source, folder / f"later {number}", cache) == wanted[cache],
    ]
    expected = told in (("went on",) if change is the_same else ("stopped", "went on"))
    if not expected or not all(equal):
        print(f"trial {number}: {cache}, {moment}, {change.__name__}, {victim.name}: {told}, {equal}", flush=True)
    return told, expected and all(equal)


def cost(photos: Path, *, rounds: int = 9) -> dict[str, float]:
    """Microseconds of CPU time an image, the best of some rounds: plainly read, read with its stamp, its SHA-256, and
    all of it decoded and resized; and the shares that stamp and SHA-256 have in that.
    """
    torch.set_num_threads(1)
    train = hs.open_images(photos, like=imagenet_preprocess(channels=3, source="t"), batch_size=64).train
    samples = train.samples[:960]
    assert all(sample.stamp for sample in samples), "the photos are younger than 3 s"
    paths = [train.source.paths[sample.key] for sample in samples]
    contents = [path.read_bytes() for path in paths]
    work: dict[str, Callable[[], object]] = {
        "plain": lambda: [_plainly(path) for path in paths],
        "stamp": lambda: [read_file(path)[1] == sample.stamp for path, sample in zip(paths, samples, strict=True)],
        "digest": lambda: [hashlib.sha256(content).hexdigest() for content in contents],
        "decoded": lambda: [batch.size for batch in replace(train.with_samples(samples), workers=0).epoch(0)],
    }
    seconds = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, action in work.items():
            started = time.process_time()
            action()
            seconds[name] = min(seconds[name], time.process_time() - started)
    found = {name: round(1e6 * value / len(samples), 1) for name, value in seconds.items()}
    return found | {
        "kB": round(sum(map(len, contents)) / len(samples) / 1000, 1),
        "stamp share": round((seconds["stamp"] - seconds["plain"]) / seconds["decoded"], 4),
        "digest share": round(seconds["digest"] / seconds["decoded"], 4),
    }


def _plainly(path: Path) -> bytes:
    """Read with the checks of the same kind that need no stamp."""
    assert path.exists()
    assert path.is_file()
    assert path.stat().st_size < MAX_BYTES
    return path.read_bytes()


def main() -> None:
    """All trials, then the cost."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS
    told: Counter[str] = Counter()
    right = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = pictures(folder / "data")
        os.environ["HEADSTART_CACHE"] = str(folder / "cache")
        wanted: dict[str, Bits] = {cache: run(source, folder / f"whole {cache}", cache) for cache in CACHES}
        for number in range(trials):
            what, fine = trial(number, folder, wanted)
            told[what] += 1
            right += fine
    keep(
        "P14", what="a file of the data is changed in one of 6 ways at one of 6 moments of a run, and put back",
        goal="stopped and named, or nothing computed from it can have changed; resumed and later runs equal",
        found=f"{right} of {trials} ({told['stopped']} stopped, {told['went on']} went on)", met=right == trials,
        command=f"python -m benchmarks.reliability.changed_files {trials}",
    )  # fmt: skip
    photos = Path(os.environ.get("HEADSTART_DATA", "../shared"), "data", "flowers5")
    if photos.is_dir():
        spent = cost(photos)
        keep(
            "cost", what=f"files compared with the scan, photos of {spent['kB']} kB decoded and resized, no training",
            goal="at most 1 % of an epoch", met=spent["stamp share"] <= 0.01, **{"microseconds per image": spent},
            found=f"{spent['stamp share']:.1%}; {spent['digest share']:.1%} where what is made of them is kept, once",
            command="python -m benchmarks.reliability.changed_files",
        )  # fmt: skip


if __name__ == "__main__":
    main()
