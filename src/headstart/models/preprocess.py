"""How pixels become a model's input: size, normalisation, resampling, and where these came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from headstart.config.schema import ImageFormat
from headstart.errors import ModelError

CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LATER = frozenset({"levels", "axes"})  # fields that bundles have only where they are not as usual


@dataclass(frozen=True, kw_only=True, repr=False)
class Preprocess:
    """How images become a model's input.

    Attributes:
        ``height``: Pixels from top to bottom.
        ``width``: Pixels from left to right.
        ``mean``: What is taken from each channel of values in 0..1.
        ``std``: What each channel is then divided by.
        ``interpolation``: How pixels are resampled.
        ``crop_pct``: The share of the resized picture's side that is the model's input.
        ``source``: Whose values these are.
        ``crop_mode``: center (the shorter side is resized), squash (both sides), border (the longer, then padding).
        ``levels``: Stored values of pictures of more than 8 bits that become black and white; None: 0 and 65535.
        ``axes``: The order of the axes of saved arrays; None: there were none, and the one that gives as many bands is
            taken.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    source: str
    crop_mode: str = "center"
    levels: tuple[float, float] | None = None
    axes: Literal["hwc", "chw"] | None = None

    def __post_init__(self) -> None:
        where = f"preprocessing ({self.source})"
        if not (8 <= self.height <= 4096 and 8 <= self.width <= 4096):
            raise ModelError(f"{where}: input size {self.height}x{self.width}; accepted are 8 to 4096 pixels")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ModelError(
                f"{where}: {len(self.mean)} means and {len(self.std)} standard deviations; one each per channel"
            )
        if not all(0 < value < float("inf") for value in self.std) or not all(abs(value) < 1e6 for value in self.mean):
            raise ModelError(f"{where}: mean {self.mean}, std {self.std}; means must be finite, deviations positive")
        if self.interpolation not in INTERPOLATIONS:
            raise ModelError(f"{where}: interpolation {self.interpolation!r}; accepted: {', '.join(INTERPOLATIONS)}")
        if self.crop_mode not in CROP_MODES:
            raise ModelError(f"{where}: crop_mode {self.crop_mode!r}; accepted: {', '.join(CROP_MODES)}")
        if not 0 < self.crop_pct <= 1:
            raise ModelError(f"{where}: crop_pct {self.crop_pct} is not in (0, 1]")
        if self.axes not in (None, "hwc", "chw"):
            raise ModelError(f"{where}: axes {self.axes!r}; accepted: hwc, chw")
        if self.levels is not None and not self.levels[0] < self.levels[1] < float("inf"):
            raise ModelError(f"{where}: levels {self.levels}; the first must be below the second")

    def __repr__(self) -> str:
        """The fields by name; of the later ones those that are not as usual: keys of caches are made of this."""
        shown = [each for each in fields(self) if each.name not in _LATER or getattr(self, each.name) is not None]
        return f"Preprocess({', '.join(f'{each.name}={getattr(self, each.name)!r}' for each in shown)})"

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values |= {"mean": list(self.mean), "std": list(self.std)}
        if self.levels is not None:
            values["levels"] = list(self.levels)
        return {name: value for name, value in values.items() if name not in _LATER or value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of ``to_dict``.  Raises: ModelError: a field is missing, unknown or of the wrong kind."""
        names = {each.name for each in fields(cls)} - _LATER
        if set(values) - _LATER != names:
            raise ModelError(f"preprocessing: fields {sorted(values)}; expected {sorted(names)}")
        try:
            return cls(
                height=int(values["height"]),
                width=int(values["width"]),
                mean=_numbers(values["mean"]),
                std=_numbers(values["std"]),
                interpolation=str(values["interpolation"]),
                crop_pct=float(values["crop_pct"]),
                source=str(values["source"]),
                crop_mode=str(values["crop_mode"]),
                levels=_read_levels(values.get("levels")),
                axes=values.get("axes"),
            )
        except (TypeError, ValueError) as error:
            raise ModelError(f"preprocessing: {error} in {dict(values)}") from error


def from_pretrained_cfg(cfg: Mapping[str, Any], *, channels: int, source: str) -> Preprocess:
    """Preprocessing of a timm ``pretrained_cfg``; mean and std are averaged when the model has other channels."""
    try:
        _, height, width = cfg.get("input_size") or (3, 224, 224)
        crop_pct = min(float(cfg.get("crop_pct") or 0.875), 1.0)
        mean, std = _numbers(cfg.get("mean") or IMAGENET_MEAN), _numbers(cfg.get("std") or IMAGENET_STD)
        height, width = int(height), int(width)
    except (TypeError, ValueError) as error:
        raise ModelError(f"preprocessing ({source}): {error}") from error
    interpolation = str(cfg.get("interpolation") or "bicubic")
    found = Preprocess(
        height=height,
        width=width,
        mean=mean,
        std=std,
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bilinear",
        crop_pct=crop_pct,
        source=source,
        crop_mode=str(cfg.get("crop_mode") or "center"),
    )
    return with_channels(found, channels)


def from_torchvision(transforms: Any, *, source: str) -> Preprocess:
    """Preprocessing of a torchvision ``Weights.transforms()``."""
    crop, resize = int(transforms.crop_size[0]), int(transforms.resize_size[0])
    return Preprocess(
        height=crop,
        width=crop,
        mean=_numbers(transforms.mean),
        std=_numbers(transforms.std),
        interpolation=str(transforms.interpolation.value),
        crop_pct=min(crop / resize, 1.0),
        source=source,
    )


def imagenet_preprocess(*, channels: int, source: str) -> Preprocess:
    """ImageNet's usual values at 224 pixels, for a module that says nothing."""
    return from_pretrained_cfg({"interpolation": "bilinear"}, channels=channels, source=source)


def adjust_preprocess(
    found: Preprocess, *, image_size: tuple[int, int] | None, given: ImageFormat | None
) -> Preprocess:
    """``found`` with the user's size and format in place of the weights' own."""
    if given is not None:
        if len(given.mean) != found.channels:
            raise ModelError(
                f"model.preprocess: {len(given.mean)} means, but the model takes {found.channels} channels; "
                "give one mean and one std per channel"
            )
        found = replace(
            found,
            mean=given.mean,
            std=given.std,
            interpolation=given.interpolation,
            crop_pct=given.crop_pct,
            crop_mode="center",
            source="given as model.preprocess",
        )
    if image_size is not None and image_size != (found.height, found.width):
        found = replace(found, height=image_size[0], width=image_size[1], source=f"{found.source}; image size as given")
    return found


def with_channels(found: Preprocess, channels: int) -> Preprocess:
    """The preprocessing for images of so many channels: mean and std averaged where these are others."""
    if channels == found.channels:
        return found
    return replace(
        found,
        mean=(sum(found.mean) / found.channels,) * channels,
        std=(sum(found.std) / found.channels,) * channels,
        source=f"{found.source}; averaged over its {found.channels} channels",
    )


def _read_levels(values: Sequence[Any] | None) -> tuple[float, float] | None:
    if values is None:
        return None
    low, high = values
    return float(low), float(high)


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
