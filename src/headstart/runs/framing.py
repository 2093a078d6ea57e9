"""The user's own change of images that are evaluated and predicted: the function that the run was validated with."""

from __future__ import annotations

from headstart.data.transforms.own import GivenTransform, OwnTransform, read_transforms
from headstart.errors import ConfigError
from headstart.runs.bundle import OpenedRun
from headstart.surgery.function_digest import digest_function


def read_framing(opened: OpenedRun, given: GivenTransform | None, line: str) -> OwnTransform | None:
    """The user's own change of every image that is evaluated or predicted, as the run was validated with it.

    Raises: ConfigError: it is missing or another one, or the run was validated without; ``line``: what to type.
    """
    known, run = opened.facts.get("framing"), str(opened.path)
    function = given if given is None or callable(given) else read_transforms(given).val
    if known is None and given is not None:
        raise ConfigError(
            f"transform: {run} was validated without one (that of training images changes no others); leave it out"
        )
    if known is None:
        return None
    if function is None:
        raise ConfigError(
            f"{run}: the run was validated with a transform of your own, which no folder or command holds; give it in "
            f"Python: {line.format(run=repr(run))}"
        )
    if (digest := digest_function(function)) != known:
        raise ConfigError(
            f"transform: the SHA-256 of its code was {known[:12]} when {run} was validated, is {digest[:12]}; give "
            "the function as it was, or evaluate the model itself: hs.evaluate(hs.open_run(run).model, "
            'hs.open_images(DATA, like=hs.open_run(run).preprocess, transform={"val": g}).val)'
        )
    return OwnTransform(function, digest)
