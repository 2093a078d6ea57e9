"""An export held against PyTorch, on real images and several batch sizes, and how fast both are.

N images, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.data.batch import normalise
from headstart.data.decoding.lazy_image import DecodedImage
from headstart.data.transforms.transforms import eval_transform
from headstart.errors import RunError
from headstart.exports.graph import ServedModel
from headstart.exports.pictures import Pictures, stack_cropped
from headstart.models.preprocess import Preprocess
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec
from headstart.timing import Looks, time_calls, wall_seconds

Runner = Callable[[NDArray[np.generic]], NDArray[np.float32]]
"""An export at work: what it takes, (B, ...), to its answers (B, K)."""
TOLERANCE = 1e-3  # of probabilities; of numbers in standard deviations of the training targets
_TOGETHER = (2, 5)  # images in a batch, beside one
_GROUPS = 3  # batches of each of these sizes
_TIMED = 8  # images in the batch that is timed
_LOOKS = Looks(warm=1, least=3, most=30, seconds=1.0)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a comparison has found. ``difference``: the largest, as ``TOLERANCE`` counts; ``worst``: its image and
    batch, a phrase; ``answers``: the export's of each image alone, (N, K).
    """

    difference: float
    worst: str
    answers: Tensor


class TorchModel:
    """The run's model in PyTorch, with validation's own preprocessing: what an export is held against."""

    def __init__(self, served: ServedModel, preprocess: Preprocess) -> None:
        self._served, self._transform = served, eval_transform(preprocess)
        self._mean, self._std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)

    def prepare(self, pixels: Tensor) -> Tensor:
        """What the model takes, float32 (B, C, h, w), of pictures (B, H, W, C)."""
        size = (pixels.shape[2], pixels.shape[1])
        framed = torch.stack([self._transform(DecodedImage(each, size=size)) for each in pixels])
        return normalise(framed, mean=self._mean, std=self._std, memory_format=torch.contiguous_format)

    def answer(self, inputs: Tensor) -> Tensor:
        """The answers (B, K) for what the model takes."""
        with torch.no_grad():
            return self._served.answer(inputs)

    def __call__(self, pixels: Tensor) -> Tensor:
        """The answers (B, K) for pictures (B, H, W, C)."""
        return self.answer(self.prepare(pixels))


def compare(runner: Runner, torch_model: TorchModel, pictures: Pictures, *, task: TaskSpec, inside: bool) -> Compared:
    """The export against PyTorch: each image alone, as large as it is, then in batches of 2 and 5 cut to one size."""
    answers = list[Tensor]()
    largest, worst = -1.0, ""
    for names, pixels in _make_batches(pictures):
        expected = torch_model(pixels)
        found = torch.from_numpy(np.array(runner(feed(pixels, torch_model, inside=inside))))
        if len(answers) < len(pictures.pixels):
            answers.append(found)
        apart = measure_difference(task, found, expected)  # (B,)
        row = int(apart.argmax())
        if float(apart[row]) > largest:
            largest = float(apart[row])
            height, width = pixels.shape[1:3]
            worst = f"{names[row]} ({width} x {height} pixels, in a batch of {len(pixels)})"
    return Compared(difference=largest, worst=worst, answers=torch.cat(answers))


def feed(pixels: Tensor, torch_model: TorchModel, *, inside: bool) -> NDArray[np.generic]:
    """What the export takes of pictures (B, H, W, C): these, or where preprocessing is outside the model's input."""
    fed: NDArray[np.generic] = (pixels if inside else torch_model.prepare(pixels)).contiguous().numpy()
    return fed


def measure_difference(task: TaskSpec, found: Tensor, expected: Tensor) -> Tensor:
    """How far answers (B, K) are apart, (B,): in probability, or for numbers in deviations of the training targets.

    What is not finite, or has another shape, is infinitely far.
    """
    if found.shape != expected.shape:
        return torch.full((len(expected),), torch.inf)
    if find_kind(task.kind).gives_numbers:
        found, expected = task.standardise(found), task.standardise(expected)
    apart = (found.double() - expected.double()).abs().amax(1)
    return torch.where(torch.isfinite(apart), apart, torch.inf)


def refuse_difference(compared: Compared, *, title: str) -> None:
    """Raises: RunError: the export is not what PyTorch computes."""
    if compared.difference > TOLERANCE:
        raise RunError(
            f"the export by {title} differs from PyTorch by {compared.difference:.2g} on {compared.worst}, and "
            f"{TOLERANCE:g} is accepted; nothing was written"
        )


def measure_speed(runner: Runner, torch_model: TorchModel, pictures: Pictures, *, inside: bool) -> tuple[float, float]:
    """Images per second of PyTorch and of the export, decoded already, several at once, in the threads of torch."""
    pixels = stack_cropped(pictures.pixels[:_TIMED])
    fed = feed(pixels, torch_model, inside=inside)
    calls: dict[str, Callable[[], object]] = {
        "torch": (lambda: torch_model(pixels)) if inside else (lambda: torch_model.answer(torch.from_numpy(fed))),
        "export": lambda: runner(fed),
    }
    timings = time_calls(calls, _LOOKS, clock=wall_seconds)
    return len(pixels) / timings["torch"].median, len(pixels) / timings["export"].median


def _make_batches(pictures: Pictures) -> Iterator[tuple[Sequence[str], Tensor]]:
    """Names and pixels of each batch: every picture alone, then a few batches of several."""
    names, pixels = pictures.names, pictures.pixels
    for name, each in zip(names, pixels, strict=True):
        yield [name], each[None]
    for size in _TOGETHER:
        starts = range(0, len(pixels) - size + 1, size) if len(pixels) >= size else range(1)
        for start in islice(starts, _GROUPS):
            places = [(start + place) % len(pixels) for place in range(size)]
            yield [names[place] for place in places], stack_cropped([pixels[place] for place in places])
