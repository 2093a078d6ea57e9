"""A finished run's model, opened once, at work on images of any kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from headstart.config.home import expand_home
from headstart.data.images import image_batches
from headstart.data.sources.as_given import AnyImages
from headstart.data.sources.sides import find_sides
from headstart.data.transforms.own import GivenTransform
from headstart.errors import ConfigError, ModelError
from headstart.prediction.embedding import Embeddings, OnRows, find_embedder
from headstart.prediction.output_file import Written, write_predictions
from headstart.prediction.output_names import refuse_output
from headstart.prediction.outputs import View, average_outputs, mirror
from headstart.prediction.record import Prediction, describe_output
from headstart.runs.bundle import OpenedRun, describe_trained, open_run
from headstart.runs.framing import read_framing
from headstart.runs.run import Run
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec
from headstart.training.precision import usable_device
from headstart.wording import option

AnyRun = str | Path | Run | OpenedRun
"""A run's folder or the bundle in it, what ``hs.train`` returned, or what ``hs.open_run`` gave."""
Views = Literal["one", "mirrored"]


def _ignore(_done: int, _total: int) -> None:
    """Tell nobody."""


class Predictor:
    """The model of a finished run, opened once; or of several, whose answers are averaged.

    With the defaults an image has the very bits that validation gave it, and that the command ``headstart predict``
    prints. Of several runs each sees the images as it was trained to; the probabilities or numbers are averaged, by the
    names of the classes, tags or targets.

    Args:
        ``run``: A run: its folder or bundle, what ``hs.train`` returned, or what ``hs.open_run`` gave; or a list of
            them, of the same task and names.
        ``device``: cpu, cuda, ...; auto takes the accelerator if there is one, and leaves a model that is open already
            where it is.
        ``batch_size``: How many images are computed together; None takes that of training.
        ``workers``: How many processes decode images; 0: this one does.
        ``views``: one looks at each image once; mirrored also at its mirror image, and averages.
        ``transform``: Where the run was validated with a transform of your own, that function again.

    Attributes:
        ``task``: What the model answers, with the names of the classes, tags or targets.
        ``runs``: The runs, opened.

    Raises:
        ModelError: There is no finished run, or the runs are of different tasks.
        ConfigError: A number is not positive, or images may not be mirrored.

    Example:
        >>> import headstart as hs
        >>> predictor = hs.Predictor("runs/photos")
        >>> (row,) = predictor.predict("photos/cat/00.png")
        >>> row.path, [name for name, _ in sorted(row.labels)]
        ('photos/cat/00.png', ['cat', 'dog'])
    """

    task: TaskSpec
    runs: tuple[OpenedRun, ...]

    def __init__(
        self,
        run: AnyRun | Sequence[AnyRun],
        *,
        device: str = "auto",
        batch_size: int | None = None,
        workers: int = 0,
        views: Views = "one",
        transform: GivenTransform | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size: {batch_size} is not positive; give at least 1")
        if workers < 0:
            raise ConfigError(f"workers: {workers} is negative; give at least 0")
        runs = list(run) if isinstance(run, list | tuple) else [run]
        if not runs:
            raise ModelError("Predictor: no run is given; give its folder, e.g. hs.Predictor('runs/photos')")
        self.runs = tuple(open_on(each, device) for each in runs)
        self.task = self.runs[0].task
        _refuse_other_tasks(self.runs)
        self._framings = [
            read_framing(opened, transform, "hs.predict({run}, IMAGES, transform=g)") for opened in self.runs
        ]
        self._batch_size, self._workers = batch_size, workers
        self._mirrored = _check_views(views, self.task)

    def predict(self, images: AnyImages) -> list[Prediction]:
        """Return what the model says of each image, in order (see ``hs.predict``).

        Args:
            ``images``: An image or a list of them: paths, folders, the bytes of image files, PIL images, NumPy arrays
                or torch tensors (H, W, C).

        Returns:
            A ``hs.Prediction`` for each; one that cannot be read keeps its place, with its ``error``.

        Raises:
            DataError: An item is no image, or a path does not exist; the message names the item.
            NonFiniteError: The outputs are NaN or infinite.

        Example:
            >>> import headstart as hs
            >>> rows = hs.Predictor("runs/photos").predict(["photos/cat", "photos/dog/08.png"])
            >>> len(rows), rows[-1].path
            (9, 'photos/dog/08.png')
        """
        return list(self.stream(images))

    def stream(self, images: AnyImages) -> Iterator[Prediction]:
        """Yield what ``predict`` returns, as it is computed: memory for one batch of images at a time is enough.

        Args:
            ``images``: As for ``predict``.

        Returns:
            An iterator of one ``hs.Prediction`` per image, in order.

        Raises:
            DataError: As ``predict`` does, before the first image is computed.

        Example:
            >>> import headstart as hs
            >>> for row in hs.Predictor("runs/photos").stream("photos/cat/00.png"):
            ...     print(row.path)
            photos/cat/00.png
        """
        views = self.views_of(images)
        return (describe_output(output, self.task) for output in average_outputs(views))

    def write(
        self, images: AnyImages, out: str | Path, *, top: int = 5, overwrite: bool = False, on_rows: OnRows = _ignore
    ) -> Written:
        """Write what ``predict`` returns to a file, batch by batch; the same call again goes on after a kill.

        Args:
            ``images``: As for ``predict``.
            ``out``: The file: its ending, .csv, .jsonl or .parquet, says the form. Until all is computed, the rows are
                in ``OUT.partial`` beside it.
            ``top``: How many classes a row gives, the likeliest first; of tags it gives all.
            ``overwrite``: Whether a file that is there already is replaced.
            ``on_rows``: A function that is called with (images done, images in all) after each batch.

        Returns:
            How many ``rows`` the file has, how many of them an earlier call had computed, and the images that could not
            be read.

        Raises:
            ConfigError: The name is of no known form or taken, or the rows of an earlier call are of other images.
            StorageError: The disk is full, or the folder cannot be written.

        Example:
            >>> import headstart as hs
            >>> done = hs.Predictor("runs/photos").write("photos/cat", "cats.csv", overwrite=True)
            >>> done.rows, done.resumed, done.unreadable
            (8, 0, ())
        """
        path = expand_home(out)
        refuse_output(path, overwrite=overwrite)
        if top < 1:
            raise ConfigError(f"top: {top} is not positive; give at least 1")
        return write_predictions(self.views_of(images), path, top=top, on_rows=on_rows)

    def embed(self, images: AnyImages) -> Embeddings:
        """Return the features of each image: what the model's head is given.

        Args:
            ``images``: As for ``predict``.

        Returns:
            The ``paths`` of the images that could be read, their ``values`` (N, D) in float32, and the ``errors`` of
            the others by path.

        Raises:
            DataError: An item is no image, or a path does not exist.
            ConfigError: Images are mirrored as well: features are not averaged.
            ModelError: There are several runs, or the head is no module that is called.

        Example:
            >>> import headstart as hs
            >>> found = hs.Predictor("runs/photos").embed("photos/cat")
            >>> found.values.shape
            (8, 16)
        """
        if len(self.runs) > 1:
            raise ModelError("embed: features of several models have no common space; give one run")
        if self._mirrored:
            raise ConfigError("embed: views: features are those of each image as it is; give views='one'")
        (view, *_) = self.views_of(images)
        return find_embedder(view.opened).embed(view.batches)

    def views_of(self, images: AnyImages) -> list[View]:
        """Return the ways in which each of these images is looked at: one per run, two where it is mirrored as well.

        Args:
            ``images``: As for ``predict``.

        Raises:
            DataError: An item is no image, or a path does not exist.
        """
        if isinstance(images, Iterator):
            images = list(images)
        views = []
        for opened, framing in zip(self.runs, self._framings, strict=True):
            cut = image_batches(images, preprocess=opened.preprocess, task=opened.task, batch_size=1)
            batches = replace(
                cut.frame_by(framing),
                batch_size=self._batch_size or opened.evaluated.size_for(len(cut.samples)),
                workers=self._workers,
            )
            views.append(View(opened=opened, batches=batches))
            if self._mirrored:
                views.append(View(opened=opened, batches=batches, change=mirror))
        return views


def open_on(run: object, device: str) -> OpenedRun:
    """The run's model (see ``AnyRun``), where it is to compute: one that is open already stays where it is, unless told
    otherwise.

    Raises: ModelError: there is no finished run, or this is no run.
    """
    if isinstance(run, str | Path):
        opened = open_run(run)
    elif isinstance(run, Run):
        opened = describe_trained(run.path, run.model)
    elif isinstance(run, OpenedRun):
        opened = run
    else:
        raise ModelError(
            f"type {type(run).__name__} is no run; accepted are a run's folder, what hs.train returned, what "
            "hs.open_run gave, and a torch module with Batches"
        )
    if isinstance(run, str | Path) or device != "auto":
        opened.model.to(usable_device(device))
    return opened


def _refuse_other_tasks(runs: Sequence[OpenedRun]) -> None:
    first = runs[0]
    for other in runs[1:]:
        if other.task.kind != first.task.kind or set(other.task.names) != set(first.task.names):
            raise ModelError(
                f"{other.path}: {other.task.kind} of {', '.join(other.task.names[:3])}, ..., but {first.path} is "
                f"{first.task.kind} of {', '.join(first.task.names[:3])}, ...; answers are averaged over runs of one "
                "task, with the same names"
            )


def _check_views(views: str, task: TaskSpec) -> bool:
    """Whether images are mirrored as well.  Raises: ConfigError: they may not be."""
    if views not in ("one", "mirrored"):
        raise ConfigError(f"views: {views!r}; accepted: one, mirrored")
    sides = find_sides(task.names, are_numbers=find_kind(task.kind).gives_numbers) if views == "mirrored" else ()
    if sides:
        raise ConfigError(
            f"{option('views', 'mirrored')}: mirrored images of {', '.join(sides[:3])} would have another answer, "
            f"since these names say a side; give {option('views', 'one')}"
        )
    return views == "mirrored"
