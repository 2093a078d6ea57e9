"""Building an architecture of timm or torchvision, on ``meta`` first, with options that are checked."""

from __future__ import annotations

import difflib
import gc
import inspect
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Literal

import timm
import torch
import torchvision
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from headstart.errors import ModelError
from headstart.models.weights import list_names
from headstart.private_names import find_timm_builder, find_weights_filter
from headstart.wording import option

# what a factory raises over a user's option: the libraries have no error type of their own
_FACTORY_ERRORS = (
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    AssertionError,
    ArithmeticError,
)
_TORCHVISION_FIXED: dict[str, dict[str, Any]] = {  # the auxiliary classifiers would make training's output a tuple
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
_DENSENET_NAME = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$"
)
_CAPTURE_LOCK = threading.Lock()

StateFilter = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a factory is called with; ``cfg`` is timm's pretrained_cfg, empty for torchvision."""

    library: Literal["timm", "torchvision"]
    name: str
    options: Mapping[str, object] = field(default_factory=dict)
    cfg: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.library}/{self.name}"


@dataclass(frozen=True)
class _Loading:
    """What timm would have loaded weights with."""

    filter_fn: Callable[..., dict[str, Tensor]] | None
    model: nn.Module


def build(architecture: Architecture, *, outputs: int) -> nn.Module:
    """The module with ``outputs`` classes and random weights from torch's global generator, on the current device."""
    if architecture.library == "timm":
        options: dict[str, Any] = dict(architecture.options)
        cfg = dict(architecture.cfg) or None
        return timm.create_model(
            architecture.name, pretrained=False, pretrained_cfg=cfg, num_classes=outputs, **options
        )
    builder = torchvision.models.get_model_builder(architecture.name)
    options = _TORCHVISION_FIXED.get(architecture.name, {}) | dict(architecture.options)
    channels = options.pop("in_chans", 3)
    module: nn.Module = builder(weights=None, num_classes=outputs, **options)
    if channels != 3:
        _replace_first_convolution(module, channels)
    return module


def _replace_first_convolution(module: nn.Module, channels: int) -> None:
    """Have a module of torchvision's, whose builders know 3 channels only, take others: a new first convolution."""
    path, old = next((path, part) for path, part in module.named_modules() if isinstance(part, nn.Conv2d))
    new = nn.Conv2d(
        channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None, padding_mode=old.padding_mode,
    )  # fmt: skip
    module.set_submodule(path, new)


def sketch(architecture: Architecture, *, outputs: int) -> nn.Module:
    """The module on ``meta``: names and shapes, no memory.

    Raises: ModelError: the architecture does not take an option, or not this value.
    """
    try:
        return _on_meta(lambda: build(architecture, outputs=outputs))
    except _FACTORY_ERRORS as error:
        raise _option_error(architecture, error) from error


def check_options(architecture: Architecture, *, outputs: int, given: Collection[str] = ()) -> None:
    """Raises: ModelError: an option that the architecture does not take, or one of ``given`` that has no effect."""
    foreign = _list_foreign()
    for name in architecture.options:
        if name in foreign:
            raise ModelError(f"model.options.{name}: not an architecture option; {foreign[name]}")
    if architecture.options:
        sketch(architecture, outputs=outputs)
    for name in given:
        if _ignores(architecture, name, outputs=outputs):
            raise ModelError(f"model.options.{name}: it has no effect on {architecture}, which ignores it; drop it")


def _list_foreign() -> dict[str, str]:
    """Arguments of the libraries' factories that are no options of an architecture, and what to do instead."""
    return {
        "num_classes": "the head's size comes from the data",
        "pretrained": f"say {option('weights', 'pretrained')}, none or FILE",
        "weights": f"say {option('weights', 'pretrained')}, none or FILE",
        "progress": "it is not part of the architecture",
        "checkpoint_path": f"say {option('weights', fill='FILE')}",
        "pretrained_cfg": "say model.preprocess for the normalisation",
        "pretrained_cfg_overlay": "say model.preprocess for the normalisation",
        "pretrained_strict": "every tensor is always counted",
        "pretrained_filter_fn": "it is not part of the architecture",
        "pretrained_model_args": "it is not part of the architecture",
        "cache_dir": "set HF_HOME or TORCH_HOME",
        "features_only": "a classifier is fine-tuned, not a feature pyramid",
        "out_indices": "a classifier is fine-tuned, not a feature pyramid",
        "feature_cls": "a classifier is fine-tuned, not a feature pyramid",
        "kwargs_filter": "it is not part of the architecture",
        "device": f"say {option('device')}",
        "dtype": f"say {option('precision')}",
    }


def head_tensors(architecture: Architecture, *, outputs: int) -> frozenset[str]:
    """Names of the tensors whose shape follows the number of classes."""
    one = sketch(architecture, outputs=outputs).state_dict()
    other = sketch(architecture, outputs=outputs + 1).state_dict()
    return frozenset(name for name in one if name not in other or one[name].shape != other[name].shape)


def takes_option(architecture: Architecture, name: str) -> bool:
    """Whether the class that the factory makes has an argument of that name."""
    return name in _arguments(sketch(architecture, outputs=2))


def state_filter(architecture: Architecture, *, outputs: int, module: nn.Module) -> StateFilter:
    """How a published state dict becomes this module's: old names, position tables for another size, other channels."""
    if architecture.library == "torchvision":
        return lambda state: _torchvision_state(state, module)
    loading = _timm_loading(architecture, outputs=outputs)
    return lambda state: _timm_state(state, architecture, loading, module)


class _NothingDrawn(TorchFunctionMode):
    """Random initial values are not drawn on meta: torch's way of drawing none there loads its compiler (1.2 s)."""

    draws = (torch.Tensor.normal_, torch.Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        if func in self.draws and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


class _EmptyOnMeta(TorchFunctionMode):
    """Parameters on meta, computed values on the CPU: torchvision's RegNet computes its widths with tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    try:
        with torch.device("meta"), _NothingDrawn():
            return make()
    except NotImplementedError:  # "Cannot copy out of meta tensor"
        with _EmptyOnMeta():
            return make().to("meta")  # buffers too


@contextmanager
def _capture_loading(builder: ModuleType) -> Iterator[list[_Loading]]:
    """timm passes each architecture's weights filter to ``load_pretrained`` only: be that function for one call."""
    calls: list[_Loading] = []

    def capture(
        model: nn.Module, *_: Any, filter_fn: Callable[..., dict[str, Tensor]] | None = None, **__: Any
    ) -> None:
        calls.append(_Loading(filter_fn, model))

    with _CAPTURE_LOCK:
        original = builder.load_pretrained
        builder.load_pretrained = capture  # type: ignore[attr-defined]
        try:
            yield calls
        finally:
            builder.load_pretrained = original  # type: ignore[attr-defined]


def _timm_loading(architecture: Architecture, *, outputs: int) -> _Loading | None:
    builder = find_timm_builder()
    if builder is None:
        module = sketch(architecture, outputs=outputs)
        return _Loading(find_weights_filter(module), module)
    options: dict[str, Any] = dict(architecture.options)
    cfg = dict(architecture.cfg) or None
    with _capture_loading(builder) as calls, torch.device("meta"):
        timm.create_model(architecture.name, pretrained=True, pretrained_cfg=cfg, num_classes=outputs, **options)
    return calls[0] if calls else None


def _timm_state(
    state: Mapping[str, Tensor], architecture: Architecture, loading: _Loading | None, module: nn.Module
) -> dict[str, Tensor]:
    expected = module.state_dict()
    found = dict(state)
    fits = set(found) == set(expected) and all(found[name].shape == expected[name].shape for name in found)
    if loading is not None and loading.filter_fn is not None and not fits:
        try:
            found = _apply_weights_filter(loading.filter_fn, found, module)
        except _FACTORY_ERRORS:  # made for published files; what does not fit is named by the coverage
            found = dict(state)
    found = {name: value for name, value in found.items() if not value.is_meta}
    for convolution in _names(architecture.cfg.get("first_conv")):
        _adapt_channels(found, expected, convolution + ".weight", architecture)
    _drop_background(found, expected, architecture)
    return found


def _apply_weights_filter(
    filter_fn: Callable[..., dict[str, Tensor]], state: dict[str, Tensor], module: nn.Module
) -> dict[str, Tensor]:
    parameters = inspect.signature(filter_fn).parameters
    return dict(filter_fn(state, module) if len(parameters) > 1 else filter_fn(state))


def _adapt_channels(
    found: dict[str, Tensor], expected: Mapping[str, Tensor], name: str, architecture: Architecture
) -> None:
    channels = int(architecture.options.get("in_chans", 3))  # type: ignore[call-overload]
    if name not in found or name not in expected or found[name].shape == expected[name].shape:
        return
    if found[name].ndim == 4 and channels != found[name].shape[1]:
        found[name] = adapt_input_conv(channels, found[name], base_chans=found[name].shape[1])


def _drop_background(found: dict[str, Tensor], expected: Mapping[str, Tensor], architecture: Architecture) -> None:
    """Some old files have a background class before the others."""
    offset = int(architecture.cfg.get("label_offset") or 0)
    for classifier in _names(architecture.cfg.get("classifier")) if offset else ():
        for name in (f"{classifier}.weight", f"{classifier}.bias"):
            if name in found and name in expected and len(found[name]) == len(expected[name]) + offset:
                found[name] = found[name][offset:]


def _torchvision_state(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    found = {_DENSENET_NAME.sub(r"\1\2", name): value for name, value in state.items()}
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    name = next((f"{path}.weight" for path, part in module.named_modules() if part is first), "")
    if first is not None and name in found and found[name].ndim == 4 and found[name].shape[1] != first.in_channels:
        found[name] = adapt_input_conv(first.in_channels, found[name], base_chans=found[name].shape[1])
    positions, expected = "encoder.pos_embedding", module.state_dict()
    if positions in found and positions in expected and found[positions].shape[1] != expected[positions].shape[1]:
        from torchvision.models.vision_transformer import interpolate_embeddings

        size, patch = int(module.image_size), int(module.patch_size)  # type: ignore[arg-type]
        return dict(interpolate_embeddings(size, patch, OrderedDict(found)))
    return found


class _Touched(RuntimeError):
    """The probe was used."""


class _Probe:
    """Stands in for an option's value and notices being used."""

    def __bool__(self) -> bool:
        raise _Touched

    def __eq__(self, other: object) -> bool:
        raise _Touched

    def __hash__(self) -> int:
        raise _Touched


def _ignores(architecture: Architecture, name: str, *, outputs: int) -> bool:
    """Whether a factory swallows an option: nobody uses a probe in its place, and no module keeps it."""
    kept: list[weakref.ref[_Probe]] = []

    def make() -> nn.Module:
        probe = _Probe()
        kept.append(weakref.ref(probe))
        return build(replace(architecture, options={**architecture.options, name: probe}), outputs=outputs)

    try:
        module = _on_meta(make)
    except _FACTORY_ERRORS:
        return False
    for part in module.modules():
        part.__dict__.pop("_model_args", None)  # where timm notes all options
    gc.collect()
    return all(reference() is None for reference in kept)


def _option_error(architecture: Architecture, error: Exception) -> ModelError:
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown and unknown.group(1) in architecture.options:
        return _unknown_option(architecture, unknown.group(1))
    fixed = re.search(r"multiple values for (?:keyword )?argument '(\w+)'", str(error))
    if fixed and fixed.group(1) in architecture.options:
        return ModelError(f"model.options.{fixed.group(1)}: {architecture} sets it itself and lets nobody change it")
    options = ", ".join(f"{name}={value!r}" for name, value in architecture.options.items()) or "no options"
    return ModelError(f"{architecture} cannot be built with {options}: {error or type(error).__name__}")


def _unknown_option(architecture: Architecture, name: str) -> ModelError:
    plain = Architecture(library=architecture.library, name=architecture.name, cfg=architecture.cfg)
    accepted = sorted(_arguments(sketch(plain, outputs=2)) - set(_list_foreign()))
    near = difflib.get_close_matches(name, accepted, n=3, cutoff=0.5)
    meant = f"did you mean {', '.join(near)}? " if near else ""
    return ModelError(
        f"model.options.{name}: {architecture} takes no such option; {meant}it takes {list_names(accepted, 40)}"
    )


def _arguments(module: nn.Module) -> set[str]:
    names: set[str] = set()
    for parent in type(module).__mro__:
        if parent not in (object, nn.Module) and "__init__" in parent.__dict__:
            names |= {
                name
                for name, parameter in inspect.signature(parent.__init__).parameters.items()  # type: ignore[misc]
                if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            }
    return names - {"self"}


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(str(name) for name in value) if isinstance(value, (list, tuple)) else ()
