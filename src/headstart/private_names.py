"""The private names of torch and timm that headstart uses, in one table, and a way without each.

A private name may be renamed by any release. What can be looked up is looked up here once: where the name is gone, a
run may take longer, and gives the same numbers up to rounding. ``USES`` lists every use, names in strings too; a test
compares it with the source.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

SEEN_IN = "torch 2.14.1, timm 1.0.31"
"""The versions that every name of the table was seen in."""


@dataclass(frozen=True, kw_only=True)
class PrivateUse:
    """A private name, as the source writes it last (``_foreach_norm``), the files that have it, and what happens
    ``without`` it.
    """

    name: str
    files: tuple[str, ...]
    without: str


_OF_MODULES = "an attribute of each module since torch 0.4, and so of pickled ones: torch cannot rename it"
_NOT_CACHED = "nothing is cached in front of what trains: every step computes all layers"
_ANY_RUNTIME_ERROR = "any RuntimeError of a step is taken for one"
_PUBLIC_CLASSES = "torch's public classes of it"
_ONE_BY_ONE = "one tensor at a time"


USES = (
    PrivateUse(
        name="InductorError",
        files=("private_names.py",),
        without=_ANY_RUNTIME_ERROR,
    ),
    PrivateUse(
        name="TorchDispatchMode",
        files=("private_names.py",),
        without=_NOT_CACHED,
    ),
    PrivateUse(
        name="TorchDynamoException",
        files=("private_names.py",),
        without=_ANY_RUNTIME_ERROR,
    ),
    PrivateUse(
        name="_BatchNorm",
        files=("private_names.py",),
        without=_PUBLIC_CLASSES,
    ),
    PrivateUse(
        name="_ConvNd",
        files=("private_names.py",),
        without=_PUBLIC_CLASSES,
    ),
    PrivateUse(
        name="_DisableTorchDispatch",
        files=("private_names.py",),
        without=_NOT_CACHED,
    ),
    PrivateUse(
        name="_DropoutNd",
        files=("private_names.py",),
        without=_PUBLIC_CLASSES,
    ),
    PrivateUse(
        name="_NormBase",
        files=("private_names.py",),
        without=_PUBLIC_CLASSES,
    ),
    PrivateUse(
        name="_backward_hooks",
        files=("surgery/module_copy.py", "surgery/naming.py", "training/around_step.py"),
        without=_OF_MODULES,
    ),
    PrivateUse(
        name="_backward_pre_hooks",
        files=("training/around_step.py",),
        without=_OF_MODULES,
    ),
    PrivateUse(
        name="_buffers",
        files=(
            "runs/frozen_file.py",
            "surgery/code_digest.py",
            "surgery/held.py",
            "surgery/members.py",
            "surgery/module_copy.py",
            "surgery/naming.py",
            "surgery/own_state.py",
            "training/activation_checkpointing.py",
            "training/around_step.py",
        ),
        without=_OF_MODULES,
    ),
    PrivateUse(
        name="_builder",
        files=("private_names.py",),
        without="the filter of published weights is found by its usual name in the architecture's file",
    ),
    PrivateUse(
        name="_compiled_call_impl",
        files=("surgery/module_state.py", "surgery/reach.py"),
        without="a module compiled in place counts as one with code of its own",
    ),
    PrivateUse(
        name="_disable_dynamo",
        files=("private_names.py",),
        without="the compiler is imported with torchvision, which takes a second",
    ),
    PrivateUse(
        name="_disabled_torch_function_impl",
        files=("private_names.py",),
        without=_NOT_CACHED,
    ),
    PrivateUse(
        name="_foreach_lerp_",
        files=("private_names.py",),
        without=_ONE_BY_ONE,
    ),
    PrivateUse(
        name="_foreach_mul_",
        files=("private_names.py",),
        without=_ONE_BY_ONE,
    ),
    PrivateUse(
        name="_foreach_norm",
        files=("private_names.py",),
        without=_ONE_BY_ONE,
    ),
    PrivateUse(
        name="_forward_hooks",
        files=("surgery/held.py", "surgery/own_state.py", "training/around_step.py"),
        without=_OF_MODULES,
    ),
    PrivateUse(
        name="_forward_pre_hooks",
        files=("surgery/held.py", "surgery/module_copy.py", "surgery/own_state.py", "training/around_step.py"),
        without=_OF_MODULES,
    ),
    PrivateUse(
        name="_is_full_backward_hook",
        files=("surgery/code_digest.py",),
        without=_OF_MODULES,
    ),
    PrivateUse(
        name="_make_wrapper_subclass",
        files=("private_names.py",),
        without=_NOT_CACHED,
    ),
    PrivateUse(
        name="_model_args",
        files=("models/factory.py", "models/sources.py"),
        without="a module made by timm is not recognised as one, and is handled as anyone's",
    ),
    PrivateUse(
        name="_modules",
        files=(
            "surgery/module_copy.py",
            "surgery/naming.py",
            "surgery/reach.py",
            "surgery/whole_module.py",
            "training/around_step.py",
        ),
        without=_OF_MODULES,
    ),
    PrivateUse(
        name="_non_persistent_buffers_set",
        files=("surgery/members.py", "surgery/own_state.py"),
        without=_OF_MODULES,
    ),
    PrivateUse(
        name="_ops",
        files=("surgery/per_image_ops.py",),
        without="nothing: mypy reads it, Python does not",
    ),
    PrivateUse(
        name="_orig_mod",
        files=("surgery/whole_module.py",),
        without="a compiled module is not refused with the line to type",
    ),
    PrivateUse(
        name="_parameters",
        files=(
            "surgery/code_digest.py",
            "surgery/held.py",
            "surgery/lora_targets.py",
            "surgery/module_copy.py",
            "surgery/naming.py",
            "training/around_step.py",
        ),
        without=_OF_MODULES,
    ),
    PrivateUse(
        name="_post_accumulate_grad_hooks",
        files=("surgery/module_copy.py", "surgery/naming.py", "training/around_step.py"),
        without="such a hook of a parameter is not seen",
    ),
    PrivateUse(
        name="_schema",
        files=(
            "private_names.py",
            "surgery/fixed_run.py",
            "surgery/operation_watch.py",
            "surgery/per_image_ops.py",
            "surgery/recording.py",
        ),
        without=_NOT_CACHED,
    ),
    PrivateUse(
        name="_tensor_name",
        files=("surgery/module_copy.py",),
        without="a tensor that torch.nn.utils computes anew is not made one that can be trained",
    ),
    PrivateUse(
        name="_upsample_",
        files=("private_names.py",),
        without="torch's public function, and what it gives too much is cut off",
    ),
    PrivateUse(
        name="_version",
        files=("surgery/code_digest.py", "surgery/values.py"),
        without=_OF_MODULES,
    ),
    PrivateUse(
        name="save_config_for_hf",
        files=("private_names.py",),
        without="``write_plain_config``",
    ),
    PrivateUse(
        name="tree_flatten",
        files=("private_names.py",),
        without="tuples, lists and dicts only",
    ),
)


def _find(module: str, name: str, instead: Any) -> Any:
    try:
        return getattr(import_module(module), name, instead)
    except ImportError:
        return instead


def norm_each(tensors: Sequence[Tensor], order: float) -> list[Tensor]:
    """The norm of each tensor, one by one."""
    return [torch.linalg.vector_norm(tensor, order) for tensor in tensors]


def multiply_each_(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply each tensor in place, one by one."""
    for tensor in tensors:
        tensor.mul_(factor)


def lerp_each_(tensors: Sequence[Tensor], ends: Sequence[Tensor], *, weight: float) -> None:
    """Move each tensor in place to its end by a share of the way, one by one."""
    for tensor, end in zip(tensors, ends, strict=True):
        tensor.lerp_(end, weight)


def flatten_each(value: object) -> tuple[list[Any], object]:
    """The leaves of nested tuples, lists and dicts, and their structure, which compares equal to one of its shape."""
    if isinstance(value, tuple | list):
        parts = [flatten_each(part) for part in value]
        return [leaf for leaves, _ in parts for leaf in leaves], (type(value), [structure for _, structure in parts])
    if isinstance(value, dict):
        leaves, structure = flatten_each(list(value.values()))
        return leaves, (type(value), list(value), structure)
    return [value], None


foreach_norm: Callable[[Sequence[Tensor], float], list[Tensor]] = _find("torch", "_foreach_norm", norm_each)
foreach_mul_: Callable[[Sequence[Tensor], float], None] = _find("torch", "_foreach_mul_", multiply_each_)
foreach_lerp_: Callable[..., None] = _find("torch", "_foreach_lerp_", lerp_each_)
tree_flatten: Callable[[object], tuple[list[Any], Any]] = _find("torch.utils._pytree", "tree_flatten", flatten_each)

_BATCH_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d,
)  # fmt: skip
_INSTANCE_NORMS = (
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    nn.LazyInstanceNorm1d, nn.LazyInstanceNorm2d, nn.LazyInstanceNorm3d,
)  # fmt: skip
_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def _kinds(module: str, name: str, instead: tuple[type[nn.Module], ...]) -> tuple[type[nn.Module], ...]:
    found = _find(module, name, None)
    return instead if found is None else (found,)


BATCH_NORMS = _kinds("torch.nn.modules.batchnorm", "_BatchNorm", _BATCH_NORMS)
NORMS_WITH_STATISTICS = _kinds("torch.nn.modules.batchnorm", "_NormBase", (*_BATCH_NORMS, *_INSTANCE_NORMS))
CONVOLUTIONS = _kinds("torch.nn.modules.conv", "_ConvNd", _CONVOLUTIONS)
DROPOUTS = _kinds("torch.nn.modules.dropout", "_DropoutNd", _DROPOUTS)


_WATCHING = {
    name: _find(module, name, None)
    for module, name in (
        ("torch.utils._python_dispatch", "TorchDispatchMode"),
        ("torch._C", "_DisableTorchDispatch"),
        ("torch._C", "_disabled_torch_function_impl"),
    )
} | {"_make_wrapper_subclass": getattr(Tensor, "_make_wrapper_subclass", None)}
if not TYPE_CHECKING:
    TorchDispatchMode = _WATCHING["TorchDispatchMode"] or object
    """The class whose instances see each operation of torch; ``object`` where torch has none."""
without_torch_function: Any = _WATCHING["_disabled_torch_function_impl"]
without_dispatch: Callable[[], Any] = _WATCHING["_DisableTorchDispatch"]
make_wrapper: Callable[..., Any] = _WATCHING["_make_wrapper_subclass"]


def find_unwatchable() -> str:
    """The name by which operations of torch would be watched and that this torch has not; "" where it has all."""
    missing = [name for name, value in _WATCHING.items() if value is None]
    example: Any = torch.ops.aten.add.Tensor
    return "".join([*missing, *([] if hasattr(example, "_schema") else ["_schema"])][:1])


def find_compiler_errors() -> tuple[type[Exception], ...]:
    """What torch's compiler raises where it cannot compile a model; any RuntimeError where it has other names."""
    return (
        _find("torch._dynamo.exc", "TorchDynamoException", RuntimeError),
        _find("torch._inductor.exc", "InductorError", RuntimeError),
    )


def find_lazy_disable() -> Callable[..., Any] | None:
    """torch's own ``compiler.disable`` that imports the compiler when what it marks is called; None where it has none,
    and the compiler is imported with the rest.
    """
    lazily: Callable[..., Any] | None = _find("torch._compile", "_disable_dynamo", None)
    return lazily


def find_timm_builder() -> ModuleType | None:
    """timm's module whose ``load_pretrained`` is called for an architecture's weights; None where it is elsewhere."""
    builder: ModuleType | None = _find("timm.models", "_builder", None)
    return builder if hasattr(builder, "load_pretrained") else None


def find_weights_filter(module: nn.Module) -> Callable[..., dict[str, Tensor]] | None:
    """What timm's file of an architecture calls its filter of published weights, in all but a few files."""
    named: Callable[..., dict[str, Tensor]] | None = getattr(
        sys.modules[type(module).__module__], "checkpoint_filter_fn", None
    )
    return named


def find_config_writer() -> Callable[..., None]:
    """timm's writer of a model's ``config.json``; where it has another name or other arguments, a plain one."""
    theirs = _find("timm.models._hub", "save_config_for_hf", None)
    known = theirs is not None and {"model_args", "data_config"} <= set(signature(theirs).parameters)
    return theirs if known else write_plain_config


def write_plain_config(
    model: Any,
    path: str,
    model_config: Mapping[str, Any],
    *,
    model_args: Mapping[str, Any],
    data_config: Mapping[str, Any],
) -> None:
    """Write what timm needs to make the model again and to prepare its images, as JSON."""
    elsewhere = ("architecture", "url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "label_offset")
    about = {
        key: value
        for key, value in model.pretrained_cfg.items()
        if value is not None and key not in elsewhere and not key.startswith("test_")
    }
    config = {
        "architecture": model.pretrained_cfg["architecture"],
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        **model_config,
        "model_args": dict(model_args),
        "pretrained_cfg": about | dict(data_config) | {"num_classes": model.num_classes, "custom_load": False},
    }
    Path(path).write_text(json.dumps(config, indent=2), encoding="utf-8")


def resize_extent(pixels: Tensor, size: tuple[int, int], *, extent: tuple[float, float], mode: str) -> Tensor:
    """Pixels (B, C, H, W) antialiased to ``size``, height and width; of the last row and column only as much as lies
    within ``extent``, in pixels.
    """
    scales = [wanted / length for wanted, length in zip(size, extent, strict=True)]
    name = f"_upsample_{mode}2d_aa"
    exact = getattr(torch.ops.aten, name, None)
    if exact is not None:
        resized: Tensor = exact(pixels, list(size), False, *scales)
        return resized
    return resize_by_scale(pixels, size, scales=scales, mode=mode)


def resize_by_scale(pixels: Tensor, size: tuple[int, int], *, scales: Sequence[float], mode: str) -> Tensor:
    """The same by torch's public function, which gives as many pixels as the scale makes: at least those asked for."""
    enough = [
        scale if int(length * scale) >= wanted else (wanted + 1e-9) / length
        for length, scale, wanted in zip(pixels.shape[2:], scales, size, strict=True)
    ]
    resized = nn.functional.interpolate(pixels, scale_factor=enough, mode=mode, antialias=True)
    return resized[..., : size[0], : size[1]]
