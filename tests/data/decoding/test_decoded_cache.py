"""Decoded images kept on the disk: the same pixels, whatever is missing or damaged."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.data.augmentation import Augmentation
from headstart.data.dataset import ImageDataset
from headstart.data.decoding.decoded_cache import Decoded, open_decoded_cache
from headstart.data.loader import Batches
from headstart.data.sources.files import read_file
from headstart.data.sources.samples import Sample
from headstart.data.sources.source import Record
from headstart.data.transforms.transforms import eval_transform, train_transform
from headstart.models.preprocess import Preprocess
from headstart.storage.disk_cache import DiskCache
from headstart.tasks.task import TaskSpec

SIZE = 32
WORKING = 55  # ceil(32 / sqrt(0.35))


def shown(interpolation: str = "bilinear", channels: int = 3) -> Preprocess:
    return Preprocess(
        height=SIZE, width=SIZE, mean=(0.5,) * channels, std=(0.5,) * channels, crop_pct=0.875,
        interpolation=interpolation, crop_mode="center", source="test",
    )  # fmt: skip


@pytest.fixture
def photo(tmp_path: Path):
    """Writes a picture that is smooth and rough, and gives its sample."""

    def make(number: int, size: tuple[int, int], *, suffix: str = ".jpg", **options) -> Sample:
        wide, high = size
        across, down = np.meshgrid(np.arange(wide), np.arange(high))
        noise = np.random.default_rng(number).integers(0, 40, (high, wide, 3))
        waves = [np.sin(across / wide * 9 + number), np.cos(down / high * 7), np.sin((across + down) / wide * 5)]
        values = 100 + 80 * np.stack(waves, 2) + noise
        path = tmp_path / f"{number}{suffix}"
        Image.fromarray(values.astype(np.uint8)).save(path, **options)
        return Sample(record=Record(name=str(path), digest=_digest(path)), index=number, target=0)

    return make


class Photos:
    """Files whose names are their paths."""

    name = "photos"

    def records(self) -> list[Record]:
        return []

    def read(self, record: Record) -> bytes:
        return read_file(record.name)[0]

    def where(self, record: Record) -> str:
        return record.name


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def batches(samples, *, preset: str | None, preprocess: Preprocess | None = None) -> Batches:
    preprocess = preprocess or shown()
    transform = (
        eval_transform(preprocess) if preset is None else train_transform(preset, flip="auto", preprocess=preprocess)
    )
    images = ImageDataset(
        source=Photos(), samples=tuple(samples), task=TaskSpec(kind="classify", classes=("a",)), preprocess=preprocess,
        transform=transform, augmentation=None if preset is None else Augmentation(seed=1),
    )  # fmt: skip
    return Batches(dataset=images, batch_size=3)


def kept(made: Batches, folder: Path) -> Batches:
    shelf = DiskCache(folder, limit_bytes=10**9)
    decoded = open_decoded_cache(Decoded(transform=made.images.transform), made.samples, shelf, about="test")
    return replace(made, dataset=replace(made.images, decoded=decoded))


def pixels(made: Batches, *, epochs: int = 2) -> torch.Tensor:
    return torch.cat([batch.pixels for epoch in range(epochs) for batch in made.epoch(epoch)])


SMALL = [(60, 45), (45, 60), (40, 40), (67, 45), (33, 45)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("preset", [None, "none", "light", "standard", "strong"])
def test_small_photos_keep_every_bit(photo, tmp_path, monkeypatch, preset, interpolation) -> None:
    samples = [photo(number, size) for number, size in enumerate(SMALL)]
    plain = batches(samples, preset=preset, preprocess=shown(interpolation))
    made, wanted = kept(plain, tmp_path / "cache"), pixels(plain)
    assert torch.equal(pixels(made), wanted)
    for sample in samples:
        Path(sample.key).unlink()  # what comes now was kept
    assert torch.equal(pixels(made), wanted)


def test_a_frame_that_is_not_random_is_the_same_for_any_photo(photo, tmp_path) -> None:
    samples = [photo(number, size) for number, size in enumerate([(900, 700), (400, 1100), (60, 50)])]
    plain = batches(samples, preset=None)
    assert torch.equal(pixels(kept(plain, tmp_path / "cache")), pixels(plain))


@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
def test_a_large_photo_is_kept_at_the_working_size_and_cropped_as_without(photo, tmp_path, interpolation) -> None:
    samples = [photo(0, (900, 700)), photo(1, (640, 480), exif=_lying())]
    plain = batches(samples, preset="standard", preprocess=shown(interpolation))
    made = kept(plain, tmp_path / "cache")
    assert (pixels(made).float() - pixels(plain).float()).abs().mean() < 6  # of 255, in half noise
    changes = plain.images.transform
    whole = changes.keep(Image.open(samples[0].key)).pixels
    assert tuple(whole.shape) == (WORKING, -(-WORKING * 900 // 700), 3)


def _lying() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_no_room_on_the_disk_changes_no_pixel(photo, tmp_path) -> None:
    plain = batches([photo(0, (900, 700)), photo(1, (60, 50))], preset="standard")
    without_file = replace(plain, dataset=replace(plain.images, decoded=Decoded(transform=plain.images.transform)))
    assert torch.equal(pixels(without_file), pixels(kept(plain, tmp_path / "cache")))


def test_a_photo_too_long_for_its_page_is_decoded_each_time(photo, tmp_path) -> None:
    plain = batches([photo(0, (400, 54)), photo(1, (60, 50))], preset="standard")
    made = kept(plain, tmp_path / "cache")
    assert torch.equal(pixels(made), pixels(plain))
    Path(plain.samples[0].key).unlink()
    with pytest.raises(Exception, match=r"0\.jpg: there is no such file"):
        pixels(made)


def test_a_damaged_page_is_decoded_again(photo, tmp_path) -> None:
    plain = batches([photo(number, size) for number, size in enumerate(SMALL)], preset="standard")
    made = kept(plain, tmp_path / "cache")
    wanted = pixels(made)
    (file,) = (tmp_path / "cache").glob("*/pages")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert torch.equal(pixels(made), wanted)


@pytest.mark.parametrize("change", ["content", "order", "preset", "size", "interpolation"])
def test_other_images_or_another_form_are_another_file(photo, tmp_path, change: str) -> None:
    samples = [photo(number, size) for number, size in enumerate(SMALL)]
    first = batches(samples, preset="standard")
    other = {
        "content": batches(
            [replace(samples[0], record=replace(samples[0].record, digest="x")), *samples[1:]], preset="standard"
        ),
        "order": batches(samples[::-1], preset="standard"),
        "preset": batches(samples, preset="light"),
        "size": batches(samples, preset="standard", preprocess=replace(shown(), height=40, width=40)),
        "interpolation": batches(samples, preset="standard", preprocess=shown("bicubic")),
    }[change]
    same = kept(first, tmp_path / "cache").images.decoded.file.path
    assert kept(first, tmp_path / "cache").images.decoded.file.path == same
    assert kept(other, tmp_path / "cache").images.decoded.file.path != same


def test_grey_pictures_and_png(photo, tmp_path) -> None:
    samples = [photo(0, (60, 50), suffix=".png"), photo(1, (50, 44))]
    plain = batches(samples, preset="standard", preprocess=shown(channels=1))
    assert torch.equal(pixels(kept(plain, tmp_path / "cache")), pixels(plain))


def test_a_process_that_gets_it_reads_the_same_file(photo, tmp_path) -> None:
    made = kept(batches([photo(0, (60, 50)), photo(1, (50, 60))], preset=None), tmp_path / "cache")
    wanted = pixels(made)
    for sample in made.samples:
        Path(sample.key).unlink()
    assert torch.equal(pixels(pickle.loads(pickle.dumps(made))), wanted)
