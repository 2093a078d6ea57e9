"""What an image model of the library transformers says about its images, in its config and its processor's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from headstart.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, with_channels
from headstart.surgery.trace import read_config_size

_PROCESSOR = "preprocessor_config.json"
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def is_transformers(module: nn.Module) -> bool:
    """Whether the module's class is one of transformers, or made from one."""
    return any(kind.__module__.startswith("transformers.") for kind in type(module).__mro__)


def read_transformers_format(module: nn.Module, *, channels: int) -> Preprocess:
    """Preprocessing of a model of transformers: as its processor's file has it, else its config's size and ImageNet's
    usual values, which its source then says.
    """
    config = getattr(module, "config", None)
    name = str(getattr(config, "_name_or_path", "") or "")
    facts, where = _read_processor(name)
    crop, resized = _sizes(facts)
    height, width = read_config_size(module) or crop or (224, 224)
    source = f"{where}" if facts else "assumed: ImageNet's usual mean and std, at the size of the model's config"
    found = Preprocess(
        height=height,
        width=width,
        mean=_numbers(facts.get("image_mean"), IMAGENET_MEAN),
        std=_numbers(facts.get("image_std"), IMAGENET_STD),
        interpolation=_RESAMPLING.get(facts.get("resample", 2), "bilinear"),
        crop_pct=min(1.0, min(height, width) / resized) if resized else (1.0 if facts else 0.875),
        crop_mode="squash" if facts and not resized else "center",
        source=source,
    )
    return with_channels(found, channels)


def count_labels(module: nn.Module) -> int | None:
    """How many outputs its config names."""
    count = getattr(getattr(module, "config", None), "num_labels", None)
    return count if isinstance(count, int) and is_transformers(module) else None


def _read_processor(name: str) -> tuple[Mapping[str, Any], str]:
    """The processor's file beside the weights, in a folder or the hub's cache, and where it is; {} where there is
    none."""
    from headstart.models.fetch import find_cached
    from headstart.models.folder import read_json_file

    path = Path(name) / _PROCESSOR if name and Path(name).is_dir() else find_cached(name, _PROCESSOR)
    if path is None or not path.is_file():
        return {}, ""
    return read_json_file(path), str(path)


def _sizes(facts: Mapping[str, Any]) -> tuple[tuple[int, int] | None, int | None]:
    """(height, width) of what the model gets, and the length of the shorter side before the centre is cut out."""
    size, crop = facts.get("size"), facts.get("crop_size")
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else None
    crops = facts.get("do_center_crop", False) or isinstance(facts.get("crop_pct"), float)
    cut = _pair(crop) if facts.get("do_center_crop") else None
    if isinstance(shortest, int):
        share = facts.get("crop_pct")
        before = round(shortest / share) if isinstance(share, float) and shortest < 384 else shortest
        return cut or (shortest, shortest), before
    whole = _pair(size)
    return cut or whole, min(whole) if whole and crops else None


def _pair(value: object) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping) and isinstance(value.get("height"), int) and isinstance(value.get("width"), int):
        return value["height"], value["width"]
    return None


def _numbers(values: object, usual: tuple[float, ...]) -> tuple[float, ...]:
    if isinstance(values, list) and all(isinstance(value, int | float) for value in values):
        return tuple(float(value) for value in values)
    return usual
