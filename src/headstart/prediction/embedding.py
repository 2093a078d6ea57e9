"""Features of images: what a model's head is given.

N images, D features.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.data.decoding.decode import printable
from headstart.data.images import image_batches
from headstart.data.loader import Batches
from headstart.models.folder import BUNDLE
from headstart.models.preprocess import Preprocess
from headstart.models.sources import open_model
from headstart.prediction.parquet import load_parquet
from headstart.runs.bundle import OpenedRun, open_run
from headstart.runs.framing import read_framing
from headstart.storage.durable import write_file
from headstart.surgery.head import find_head
from headstart.tasks.kinds import guess_kind, make_unnamed_task
from headstart.training.evaluate import compute_features
from headstart.training.precision import Precision, usable_device

OnRows = Callable[[int, int], object]
"""Called with (images done, images in all)."""


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The features of images.

    Attributes:
        ``paths``: The names of the images that could be read, N of them.
        ``values``: Their features (N, D), float32.
        ``errors``: Why the others could not be read, by name.

    Example:
        >>> import headstart as hs
        >>> found = hs.Predictor("runs/photos").embed(["photos/cat/00.png"])
        >>> found.paths, found.values.shape, found.errors
        (('photos/cat/00.png',), (1, 16), {})
    """

    paths: tuple[str, ...]
    values: NDArray[np.float32] = field(repr=False)
    errors: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A model whose features are read.

    Attributes:
        ``model``: The module.
        ``head``: The path of its head, of which the features are the input.
        ``preprocess``: How images become its input.
        ``precision``: The precision of the forward pass.
        ``memory_format``: The order of its tensors in memory.
    """

    model: nn.Module
    head: str
    preprocess: Preprocess
    precision: Precision = "fp32"
    memory_format: str = "contiguous"

    def embed(self, batches: Batches, *, on_rows: OnRows = lambda *_: None) -> Embeddings:
        """The features of all images of these batches; ``on_rows`` is called with (images done, images in all).

        Raises: ModelError: the head is no module that is called.
        """
        samples, size = batches.samples, batches.batch_size
        names, errors, rows = list[str](), dict[str, str](), list[NDArray[np.float32]]()
        for number, (batch, unreadable) in enumerate(batches.readable_batches()):
            errors |= {samples[number * size + row].key: printable(error.reason) for row, error in unreadable}
            if batch is not None:
                features = compute_features(
                    self.model, batch, head=self.head, number=number,
                    precision=self.precision, memory_format=self.memory_format,
                )  # fmt: skip
                rows.append(_pool(features))
                names += batch.keys
            on_rows(min((number + 1) * size, len(samples)), len(samples))
        values = np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.float32)
        return Embeddings(paths=tuple(names), values=values, errors=errors)


def find_embedder(opened: OpenedRun) -> Embedder:
    """The model of a run, in the arithmetic of its validation."""
    settings = opened.evaluated
    return Embedder(
        model=opened.model,
        head=opened.facts["head"]["path"],
        preprocess=opened.preprocess,
        precision=settings.precision,
        memory_format=settings.memory_format,
    )


def open_embedder(spec: str, *, weights: str, device: str) -> Embedder:
    """The model of a run's folder, or one by its name (see ``hs.open_model``), on the device.

    Raises:
        ModelError: there is no such model, or it is not clear which layers are its head.
        ConfigError: the run was validated with a transform of the user's own.
    """
    if (Path(spec) / BUNDLE).is_file() or (Path(spec) / "model" / BUNDLE).is_file():
        run = open_run(spec)
        read_framing(run, None, "hs.Predictor({run}, transform=g).embed(IMAGES)")  # refuses one that it cannot hold
        found = find_embedder(run)
    else:
        opened = open_model(spec, weights=weights)
        head = find_head(opened.module).paths[0]
        found = Embedder(model=opened.module, head=head, preprocess=opened.preprocess)
    found.model.to(usable_device(device))
    return found


def embed_paths(
    embedder: Embedder, paths: Sequence[Path], *, batch_size: int, workers: int, on_rows: OnRows
) -> Embeddings:
    """The features of images and of folders of images.  Raises: DataError: there is none."""
    task = make_unnamed_task(guess_kind(torch.zeros(1, dtype=torch.int64)), outputs=1)
    batches = image_batches(
        list(paths), preprocess=embedder.preprocess, task=task, batch_size=batch_size, workers=workers
    )
    return embedder.embed(batches, on_rows=on_rows)


def write_embeddings(found: Embeddings, out: Path) -> None:
    """Write the features: .npz (``paths`` and ``values``) or .parquet (columns path and values).

    Raises: ConfigError: pyarrow is not installed. StorageError: no room.
    """
    content = io.BytesIO()
    if out.suffix.lower() == ".npz":
        np.savez(content, paths=np.array(found.paths, dtype=np.str_), values=found.values)
    else:
        pa, pq = load_parquet()
        values = pa.FixedSizeListArray.from_arrays(pa.array(found.values.ravel()), found.values.shape[1])
        pq.write_table(pa.table({"path": pa.array(found.paths, type=pa.string()), "values": values}), content)
    write_file(out, content.getvalue())


def _pool(features: Tensor) -> NDArray[np.float32]:
    """Features (B, D) of vectors (B, D), or averaged over tokens (B, N, D) or a map (B, D, H, W)."""
    axes = {3: (1,), 4: (2, 3)}.get(features.ndim, ())
    pooled: NDArray[np.float32] = (features.mean(axes) if axes else features).numpy()
    return pooled
