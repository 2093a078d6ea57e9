"""Weights files, model folders and caches that carry code, lie about themselves, or want all the memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from bomb import Bomb
from corpus import MODEL, Artefact, World, everywhere, train
from safetensors.torch import save
from torch import nn


def payloads(mark: Path) -> dict[str, Bomb]:
    """Ways to run code, each of which makes the file ``mark``."""
    return {
        "system": Bomb(os.system, f"touch '{mark}'"),
        "eval": Bomb(eval, f"open({str(mark)!r}, 'w').close()"),
        "exec": Bomb(exec, f"open({str(mark)!r}, 'w').close()"),
        "popen": Bomb(subprocess.Popen, ["touch", str(mark)]),
        "touch": Bomb(Path.touch, mark),
        "hub": Bomb(torch.hub.load, str(mark.parent), "x"),
    }


class Evil(nn.Module):
    """A pickled module whose state runs code when it is set."""

    def __init__(self, bomb: Bomb) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.bomb = bomb


def _saved(value: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _tar(bomb: Bomb) -> bytes:
    """The format before 2017, through which weights_only=True could be passed by (CVE-2025-32434)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (
            ("sys_info", pickle.dumps({"protocol_version": 1000, "little_endian": True})),
            ("storages", pickle.dumps(1) + pickle.dumps(bomb)),
            ("tensors", pickle.dumps(bomb)),
            ("pickle", pickle.dumps(bomb)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def _numpy(bomb: Bomb) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([bomb], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _zip(files: dict[str, bytes], *, how: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _lying_zip() -> bytes:
    """An archive whose directory says that its one entry is small; it inflates to 1 GiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()
    name, size = b"archive/data.pkl", len(packed)
    facts = struct.pack("<HHHHHLLLHH", 20, 0, 8, 0, 0, 0, size, size, len(name), 0)
    local = b"PK\3\4" + facts + name + packed
    central = b"PK\1\2" + struct.pack("<H", 20) + facts + struct.pack("<HHHLL", 0, 0, 0, 0, 0) + name
    return local + central + b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 1, 1, len(central), len(local), 0)


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header; ``length`` where it lies about its own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _forged_storage() -> bytes:
    """A state dict whose storage claims 4 TiB (the shape of CVE-2026-24747)."""
    data = _saved({"fc.weight": torch.zeros(2, 2)})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = next(name for name in files if name.endswith("data.pkl"))
    files[name] = files[name].replace(b"K\x04t", b"\x8a\x06\x00\x00\x00\x00\x00\x01t")  # LONG1 instead of BININT1 4
    return _zip(files, how=zipfile.ZIP_STORED)


def _setitem_on_tensor() -> bytes:
    return _zip({
        "a/data.pkl": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R}(X\x01\x00\x00\x00aK\x01us.",
        "a/version": b"3\n",
    }, how=zipfile.ZIP_STORED)  # fmt: skip


def _shapes() -> dict[str, bytes]:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return {
        "header-of-2^63": safetensors(b"{}", length=2**63),
        "header-beyond-the-end": safetensors(b"{}", length=1000),
        "header-of-90-MB": safetensors(b"{" + b" " * 90_000_000 + b"}"),
        "header-is-no-json": safetensors(b"\x80\x04pickle"),
        "header-nested": safetensors(b'{"a":' * 100_000),
        "offsets-overlap": safetensors({"a": entry, "b": entry}, bytes(4)),
        "offsets-beyond": safetensors({"a": {**entry, "data_offsets": [0, 2**40]}}, bytes(4)),
        "offsets-negative": safetensors({"a": {**entry, "data_offsets": [-4, 0]}}, bytes(4)),
        "hole": safetensors({"a": {**entry, "data_offsets": [4, 8]}}, bytes(8)),
        "shape-overflows": safetensors({"a": {**entry, "shape": [2**40, 2**40]}}, bytes(4)),
        "shape-lies": safetensors({"a": {**entry, "shape": [1024, 1024]}}, bytes(4)),
        "empty-but-huge": safetensors({"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}),
        "unknown-dtype": safetensors({"a": {**entry, "dtype": "PICKLE"}}, bytes(4)),
        "twice": safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(entry).encode(),) * 2), bytes(4)),
        "nothing": b"",
        "no-tensors": safetensors({}),
    }


def _files(world: World) -> Iterator[tuple[str, bytes]]:
    """Names with endings, and contents."""
    for way in payloads(world.mark("")):
        yield f"raw-{way}.pth", pickle.dumps(payloads(world.mark(f"raw-{way}"))[way])
        yield f"zip-{way}.pt", _saved({"state_dict": {"fc.weight": payloads(world.mark(f"zip-{way}"))[way]}})
    for protocol in (0, 2, 5):
        yield f"protocol-{protocol}.bin", pickle.dumps(payloads(world.mark(f"protocol-{protocol}"))["system"], protocol)
    touch: Callable[[str], Bomb] = lambda name: payloads(world.mark(name))["touch"]  # noqa: E731
    yield "legacy.pth", _saved({"a": touch("legacy")}, zipped=False)
    yield "legacy.tar", _tar(touch("legacy-tar"))
    yield "module.pth", _saved(Evil(touch("module")))
    yield "whole-module.pth", _saved(timm.create_model("test_resnet"))
    yield "script.pth", _script()
    yield "numpy-in-dict.pth", _saved({"a": np.array([touch("numpy-in-dict")], dtype=object)})
    yield "pickle-called.safetensors", pickle.dumps(touch("pickle-called"))
    yield "zip-called.safetensors", _saved({"a": touch("zip-called")})
    yield (
        "polyglot.pth",
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
        + _saved({"a": touch("polyglot")}),
    )
    yield "learner.pkl", pickle.dumps(touch("learner"))
    yield "model.joblib", pickle.dumps(touch("joblib"))
    yield "objects.npy", _numpy(touch("objects"))
    yield "objects.npz", _zip({"a.npy": _numpy(touch("objects-npz"))})
    yield "trainer.ckpt", _saved({"callbacks": touch("trainer")})
    yield "lambda.keras", _zip({"config.json": b'{"class_name": "Lambda"}', "model.weights.h5": b"\x89HDF\r\n\x1a\n"})
    yield "lambda.h5", b"\x89HDF\r\n\x1a\n" + bytes(64)
    yield "graph.onnx", b"\x08\x08\x12\x07pytorch" + bytes(64)
    yield "program.pt2", _zip({"archive/models/model.json": b"{}"})
    yield "state.msgpack", b"\x81\xa1a\x01"
    yield "bomb.pth", _zip({"archive/data.pkl": bytes(1 << 28), "archive/version": b"3\n"})
    yield "lying.pth", _lying_zip()
    yield "forged-storage.pth", _forged_storage()
    yield "setitem.pth", _setitem_on_tensor()
    yield "long.pth", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x."  # BINBYTES8 of a TiB
    yield "deep.pth", b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    yield "laughs.pth", pickle.dumps(_laughs())
    yield "expanded.pth", _saved({"a": torch.zeros(1).expand(10**6, 10**6)})
    yield "expanded-half.pth", _saved({"a": torch.zeros(1, dtype=torch.half).expand(10**6, 10**6)})
    yield "sparse.pth", _saved({"a": torch.sparse_coo_tensor(size=(10**6, 10**6))})
    yield "meta.pth", _saved({"a": torch.zeros(10**6, 10**6, device="meta")})
    yield "complex.pth", _saved({"a": torch.zeros(2, dtype=torch.complex64)})
    yield "quantised.pth", _saved({"a": torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)})
    yield "page.pth", b"<!DOCTYPE html><html><body>404</body></html>"
    yield "page.safetensors", b"<!DOCTYPE html><html><body>404</body></html>"
    for name, data in _shapes().items():
        yield f"{name}.safetensors", data


def _laughs() -> object:
    found: object = "ha"
    for _ in range(40):
        found = [found, found]
    return {"a": found}


def _special(world: World) -> Iterator[Artefact]:
    pipe, endless, loop, folder = (
        world.at(name) for name in ("pipe.pth", "endless.safetensors", "loop.pth", "dir.pth")
    )
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    loop.symlink_to(loop)
    folder.mkdir()
    for path in (pipe, endless, loop, folder):
        yield Artefact(name=path.name, commands=everywhere(world, path))
    checkpoint = world.at("dcp")
    checkpoint.mkdir()
    (checkpoint / ".metadata").write_bytes(pickle.dumps(payloads(world.mark("dcp"))["touch"]))
    (checkpoint / "__0_0.distcp").write_bytes(_saved({"a": payloads(world.mark("dcp"))["touch"]}))
    yield Artefact(name="dcp", commands=everywhere(world, checkpoint))
    yield Artefact(
        name="dcp weights", told="distributed checkpoint", commands=(train(world, "--weights", str(checkpoint)),)
    )


GOOD = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {"input_size": [3, 32, 32]}}


def _folder(world: World, name: str, config: object, *, weights: bytes | None, file: str = "model.safetensors") -> Path:
    folder = world.at(name)
    folder.mkdir()
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "config.json").write_bytes(text)
    if weights is not None:
        (folder / file).write_bytes(weights)
    return folder


def _model_commands(world: World, spec: str) -> tuple[tuple[str, ...], ...]:
    return (
        train(world, "--weights", "pretrained", model=spec),
        ("plan", str(world.photos), "--model", spec),
        ("describe", spec, "--weights", "pretrained"),
    )


def _model_folders(world: World) -> Iterator[Artefact]:
    whole = save(timm.create_model("test_resnet", num_classes=3).state_dict())
    configs: dict[str, object] = {
        "arch-hub": GOOD | {"architecture": "hf-hub:evil/model"},
        "arch-local": GOOD | {"architecture": "local-dir:/"},
        "arch-path": GOOD | {"architecture": "../../evil"},
        "arch-list": GOOD | {"architecture": ["resnet18"]},
        "arg-checkpoint": GOOD | {"model_args": {"checkpoint_path": str(world.home / "id_rsa")}},
        "arg-overlay": GOOD | {"model_args": {"pretrained_cfg_overlay": {"url": "http://127.0.0.1/x"}}},
        "arg-cache": GOOD | {"model_args": {"cache_dir": str(world.home)}},
        "arg-code": GOOD | {"model_args": {"block": "os.system", "act_layer": "eval"}},
        "arg-list": GOOD | {"model_args": ["os.system"]},
        "arg-huge": GOOD | {"model_args": {"channels": [10**9, 8, 8, 8]}},
        "arg-deep": GOOD | {"model_args": {"layers": [10**9, 1, 1, 1]}},
        "classes-huge": GOOD | {"num_classes": 10**13},
        "classes-text": GOOD | {"num_classes": "3; import os"},
        "classes-negative": GOOD | {"num_classes": -5},
        "size-huge": GOOD | {"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}},
        "size-text": GOOD | {"pretrained_cfg": {"input_size": "32x32"}},
        "mean-nan": b'{"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {"mean": [NaN, 0, 0]}}',
        "config-list": ["test_resnet"],
        "config-pickle": pickle.dumps(payloads(world.mark("config-pickle"))["touch"]),
        "config-deep": b'{"a":' * 200_000,
        "config-65-MB": b'{"a": "' + b" " * (65 << 20) + b'"}',
    }
    for name, config in configs.items():
        folder = _folder(world, f"folder-{name}", config, weights=whole)
        yield Artefact(name=f"folder {name}", commands=_model_commands(world, str(folder)))
    pickled = _folder(
        world, "folder-bin", GOOD, weights=_saved({"a": payloads(world.mark("folder-bin"))["touch"]}),
        file="pytorch_model.bin",
    )  # fmt: skip
    yield Artefact(name="folder bin", commands=_model_commands(world, str(pickled)))
    fetch = GOOD | {"pretrained_cfg": {"hf_hub_id": "evil/x", "url": "http://127.0.0.1:9/x.pth", "custom_load": "npz"}}
    asks = _folder(world, "folder-fetch", fetch, weights=None)
    yield Artefact(name="folder fetch", commands=_model_commands(world, str(asks)), told="no model.safetensors")
    for name, target in (("pipe", None), ("zero", "/dev/zero")):
        folder = _folder(world, f"folder-{name}", GOOD, weights=whole)
        (folder / "config.json").unlink()
        os.mkfifo(folder / "config.json") if target is None else (folder / "config.json").symlink_to(target)
        yield Artefact(
            name=f"folder config {name}", commands=(*_model_commands(world, str(folder)), ("report", str(folder)))
        )


def _caches(world: World) -> Iterator[Artefact]:
    """A person who can write the caches of timm and torchvision."""
    for form in ("zip", "legacy", "raw"):
        home = world.at(f"torch-{form}")
        checkpoints = home / "hub" / "checkpoints"
        checkpoints.mkdir(parents=True)
        bomb = payloads(world.mark(f"torch-{form}"))["system"]
        data = pickle.dumps(bomb) if form == "raw" else _saved({"a": bomb}, zipped=form == "zip")
        for name in ("resnet18-f37072fd.pth", "gcvit_xxtiny_224_nvidia-d1d86009.pth"):
            (checkpoints / name).write_bytes(data)
        (home / "hub" / "trusted_list").write_text("evil_repo\n")
        (home / "hub" / "evil_repo").mkdir()
        (home / "hub" / "evil_repo" / "hubconf.py").write_text(f"open({str(world.mark('hubconf'))!r}, 'w')")
        for spec in ("torchvision/resnet18", "timm/gcvit_xxtiny.in1k"):
            yield Artefact(
                name=f"torch cache {form} {spec}", commands=_model_commands(world, spec), env={"TORCH_HOME": str(home)},
                told="hash",
            )  # fmt: skip
    for name, file in (
        ("bin", "pytorch_model.bin"),
        ("safetensors", "model.safetensors"),
        ("link", "model.safetensors"),
    ):
        home = world.at(f"hf-{name}")
        _hub_cache(home, file, _saved({"a": payloads(world.mark(f"hf-{name}"))["touch"]}), blob=name)
        commands = (*_model_commands(world, "timm/test_resnet.r160_in1k"), *_model_commands(world, "hf-hub:evil/tiny"))
        yield Artefact(name=f"hub cache {name}", commands=commands, env={"HF_HOME": str(home)})


def _hub_cache(home: Path, file: str, data: bytes, *, blob: str) -> None:
    for repo, names in (("timm--test_resnet.r160_in1k", (file,)), ("evil--tiny", (file, "config.json"))):
        root = home / "hub" / f"models--{repo}"
        snapshot = root / "snapshots" / ("a" * 40)
        for folder in (snapshot, root / "blobs", root / "refs"):
            folder.mkdir(parents=True)
        (root / "refs" / "main").write_text("a" * 40)
        for name in names:
            content = json.dumps(GOOD).encode() if name == "config.json" else data
            target = root / "blobs" / ("b" * 64 if name != "config.json" else "c" * 40)
            target.write_bytes(content)
            (snapshot / name).symlink_to("/dev/zero" if blob == "link" and name == file else target)


def artefacts(world: World) -> Iterator[Artefact]:
    for name, data in _files(world):
        path = world.at(name)
        path.write_bytes(data)
        yield Artefact(name=name, commands=everywhere(world, path))
    yield from _special(world)
    yield from _model_folders(world)
    yield from _caches(world)


assert MODEL.endswith("test_resnet")
