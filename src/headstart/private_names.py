"""The private names of torch and timm that headstart uses, in one table, and a way without each that has one.

A private name may be renamed by any release. What has a way without it is looked up here once: where the name is gone,
a run may take longer, and gives the same numbers up to rounding. ``USES`` lists every other use, too; a test compares
it with the source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

SEEN_IN = "torch 2.14.1, timm 1.0.31"
"""The versions that every name of the table was seen in."""


@dataclass(frozen=True, kw_only=True)
class PrivateUse:
    """A private name, as the source writes it last (``_foreach_norm``), the files that have it, and what happens
    ``without`` it; "" where headstart needs it.
    """

    name: str
    files: tuple[str, ...]
    without: str = ""


USES = (
    PrivateUse(
        name="InductorError",
        files=("private_names.py",),
        without="any RuntimeError of a step is taken for one",
    ),
    PrivateUse(
        name="TorchDispatchMode",
        files=("surgery/fixed_run.py", "surgery/operation_watch.py"),
    ),
    PrivateUse(
        name="TorchDynamoException",
        files=("private_names.py",),
        without="any RuntimeError of a step is taken for one",
    ),
    PrivateUse(
        name="_BatchNorm",
        files=("private_names.py",),
        without="torch's public classes of it",
    ),
    PrivateUse(
        name="_C",
        files=("surgery/fixed_run.py", "surgery/fixed_values.py"),
    ),
    PrivateUse(
        name="_ConvNd",
        files=("private_names.py",),
        without="torch's public classes of it",
    ),
    PrivateUse(
        name="_DisableTorchDispatch",
        files=("surgery/fixed_run.py",),
    ),
    PrivateUse(
        name="_DropoutNd",
        files=("private_names.py",),
        without="torch's public classes of it",
    ),
    PrivateUse(
        name="_NormBase",
        files=("private_names.py",),
        without="torch's public classes of it",
    ),
    PrivateUse(
        name="_backward_hooks",
        files=("surgery/module_copy.py", "training/around_step.py"),
    ),
    PrivateUse(
        name="_backward_pre_hooks",
        files=("training/around_step.py",),
    ),
    PrivateUse(
        name="_buffers",
        files=(
            "runs/frozen_file.py",
            "surgery/held.py",
            "surgery/members.py",
            "surgery/module_copy.py",
            "surgery/own_state.py",
            "training/activation_checkpointing.py",
            "training/around_step.py",
        ),
    ),
    PrivateUse(
        name="_builder",
        files=("models/factory.py",),
    ),
    PrivateUse(
        name="_disabled_torch_function_impl",
        files=("surgery/fixed_values.py",),
    ),
    PrivateUse(
        name="_foreach_lerp_",
        files=("private_names.py",),
        without="one tensor at a time",
    ),
    PrivateUse(
        name="_foreach_mul_",
        files=("private_names.py",),
        without="one tensor at a time",
    ),
    PrivateUse(
        name="_foreach_norm",
        files=("private_names.py",),
        without="one tensor at a time",
    ),
    PrivateUse(
        name="_forward_hooks",
        files=("surgery/held.py", "surgery/own_state.py", "training/around_step.py"),
    ),
    PrivateUse(
        name="_forward_pre_hooks",
        files=("surgery/held.py", "surgery/module_copy.py", "surgery/own_state.py", "training/around_step.py"),
    ),
    PrivateUse(
        name="_make_wrapper_subclass",
        files=("surgery/fixed_values.py",),
    ),
    PrivateUse(
        name="_non_persistent_buffers_set",
        files=("surgery/members.py", "surgery/own_state.py"),
    ),
    PrivateUse(
        name="_ops",
        files=("surgery/per_image_ops.py",),
    ),
    PrivateUse(
        name="_schema",
        files=(
            "surgery/fixed_run.py",
            "surgery/operation_watch.py",
            "surgery/per_image_ops.py",
            "surgery/recording.py",
        ),
    ),
    PrivateUse(
        name="_upsample_bicubic2d_aa",
        files=("data/decoding/lazy_image.py",),
    ),
    PrivateUse(
        name="_upsample_bilinear2d_aa",
        files=("data/decoding/lazy_image.py",),
    ),
    PrivateUse(
        name="save_config_for_hf",
        files=("runs/bundle.py",),
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


def find_compiler_errors() -> tuple[type[Exception], ...]:
    """What torch's compiler raises where it cannot compile a model; any RuntimeError where it has other names."""
    return (
        _find("torch._dynamo.exc", "TorchDynamoException", RuntimeError),
        _find("torch._inductor.exc", "InductorError", RuntimeError),
    )
