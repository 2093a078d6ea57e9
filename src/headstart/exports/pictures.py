"""Real images for an export: those that it is compared on, as arrays of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from headstart.config.schema import Data
from headstart.data.decoding.decode import UnreadableImage
from headstart.data.decoding.lazy_image import LazyImage
from headstart.data.images import image_batches
from headstart.data.labelled import Subject, choose_labelled_batches
from headstart.data.loader import Batches
from headstart.data.sources.as_given import AnyImages
from headstart.data.sources.source import read_content
from headstart.errors import DataError, Error, StorageError
from headstart.models.preprocess import Preprocess
from headstart.runs.bundle import OpenedRun, read_used_images
from headstart.runs.folder import read_config
from headstart.runs.plan_file import read_plan
from headstart.wording import option

_COMPARED = 32  # images that an export is compared on
_ASK = "give some images to compare the export on: "


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images that an export is compared on. ``batches``: as the run itself reads them; ``pixels``: each whole, uint8
    (H, W, C), as an export takes it; ``which``: what they are, a phrase.
    """

    batches: Batches
    pixels: tuple[Tensor, ...]
    which: str

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each."""
        return tuple(sample.key for sample in self.batches.samples)


def choose_pictures(opened: OpenedRun, images: AnyImages | None) -> Pictures:
    """Some of the images that were given, else of those that the run was validated or tested on.

    Raises: DataError: none are at hand, or none can be read.
    """
    batches, which = _list_own(opened) if images is None else _list_given(opened, images)
    samples = batches.samples
    every = -(-len(samples) // _COMPARED)
    batches = batches.with_samples(samples[::every])
    kept, pixels = [], []
    for sample in batches.samples:
        try:
            content = read_content(batches.source, sample.record)[0]
            where = batches.source.where(sample.record)
            pixels.append(decode_whole(content, where=where, preprocess=opened.preprocess))
        except UnreadableImage:
            continue
        kept.append(sample)
    if not kept:
        raise DataError(f"{which}: none of them can be read; {_ASK}{option('images', fill='PATH')}")
    batches = batches.with_samples(tuple(kept))
    size = opened.evaluated.size_for(len(kept))
    return Pictures(batches=replace(batches, batch_size=size), pixels=tuple(pixels), which=which)


def decode_whole(content: bytes, *, where: str, preprocess: Preprocess) -> Tensor:
    """All pixels of an image file's bytes, uint8 (H, W, C), the right way up.  Raises: UnreadableImage."""
    picture = LazyImage(
        content, where=where, channels=preprocess.channels, levels=preprocess.levels, axes=preprocess.axes
    )
    return picture.whole_region((0, 0, *picture.size)).pixels


def find_run_folder(bundle: Path) -> Path | None:
    """The folder of the run whose bundle this is; None where the bundle stands alone."""
    return bundle.parent if (bundle.parent / "config.yaml").is_file() else None


def read_source(opened: OpenedRun) -> Data:
    """The data of the run as it recorded them.  Raises: DataError: there is no such record, or they are gone."""
    ask = f"{_ASK}{option('images', fill='PATH')}"
    run = find_run_folder(opened.path)
    if run is None:
        raise DataError(f"{opened.path}: is the bundle of a run without the run, so its images are not known; {ask}")
    try:
        data, plan = read_config(run).data, read_plan(run) or {}
    except (Error, StorageError) as error:
        raise DataError(f"{error}; {ask}") from error
    recorded = plan.get("data", {}).get("source")
    places = [place for place in (recorded, data.source) if place and Path(place).exists()]
    if data.source is None or not places:
        gone = f"its images were in {recorded}, where nothing is now"
        raise DataError(f"{run}: {gone if data.source else 'its images were given in Python'}; {ask}")
    return replace(data, source=str(places[0]), log=opened.task.log)


def _list_own(opened: OpenedRun) -> tuple[Batches, str]:
    subject = Subject(task=opened.task, preprocess=opened.preprocess, used=read_used_images(opened.path))
    data = read_source(opened)
    labelled = choose_labelled_batches(data, own_source=None, subject=subject, batch_size=1, scanned=False)
    return labelled.batches, labelled.which


def _list_given(opened: OpenedRun, images: AnyImages) -> tuple[Batches, str]:
    batches = image_batches(images, preprocess=opened.preprocess, task=opened.task, batch_size=1)
    return batches, f"{len(batches.samples)} given images"


def stack_cropped(pixels: Sequence[Tensor]) -> Tensor:
    """Pictures of several sizes as one batch (B, H, W, C): of each the corner that all of them have."""
    height, width = (min(each.shape[axis] for each in pixels) for axis in (0, 1))
    return torch.stack([each[:height, :width] for each in pixels])
