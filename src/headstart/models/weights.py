"""Reading weights files, the only place that unpickles anything, and counting what of a model they cover."""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import re
import stat
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from headstart.errors import ModelError
from headstart.machine import available_bytes
from headstart.models.checkpoints import select_part
from headstart.models.foreign import ACCEPTED, OTHER_FORMATS, what_folder, what_it_is
from headstart.models.pickles import how_to_save, reason

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_READS_SAFELY = (2, 10)  # of torch: its reader of pickles, see the advisory GHSA-63cw-57p8-fm3p
_TORCH_ERRORS = (  # what torch.load raises over damaged or foreign files
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    IndexError,
    MemoryError,
    OverflowError,
    AssertionError,
)
_NAMED = 10  # how many tensors an error names


@dataclass(frozen=True)
class Digest:
    """A published hash: what a file must have, in full (sha256, git) or from its first digits (prefix)."""

    kind: Literal["sha256", "git", "prefix"]
    value: str


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a weights file, floating ones as float32, with its SHA-256 and what was done to read it.

    ``wanted``: which of the names are meant, where that was asked: see ``fit_names``.
    """

    tensors: Mapping[str, Tensor]
    sha256: str
    notes: tuple[str, ...] = ()
    wanted: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many of a model's ``total`` tensors were ``loaded`` from a file.

    Attributes:
        ``loaded``: How many tensors were loaded.
        ``total``: How many the model has.
        ``missing``: Names of the model's that the file has not.
        ``unexpected``: Names of the file's that the model has not.
        ``misshaped``: Names that both have, in different shapes.
        ``notes``: What else was done to the file's tensors, in phrases.
    """

    loaded: int
    total: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.loaded} of {self.total} tensors loaded"
        if not self.loaded:
            text += ", all random"
        elif self.missing or self.misshaped:
            text += ", head new"
        if self.unexpected:
            text += f"; {len(self.unexpected)} of the file not used: {list_names(self.unexpected, 3)}"
        return "; ".join((text, *self.notes))


def list_names(names: Collection[str], most: int = _NAMED) -> str:
    """The first ``most`` names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def read_weights(path: Path, *, expected: Digest | None = None, weights_part: str = "auto") -> TensorFile:
    """The tensors of a local file, whose bytes are hashed and compared before they are interpreted.

    ``weights_part``: auto, averaged, raw, or a key of the file or a prefix of its names.

    Raises: ModelError: no such file, another format, a hash that differs, damage, more than memory, NaN or infinity.
    """
    refuse_format(path)
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise ModelError(f"weights {path}: it is a pipe or a device, not a file; {ACCEPTED}")
        refuse_memory(2 * facts.st_size, what=f"reading {path}")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"weights {path}: {error.strerror}; {ACCEPTED}") from error
    if expected is not None:
        check_digest(data, expected, where=path, remedy="Delete it and run again to fetch it anew")
    if (strange := what_it_is(data, suffix=path.suffix)) is not None:
        raise ModelError(f"weights {path}: {strange}")
    if path.suffix == ".safetensors":
        return replace(read_safetensors(data, where=str(path)), wanted=weights_part)
    found = select_part(_read_pickle(data, path=path), wanted=weights_part, where=str(path))
    file = _check_tensors(found.tensors, data=data, where=str(path))
    return replace(file, notes=found.notes, wanted=found.wanted)


def read_safetensors(data: bytes, *, where: str) -> TensorFile:
    """The tensors of a safetensors file already in memory."""
    return _check_tensors(read_own_tensors(data, where=where), data=data, where=where)


def read_own_tensors(data: bytes, *, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file that headstart wrote: names, dtypes and values as they are.

    Raises: ModelError: it is not whole.
    """
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"weights {where}: not a whole safetensors file ({error}); fetch or copy it again") from error


def refuse_format(path: Path) -> None:
    """Raises: ModelError: the file's ending is not of a format that is read, with the way out."""
    suffix = path.suffix.lower()
    if path.is_dir():
        raise ModelError(f"weights {path}: {what_folder(path)}; {ACCEPTED}")
    if suffix in OTHER_FORMATS:
        raise ModelError(f"weights {path}: {suffix} is {OTHER_FORMATS[suffix]}; {ACCEPTED}")
    if suffix not in (".safetensors", *PICKLED):
        raise ModelError(f"weights {path}: unknown format {suffix or '(no ending)'}; {ACCEPTED}")


def check_digest(data: bytes, expected: Digest, *, where: Path, remedy: str) -> None:
    """Raises: ModelError: the bytes are not those whose hash was published."""
    if expected.kind == "git":
        found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    else:
        found = hashlib.sha256(data).hexdigest()
    good = found.startswith(expected.value) if expected.kind == "prefix" else found == expected.value
    if not good:
        raise ModelError(
            f"weights {where}: the file's hash is {found[:16]}..., published is {expected.value[:16]}...; "
            f"it is damaged or was changed. {remedy}"
        )


def refuse_memory(needed: int, *, what: str) -> None:
    """Raises: ModelError: ``needed`` bytes are more than is free."""
    free = available_bytes()
    if free is not None and needed > free:
        raise ModelError(
            f"{what} needs {needed / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} GB are free; "
            "choose a smaller model (headstart models --max-params 30M)"
        )


def cover(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, heads: Callable[[], Collection[str]], where: str
) -> Coverage:
    """Which of a model's tensors a file has; ``heads`` names those that may be new and is asked only when needed.

    Raises: ModelError: more than the head is missing or mis-shaped.
    """
    absent = [name for name in expected if name not in found]
    # BatchNorm's counters are younger than many files; torch starts them at zero
    counters = {name for name in absent if name.endswith(".num_batches_tracked")}
    missing = [name for name in absent if name not in counters]
    unexpected = sorted(name for name in found if name not in expected)
    misshaped = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    if missing or misshaped:
        _refuse_body(expected, found, heads=frozenset(heads()), names=(missing, unexpected, misshaped), where=where)
    total = len(expected) - len(counters)
    return Coverage(
        loaded=total - len(missing) - len(misshaped),
        total=total,
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        misshaped=tuple(misshaped),
    )


def load_by_coverage(module: nn.Module, found: Mapping[str, Tensor], coverage: Coverage) -> None:
    """Copy what ``coverage`` counted as loaded into ``module``; the rest keeps its initial values."""
    skipped = {*coverage.unexpected, *coverage.misshaped}
    module.load_state_dict({name: value for name, value in found.items() if name not in skipped}, strict=False)


def _refuse_body(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    heads: frozenset[str],
    names: tuple[list[str], list[str], list[str]],
    where: str,
) -> None:
    missing, unexpected, misshaped = names
    lost = [name for name in missing if name not in heads]
    bent = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in misshaped
        if name not in heads
    ]
    parts = []
    if lost:
        parts.append(f"{len(lost)} tensors outside the head are missing: {list_names(lost)}")
    if bent:
        parts.append(f"{len(bent)} have another shape: {list_names(bent)}")
    if not parts:
        return
    if unexpected:
        parts.append(f"{len(unexpected)} are not the model's: {list_names(unexpected)}")
    raise ModelError(
        f"weights {where} do not fit the model ({len(expected)} tensors): {'; '.join(parts)}. "
        "Name the architecture and options that they were trained with"
    )


def _read_pickle(data: bytes, *, path: Path) -> object:
    """What torch.save wrote: tensors, plain values, and the options of a script, which are in most checkpoints."""
    _refuse_old_reader(str(path))
    _refuse_archive(data, where=str(path))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # a plain holder of values, as timm reads it
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True, mmap=False)
    except _TORCH_ERRORS as error:
        raise ModelError(
            f"weights {path}: not a plain state dict ({reason(error)}); only tensors are read, code in a file is "
            f"never run. {how_to_save(data)}"
        ) from error


def _refuse_old_reader(where: str) -> None:
    """Raises: ModelError: a file can have this torch write beyond its memory, ``weights_only`` or not."""
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < _READS_SAFELY:
        raise ModelError(
            f"weights {where}: is pickled, and such a file can have torch {torch.__version__} run code "
            "(CVE-2026-24747); install torch 2.10 or newer, or give a .safetensors file"
        )


def _refuse_archive(data: bytes, *, where: str) -> None:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    try:
        entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError) as error:
        raise ModelError(f"weights {where}: a damaged archive ({error}); fetch or copy it again") from error
    if any(entry.filename.endswith("/constants.pkl") or "/code/" in entry.filename for entry in entries):
        raise ModelError(
            f"weights {where}: a TorchScript archive, which is code; where it was made, run: import torch; "
            f"torch.save(torch.jit.load({Path(where).name!r}).state_dict(), 'weights.pth')"
        )
    # torch stores without compression: a file that unpacks to more than itself was not made by torch.save
    if sum(entry.file_size for entry in entries) > len(data):
        raise ModelError(
            f"weights {where}: the archive unpacks to more than its own size; save it again with torch.save"
        )


def _check_tensors(tensors: Mapping[str, Tensor], *, data: bytes, where: str) -> TensorFile:
    _refuse_strange(tensors, where=where)
    plain: dict[str, Tensor] = {}
    for name, value in tensors.items():
        plain[name] = value.to(torch.float32) if value.is_floating_point() else value
        if value.is_floating_point() and not bool(torch.isfinite(plain[name]).all()):
            raise ModelError(f"weights {where}: {name} holds NaN or infinity; these weights are broken, use others")
    return TensorFile(tensors=plain, sha256=hashlib.sha256(data).hexdigest())


def _refuse_strange(tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Raises: ModelError: a tensor without values of its own, or spread over more than its memory, or all too large."""
    for name, value in tensors.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.is_complex():
            kind = str(value.layout) if value.layout != torch.strided else f"{value.dtype} on {value.device}"
            raise ModelError(f"weights {where}: {name} is not a plain tensor ({kind}); save it dense, on the CPU")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ModelError(
                f"weights {where}: {name} claims {value.numel():,} values and holds fewer; save a contiguous tensor"
            )
    refuse_memory(4 * sum(value.numel() for value in tensors.values()), what=f"weights {where}")


def hash_prefix(file_name: str) -> Digest | None:
    """The first digits of the SHA-256 that torchvision and timm put into a file's name, e.g. resnet50-11ad3fa6.pth."""
    match = re.search(r"-([0-9a-f]{8,64})\.", file_name)
    return Digest("prefix", match.group(1)) if match else None
