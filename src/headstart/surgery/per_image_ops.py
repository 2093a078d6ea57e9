"""ATen operations that give the same bits whenever they are called with the same arguments, image by image.

What is not on a list here is taken for random, stateful or mixing: what is made from it is computed at every step. Each
operation listed is tested one by one in ``tests/surgery/test_per_image_ops.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    Operation = torch._ops.OpOverload


def _names(text: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in text.split())


VALUES = _names(
    "_to_copy abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or "
    "bitwise_xor ceil celu clamp clamp_max clamp_min clone copysign cos cosh deg2rad div elu eq erf erfc erfinv exp "
    "exp2 expm1 fill floor floor_divide fmax fmin fmod frac ge gelu gt hardshrink hardsigmoid hardswish hardtanh "
    "heaviside hypot isinf isnan le leaky_relu lerp lgamma log log10 log1p log2 log_sigmoid_forward logaddexp "
    "logaddexp2 logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum mish mul "
    "nan_to_num ne neg pow rad2deg reciprocal relu remainder round rsqrt rsub sgn sigmoid sign signbit silu sin sinc "
    "sinh softplus softshrink special_entr special_i0e special_i1 special_log_ndtr special_ndtr special_xlog1py sqrt "
    "square sub tan tanh threshold trunc where xlogy"
)
"""Element by element."""

WRITES = _names(
    "abs_ add_ addcdiv_ addcmul_ bitwise_and_ bitwise_not_ bitwise_or_ bitwise_xor_ ceil_ celu_ clamp_ clamp_max_ "
    "clamp_min_ copy_ cos_ div_ elu_ erf_ exp_ expm1_ fill_ floor_ floor_divide_ fmod_ frac_ gelu_ hardsigmoid_ "
    "hardswish_ hardtanh_ leaky_relu_ lerp_ log10_ log1p_ log2_ log_ logical_and_ logical_not_ logical_or_ "
    "masked_fill_ mish_ mul_ nan_to_num_ neg_ pow_ reciprocal_ relu_ remainder_ round_ rsqrt_ sigmoid_ sign_ silu_ "
    "sin_ sqrt_ square_ sub_ tan_ tanh_ threshold_ tril_ triu_ trunc_ xlogy_ zero_"
)
"""Element by element, written into the first argument."""

VIEWS = _names(
    "_reshape_alias _unsafe_view alias as_strided detach diagonal expand lift_fresh permute select slice split "
    "split_with_sizes squeeze t transpose unbind unfold unsafe_split unsafe_split_with_sizes unsqueeze view"
)
"""The same numbers, seen in another shape."""

LAYERS = _names(
    "_adaptive_avg_pool2d _adaptive_avg_pool3d _batch_norm_no_update _cdist_forward _fused_rms_norm "
    "_native_batch_norm_legit_no_training _native_multi_head_attention _transformer_encoder_layer_fwd "
    "_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact2d adaptive_max_pool2d addmm addmv "
    "avg_pool2d avg_pool3d baddbmm bmm channel_shuffle col2im constant_pad_nd convolution cudnn_convolution "
    "cudnn_convolution_add_relu cudnn_convolution_relu diag_embed embedding full_like grid_sampler_2d im2col "
    "max_pool2d_with_indices max_pool3d_with_indices mkldnn_convolution mm mv native_group_norm "
    "native_layer_norm new_full new_ones new_zeros ones_like pixel_shuffle pixel_unshuffle reflection_pad1d "
    "reflection_pad2d replication_pad1d replication_pad2d tril triu upsample_bicubic2d upsample_bilinear2d "
    "upsample_linear1d upsample_nearest1d upsample_nearest2d zeros_like"
)
"""Layers, products, and constants of a shape; whether a product sums over the batch is seen in its numbers. Not on it:
mkldnn_rnn_layer, an LSTM on CPUs, which rounds otherwise where gradients are recorded.
"""

ALONG = {
    f"aten::{name}": argument
    for argument, names in {
        "dim": "_log_softmax _safe_softmax _softmax all amax amin any argmax argmin cat cummax cummin cumprod cumsum "
        "gather glu index_select linalg_cross linalg_vector_norm logcumsumexp logsumexp max mean min norm prod select "
        "slice sort split split_with_sizes stack std std_mean sum topk unbind unsafe_split unsafe_split_with_sizes var "
        "var_mean",
        "dims": "flip roll",
        "dimension": "unfold",
    }.items()
    for name in names.split()
}
"""Operations along dimensions, with the argument that names these; none named is all of them."""

SWITCHED = {
    "aten::native_batch_norm": "training",
    "aten::_native_batch_norm_legit": "training",
    "aten::cudnn_batch_norm": "training",
    "aten::miopen_batch_norm": "training",
    "aten::_cudnn_rnn": "dropout",
    "aten::native_dropout": "train",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "dropout_p",
    "aten::_scaled_dot_product_flash_attention": "dropout_p",
    "aten::_scaled_dot_product_efficient_attention": "dropout_p",
    "aten::_scaled_dot_product_cudnn_attention": "dropout_p",
    "aten::_scaled_dot_product_fused_attention_overrideable": "dropout_p",
}
"""Operations that are random, or read or write statistics of a batch, unless an argument is 0 or False."""

BY_INDEX = _names("index repeat")
"""Operations whose arguments are looked at below."""

FIXED = VALUES | WRITES | VIEWS | LAYERS | BY_INDEX | frozenset(ALONG) | frozenset(SWITCHED)


def is_fixed(
    func: Operation, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, batch: int | None = None
) -> bool:
    """Whether an operation of ``torch.ops``, called like this, is known to give the same bits at every call, and draws
    no random numbers and keeps nothing.

    ``batch``: how many images there are; a first argument with that many rows is taken for one row per image, and
    what goes along, picks or joins its rows is not per image. With None that is not asked.
    """
    name = func._schema.name
    if name not in FIXED or _writes(func) or not _is_still(func, name, args, kwargs or {}):
        return False
    return batch is None or not _mixes(func, name, args, kwargs or {}, batch)


def argument_of(func: Operation, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The value of an operation's argument, given or by default; None where there is no such argument."""
    place, default = _index_arguments(func).get(name, (None, None))
    if name in kwargs:
        return kwargs[name]
    return args[place] if place is not None and place < len(args) else default


@lru_cache(maxsize=4096)
def _index_arguments(func: Operation) -> dict[str, tuple[int, Any]]:
    return {
        argument.name: (place, argument.default_value if argument.has_default_value() else None)
        for place, argument in enumerate(func._schema.arguments)
    }


@lru_cache(maxsize=4096)
def _writes(func: Operation) -> bool:
    """Whether an overload writes to what its name does not say: an output that is given, a list that is sorted."""
    if func._schema.name in WRITES or func._schema.name in SWITCHED:
        return any(argument.is_out for argument in func._schema.arguments)
    return any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)


def _is_still(func: Operation, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the arguments leave out what is random or kept."""
    if name in SWITCHED:
        switch = argument_of(func, SWITCHED[name], args, kwargs)
        if name == "aten::native_dropout" and switch is not None:
            switch = switch and argument_of(func, "p", args, kwargs)
        of_one = switch and name.endswith(("batch_norm", "batch_norm_legit")) and _norms_one(func, args, kwargs)
        return switch is not None and (not switch or bool(of_one))
    if name in ("aten::cumsum", "aten::cumprod", "aten::logcumsumexp"):  # an accelerator's order is its own
        return args[0].device.type == "cpu" or not args[0].is_floating_point()
    return True


def _norms_one(func: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether it is instance norm: a batch norm of one image with all images' channels, without statistics."""
    kept = [argument_of(func, name, args, kwargs) for name in ("running_mean", "running_var")]
    return kept == [None, None] and args[0].shape[0] == 1


def _mixes(func: Operation, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], batch: int) -> bool:
    first = args[0] if args else None
    tensors = [first] if isinstance(first, Tensor) else list(first) if isinstance(first, (list, tuple)) else []
    rows = [tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.ndim and tensor.shape[0] == batch]
    if not rows or batch == 1:
        return False
    if name == "aten::repeat":
        repeats = args[1]
        return len(repeats) == rows[0].ndim and repeats[0] != 1
    if name == "aten::index":
        return bool(args[1]) and args[1][0] is not None
    if name == "aten::constant_pad_nd":
        return len(args[1]) >= 2 * rows[0].ndim and any(args[1][2 * rows[0].ndim - 2 :])
    if name == "aten::embedding" or name not in ALONG:
        return False
    return _names_rows(func, name, args, kwargs, rows[0])


def _names_rows(func: Operation, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], value: Tensor) -> bool:
    """Whether an operation along dimensions goes along the first."""
    if (
        ALONG[name] not in _index_arguments(func) and name != "aten::norm"
    ):  # of everything, or element by element: max.other
        return not (name in ("aten::max", "aten::min") and str(func).endswith(".other"))
    dims = argument_of(func, ALONG[name], args, kwargs)
    if name == "aten::slice" and _takes_all(func, args, kwargs, value):
        return False
    if dims is None or dims == []:
        return True
    ndim = value.ndim + (name == "aten::stack")
    return any(dim % ndim == 0 for dim in ([dims] if isinstance(dims, int) else dims))


def _takes_all(func: Operation, args: Sequence[Any], kwargs: Mapping[str, Any], value: Tensor) -> bool:
    start, end, step = (argument_of(func, name, args, kwargs) for name in ("start", "end", "step"))
    return start in (None, 0) and (end is None or end >= value.shape[0]) and step == 1
