"""Each operation that is taken for fixed and per image, one by one."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headstart.surgery.per_image_ops import ALONG, FIXED, SWITCHED, VALUES, VIEWS, WRITES, is_fixed

B = 5
ATEN = torch.ops.aten
ACCELERATOR = {  # kernels of an accelerator alone: what they compute has a kernel on CPUs that is tested here
    "cudnn_batch_norm", "cudnn_convolution", "cudnn_convolution_add_relu", "cudnn_convolution_relu",
    "miopen_batch_norm", "_cudnn_rnn", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
}  # fmt: skip
RANDOM = [
    "bernoulli",
    "bernoulli_",
    "binomial",
    "cauchy_",
    "dropout",
    "dropout_",
    "exponential_",
    "feature_dropout",
    "feature_alpha_dropout",
    "alpha_dropout",
    "geometric_",
    "log_normal_",
    "multinomial",
    "native_dropout",
    "normal",
    "normal_",
    "poisson",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "random_",
    "randperm",
    "rrelu",
    "rrelu_",
    "rrelu_with_noise",
    "rrelu_with_noise_",
    "uniform_",
    "_sample_dirichlet",
    "_standard_gamma",
    "_fused_dropout",
    "lstm",
    "gru",
    "scaled_dot_product_attention",
]


def some(*shape: int, seed: int = 0) -> Tensor:
    """Numbers between 0.1 and 0.9."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1


def whole(*shape: int, below: int = 4, seed: int = 0) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def along(op: Any, *more: Any) -> Callable[[Tensor], Any]:
    return lambda x: op(x, *more)


W, V = some(4, 4, 3, 3, seed=1) - 0.5, some(4, seed=2)
TOKENS, PICTURE, VOLUME = (B, 6, 8), (B, 4, 8, 8), (B, 2, 4, 4, 4)
Case = tuple[tuple[int, ...], Callable[[Tensor], Any]]


def attention(x: Tensor) -> Tensor:
    q = x.view(B, 6, 2, 4).transpose(1, 2)
    return ATEN._scaled_dot_product_flash_attention_for_cpu(q, q, q, 0.0)[0]


def encoder(x: Tensor) -> Tensor:
    one, square = torch.ones(8), some(8, 8, seed=3)
    return ATEN._transformer_encoder_layer_fwd(
        x, 8, 2, some(24, 8), some(24), square, one, False, True, 1e-5, one, one, one, one, square, one, square, one
    )


CASES: dict[str, Case] = {
    "_to_copy": (TOKENS, lambda x: ATEN._to_copy(x, dtype=torch.bfloat16)),
    "bitwise_and": (TOKENS, lambda x: ATEN.bitwise_and((x * 9).int(), 3)),
    "bitwise_or": (TOKENS, lambda x: ATEN.bitwise_or((x * 9).int(), 3)),
    "bitwise_xor": (TOKENS, lambda x: ATEN.bitwise_xor((x * 9).int(), 3)),
    "bitwise_not": (TOKENS, lambda x: ATEN.bitwise_not((x * 9).int())),
    "masked_fill": (TOKENS, lambda x: ATEN.masked_fill(x, x > 0.5, 0.25)),
    "where": (TOKENS, lambda x: ATEN.where(x > 0.5, x, x * 2)),
    "fill": (TOKENS, along(ATEN.fill, 0.5)),
    "log_sigmoid_forward": (TOKENS, lambda x: ATEN.log_sigmoid_forward(x)[0]),
    "ones_like": (TOKENS, along(ATEN.ones_like)),
    "zeros_like": (TOKENS, along(ATEN.zeros_like)),
    "any": (TOKENS, lambda x: ATEN.any(x > 0.8, 1)),
    "all": (TOKENS, lambda x: ATEN.all(x > 0.2, 1)),
    "max": (TOKENS, along(ATEN.max, 1)),
    "min": (TOKENS, along(ATEN.min, 1)),
    "prod": (TOKENS, along(ATEN.prod, 1)),
    "clamp": (TOKENS, along(ATEN.clamp, 0.2, 0.7)),
    "round": (TOKENS, along(ATEN.round)),
    "_adaptive_avg_pool2d": (PICTURE, along(ATEN._adaptive_avg_pool2d, [3, 3])),
    "_adaptive_avg_pool3d": (VOLUME, along(ATEN._adaptive_avg_pool3d, [3, 3, 2])),
    "_batch_norm_no_update": (PICTURE, lambda x: ATEN._batch_norm_no_update(x, V, V, V, V, 0.1, 1e-5)[0]),
    "_cdist_forward": (TOKENS, lambda x: ATEN._cdist_forward(x, x * x, 2.0, None)),
    "_fused_rms_norm": (TOKENS, lambda x: ATEN._fused_rms_norm(x, [8], None, 1e-5)[0]),
    "_native_batch_norm_legit_no_training": (
        PICTURE, lambda x: ATEN._native_batch_norm_legit_no_training(x, V, V, V, V, 0.1, 1e-5)[0],
    ),
    "_native_multi_head_attention": (
        TOKENS, lambda x: ATEN._native_multi_head_attention(
            x, x, x, 8, 2, some(24, 8), some(24), some(8, 8), some(8), None, False)[0],
    ),
    "_transformer_encoder_layer_fwd": (TOKENS, encoder),
    "_upsample_bicubic2d_aa": (PICTURE, along(ATEN._upsample_bicubic2d_aa, [5, 6], False)),
    "_upsample_bilinear2d_aa": (PICTURE, along(ATEN._upsample_bilinear2d_aa, [5, 6], False)),
    "_upsample_nearest_exact2d": (PICTURE, along(ATEN._upsample_nearest_exact2d, [5, 6])),
    "adaptive_max_pool2d": (PICTURE, along(ATEN.adaptive_max_pool2d, [3, 3])),
    "addmm": ((B, 4), lambda x: ATEN.addmm(V, x, W[0, 0, :, :1].expand(3, 4).new_ones(4, 4))),
    "addmv": ((B, 4), lambda x: ATEN.addmv(x[:, 0], x, V)),
    "avg_pool2d": (PICTURE, along(ATEN.avg_pool2d, [3, 3], [2, 2])),
    "avg_pool3d": (VOLUME, along(ATEN.avg_pool3d, [2, 2, 2])),
    "baddbmm": (TOKENS, lambda x: ATEN.baddbmm(x[:, :, :6], x, x.transpose(1, 2))),
    "bmm": (TOKENS, lambda x: ATEN.bmm(x, x.transpose(1, 2))),
    "channel_shuffle": (PICTURE, along(ATEN.channel_shuffle, 2)),
    "col2im": ((B, 16, 16), along(ATEN.col2im, [5, 5], [2, 2], [1, 1], [0, 0], [1, 1])),
    "im2col": (PICTURE, along(ATEN.im2col, [2, 2], [1, 1], [0, 0], [1, 1])),
    "constant_pad_nd": (PICTURE, along(ATEN.constant_pad_nd, [1, 2, 0, 1], 0.5)),
    "convolution": (PICTURE, lambda x: ATEN.convolution(x, W, V, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)),
    "mkldnn_convolution": (PICTURE, lambda x: ATEN.mkldnn_convolution(x, W, V, [1, 1], [1, 1], [1, 1], 1)),
    "diag_embed": (TOKENS, along(ATEN.diag_embed)),
    "embedding": (TOKENS, lambda x: ATEN.embedding(W.view(36, 4), (x * 30).long())),
    "full_like": (TOKENS, along(ATEN.full_like, 0.5)),
    "grid_sampler_2d": (PICTURE, lambda x: ATEN.grid_sampler_2d(x, x[:, :2].permute(0, 2, 3, 1), 0, 0, False)),
    "max_pool2d_with_indices": (PICTURE, along(ATEN.max_pool2d_with_indices, [3, 3], [2, 2])),
    "max_pool3d_with_indices": (VOLUME, along(ATEN.max_pool3d_with_indices, [2, 2, 2])),
    "mm": ((B, 4), lambda x: ATEN.mm(x, W[:, :, 0, 0])),
    "mv": ((B, 4), lambda x: ATEN.mv(x, V)),
    "native_group_norm": (PICTURE, lambda x: ATEN.native_group_norm(x, V, V, B, 4, 64, 2, 1e-5)[0]),
    "native_layer_norm": (TOKENS, lambda x: ATEN.native_layer_norm(x, [8], None, None, 1e-5)[0]),
    "new_full": (TOKENS, along(ATEN.new_full, [B, 2], 0.5)),
    "new_ones": (TOKENS, along(ATEN.new_ones, [B, 2])),
    "new_zeros": (TOKENS, along(ATEN.new_zeros, [B, 2])),
    "pixel_shuffle": (PICTURE, along(ATEN.pixel_shuffle, 2)),
    "pixel_unshuffle": (PICTURE, along(ATEN.pixel_unshuffle, 2)),
    "reflection_pad1d": (TOKENS, along(ATEN.reflection_pad1d, [1, 2])),
    "reflection_pad2d": (PICTURE, along(ATEN.reflection_pad2d, [1, 2, 1, 1])),
    "replication_pad1d": (TOKENS, along(ATEN.replication_pad1d, [1, 2])),
    "replication_pad2d": (PICTURE, along(ATEN.replication_pad2d, [1, 2, 1, 1])),
    "upsample_bicubic2d": (PICTURE, along(ATEN.upsample_bicubic2d, [5, 6], False)),
    "upsample_bilinear2d": (PICTURE, along(ATEN.upsample_bilinear2d, [5, 6], False)),
    "upsample_linear1d": (TOKENS, along(ATEN.upsample_linear1d, [5], False)),
    "upsample_nearest1d": (TOKENS, along(ATEN.upsample_nearest1d, [5])),
    "upsample_nearest2d": (PICTURE, along(ATEN.upsample_nearest2d, [5, 6])),
    "index": (TOKENS, lambda x: ATEN.index(x, [None, torch.tensor([2, 0, 1])])),
    "repeat": (TOKENS, along(ATEN.repeat, [1, 2, 3])),
    "_log_softmax": (TOKENS, along(ATEN._log_softmax, -1, False)),
    "_softmax": (TOKENS, along(ATEN._softmax, -1, False)),
    "cat": (TOKENS, lambda x: ATEN.cat([x, x * 2], 1)),
    "stack": (TOKENS, lambda x: ATEN.stack([x, x * 2], 1)),
    "gather": (TOKENS, lambda x: ATEN.gather(x, 1, (x * 5).long())),
    "index_select": (TOKENS, lambda x: ATEN.index_select(x, 1, torch.tensor([2, 0]))),
    "linalg_cross": ((B, 6, 3), lambda x: ATEN.linalg_cross(x, x.flip(1))),
    "linalg_vector_norm": (TOKENS, along(ATEN.linalg_vector_norm, 2, [1])),
    "norm": (TOKENS, along(ATEN.norm, 2, [1])),
    "roll": (TOKENS, along(ATEN.roll, [2], [1])),
    "flip": (TOKENS, along(ATEN.flip, [1])),
    "topk": (TOKENS, along(ATEN.topk, 2)),
    "mean": (TOKENS, along(ATEN.mean, [1])),
    "sum": (TOKENS, along(ATEN.sum, [1])),
    "var": (TOKENS, along(ATEN.var, [1])),
    "std": (TOKENS, along(ATEN.std, [1])),
    "var_mean": (TOKENS, along(ATEN.var_mean, [1])),
    "std_mean": (TOKENS, along(ATEN.std_mean, [1])),
    "logsumexp": (TOKENS, along(ATEN.logsumexp, [1])),
    "amax": (TOKENS, along(ATEN.amax, [1])),
    "amin": (TOKENS, along(ATEN.amin, [1])),
    "slice": (TOKENS, along(ATEN.slice, 1, 1, 3)),
    "select": (TOKENS, along(ATEN.select, 1, 2)),
    "split": (TOKENS, along(ATEN.split, 3, 1)),
    "split_with_sizes": (TOKENS, along(ATEN.split_with_sizes, [2, 4], 1)),
    "unsafe_split": (TOKENS, along(ATEN.unsafe_split, 3, 1)),
    "unsafe_split_with_sizes": (TOKENS, along(ATEN.unsafe_split_with_sizes, [2, 4], 1)),
    "unfold": (TOKENS, along(ATEN.unfold, 1, 3, 2)),
    "_reshape_alias": (TOKENS, along(ATEN._reshape_alias, [B, 48], [48, 1])),
    "_unsafe_view": (TOKENS, along(ATEN._unsafe_view, [B, 48])),
    "view": (TOKENS, along(ATEN.view, [B, 48])),
    "as_strided": (TOKENS, along(ATEN.as_strided, [B, 8], [48, 1])),
    "expand": ((B, 1, 8), along(ATEN.expand, [B, 6, 8])),
    "permute": (TOKENS, along(ATEN.permute, [0, 2, 1])),
    "transpose": (TOKENS, along(ATEN.transpose, 1, 2)),
    "diagonal": (TOKENS, along(ATEN.diagonal, 0, 1, 2)),
    "squeeze": ((B, 1, 8), along(ATEN.squeeze, 1)),
    "unsqueeze": (TOKENS, along(ATEN.unsqueeze, 1)),
    "unbind": (TOKENS, along(ATEN.unbind, 1)),
    "t": ((B, 4), lambda x: ATEN.t(ATEN.t(x))),
    "native_batch_norm": (PICTURE, lambda x: ATEN.native_batch_norm(x, V, V, V, V, False, 0.1, 1e-5)[0]),
    "_native_batch_norm_legit": (PICTURE, lambda x: ATEN._native_batch_norm_legit(x, V, V, V, V, False, 0.1, 1e-5)[0]),
    "native_dropout": (TOKENS, lambda x: ATEN.native_dropout(x, 0.5, False)[0]),
    "_scaled_dot_product_flash_attention_for_cpu": (TOKENS, attention),
}  # fmt: skip
WRITTEN: dict[str, tuple[Any, ...]] = {
    "masked_fill_": (torch.tensor([True, False] * 4), 0.5), "bitwise_and_": (3,), "bitwise_or_": (3,),
    "bitwise_xor_": (3,), "clamp_": (0.2, 0.7), "fill_": (0.5,),
}  # fmt: skip


def arguments(op: Any) -> list[Any]:
    """What an operation asks for besides its first tensor."""
    made: list[Any] = []
    for place, argument in enumerate(op._schema.arguments[1:]):
        if argument.kwarg_only or argument.has_default_value():
            break
        kind = str(argument.type)
        made.append(some(*TOKENS[1:], seed=place + 7) if kind == "Tensor" else 1 if kind in ("int", "number") else 0.5)
    return made


def overload(name: str) -> Any:
    packet = getattr(ATEN, name)
    plain = [getattr(packet, each) for each in packet.overloads()]
    takes = [
        op for op in plain
        if str(op._schema.arguments[0].type) == "Tensor" and not any(part.is_out for part in op._schema.arguments)
    ]  # fmt: skip
    preferred = ("default", "Tensor", "Scalar", "dim", "int", "Tensor_Scalar", "dim_IntList")
    if name in WRITTEN:
        preferred = ("Scalar", "default", "Tensor")
    return min(takes, key=lambda op: preferred.index(op._overloadname) if op._overloadname in preferred else 99)


def case(name: str) -> Case:
    if name in CASES:
        return CASES[name]
    op = overload(name)
    if f"aten::{name}" in ALONG:
        return TOKENS, along(op, 1)
    if name in ("logical_not_", "logical_and_", "logical_or_", "bitwise_not_", *WRITTEN):
        whole_first = name.startswith("bitwise")
        more = WRITTEN.get(name) or arguments(op)
        return TOKENS, lambda x: op((x * 9).int() if whole_first else x, *more)
    return TOKENS, along(op, *arguments(op))


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [part for part in value if isinstance(part, Tensor)]


def same(ours: Any, theirs: Any) -> bool:
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(flat(ours), flat(theirs), strict=True))


NAMES = sorted(name.removeprefix("aten::") for name in FIXED)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ACCELERATOR])
def test_a_listed_operation_is_fixed_and_per_image(name: str) -> None:
    shape, call = case(name)
    given = some(*shape)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = call(given.clone())
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2), random.seed(2), np.random.seed(2)
    state = torch.get_rng_state()
    kept = given.clone()
    assert same(first, call(kept)) and torch.equal(state, torch.get_rng_state())
    assert f"aten::{name}" in WRITES or torch.equal(kept, given)
    order = torch.tensor([3, 0, 4, 1, 2])
    for ours, moved in zip(flat(first), flat(call(given[order])), strict=True):
        assert len(ours) == B
        torch.testing.assert_close(moved, ours[order], equal_nan=True)
        if not torch.equal(ours, ours[:1].expand_as(ours)):  # the test sees where a row goes
            assert not torch.equal(moved, ours)


@pytest.mark.parametrize("name", sorted(name.removeprefix("aten::") for name in WRITES))
def test_what_writes_writes_into_its_first_argument_alone(name: str) -> None:
    op = overload(name)
    written = [place for place, part in enumerate(op._schema.arguments) if part.alias_info and part.alias_info.is_write]
    assert written == [0] and len(op._schema.returns) == 1


@pytest.mark.parametrize("name", sorted({name.removeprefix("aten::") for name in FIXED - WRITES - frozenset(SWITCHED)}))
def test_what_does_not_write_is_refused_where_it_is_told_to(name: str) -> None:
    packet = getattr(ATEN, name)
    for op in (getattr(packet, each) for each in packet.overloads()):
        if any(part.alias_info and part.alias_info.is_write for part in op._schema.arguments):
            assert not is_fixed(op, [some(*TOKENS)], {"out": some(*TOKENS)})


@pytest.mark.parametrize("name", RANDOM)
def test_random_operations_are_not_listed(name: str) -> None:
    assert f"aten::{name}" not in FIXED or f"aten::{name}" in SWITCHED


def test_whatever_torch_calls_random_is_not_listed_without_a_switch() -> None:
    for name in FIXED - frozenset(SWITCHED):
        packet = getattr(ATEN, name.removeprefix("aten::"))
        assert not any(torch.Tag.nondeterministic_seeded in getattr(packet, each).tags for each in packet.overloads())


def test_arguments_make_an_operation_random_or_stateful() -> None:
    x, q = some(*PICTURE), some(B, 2, 6, 4)
    norm, drop, attend = ATEN.native_batch_norm.default, ATEN.native_dropout.default, SWITCHED_ATTENTION
    assert is_fixed(norm, [x, V, V, V, V, False, 0.1, 1e-5]) and not is_fixed(norm, [x, V, V, V, V, True, 0.1, 1e-5])
    assert not is_fixed(norm, [x, V, V, None, None, True, 0.1, 1e-5])
    assert is_fixed(norm, [x.view(1, B * 4, 8, 8), None, None, None, None, True, 0.1, 1e-5])  # instance norm
    assert not is_fixed(norm, [x.view(1, B * 4, 8, 8), None, None, V, V, True, 0.1, 1e-5])
    assert not is_fixed(ATEN._native_batch_norm_legit.no_stats, [x, V, V, True, 0.1, 1e-5])
    assert is_fixed(drop, [x, 0.5, False]) and is_fixed(drop, [x, 0.0, True])
    assert not is_fixed(drop, [x, 0.5, True]) and not is_fixed(drop, [x, 0.5, None])
    assert is_fixed(attend, [q, q, q]) and not is_fixed(attend, [q, q, q, 0.1])
    assert not is_fixed(attend, [q, q, q], {"dropout_p": 0.1})


SWITCHED_ATTENTION = ATEN._scaled_dot_product_flash_attention_for_cpu.default


@pytest.mark.parametrize(
    "op, more",
    [
        (ATEN.mean.dim, ([0],)), (ATEN.mean.default, ()), (ATEN.sum.dim_IntList, ([-3, 1],)),
        (ATEN.roll.default, ([1], [0])),
        (ATEN.roll.default, ([1],)), (ATEN.flip.default, ([0],)), (ATEN._softmax.default, (0, False)),
        (ATEN.sort.default, (0,)), (ATEN.cumsum.default, (0,)), (ATEN.amax.default, ()), (ATEN.max.default, ()),
        (ATEN.max.dim, (-3,)), (ATEN.select.int, (0, 1)), (ATEN.slice.Tensor, (0, 1)), (ATEN.slice.Tensor, (0, 0, 2)),
        (ATEN.unbind.int, ()), (ATEN.split.Tensor, (2,)), (ATEN.var.correction, ()), (ATEN.norm.Scalar, ()),
        (ATEN.index.Tensor, ([torch.tensor([1, 0])],)), (ATEN.repeat.default, ([2, 1, 1],)), (ATEN.any.default, ()),
        (ATEN.constant_pad_nd.default, ([0, 0, 0, 0, 1, 0],)), (ATEN.linalg_vector_norm.default, ()),
        (ATEN.index_select.default, (0, torch.tensor([0]))), (ATEN.argmax.default, ()),
    ],
)  # fmt: skip
def test_what_goes_along_the_rows_is_refused_where_rows_are_images(op: Any, more: tuple[Any, ...]) -> None:
    x = some(*TOKENS)
    assert is_fixed(op, [x, *more]) and is_fixed(op, [x, *more], batch=B + 1)
    assert not is_fixed(op, [x, *more], batch=B)


def test_rows_joined_are_refused_and_other_dimensions_are_not() -> None:
    x = some(*TOKENS)
    assert not is_fixed(ATEN.cat.default, [[x, x]], batch=B) and is_fixed(ATEN.cat.default, [[x, x], -1], batch=B)
    assert not is_fixed(ATEN.stack.default, [[x, x], -4], batch=B) and is_fixed(
        ATEN.stack.default, [[x, x], -3], batch=B
    )
    assert is_fixed(ATEN.slice.Tensor, [x, 0, 0, 9223372036854775807], batch=B)
    assert is_fixed(ATEN.max.other, [x, x], batch=B) and is_fixed(ATEN.repeat.default, [x, [2, 1, 1, 1]], batch=B)
    assert is_fixed(ATEN.index.Tensor, [x, [None, torch.tensor([1])]], batch=B)


def test_operations_of_others_and_metadata_changes_are_refused() -> None:
    assert not is_fixed(ATEN.as_strided_.default, [some(2, 2), [2], [1]])
    assert not is_fixed(torch.ops.prim.device.default, [some(2)])
    assert not is_fixed(ATEN.add.out, [some(2), some(2)], {"out": some(2)})
    assert not is_fixed(ATEN.index_put_.default, [some(2), [torch.tensor([0])], some(1)])


def test_every_name_exists() -> None:
    known = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    assert known >= FIXED and not VALUES & WRITES and not VIEWS & VALUES
