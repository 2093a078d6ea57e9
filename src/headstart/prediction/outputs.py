"""What models say of images, one image after the other, in the order given; memory for a batch of them at a time.

K classes or tags, T targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headstart.data.batch import Batch
from headstart.data.decoding.decode import printable
from headstart.data.loader import Batches
from headstart.runs.bundle import OpenedRun
from headstart.training.evaluate import predict_batch

Change = Callable[[Batch], Batch]


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a model says of one image.

    Attributes:
        ``path``: The image's name.
        ``values``: Probabilities (K,) or numbers in original units (T,); None where the image cannot be read.
        ``error``: Why it cannot be read; else None.
    """

    path: str
    values: Tensor | None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to look at every image.

    Attributes:
        ``opened``: The run whose model looks.
        ``batches``: The images, cut and framed for it.
        ``change``: What is done with a batch before the model sees it; None: nothing.
    """

    opened: OpenedRun
    batches: Batches
    change: Change | None = None

    def outputs(self, *, first: int) -> Iterator[Output]:
        """What the model says of each image from number ``first`` on, which begins a batch."""
        settings, size = self.opened.evaluated, self.batches.batch_size
        assert first % size == 0, "batches are the same whatever the first one is"
        samples = self.batches.samples
        for number, (batch, unreadable) in enumerate(
            self.batches.readable_batches(first=first // size), start=first // size
        ):
            errors = {row: printable(error.reason) for row, error in unreadable}
            rows: Iterator[Tensor] = iter(())
            if batch is not None:
                rows = iter(
                    predict_batch(
                        self.opened.model,
                        batch if self.change is None else self.change(batch),
                        task=self.batches.task,
                        number=number,
                        precision=settings.precision,
                        memory_format=settings.memory_format,
                    )
                )
            for row, sample in enumerate(samples[number * size : (number + 1) * size]):
                error = errors.get(row)
                yield Output(path=sample.key, values=None if error is not None else next(rows), error=error)


def average_outputs(views: Sequence[View], *, first: int = 0) -> Iterator[Output]:
    """What the views say of each image on average, from number ``first`` on."""
    if len(views) == 1:
        yield from views[0].outputs(first=first)
        return
    order = [_order_names(view, views[0]) for view in views]
    streams = [view.outputs(first=first) for view in views]
    for outputs in zip(*streams, strict=True):
        failed = next((output for output in outputs if output.values is None), None)
        if failed is not None:
            yield failed
            continue
        rows = [
            output.values[places] for output, places in zip(outputs, order, strict=True) if output.values is not None
        ]
        yield replace(outputs[0], values=torch.stack(rows).mean(0))


def _order_names(view: View, first: View) -> list[int]:
    """The places of the first view's names among this view's."""
    places = {name: place for place, name in enumerate(view.batches.task.names)}
    return [places[name] for name in first.batches.task.names]


def mirror(batch: Batch) -> Batch:
    """The batch of mirrored images."""
    return replace(batch, pixels=batch.pixels.flip(-1))
