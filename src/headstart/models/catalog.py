"""The list of models that can be opened, with their size and preprocessing."""

from __future__ import annotations

import fnmatch
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal

import timm
import torchvision
from timm.models import PretrainedCfg, get_pretrained_cfg

from headstart.errors import ModelError
from headstart.models.factory import Architecture, sketch
from headstart.models.origins import find_origin, torchvision_names
from headstart.models.preprocess import Preprocess, from_pretrained_cfg, from_torchvision
from headstart.models.spec import StarterSpec

Library = Literal["timm", "torchvision"]


@dataclass(frozen=True)
class ModelRow:
    """One model spec and what is known of it before anything is fetched."""

    spec: str
    library: Library
    architecture: str
    pretrained: bool
    preprocess: Preprocess
    licence: str | None

    @property
    def parameters(self) -> int:
        """Number of parameters with the published head, counted on ``meta`` at the first question (about 0.1 s)."""
        return _parameters(self.library, self.architecture)


def list_models(pattern: str = "*", *, max_params: int | None = None) -> tuple[ModelRow, ...]:
    """Models whose spec matches: ``*`` and ``?`` as in a shell, else a part of the name; the starter first.

    ``max_params`` leaves out larger ones, which counts the parameters of all that match.
    Raises: ModelError: nothing matches.
    """
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    rows = tuple(row for row in (*_starter(), *_timm(glob), *_torchvision(glob)) if _matches(row.spec, glob))
    if not rows:
        raise ModelError(f"no model matches {pattern!r}; try a part of a name, e.g. headstart models resnet")
    if max_params is None:
        return rows
    small = tuple(row for row in rows if row.parameters <= max_params)
    if not small:
        raise ModelError(f"none of the {len(rows)} models that match {pattern!r} has at most {max_params:,} parameters")
    return small


def _matches(spec: str, glob: str) -> bool:
    return fnmatch.fnmatchcase(spec, glob) or fnmatch.fnmatchcase(spec.partition("/")[2], glob)


def _starter() -> tuple[ModelRow, ...]:
    try:
        origin = find_origin(StarterSpec(), weights="pretrained", options={})
    except ModelError:
        return ()
    licence = origin.pretrained.licence if origin.pretrained else None
    return (ModelRow("starter", "timm", origin.architecture.name, True, origin.preprocess, licence),)


def _timm(glob: str) -> tuple[ModelRow, ...]:
    tagged = timm.list_models(include_tags=True)
    return tuple(_timm_row(name) for name in tagged if _matches(f"timm/{name}", glob))


def _timm_row(name: str) -> ModelRow:
    cfg = get_pretrained_cfg(name) or PretrainedCfg()
    preprocess = from_pretrained_cfg(asdict(cfg), channels=cfg.input_size[0], source=f"timm/{name}")
    return ModelRow(f"timm/{name}", "timm", name.partition(".")[0], bool(cfg.has_weights), preprocess, cfg.license)


def _torchvision(glob: str) -> tuple[ModelRow, ...]:
    rows = []
    for name in torchvision_names():
        for entry in torchvision.models.get_model_weights(name):
            spec = f"torchvision/{name}.{entry.name}"
            preprocess = from_torchvision(entry.transforms(), source=spec)
            rows.append(ModelRow(spec, "torchvision", name, True, preprocess, entry.meta.get("license")))
    return tuple(row for row in rows if _matches(row.spec, glob))


@cache
def _parameters(library: Library, architecture: str) -> int:
    cfg = asdict(get_pretrained_cfg(architecture) or PretrainedCfg()) if library == "timm" else {}
    module = sketch(
        Architecture(library=library, name=architecture, cfg=cfg), outputs=int(cfg.get("num_classes", 1000))
    )
    return sum(parameter.numel() for parameter in module.parameters())
