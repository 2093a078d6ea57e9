"""A signal that comes while a step awaits its images is obeyed there: nothing more is decoded, nothing is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headstart as hs
from headstart.data import scan
from headstart.data.decoding import decode
from headstart.data.decoding import lazy_image as picture
from headstart.errors import Interrupted
from headstart.runs.checkpoint import read_checkpoint

Settings = Callable[..., dict[str, Any]]
OPTIONS: dict[str, Any] = {"recipe": "full", "epochs": 2, "workers": 0, "checkpoint": {"every_seconds": 0.0}}


def trained(settings: Settings, out: Path, *, workers: int = 0, **options: Any) -> hs.Run:
    return hs.train(hs.load_config(settings(**OPTIONS | {"workers": workers}, out=str(out))), **options)


@pytest.fixture
def struck(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Sends SIGTERM when the picture of this number is opened; gives the numbers of those that are opened."""

    def strike(at: int) -> list[int]:
        opened: list[int] = []
        real = picture.open_jpeg

        def struck(*given: Any, **named: Any) -> Any:
            opened.append(len(opened))
            if len(opened) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*given, **named)

        monkeypatch.setattr(picture, "open_jpeg", struck)
        return opened

    return strike


@pytest.mark.parametrize("image", [1, 3, 8])
def test_a_signal_while_a_batch_is_decoded_ends_the_run_before_its_next_image(
    settings: Settings, tmp_path: Path, struck: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch, image: int
) -> None:
    whole = trained(settings, tmp_path / "whole")
    opened: list[list[int]] = []
    steps: list[object] = []

    def watch(event: object) -> None:
        steps.extend([event] * isinstance(event, hs.StepDone))
        if len(steps) == 2 and not opened:
            opened.append(struck(image))

    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 2, and saved in"):
        trained(settings, tmp_path / "run", watch=watch)
    assert read_checkpoint(tmp_path / "run" / "checkpoints").counters["step"] == 2
    assert len(opened[0]) == image
    monkeypatch.undo()
    assert trained(settings, tmp_path / "run", resume=True).metrics == whole.metrics


def test_a_signal_in_a_step_waits_for_its_end(settings: Settings, tmp_path: Path, monkeypatch) -> None:
    from headstart.training import fit

    real, steps = fit.train_step, []

    def struck(*given: Any, **named: Any) -> Any:
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given, **named)

    monkeypatch.setattr(fit, "train_step", struck)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 2, and saved in"):
        trained(settings, tmp_path / "run")
    assert len(steps) == 2


@pytest.mark.parametrize("door", ["decode", "header"])
def test_a_handler_that_raises_while_a_picture_is_opened_is_not_taken_for_damage(door: str, monkeypatch) -> None:
    def struck(*_: Any, **__: Any) -> None:
        raise Interrupted("in the middle", signal_number=15)

    monkeypatch.setattr(decode.Image, "open", struck)
    content = b"\xff\xd8\xff\xe0"
    with pytest.raises(Interrupted):
        decode.decode_image(content, where="x") if door == "decode" else decode.open_jpeg(content, where="x")


def test_a_signal_during_the_scan_leaves_while_files_are_still_being_decoded(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Heard(Exception):
        pass

    def hear(*_: object) -> None:
        raise Heard

    begun, release, main = threading.Event(), threading.Event(), threading.main_thread().ident
    assert main is not None

    def check(*_: Any, **__: Any) -> None:
        if not begun.is_set():
            begun.set()
            signal.pthread_kill(main, signal.SIGUSR1)
        release.wait(60)

    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))  # where no scan has found these pictures
    monkeypatch.setattr(scan, "shrink_image", check)
    before = signal.signal(signal.SIGUSR1, hear)
    try:
        with pytest.raises(Heard):
            trained(settings, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    finally:
        release.set()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("image", [1, 17])
def test_a_signal_is_heard_while_a_loading_process_is_in_the_middle_of_a_picture(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: int
) -> None:
    """Before an epoch's first step, and before its last one; the decoder's call would take half a minute."""
    whole = trained(settings, tmp_path / "whole", workers=1)
    run, real, opened = os.getpid(), picture.open_jpeg, []
    told, step = tmp_path / "told", 4 if image == 1 else 6  # of 4 in an epoch
    struck: list[float] = []

    def decode_slowly(*given: Any, **named: Any) -> Any:
        opened.append(1)
        if os.getpid() != run and len(opened) == image:
            while not told.exists():
                time.sleep(0.01)
            os.kill(run, signal.SIGTERM)
            time.sleep(30)
        return real(*given, **named)

    def watch(event: object) -> None:
        if isinstance(event, hs.EpochDone):
            monkeypatch.setattr(picture, "open_jpeg", decode_slowly)
        if getattr(event, "step", 0) == step:
            told.touch()
            struck[:] = [time.monotonic()]

    with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {step}, and saved in"):
        trained(settings, tmp_path / "run", watch=watch, workers=1)
    assert time.monotonic() - struck[0] < 15
    assert read_checkpoint(tmp_path / "run" / "checkpoints").counters["step"] == step
    assert not multiprocessing.active_children()
    monkeypatch.undo()
    assert trained(settings, tmp_path / "run", resume=True, workers=1).metrics == whole.metrics
