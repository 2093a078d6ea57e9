"""Timing and the Pareto list; nothing here depends on how long anything takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headstart.errors import ModelError
from headstart.models import latency
from headstart.models.catalog import list_models
from headstart.models.latency import (
    Latency,
    Machine,
    Measured,
    candidates,
    measure,
    pareto,
    this_machine,
    time_passes,
    verdicts,
)

POINTS = st.lists(st.tuples(st.integers(0, 8).map(float), st.integers(0, 8).map(float)), max_size=12)


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] >= other[1]


@given(POINTS)
def test_what_is_kept_is_beaten_by_nothing_and_what_is_dropped_by_what_is_named(
    points: list[tuple[float, float]],
) -> None:
    found = pareto(points)
    assert len(found) == len(points)
    for point, by in zip(points, found, strict=True):
        if by is None:
            assert not any(beats(other, point) for other in points)
        else:
            assert beats(points[by], point)
            assert found[by] is None, "what beats is itself beaten by nothing"


def test_equal_points_are_both_kept() -> None:
    assert pareto([(1.0, 5.0), (1.0, 5.0), (2.0, 5.0)]) == (None, None, 0)


def here(threads: int = 1) -> Machine:
    return this_machine(torch.device("cpu"), batch_size=2, threads=threads)


def test_one_candidate_per_architecture_and_size_stands_for_its_other_weights() -> None:
    rows = list_models("timm/resnet18.*")
    found = candidates(rows)
    assert sum(1 + others for _, others in found) == len(rows)
    keys = [(row.architecture, row.image_size) for row, _ in found]
    assert len(set(keys)) == len(keys)
    for row, _ in found:
        same = [other for other in rows if other.image_size == row.image_size]
        assert row.published.top1 == max(other.published.top1 or 0.0 for other in same)


def test_too_many_candidates_are_refused_with_ways_to_narrow() -> None:
    with pytest.raises(ModelError, match=r"--measure: \d+ architectures .* at most 50 .*--sort top1 --limit 50"):
        candidates(list_models("timm/*resnet*"))


def test_every_candidate_is_timed_or_keeps_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = candidates(list_models("timm/test_*net.*") + list_models("timm/test_vit.*"))
    refused, broken = chosen[0][0].spec, chosen[1][0].spec
    random = latency._random

    def refuse(needed: int, *, what: str) -> None:
        if what == refused:
            raise ModelError(f"{what} needs 9.1 GB of memory, 6.0 GB are free")

    def build(spec: str) -> torch.nn.Module:
        return torch.nn.Conv2d(5, 5, 1) if spec == broken else random(spec)

    monkeypatch.setattr(latency, "refuse_memory", refuse)
    monkeypatch.setattr(latency, "_random", build)
    told = []
    threads = torch.get_num_threads()
    done = measure(chosen, here(), emit=lambda number, measured: told.append((number, measured.row.spec)))
    assert torch.get_num_threads() == threads
    assert [each.row.spec for each in done] == [row.spec for row, _ in chosen]
    assert told == [(number, each.row.spec) for number, each in enumerate(done, start=1)]
    reasons = {each.row.spec: each.reason for each in done if each.latency is None}
    assert set(reasons) == {refused, broken}
    assert "6.0 GB are free" in reasons[refused]
    assert "channels" in reasons[broken]
    for each in done:
        if each.latency is not None:
            assert 0 < each.latency.p10_ms <= each.latency.median_ms <= each.latency.p90_ms
            assert each.latency.repeats >= 3
    found = verdicts(done, max_latency_ms=None)
    assert {verdict.measured.row.spec for verdict in found} == {row.spec for row, _ in chosen}
    assert all(verdict.best == (not verdict.why) for verdict in found)


def test_a_model_is_timed_at_its_own_input_and_in_evaluation_mode() -> None:
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append((tuple(images.shape), torch.is_inference_mode_enabled()))
            return images

    found = time_passes(Spy(), torch.zeros(2, 3, 5, 7))
    assert set(seen) == {((2, 3, 5, 7), True)}
    assert len(seen) == found.repeats + 3
    assert found.repeats >= 10


def measured(name: str, milliseconds: float | None) -> Measured:
    (row,) = list_models(f"timm/{name}")
    if milliseconds is None:
        return Measured(row=row, others=0, latency=None, reason="does not fit")
    times = Latency(median_ms=milliseconds, p10_ms=milliseconds, p90_ms=milliseconds, repeats=10)
    return Measured(row=row, others=0, latency=times)


def test_verdicts_say_why_a_model_is_left_out() -> None:
    small, middle, large = "mobilenetv3_small_100.lamb_in1k", "mobilenetv3_large_100.ra_in1k", "resnet50.a1_in1k"
    bad, unknown, big = "resnet18.tv_in1k", "mobilenetv3_large_100.ra_in1k", "convnext_base.fb_in1k"
    found = verdicts(
        [measured(large, 19.0), measured(bad, 8.0), measured(middle, 6.0), measured(small, 3.0), measured(big, 40.0)],
        max_latency_ms=20,
    )
    assert [verdict.measured.row.spec for verdict in found if verdict.best] == [
        f"timm/{name}" for name in (small, middle, large)
    ]
    why = {verdict.measured.row.spec: verdict.why for verdict in found if not verdict.best}
    assert why[f"timm/{bad}"] == f"timm/{unknown} is no slower and no less accurate"
    assert why[f"timm/{big}"] == "slower than 20 ms"
    assert all(verdict.best for verdict in verdicts([measured(big, 40.0)], max_latency_ms=None))
    untold = verdicts([measured("vit_small_patch14_dinov2.lvd142m", 1.0), measured(big, None)], max_latency_ms=None)
    assert [verdict.why for verdict in untold] == ["no published top-1", "does not fit"]


def test_the_machine_says_threads_batch_precision_and_whether_it_was_busy() -> None:
    text = str(here(threads=1))
    assert "1 thread, fp32, batch 2, PyTorch" in text
    calm = Machine(device=torch.device("cpu"), name="CPU", batch_size=1, threads=4, load=0.1)
    assert "busy" not in str(calm)
    assert "4 threads" in str(calm)
    busy = Machine(device=torch.device("cpu"), name="CPU", batch_size=1, threads=4, load=1.5)
    assert "the machine was busy: load 1.5 per core" in str(busy)
