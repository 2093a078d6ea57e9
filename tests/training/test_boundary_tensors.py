"""Tensors at the boundary as bytes, and back: numbers, types and order in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headstart.training.boundary_tensors import make_boundary_spec, pack_records, record_bytes, rounding, unpack_records

TENSORS: dict[str, Tensor] = {
    "features": torch.randn(5, 7),
    "maps": torch.randn(5, 3, 4, 2),
    "channels last": torch.randn(5, 3, 4, 2).to(memory_format=torch.channels_last),
    "tokens, images second": torch.randn(6, 5, 4).transpose(0, 1),
    "bf16": torch.randn(5, 3, 4).bfloat16(),
    "whole numbers": torch.randint(-9, 9, (5, 2)),
    "one number": torch.randn(5, 1),
}


@pytest.mark.parametrize("name", TENSORS)
def test_what_comes_back_is_what_was_given(name: str):
    value = TENSORS[name]
    specs = (make_boundary_spec(value, as_bf16=False),)
    pages = pack_records((value,), specs)
    assert pages.shape == (5, record_bytes(specs))
    (again,) = unpack_records(pages, specs)
    assert torch.equal(again, value) and again.dtype == value.dtype
    assert again.stride() == value.stride()
    assert rounding((value,), specs) == 0


def test_several_tensors_share_an_images_page():
    values = tuple(TENSORS.values())
    specs = tuple(make_boundary_spec(value, as_bf16=False) for value in values)
    pages = pack_records(values, specs)
    some = [4, 0, 0]
    for again, value in zip(unpack_records(pages[some], specs), values, strict=True):
        assert torch.equal(again, value[some])


def test_half_the_bytes_round_and_the_error_is_the_relative_one():
    value = TENSORS["maps"]
    specs = (make_boundary_spec(value, as_bf16=True),)
    assert record_bytes(specs) == value[0].numel() * 2
    (again,) = unpack_records(pack_records((value,), specs), specs)
    assert torch.equal(again, value.bfloat16().float())
    assert rounding((value,), specs) == pytest.approx(float((value - again).norm() / value.norm()), rel=1e-5)
