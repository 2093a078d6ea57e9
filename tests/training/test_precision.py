"""Arithmetic and devices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headstart.errors import ConfigError
from headstart.training.precision import autocast, device_of, dtype_of, make_scaler, usable_device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_forward_pass_runs_in_the_precision_asked_for(precision, dtype) -> None:
    layer = nn.Linear(2, 2)
    with autocast(CPU, precision):
        assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_only_fp16_has_a_loss_scale() -> None:
    assert make_scaler(CPU, "fp32") is None
    assert make_scaler(CPU, "bf16") is None
    assert make_scaler(CPU, "fp16").get_scale() == 2.0**16


def test_a_device_is_the_one_named_or_the_accelerator() -> None:
    assert usable_device("cpu") == CPU
    expected = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else CPU
    assert usable_device("auto").type == expected.type


@pytest.mark.parametrize("device", ["cuda:77", "tpux", "meta", ""])
def test_a_device_that_is_not_there_is_refused(device) -> None:
    with pytest.raises(ConfigError, match=rf"device: '{device}' cannot be used here \(.+\); give cpu, an accelerator"):
        usable_device(device)


def test_a_modules_device_and_type_are_its_parameters() -> None:
    assert device_of(nn.Linear(2, 2)) == CPU
    assert dtype_of(nn.Linear(2, 2).double()) == torch.float64
    assert dtype_of(nn.Module()) == torch.float32
