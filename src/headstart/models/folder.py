"""What a folder says about its model: timm's local-dir layout, or a headstart bundle."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import PretrainedCfg

from headstart.errors import ModelError
from headstart.models.factory import Architecture
from headstart.models.weights import Digest, check_digest
from headstart.storage.durable import MANIFEST, read_folder
from headstart.wording import option

CONFIG, WEIGHTS, BUNDLE = "config.json", "model.safetensors", "headstart.json"
_PLACES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")  # timm must not fetch
MOST_OUTPUTS = 1_000_000  # ImageNet-21k has 21,841 classes
_MOST_OPTION = 65_536  # of widths, depths, sizes
_MOST_JSON_BYTES = 64 << 20  # ImageNet-21k's label descriptions are 3 MB


@dataclass(frozen=True)
class Bundle:
    """A headstart bundle: its checked files and its parsed headstart.json."""

    path: Path
    files: Mapping[str, bytes]
    facts: Mapping[str, Any]


def model_folder(path: Path) -> Path:
    """``path`` itself, or the bundle inside when it is a run."""
    inner = path / "model"
    return inner if not (path / CONFIG).is_file() and (inner / CONFIG).is_file() else path


def weights_file(path: Path) -> Path:
    """The folder's weights.  Raises: ModelError: it has none of a kind that is read."""
    for name in (WEIGHTS, "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    raise ModelError(
        f"{path} has a {CONFIG} but no {WEIGHTS}; add it, or say {option('weights', 'none')} or "
        f"{option('weights', fill='FILE')}"
    )


def read_bundle(path: Path) -> Bundle | None:
    """The bundle in ``path``, every file checked against its manifest; None when it is a plain model folder.

    Raises: ModelError: not this format; StorageError: damaged.
    """
    if not (path / BUNDLE).is_file() and not (path / MANIFEST).is_file():
        return None
    files = read_folder(path)
    missing = [name for name in (BUNDLE, CONFIG, WEIGHTS) if name not in files]
    if missing:
        raise ModelError(f"{path}: the bundle lacks {', '.join(missing)}; copy or export it again")
    facts = parse_json(files[BUNDLE], where=path / BUNDLE)
    if facts.get("format") != 1:
        raise ModelError(f"{path / BUNDLE}: format {facts.get('format')!r}; this headstart reads format 1")
    return Bundle(path, files, facts)


def read_json_file(path: Path, *, expected: Digest | None = None) -> dict[str, Any]:
    """A JSON object of bounded size.

    Raises: ModelError: no such file, another hash than ``expected``, too large, or not an object.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise ModelError(f"{path}: it is a pipe or a device, not a file; give a folder with {CONFIG} and {WEIGHTS}")
        if facts.st_size > _MOST_JSON_BYTES:
            raise ModelError(f"{path}: {facts.st_size:,} bytes are no model description; {CONFIG} has a few kB")
        data = path.read_bytes()
        if expected is not None:
            check_digest(data, expected, where=path, remedy="Delete it and run again to fetch it anew")
        return parse_json(data, where=path)
    except OSError as error:
        raise ModelError(
            f"{path}: {error.strerror}; a model folder holds {CONFIG} and {WEIGHTS} "
            "in timm's local-dir layout, or is a headstart run"
        ) from error


def parse_json(data: bytes, *, where: Path | str) -> dict[str, Any]:
    """A JSON object.  Raises: ModelError: something else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelError(f"{where}: a JSON {type(value).__name__}, not an object")
    return cast("dict[str, Any]", value)


def _refuse_sizes(value: object, *, where: str, name: str = "model_args") -> None:
    """Raises: ModelError: a whole number with which building the model would not end; real ones have 4 digits."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        _refuse_sizes(part, where=where, name=f"{name}.{key}")
    if isinstance(value, int) and abs(value) > _MOST_OPTION:
        raise ModelError(f"{where}: {name} is {value}; at most {_MOST_OPTION:,} is accepted")


def read_architecture(config: Mapping[str, Any], *, where: str) -> tuple[Architecture, int]:
    """The timm architecture that a config.json describes, and its number of classes (0: it has no head).

    Raises: ModelError: no architecture, or one that timm does not have.
    """
    nested = config.get("pretrained_cfg")
    cfg = dict(nested) if isinstance(nested, dict) else dict(config)
    name, options = config.get("architecture"), config.get("model_args") or {}
    kinds = config.get("architectures")
    if name is None and isinstance(kinds, list) and "transformers_version" in config:
        kind = next((str(kind) for kind in kinds if str(kind).endswith("ForImageClassification")), None)
        folder = where.removesuffix(CONFIG).rstrip("/")
        raise ModelError(
            f"{where}: a model of transformers ({', '.join(map(str, kinds))}), not of timm's; in Python give the "
            f"module: hs.train(config, model=transformers.{kind or 'AutoModelForImageClassification'}"
            f".from_pretrained({folder!r}))"
        )
    if not isinstance(name, str) or not timm.is_model(name):
        raise ModelError(
            f"{where}: architecture {name!r} is not one of timm's; a model folder is in timm's local-dir layout "
            "(save_for_hf, push_to_hf_hub), other formats are not read"
        )
    if not isinstance(options, dict):
        raise ModelError(f"{where}: model_args is a {type(options).__name__}, not an object")
    _refuse_sizes(options, where=where)
    classes = config.get("num_classes", cfg.get("num_classes", 1000))
    classes = options.get("num_classes", classes)
    if not isinstance(classes, int) or not 0 <= classes <= MOST_OUTPUTS:
        raise ModelError(f"{where}: num_classes {classes!r} is not a number of classes, 0 to {MOST_OUTPUTS:,}")
    known = {field.name for field in fields(PretrainedCfg)} - set(_PLACES)
    cfg = {key: value for key, value in cfg.items() if key in known} | {"num_classes": classes, "architecture": name}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    options.pop("num_classes", None)
    channels, size = options.get("in_chans"), options.get("img_size")
    old = cfg.get("input_size") or (3, 224, 224)
    if isinstance(channels, int):
        cfg["input_size"] = (channels, *old[1:])
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        cfg["input_size"] = (cfg.get("input_size", old)[0], height, width)
    return Architecture(library="timm", name=name, options=options, cfg=cfg), classes
