"""One image at a time made ready for a model, by any thread; and what the model says of several of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.data.batch import Batch
from headstart.data.collate import pad_rows
from headstart.data.decoding.decode import UnreadableImage, printable
from headstart.data.decoding.lazy_image import stack_images
from headstart.data.reading import ChangedImage
from headstart.prediction.outputs import Output
from headstart.prediction.predictor import Predictor
from headstart.prediction.record import Prediction, describe_output
from headstart.training.evaluate import predict_batch


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An image as the model takes it: ``pixels`` (C, H, W) uint8; or why there are none."""

    name: str
    pixels: Tensor | None
    error: str | None = None


def decode_content(predictor: Predictor, content: bytes, *, name: str) -> Decoded:
    """The pixels that ``predictor``, of one run, gives its model of a file's bytes. Any thread may call it."""
    read = predictor.views_of(content)[0].batches.images[0, 0]
    assert not isinstance(read, ChangedImage), "an image that was not scanned has not changed"
    if isinstance(read, UnreadableImage):
        return Decoded(name=name, pixels=None, error=printable(read.reason))
    return Decoded(name=name, pixels=read[0])


def predict_decoded(predictor: Predictor, images: Sequence[Decoded], *, rows: int) -> list[Prediction]:
    """What the model says of these images, all of which have pixels, in order.

    ``rows``: how many images the batch is padded to; the last bits may depend on it.

    Raises: NonFiniteError: the outputs are NaN or infinite.
    """
    opened = predictor.runs[0]
    pixels = stack_images([image.pixels for image in images if image.pixels is not None])
    assert len(pixels) == len(images) <= rows, f"{len(pixels)} of {len(images)} images for {rows} rows"
    batch = Batch(
        pixels=pad_rows(pixels, rows),
        targets=torch.empty(0),
        keys=tuple(image.name for image in images),
        mean=torch.tensor(opened.preprocess.mean),
        std=torch.tensor(opened.preprocess.std),
        size=len(images),
    )
    settings = opened.evaluated
    outputs = predict_batch(
        opened.model,
        batch,
        task=predictor.task,
        number=0,
        precision=settings.precision,
        memory_format=settings.memory_format,
    )
    return [
        describe_output(Output(path=image.name, values=values), predictor.task)
        for image, values in zip(images, outputs, strict=True)
    ]
