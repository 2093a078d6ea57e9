"""Whether the model trains on as many images of the run's size as go through it at once: before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from headstart.distributed.processes import current
from headstart.errors import ConfigError, ModelError
from headstart.models.try_run import Failure, find_failure
from headstart.planning.draft import Draft
from headstart.training.boundary_proof import example_images
from headstart.training.phases import PhasePlan, freeze_phase
from headstart.wording import option

_FEW = 2  # images that stand for any larger number


def check_shapes(draft: Draft) -> Draft:
    """The draft as it was, once every phase is known to run in training mode on the images that it has at once.

    Raises: ConfigError: it takes more than one image at a time. ModelError: it does not run in training mode.
    """
    if draft.need is not None or draft.sharded:  # a step was measured, so that one runs; of a share none can be tried
        return draft
    images = min(draft.images_at_once, _FEW)
    with _last_phase_again(draft):
        for phase in draft.training_plan.phases:
            failure = _find_failure(draft, phase, images)
            if failure is not None:
                _refuse(draft, phase, images, failure)
    return draft


@contextmanager
def _last_phase_again(draft: Draft) -> Iterator[nn.Module]:
    """Afterwards the module is frozen as the last phase has it, which is what later steps find."""
    try:
        yield draft.module
    finally:
        freeze_phase(draft.module, draft.training_plan.phases[-1])


def _find_failure(draft: Draft, phase: PhasePlan, images: int) -> Failure | None:
    """Why the module does not train on so many images; one of the user's own may run on real ones, but not on zeros."""
    freeze_phase(draft.module, phase)
    preprocess = draft.opened.preprocess
    shape = (images, preprocess.channels, preprocess.height, preprocess.width)
    failure = find_failure(draft.module, shape, training=True)
    if failure is None or draft.own_module is None:
        return failure
    real = example_images(draft.images.train, draft.module, draft.rules)[:images]
    return find_failure(draft.module, shape, training=True, images=real)


def _refuse(draft: Draft, phase: PhasePlan, images: int, failure: Failure) -> None:
    """Raises: ConfigError, ModelError: what was found, and what to type."""
    shape, name = draft.opened.preprocess, draft.opened.spec
    size = f"{shape.height} x {shape.width} pixels"
    if images > 1 or _find_failure(draft, phase, _FEW) is not None:
        many = f"{images} images" if images > 1 else "one image"
        text = f"model: in training mode {name} does not run on {many} of {size}: {failure}"
        raise ModelError(text) from failure.error
    still = _find_failure(draft, replace(phase, norm_statistics="frozen"), images) is None
    frozen = f" or {option('norm_statistics', 'frozen')}" if still else ""
    least = _FEW * current().world_size
    raise ConfigError(
        f"batch.size: {name} does not train on one image at a time of {size}: {failure}; give "
        f"{option('batch_size', least)} or more{frozen}"
    ) from failure.error
