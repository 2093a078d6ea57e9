"""Sizes of images that an architecture is built for, runs on, or does not take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from headstart.config.sizes import format_size
from headstart.errors import ModelError
from headstart.models.factory import Architecture, sketch, takes_option
from headstart.models.opened import OpenedModel
from headstart.models.origins import Origin, find_origin
from headstart.models.spec import parse_spec
from headstart.models.try_run import find_failure, runs_on_meta
from headstart.wording import option

Size = tuple[int, int]
"""Height and width, in pixels."""
_SIZE_OPTIONS = ("img_size", "image_size", "input_size")
_STEPS = (32, 16, 14, 56)  # of which sizes are multiples: strides, patches, and strides times windows
_MOST_TRIED = 8  # passes on meta, of 0.2 s each


def set_image_size(origin: Origin, *, image_size: Size | None, options: Mapping[str, object]) -> Origin:
    """The origin whose architecture gets its input size where it takes one, and preprocessing that follows it.

    Raises: ModelError: ``options`` name another size.
    """
    architecture, found = origin.architecture, origin.preprocess
    key = size_option(architecture)
    option_size = _read_option(options.get(key))
    if option_size is not None:
        if image_size is not None and image_size != option_size:
            asked, given = format_size(image_size), format_size(option_size)
            raise ModelError(f"model.image_size is {asked}, but model.options.{key} is {given}; give one of them")
        return replace(origin, preprocess=replace(found, height=option_size[0], width=option_size[1]))
    if image_size is None or image_size == (found.height, found.width):
        return origin
    if architecture.cfg.get("fixed_input_size") or takes_option(architecture, key):
        is_square = image_size[0] == image_size[1]
        if key == "image_size" and not is_square:
            fits = f"give e.g. {option('image_size', max(image_size))}"
            raise ModelError(f"model.image_size: {origin.spec} takes square images only; {fits}")
        value: object = image_size if key == "input_size" or not is_square else image_size[0]
        architecture = replace(architecture, options={**architecture.options, key: value})
    return replace(origin, architecture=architecture)


def _read_option(value: object) -> Size | None:
    """Height and width of an option's value; None where it names none."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return value[0], value[1]
    return None


def size_option(architecture: Architecture) -> str:
    """The name of the option by which the architecture is told the size of its images, if it has one."""
    if architecture.library == "timm":
        return "img_size"
    return "input_size" if architecture.name.startswith("maxvit") else "image_size"


def refuse_size(opened: OpenedModel) -> None:
    """Raises: ModelError: the model does not run on an image of its preprocessing's size; the message names near sizes
    that it runs on.
    """
    shape = opened.preprocess
    failure = find_failure(opened.module, (1, shape.channels, shape.height, shape.width))
    if failure is None:
        return
    what = f"{opened.spec} does not run on images of {shape.height} x {shape.width} pixels: {failure}"
    sizes = _find_sizes(opened, (shape.height, shape.width))
    if not sizes:
        text = f"model.image_size: {what}; give the size that it is made for, e.g. {option('image_size', 224)}"
        raise ModelError(text) from failure.error
    shown = " and ".join(f"{high} x {wide}" for high, wide in sizes)
    nearest = min(sizes, key=lambda size: abs(size[0] - shape.height) + abs(size[1] - shape.width))
    text = f"model.image_size: {what}; it takes {shown}: give {option('image_size', format_size(nearest))}"
    raise ModelError(text) from failure.error


def _find_sizes(opened: OpenedModel, asked: Size) -> list[Size]:
    """Sizes that the model runs on: its own, and without weights, which may not fit another one, the nearest one above
    and below, as far as they are found quickly.
    """
    origin = None if opened.library == "own" or opened.bundle is not None else _find_plain_origin(opened)
    own = None if origin is None else (origin.preprocess.height, origin.preprocess.width)
    found, passed = list[Size](), 0
    near = _list_near(asked) if own is None or opened.weights.kind == "none" else []
    for size in ([] if own is None else [own]) + near:
        done = {other < asked for other in found}
        if size in found or (size < asked) in done or passed == _MOST_TRIED:
            continue
        passed += 1
        if _runs_at(opened, origin, size):
            found.append(size)
    return sorted(found)


def _list_near(asked: Size) -> list[Size]:
    """Both sides at the next multiple, above or below, of what architectures step by; nearest first."""
    sizes = set[Size]()
    for step, more in product(_STEPS, (0, 1)):
        high, wide = (step * ((side - 1 + more) // step + more) for side in asked)
        sizes.add((high, wide))
    near = [size for size in sizes - {asked} if min(size) >= 8 and max(size) <= 4096]
    return sorted(near, key=lambda size: abs(size[0] - asked[0]) + abs(size[1] - asked[1]))


def _find_plain_origin(opened: OpenedModel) -> Origin | None:
    """What the model's name stands for without the option of a size; None where that cannot be told."""
    options = {name: value for name, value in opened.options.items() if name not in _SIZE_OPTIONS}
    parsed = parse_spec(opened.spec)
    try:
        return find_origin(parsed, weights="none", options=options)
    except ModelError:
        return None


def _runs_at(opened: OpenedModel, origin: Origin | None, size: Size) -> bool:
    """Whether the model runs on one image of this size; its architecture is made for it where it takes a size."""
    shape = (1, opened.preprocess.channels, *size)
    if origin is None:
        return find_failure(opened.module, shape) is None
    try:
        resized = set_image_size(origin, image_size=size, options={})
        return runs_on_meta(sketch(resized.architecture, outputs=origin.outputs).eval(), shape)
    except ModelError:
        return False
