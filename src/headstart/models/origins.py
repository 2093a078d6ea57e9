"""What each kind of model spec stands for: an architecture, its preprocessing, and how its weights are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import timm
import torchvision
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg

from headstart.errors import ModelError
from headstart.models import fetch
from headstart.models.factory import Architecture
from headstart.models.folder import CONFIG, WEIGHTS, parse_json, read_architecture, read_json_file, weights_file
from headstart.models.known_names import explain_unknown, list_near
from headstart.models.preprocess import Preprocess, from_pretrained_cfg, from_torchvision, with_channels
from headstart.models.spec import FolderSpec, HubSpec, StarterSpec, TimmSpec, TorchvisionSpec
from headstart.models.weights import TensorFile, list_names, read_safetensors, read_weights

_DEFAULT_CLASSES = 1000  # outputs of a model whose weights come without a head; replaced by the task's anyway


@dataclass(frozen=True)
class Pretrained:
    """A spec's own weights: fetched and read when asked, where they are published, under which licence."""

    read: Callable[[], TensorFile]
    where: str
    licence: str | None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Everything a spec says, before anything is fetched or allocated; ``pretrained`` is None without weights."""

    spec: str
    architecture: Architecture
    outputs: int
    preprocess: Preprocess
    pretrained: Pretrained | None


def find_origin(
    spec: TimmSpec | TorchvisionSpec | HubSpec | FolderSpec | StarterSpec,
    *,
    weights: str,
    options: Mapping[str, object],
) -> Origin:
    """What ``spec`` stands for with these weights (pretrained, none or a file) and architecture options.

    Raises: ModelError: it does not exist, with near names.
    """
    match spec:
        case TimmSpec(name):
            return _timm_origin(name, weights=weights, options=options)
        case TorchvisionSpec(name):
            return _torchvision_origin(name, weights=weights, options=options)
        case HubSpec(repo):
            return _hub_origin(repo, options=options)
        case StarterSpec():
            return _starter_origin(options)
        case FolderSpec(path):
            config = read_json_file(path / CONFIG)
            origin = _read_origin(config, spec=str(path), where=str(path / CONFIG), options=options)
            read = (lambda: read_weights(weights_file(path))) if weights == "pretrained" else None
            return replace(origin, pretrained=_from(origin, read, str(path))) if read else origin


def _timm_origin(name: str, *, weights: str, options: Mapping[str, object]) -> Origin:
    bare, _, tag = name.partition(".")
    if not timm.is_model(bare):
        raise ModelError(explain_unknown("timm", bare, timm.list_models()))
    tags = sorted(key.partition(".")[2] for key in get_arch_pretrained_cfgs(bare))
    if tag and tag not in tags:
        known = f"its tags: {list_names(tags, 30)}" if any(tags) else "it has no tags"
        raise ModelError(f"timm/{bare} has no weights tagged {tag!r}; {list_near(tag, tags, f'timm/{bare}.')}; {known}")
    cfg = get_pretrained_cfg(name) or PretrainedCfg(architecture=bare)
    full = f"{bare}.{cfg.tag}" if cfg.tag else bare
    architecture = Architecture(library="timm", name=bare, options=dict(options), cfg=_plain_cfg(cfg, bare))
    if weights == "pretrained":
        source = f"timm/{full}"
    else:
        source = f"assumed from {full}, " + ("the named tag" if tag else "the default tag")
    return Origin(
        spec=f"timm/{full}" if weights == "pretrained" else f"timm/{name}",
        architecture=architecture,
        outputs=cfg.num_classes or _DEFAULT_CLASSES,
        preprocess=from_pretrained_cfg(architecture.cfg, channels=_channels(options), source=source),
        pretrained=_read_pretrained_cfg(cfg) if cfg.has_weights else None,
    )


def _plain_cfg(cfg: PretrainedCfg, architecture: str) -> dict[str, Any]:
    return cfg.to_dict(remove_source=True) | {"architecture": architecture}  # type: ignore[no-any-return, no-untyped-call]


def _read_pretrained_cfg(cfg: PretrainedCfg) -> Pretrained:
    if cfg.hf_hub_id:
        repo, name = str(cfg.hf_hub_id), cfg.hf_hub_filename
        where = f"https://huggingface.co/{repo}"
        return Pretrained(lambda: _hub_weights(repo, name, revision=None), where, cfg.license)
    url = str(cfg.url)
    return Pretrained(lambda: _read(fetch.url_file(url)), url, cfg.license)


def _hub_weights(repo: str, filename: str | None, *, revision: str | None) -> TensorFile:
    try:
        return _read(fetch.hub_file(repo, filename or WEIGHTS, revision=revision))
    except fetch.NotThere:
        if filename:
            raise
        return _read(fetch.hub_file(repo, "pytorch_model.bin", revision=revision))


def _read(fetched: fetch.Fetched) -> TensorFile:
    return read_weights(fetched.path, expected=fetched.digest)


def torchvision_names() -> list[str]:
    """The classification models of torchvision."""
    return torchvision.models.list_models(module=torchvision.models)  # type: ignore[no-any-return]


def _torchvision_origin(name: str, *, weights: str, options: Mapping[str, object]) -> Origin:
    bare, _, tag = name.partition(".")
    if bare not in torchvision_names():
        raise ModelError(explain_unknown("torchvision", bare, torchvision_names()))
    tags = torchvision.models.get_model_weights(bare)
    names = [entry.name for entry in tags]
    if tag and tag not in (*names, "DEFAULT"):
        raise ModelError(f"torchvision/{bare} has no weights {tag!r}; it has {', '.join(names)}")
    entry, channels = tags[tag] if tag else tags.DEFAULT, _channels(options)
    if weights == "pretrained":
        source = f"torchvision/{bare}.{entry.name}"
    else:
        source = f"assumed from {bare}.{entry.name}, " + ("the named weights" if tag else "the default weights")
    architecture = Architecture(
        library="torchvision", name=bare, options=_torchvision_defaults(bare, entry, weights, channels) | dict(options)
    )
    return Origin(
        spec=source if weights == "pretrained" else f"torchvision/{name}",
        architecture=architecture,
        outputs=len(entry.meta["categories"] or ()) or _DEFAULT_CLASSES,  # VGG16's feature weights have no classes
        preprocess=with_channels(from_torchvision(entry.transforms(), source=source), channels),
        pretrained=Pretrained(lambda: _read(fetch.url_file(entry.url)), entry.url, entry.meta.get("license")),
    )


def _torchvision_defaults(name: str, entry: Any, weights: str, channels: int) -> dict[str, object]:
    """What torchvision's own builders set when they load weights."""
    if name in ("googlenet", "inception_v3"):
        return {"transform_input": weights != "none" and channels == 3}
    if name.startswith("vit_"):  # the named weights' own size: preprocessing follows them, too
        return {"image_size": int(entry.meta["min_size"][0])}
    return {}


def _hub_origin(repo: str, *, options: Mapping[str, object]) -> Origin:
    name, _, revision = repo.partition("@")
    config = fetch.hub_file(name, CONFIG, revision=revision or None)
    spec = f"hf-hub:{repo}"
    facts = read_json_file(config.path, expected=config.digest)
    origin = _read_origin(facts, spec=spec, where=config.where, options=options)
    read = lambda: _hub_weights(name, None, revision=revision or None)  # noqa: E731
    return replace(origin, pretrained=_from(origin, read, f"https://huggingface.co/{repo}"))


def _starter_origin(options: Mapping[str, object]) -> Origin:
    folder = files("headstart") / "starter"
    if not (folder / CONFIG).is_file():
        raise ModelError("the starter's files are missing from this installation; install headstart again")
    config = parse_json((folder / CONFIG).read_bytes(), where="starter")
    origin = _read_origin(config, spec="starter", where="the starter's config", options=options)
    origin = replace(origin, preprocess=replace(origin.preprocess, source="starter"))
    read = lambda: read_safetensors((folder / WEIGHTS).read_bytes(), where="of the starter")  # noqa: E731
    return replace(origin, pretrained=_from(origin, read, "headstart's own, in the package"))


def _read_origin(config: Mapping[str, Any], *, spec: str, where: str, options: Mapping[str, object]) -> Origin:
    architecture, classes = read_architecture(config, where=where)
    architecture = replace(architecture, options={**architecture.options, **options})
    return Origin(
        spec=spec,
        architecture=architecture,
        outputs=classes or _DEFAULT_CLASSES,
        preprocess=from_pretrained_cfg(architecture.cfg, channels=_channels(architecture.options), source=where),
        pretrained=None,
    )


def _from(origin: Origin, read: Callable[[], TensorFile], where: str) -> Pretrained:
    licence = origin.architecture.cfg.get("license")
    return Pretrained(read, where, str(licence) if licence else None)


def _channels(options: Mapping[str, object]) -> int:
    channels = options.get("in_chans", 3)
    if not isinstance(channels, int) or isinstance(channels, bool) or not 1 <= channels <= 1024:
        raise ModelError(f"model.options.in_chans: {channels!r} is not a number of channels")
    return channels
