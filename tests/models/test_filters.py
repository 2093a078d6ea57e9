"""Filters and orders of the list of models."""

from __future__ import annotations

import pytest

from headstart.errors import ModelError
from headstart.models.catalog import ModelRow, list_models
from headstart.models.filters import Filters, apply_filters, order_rows


@pytest.fixture(scope="module")
def resnets() -> tuple[ModelRow, ...]:
    return list_models("*resnet*")


def test_without_filters_everything_passes(resnets: tuple[ModelRow, ...]) -> None:
    assert apply_filters(resnets, Filters()) == resnets


@pytest.mark.parametrize(
    ("filters", "law"),
    [
        (Filters(max_params=12_000_000), lambda row: row.parameters <= 12_000_000),
        (Filters(min_params=40_000_000), lambda row: row.parameters >= 40_000_000),
        (Filters(max_image_size=176), lambda row: max(row.preprocess.height, row.preprocess.width) <= 176),
        (Filters(family="resnetv2"), lambda row: row.family == "resnetv2"),
        (Filters(family="ResNet"), lambda row: row.family == "resnet"),
        (Filters(tag="IN21K"), lambda row: "in21k" in row.tag),
        (Filters(licence="MIT"), lambda row: row.licence is not None and "mit" in row.licence.lower()),
        (Filters(licence="unknown"), lambda row: row.licence is None),
        (Filters(pretrained_only=True), lambda row: row.pretrained),
        (Filters(min_top1=82), lambda row: row.published.top1 is not None and row.published.top1 >= 82),
        (Filters(min_cpu_speed=90), lambda row: (row.published.cpu_images_per_second or 0) >= 90),
        (Filters(min_gpu_speed=9000), lambda row: (row.published.gpu_images_per_second or 0) >= 9000),
    ],
)
def test_a_filter_keeps_exactly_what_it_names(resnets: tuple[ModelRow, ...], filters: Filters, law) -> None:
    kept = apply_filters(resnets, filters)
    assert kept == tuple(row for row in resnets if law(row))
    assert 0 < len(kept) < len(resnets)


def test_filters_add_up(resnets: tuple[ModelRow, ...]) -> None:
    both = apply_filters(resnets, Filters(min_top1=80, max_params=26_000_000))
    assert set(both) == set(apply_filters(resnets, Filters(min_top1=80))) & set(
        apply_filters(resnets, Filters(max_params=26_000_000))
    )


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        (Filters(min_top1=95), r"--min-top1 95 leaves none of \d+ models; the highest"),
        (Filters(max_params=10), r"--max-params 10 leaves none .* the lowest there is \d"),
        (Filters(max_params=10_000_000, min_top1=84), r"--max-params 10,000,000 leaves none of \d models"),
        (Filters(max_image_size=8), r"--max-image-size 8 leaves none .* the lowest there is 160"),
        (Filters(family="resnett"), r"--family resnett leaves none .* there is resnet"),
        (Filters(tag="nosuchtag"), r"--tag nosuchtag leaves none .* there is .*a1_in1k.* and \d+ others"),
        (Filters(licence="gpl"), r"--licence gpl leaves none .* there is .*apache-2.0"),
    ],
)
def test_the_error_names_the_filter_that_leaves_nothing(
    resnets: tuple[ModelRow, ...], filters: Filters, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        apply_filters(resnets, filters)


def test_one_model_that_does_not_pass_is_spoken_of_in_the_singular() -> None:
    (row,) = list_models("timm/test_resnet.r160_in1k")
    with pytest.raises(ModelError, match=r"--min-params 1,000,000 leaves out the only model; .* 469,688"):
        apply_filters([row], Filters(min_params=1_000_000))
    with pytest.raises(ModelError, match="it is published for none of them"):
        apply_filters(list_models("timm/vit_small_patch14_dinov2*"), Filters(min_top1=1))


def test_orders_put_the_unknown_last(resnets: tuple[ModelRow, ...]) -> None:
    for order, value in (
        ("top1", lambda row: row.published.top1),
        ("cpu-speed", lambda row: row.published.cpu_images_per_second),
        ("gpu-speed", lambda row: row.published.gpu_images_per_second),
    ):
        values = [value(row) for row in order_rows(resnets, order)]
        known = [number for number in values if number is not None]
        assert known == sorted(known, reverse=True)
        assert values == known + [None] * (len(values) - len(known))
        assert 0 < len(known) < len(values)
    sizes = [row.parameters for row in order_rows(resnets, "params")]
    assert sizes == sorted(sizes)
    assert order_rows(resnets, "name") == resnets
