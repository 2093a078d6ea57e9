"""The formats of an export, and what each needs and can: answered without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

from headstart.errors import ConfigError
from headstart.wording import option

FormatName = Literal["onnx", "openvino", "pt2", "timm", "hub-folder"]
Placement = Literal["auto", "inside", "outside"]
"""Where the preprocessing is: in the file, or with whoever calls it; auto: in the file where the format can hold it."""
Exactness = Literal["fp32"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format: what its file is called, what it needs to be installed, and which precisions it can have.

    ``modules``: what is imported; ``extra``: the extra of headstart's that installs them.
    """

    file: str
    title: str
    modules: tuple[str, ...] = ()
    extra: str = ""
    precisions: tuple[Exactness, ...] = ("fp32",)
    has_graph: bool = True
    """Whether the file holds a graph of operations, which preprocessing can be a part of; else weights alone."""


FORMATS: Mapping[FormatName, Format] = {
    "onnx": Format(
        file="model.onnx", title="ONNX Runtime", modules=("onnx", "onnxscript", "onnxruntime"), extra="onnx"
    ),
    "openvino": Format(
        file="model.xml", title="OpenVINO", modules=("openvino", "onnx", "onnxscript"), extra="openvino"
    ),
    "pt2": Format(file="model.pt2", title="torch.export"),
    "timm": Format(file="model.safetensors", title="timm", has_graph=False),
    "hub-folder": Format(file="model.safetensors", title="the hub's folder", has_graph=False),
}


def check_format(to: str, *, preprocess: str, precision: str) -> Format:
    """The format of that name.

    Raises: ConfigError: there is no such format, it cannot be had as asked, or what it needs is not installed.
    """
    found = next((form for name, form in FORMATS.items() if name == to), None)
    if found is None:
        raise ConfigError(f"to: {to!r} is no format; accepted: {', '.join(FORMATS)}, e.g. {option('to', 'onnx')}")
    if preprocess not in get_args(Placement):
        raise ConfigError(f"preprocess: {preprocess!r}; accepted: {', '.join(get_args(Placement))}")
    if precision not in found.precisions:
        raise ConfigError(f"precision: {precision!r}; accepted for {to}: {', '.join(found.precisions)}")
    if preprocess == "inside" and not found.has_graph:
        raise ConfigError(
            f"preprocess: {to} holds weights and a description of their preprocessing, which its caller does; give "
            f"{option('preprocess', 'outside')}, or {option('to', 'onnx')}"
        )
    missing = [module for module in found.modules if find_spec(module) is None]
    if missing:
        raise ConfigError(f"to: {to} needs {missing[0]}; install it with: pip install 'headstart[{found.extra}]'")
    return found
