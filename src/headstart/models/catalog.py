"""The list of models that can be opened, with their size, preprocessing, licence and published facts."""

from __future__ import annotations

import fnmatch
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal

import timm
import torchvision
from timm.models import PretrainedCfg, get_pretrained_cfg

from headstart.errors import ModelError
from headstart.models.factory import sketch
from headstart.models.origins import find_origin, torchvision_names
from headstart.models.preprocess import Preprocess, from_pretrained_cfg, from_torchvision
from headstart.models.published import Published, look_up_published
from headstart.models.spec import StarterSpec, TimmSpec, TorchvisionSpec, parse_spec

Library = Literal["timm", "torchvision"]


@dataclass(frozen=True)
class ModelRow:
    """One model spec and what is known of it before anything is fetched.

    ``family``: the library's module that defines the architecture, e.g. resnet; ``tag``: of its weights, or empty.
    """

    spec: str
    library: Library
    architecture: str
    family: str
    tag: str
    pretrained: bool
    preprocess: Preprocess
    licence: str | None
    published: Published

    @property
    def parameters(self) -> int:
        """Number of parameters with the published head: from the table, else counted on ``meta`` (about 0.1 s)."""
        return self.published.parameters or count_parameters(self.spec)

    @property
    def image_size(self) -> int:
        """The longer side of the input, in pixels."""
        return max(self.preprocess.height, self.preprocess.width)


def list_models(pattern: str = "*") -> tuple[ModelRow, ...]:
    """Models whose spec matches: ``*`` and ``?`` as in a shell, else a part of the name; the starter first.

    Raises: ModelError: nothing matches.
    """
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    rows = tuple(row for row in (*_starter(), *_timm(glob), *_torchvision(glob)) if _matches(row.spec, glob))
    if not rows:
        raise ModelError(f"no model matches {pattern!r}; try a part of a name, e.g. headstart models resnet")
    return rows


@cache
def count_parameters(spec: str) -> int:
    """Number of parameters of a timm or torchvision spec or the starter, with the head that its weights have."""
    parsed = parse_spec(spec)
    assert isinstance(parsed, TimmSpec | TorchvisionSpec | StarterSpec), spec
    origin = find_origin(parsed, weights="pretrained", options={})
    outputs = int(origin.architecture.cfg.get("num_classes", origin.outputs))
    return sum(parameter.numel() for parameter in sketch(origin.architecture, outputs=outputs).parameters())


def _matches(spec: str, glob: str) -> bool:
    return fnmatch.fnmatchcase(spec, glob) or fnmatch.fnmatchcase(spec.partition("/")[2], glob)


def _starter() -> tuple[ModelRow, ...]:
    try:
        origin = find_origin(StarterSpec(), weights="pretrained", options={})
    except ModelError:
        return ()
    licence = origin.pretrained.licence if origin.pretrained else None
    name = origin.architecture.name
    family = _timm_family(name)
    return (
        ModelRow("starter", "timm", name, family, "", True, origin.preprocess, licence, look_up_published("starter")),
    )


def _timm(glob: str) -> tuple[ModelRow, ...]:
    tagged = timm.list_models(include_tags=True)
    return tuple(_timm_row(name) for name in tagged if _matches(f"timm/{name}", glob))


def _timm_row(name: str) -> ModelRow:
    cfg = get_pretrained_cfg(name) or PretrainedCfg()
    spec, (architecture, _, tag) = f"timm/{name}", name.partition(".")
    return ModelRow(
        spec=spec,
        library="timm",
        architecture=architecture,
        family=_timm_family(architecture),
        tag=tag,
        pretrained=bool(cfg.has_weights),
        preprocess=from_pretrained_cfg(asdict(cfg), channels=cfg.input_size[0], source=spec),
        licence=_drop_unknown_licence(cfg.license),
        published=look_up_published(spec),
    )


def _timm_family(architecture: str) -> str:
    return str(timm.model_entrypoint(architecture).__module__).rpartition(".")[2]


def _torchvision(glob: str) -> tuple[ModelRow, ...]:
    rows = []
    for name in torchvision_names():
        family = str(torchvision.models.get_model_builder(name).__module__).rpartition(".")[2]
        for entry in torchvision.models.get_model_weights(name):
            spec = f"torchvision/{name}.{entry.name}"
            preprocess = from_torchvision(entry.transforms(), source=spec)
            licence = _drop_unknown_licence(entry.meta.get("license"))
            facts = look_up_published(spec)
            rows.append(ModelRow(spec, "torchvision", name, family, entry.name, True, preprocess, licence, facts))
    return tuple(row for row in rows if _matches(row.spec, glob))


def _drop_unknown_licence(licence: str | None) -> str | None:
    """timm writes unknown where it does not know; torchvision links to a text."""
    return None if licence in (None, "unknown") else licence
