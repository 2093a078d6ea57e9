"""Decoding, augmenting and normalising photos, against torchvision's usual pipeline on Pillow.

    python -m benchmarks.pipeline                 measure; print the table of docs/measured/speed.md
    python -m benchmarks.pipeline --fidelity      how far pixels, features and answers are from decoding everything

CPU time of one thread per photo; both sides end with a normalised float batch of 16. Every round runs each way once,
one after the other; the table gives the median of the rounds and their extremes. Photos of 500 x 375, 2000 x 1500 and
4000 x 3000 are made from real ones (hymenoptera under HEADSTART_DATA, else from noise), JPEG quality 90.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as usual

from headstart.data.batch import normalise
from headstart.data.decoding import lazy_image as pictures
from headstart.data.decoding.decode import UnreadableImage, check_image, decode_image
from headstart.data.decoding.decoded_cache import Decoded
from headstart.data.decoding.lazy_image import LazyImage, stack_images
from headstart.data.randomness import drawing_from
from headstart.data.transforms.transforms import (
    EvalTransform,
    RandomResizedCrop,
    TrainTransform,
    eval_transform,
    train_transform,
)
from headstart.machine import environment
from headstart.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from headstart.storage.record_file import RecordFile

ROOT = Path(os.environ.get("HEADSTART_DATA", Path(__file__).parents[1] / ".." / "shared")).resolve()
SIZES = {(500, 375): 16, (2000, 1500): 8, (4000, 3000): 4}  # and how many of them
BATCH = 16
PREPROCESS = Preprocess(
    height=224, width=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear", crop_pct=0.875,
    source="benchmark",
)  # fmt: skip
Way = Callable[[list[bytes]], object]
Ways = dict[str, tuple[Way, str | None]]


def real_photos() -> list[bytes]:
    """Colour JPEGs of at least 300 pixels, the largest first; none where HEADSTART_DATA has none."""
    found = []
    for path in sorted((ROOT / "data" / "hymenoptera").glob("*/*/*.jpg")):
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "JPEG" and image.mode == "RGB" and min(image.size) >= 300:
                found.append((image.size[0] * image.size[1], content))
    return [content for _, content in sorted(found, key=lambda one: -one[0])]


def photos_of(size: tuple[int, int], count: int) -> list[bytes]:
    """JPEG photos of this size."""
    real = real_photos()[:count]
    draw = np.random.default_rng(0)
    made = []
    for place in range(count):
        if real:
            image = Image.open(io.BytesIO(real[place % len(real)])).convert("RGB")
        else:
            image = Image.fromarray(draw.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        ratio = max(size[0] / image.width, size[1] / image.height)
        width, height = size[0] / ratio, size[1] / ratio
        left, top = (image.width - width) / 2, (image.height - height) / 2
        scaled = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        room = io.BytesIO()
        scaled.save(room, "JPEG", quality=90)
        made.append(room.getvalue())
    return made


def _usual(*steps: object) -> Way:
    transform = usual.Compose([*steps, usual.ToTensor(), usual.Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def run(contents: list[bytes]) -> Tensor:
        return torch.stack([transform(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents])

    return run


def _ours(transform: Callable[[LazyImage], Tensor]) -> Way:
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)

    def run(contents: list[bytes]) -> Tensor:
        made = []
        for place, content in enumerate(contents):
            with drawing_from(place):
                made.append(transform(LazyImage(content, where="photo.jpg")))
        return normalise(stack_images(made), mean=mean, std=std, memory_format=torch.channels_last)

    return run


def _kept(transform: TrainTransform | EvalTransform, folder: Path) -> Way:
    """By way of decoded images in a file (which the system holds in memory)."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    room, key = transform.cached_bytes + 64, hashlib.sha256(repr(transform).encode()).hexdigest()
    kept = Decoded(
        transform=transform, file=RecordFile(folder / key, count=sum(SIZES.values()), record_bytes=room, key=key)
    )
    numbers: dict[bytes, int] = {}

    def run(contents: list[bytes]) -> Tensor:
        made = []
        for place, content in enumerate(contents):
            number = numbers.setdefault(content, len(numbers))
            with drawing_from(place):
                made.append(kept.pixels(number, partial(LazyImage, content, where="photo.jpg")))
        return normalise(stack_images(made), mean=mean, std=std, memory_format=torch.channels_last)

    return run


def _with_pillow(way: Way) -> Way:
    """Without simplejpeg."""

    def run(contents: list[bytes]) -> object:
        kept, pictures.simplejpeg = pictures.simplejpeg, None
        try:
            return way(contents)
        finally:
            pictures.simplejpeg = kept

    return run


def _each(what: Callable[[bytes], object]) -> Way:
    return lambda contents: [what(content) for content in contents]


def ways(folder: Path) -> Ways:
    """What is measured, by name, and what it is compared with; decoded images are kept in the folder."""
    crop, flip = usual.RandomResizedCrop(224), usual.RandomHorizontalFlip()
    same = TrainTransform(
        framed=RandomResizedCrop(preprocess=PREPROCESS, scale=(0.08, 1.0)), flips=True, colours="kept"
    )
    presets = {name: _ours(train_transform(name, flip="auto", preprocess=PREPROCESS)) for name in ("light", "strong")}
    standard, jitter = train_transform("standard", flip="auto", preprocess=PREPROCESS), usual.ColorJitter(0.2, 0.2, 0.2)
    train, train_jitter, train_wide = (
        "usual: crop, flip",
        "usual: crop, flip, jitter",
        "usual: crop, flip, TrivialAugment",
    )
    evaluation, whole = "usual evaluation", "decoded whole"
    return {
        train: (_usual(crop, flip), None),
        "the same crops and flips": (_ours(same), train),
        "the same, without simplejpeg": (_with_pillow(_ours(same)), train),
        "preset light": (presets["light"], train),
        train_jitter: (_usual(crop, flip, jitter), None),
        "preset standard": (_ours(standard), train_jitter),
        "preset standard, decoded before": (_kept(standard, folder), train_jitter),
        train_wide: (_usual(crop, flip, usual.TrivialAugmentWide()), None),
        "preset strong": (presets["strong"], train_wide),
        evaluation: (_usual(usual.Resize(256), usual.CenterCrop(224)), None),
        "evaluation": (_ours(eval_transform(PREPROCESS)), evaluation),
        "evaluation, decoded before": (_kept(eval_transform(PREPROCESS), folder), evaluation),
        "evaluation, without simplejpeg": (_with_pillow(_ours(eval_transform(PREPROCESS))), evaluation),
        whole: (_each(lambda content: decode_image(content, where="x")), None),
        "the scan's check": (_each(lambda content: check_image(content, where="x")), whole),
    }


def measured(known: Ways, contents: list[bytes], *, rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds per photo of each way in each round, in batches of 16."""
    batch = [contents[place % len(contents)] for place in range(BATCH)]
    times: dict[str, list[float]] = {name: [] for name in known}
    for _ in range(rounds + 1):
        for name, (way, _) in known.items():
            start = time.process_time()
            way(batch)
            times[name].append((time.process_time() - start) / BATCH * 1000)
    return {name: some[1:] for name, some in times.items()}  # the first round decodes what is kept


def table(rounds: int) -> Iterator[str]:
    """Lines of Markdown."""
    with TemporaryDirectory() as folder:
        known = ways(Path(folder))
        times = {size: measured(known, photos_of(size, count), rounds=rounds) for size, count in SIZES.items()}
    yield "| ms per photo | " + " | ".join(f"{width} x {height}" for width, height in SIZES) + " |"
    yield "|---" * (len(SIZES) + 1) + "|"
    for name, (_, against) in known.items():
        cells = []
        for one in times.values():
            middle = statistics.median(one[name])
            text = f"{middle:.2f} ({min(one[name]):.2f} - {max(one[name]):.2f})"
            cells.append(f"{text}, **{statistics.median(one[against]) / middle:.1f}x**" if against else text)
        yield f"| {name} | " + " | ".join(cells) + " |"


def fidelity(side: int, *, limit: int = 300) -> str:
    """Pixels, features and answers of the evaluation pipeline, against Pillow's full decode and torchvision."""
    import timm

    weights = ROOT / "weights" / "mobilenetv2_100.tf_in1k"
    model = timm.create_model(f"local-dir:{weights}", pretrained=True).eval()
    preprocess = Preprocess(
        height=side, width=side, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=0.875, source="b"
    )
    resize = usual.Compose([usual.Resize(int(side / 0.875)), usual.CenterCrop(side), usual.PILToTensor()])
    ours, theirs = [], []
    for content in real_photos()[:limit]:
        try:
            picture = LazyImage(content, where="x")
        except UnreadableImage:
            continue
        ours.append(EvalTransform(preprocess=preprocess)(picture))
        theirs.append(resize(Image.open(io.BytesIO(content)).convert("RGB")))
    apart = torch.stack([(one.float() - other).abs().mean() for one, other in zip(ours, theirs, strict=True)])
    (new, said), (old, before) = (_answers(model, torch.stack(pixels)) for pixels in (ours, theirs))
    relative = (new - old).norm(dim=1) / old.norm(dim=1)
    return (
        f"{side} px, {len(ours)} photos: {apart.mean():.3f} levels apart on average (at most {apart.max():.2f}); "
        f"features {relative.median():.4f} relative (at most {relative.max():.3f}); same answer for "
        f"{(said == before).float().mean():.1%}"
    )


@torch.inference_mode()
def _answers(model: torch.nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    found = []
    for part in pixels.split(16):
        maps = model.forward_features((part.float() / 255 - 0.5) / 0.5)  # type: ignore[operator]
        found.append(model.forward_head(maps, pre_logits=True))  # type: ignore[operator]
    features = torch.cat(found)
    return features, model.get_classifier()(features).argmax(1)  # type: ignore[operator]


def main() -> None:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fidelity", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    facts = environment(torch.device("cpu"))
    installed = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "pillow", "simplejpeg"))
    print(f"{facts['cpu']}, {facts['instruction_set']}, one thread; Python {platform.python_version()}, {installed}\n")
    if given.fidelity:
        for side in (224, 128, 64):  # at 64 photos of 500 x 375 are decoded at half their size
            print(fidelity(side))
        return
    print("\n".join(table(given.rounds)))


if __name__ == "__main__":
    main()
