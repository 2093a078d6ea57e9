"""Which images there are: listed first, for a mistake must not wait for a download, then each decoded once."""

from __future__ import annotations

from dataclasses import replace

import torch

from headstart.config.schema import Config
from headstart.data.images import Images, change_images, load_images
from headstart.data.loader import Batches
from headstart.data.sources.listing import list_source
from headstart.data.transforms.own import OwnTransform, OwnTransforms, PixelFunction
from headstart.data.workers import check_room
from headstart.events import Note, ScanProgress
from headstart.planning.about import about_data
from headstart.planning.draft import Draft
from headstart.surgery.function_digest import digest_function

_JOIN_NEAR = "join_near_copies"
"""The choice whether the split keeps resized and re-encoded copies on one side: a resume makes the run's own split."""


def list_images(draft: Draft) -> Draft:
    """The draft as it was, once it is known that there are images with labels.  Raises: DataError."""
    list_source(draft.config.data, kind=draft.config.task.kind, own_source=draft.own.data)
    return draft


def read_images(draft: Draft) -> Draft:
    """The draft with every image decoded once, split and labelled, where loading processes have room for their batches.

    Raises: DataError: images cannot be read, or there are too few.
    """

    def show_progress(done: int, total: int) -> None:
        draft.emit(ScanProgress(done, total))

    join_near = bool(draft.recorded.get(_JOIN_NEAR)) if draft.recorded else True  # a run from before knows none
    images = load_images(
        _keep_range(draft),
        draft.opened.preprocess,
        own_source=draft.own.data,
        on_decoded=show_progress,
        join_near=join_near,
    )
    for text in images.scan.describe_kept():
        draft.emit(Note(text))
    images = _change_by(draft.own.transforms, images)
    images = _for_accelerator(images, draft.device) if draft.device.type != "cpu" else images
    check_room(workers=images.train.workers, batch_bytes=_batch_bytes(images.train))
    draft = draft.choose(_JOIN_NEAR, join_near)
    opened = replace(draft.opened, preprocess=images.train.preprocess)  # with the range of values of these images
    if opened.preprocess.levels is not None:
        draft = draft.choose("levels", list(opened.preprocess.levels))
    return replace(draft.decide(*about_data(images)), images=images, opened=opened)


def _keep_range(draft: Draft) -> Config:
    """The configuration with the range of values that the run began with: what was none had all 16 bits."""
    if not draft.recorded or draft.config.data.range != "auto":
        return draft.config
    low, high = draft.recorded.get("levels") or (0, 65535)
    return replace(draft.config, data=replace(draft.config.data, range=(float(low), float(high))))


def _change_by(functions: OwnTransforms, images: Images) -> Images:
    """The images with the user's own changes after all others."""
    own, framing = (_read_own(function) for function in (functions.train, functions.val))
    return images if own is None is framing else change_images(images, own=own, framing=framing)


def _read_own(function: PixelFunction | None) -> OwnTransform | None:
    return None if function is None else OwnTransform(function, digest_function(function))


def _for_accelerator(images: Images, device: torch.device) -> Images:
    """The images for an accelerator, which makes random changes of whole batches itself; CUDA copies pinned memory."""
    pinned = device.type == "cuda"
    dataset = replace(images.train.images, augment_on_device=True)
    train, val = replace(images.train, dataset=dataset, pinned=pinned), replace(images.val, pinned=pinned)
    return replace(images, train=train, val=val, test=images.test and replace(images.test, pinned=pinned))


def _batch_bytes(batches: Batches) -> int:
    """Bytes of the pixels that a loading process hands over at once, 8 bits each."""
    shape = batches.preprocess
    return batches.batch_size * shape.channels * shape.height * shape.width
