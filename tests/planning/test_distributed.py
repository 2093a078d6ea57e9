"""Several processes: what does not go together is refused before anything is read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from headstart.cli.launch import check_there, wants_processes
from headstart.cli.main import main
from headstart.config.load import load_config
from headstart.distributed.process_group import check_devices
from headstart.errors import ConfigError
from headstart.planning.distributed import check_parallel


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parallel.kind", "fsdp", "--average.kind", "ema"], "average.kind: with parallel.kind fsdp only none;"),
        (["--parallel.kind", "fsdp", "--precision", "fp16"], "precision: with parallel.kind fsdp only bf16 or fp32;"),
        (["--parallel.sync-norm", "true"], "parallel.sync_norm: torch has it for accelerators only"),
    ],
)
def test_what_does_not_go_together_is_refused_before_an_image_is_read(
    draw_colours, tmp_path, capsys, words, said
) -> None:
    data = draw_colours(tmp_path / "data", each=4)
    assert main(["plan", str(data), "--model", "starter", "--device", "cpu", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "reading images" not in error


def test_sharing_out_is_refused_where_torch_does_it_wrongly(monkeypatch) -> None:
    draft: Any = SimpleNamespace(config=load_config({"parallel": {"kind": "fsdp"}}), device=torch.device("cpu"))
    check_parallel(draft)
    monkeypatch.setattr(torch, "__version__", "2.8.0+cu128")
    with pytest.raises(
        ConfigError, match=r"parallel.kind: fsdp is known to be right from torch 2.14 on, and here is 2.8"
    ):
        check_parallel(draft)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator is there")
def test_more_processes_than_devices_are_refused_once() -> None:
    config = load_config({"device": "cuda", "devices": 2})
    with pytest.raises(
        ConfigError, match=r"devices: 2 processes need as many cuda devices, .* has 0; give --device cpu"
    ):
        check_there(config, wants_processes(config))
    check_there(load_config({"device": "cpu"}), 64)
    check_there(load_config({}), 2)


def test_from_python_the_processes_are_started_outside() -> None:
    with pytest.raises(
        ConfigError, match=r"devices: 4 asked for, and this run has 1 process on .*`torchrun --nproc-per-node 4"
    ):
        check_devices(4)
    check_devices(1)
    check_devices("auto")
