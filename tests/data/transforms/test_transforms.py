from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from headstart.data.decoding.crops import Frame
from headstart.data.decoding.lazy_image import render
from headstart.data.randomness import derive_seed, drawing_from, epoch_order
from headstart.data.transforms.transforms import check_mixing, eval_transform, mix_batch, train_transform, transform_key
from headstart.errors import DataError
from headstart.models.preprocess import Preprocess, imagenet_preprocess


def photo(width: int, height: int, *, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


RESIZED_BY_TORCH = ("bilinear", "bicubic")


def assert_alike(ours: torch.Tensor, theirs: torch.Tensor, *, exact: bool = False) -> None:
    """Torch's resize of 8-bit pixels takes a quarter of Pillow's time. Both round to whole levels between the two
    passes, and of a tall picture Pillow makes the vertical one first: they are then one level apart in a fifth of the
    pixels of noise, and as near to the exact result (below)."""
    assert ours.shape == theirs.shape
    apart = (ours.int() - theirs.int()).abs()
    assert apart.max() <= (0 if exact else 2)
    assert apart.float().mean() <= 0.25


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("size", [(320, 240), (100, 333), (20, 16)])
@pytest.mark.parametrize(("side", "crop_pct"), [(64, 0.875), (72, 0.95), (64, 1.0)])
def test_evaluation_pixels_equal_those_of_timm(
    interpolation: str, size: tuple[int, int], side: int, crop_pct: float
) -> None:
    preprocess = Preprocess(
        height=side,
        width=side,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        interpolation=interpolation,
        crop_pct=crop_pct,
        source="t",
    )
    theirs = create_transform(
        (3, side, side), is_training=False, interpolation=interpolation, crop_pct=crop_pct, normalize=False
    )
    exact = interpolation not in RESIZED_BY_TORCH
    assert_alike(eval_transform(preprocess)(photo(*size)), theirs(photo(*size)), exact=exact)


@pytest.mark.parametrize("interpolation", RESIZED_BY_TORCH)
@pytest.mark.parametrize("size", [(100, 333), (333, 100), (64, 64), (20, 16)])
def test_resized_pixels_are_as_near_to_the_exact_ones_as_pillows(interpolation: str, size: tuple[int, int]) -> None:
    image, scaled = photo(*size), (48, 40)
    box = (0, 0, *size)
    ours = render(image, Frame(box=box, scaled=scaled, shown=scaled), interpolation=interpolation, gap=1.0)
    theirs = v2.functional.pil_to_tensor(image.resize(scaled, getattr(Image.Resampling, interpolation.upper())))
    exact = torch.nn.functional.interpolate(
        v2.functional.pil_to_tensor(image)[None].double(), scaled[::-1], mode=interpolation, antialias=True
    )[0].clamp(0, 255)
    assert (ours - exact).abs().mean() <= 1.05 * (theirs - exact).abs().mean()


def test_evaluation_pixels_equal_those_of_timm_for_inputs_that_are_not_square(preprocess: Preprocess) -> None:
    theirs = create_transform(
        (3, 64, 96), is_training=False, interpolation="bicubic", crop_pct=0.9, normalize=False, crop_mode="center"
    )
    ours = eval_transform(replace(preprocess, height=64, width=96, interpolation="bicubic", crop_pct=0.9))
    for size in ((320, 240), (240, 320)):
        assert_alike(ours(photo(*size)), theirs(photo(*size)))


@pytest.mark.parametrize("mode", ["squash", "border"])
def test_evaluation_pixels_equal_those_of_timm_for_the_other_crop_modes(preprocess: Preprocess, mode: str) -> None:
    theirs = create_transform(
        (3, 64, 64), is_training=False, interpolation="bicubic", crop_pct=0.9, normalize=False, crop_mode=mode,
        mean=(0.2, 0.5, 0.7),
    )  # fmt: skip
    given = {"height": 64, "width": 64, "interpolation": "bicubic", "crop_pct": 0.9, "mean": (0.2, 0.5, 0.7)}
    ours = eval_transform(replace(preprocess, crop_mode=mode, **given))
    for size in ((320, 240), (240, 320), (100, 100)):
        assert_alike(ours(photo(*size)), theirs(photo(*size)))


@pytest.mark.parametrize(("resize", "crop"), [(232, 224), (246, 240), (450, 384), (93, 64)])
def test_torchvisions_resize_survives_the_way_through_crop_pct(preprocess: Preprocess, resize: int, crop: int) -> None:
    from torchvision.transforms._presets import ImageClassification

    theirs = ImageClassification(crop_size=crop, resize_size=resize, mean=[0.0] * 3, std=[1.0] * 3)
    ours = eval_transform(replace(preprocess, height=crop, width=crop, crop_pct=crop / resize))
    image = photo(400, 300)
    assert_alike(ours(image), (theirs(image) * 255).round().to(torch.uint8))


@pytest.mark.parametrize("preset", ["none", "light", "standard", "strong"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (60, 40), (5, 300)])
def test_presets_give_the_models_size_for_any_picture(
    preprocess: Preprocess, preset: str, mode: str, size: tuple[int, int]
) -> None:
    transform = train_transform(preset, flip="auto", preprocess=preprocess)
    pixels = transform(photo(*size, mode=mode))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3 if mode == "RGB" else 1, 32, 32)


def test_preset_none_is_the_evaluation_pipeline(preprocess: Preprocess) -> None:
    image = photo(60, 40)
    ours = train_transform("none", flip="auto", preprocess=preprocess)(image)
    assert torch.equal(ours, eval_transform(preprocess)(image))


def test_flips_can_be_switched(preprocess: Preprocess) -> None:
    image = photo(60, 40)
    plain = eval_transform(preprocess)(image)

    def seen(*, flip: bool) -> set[bool]:
        transform = train_transform("none", flip=flip, preprocess=preprocess)
        with drawing_from(0):
            return {torch.equal(transform(image), plain) for _ in range(20)}

    assert seen(flip=True) == {True, False}
    assert seen(flip=False) == {True}


@pytest.mark.parametrize("preset", ["light", "standard", "strong"])
def test_presets_draw_from_the_seed_and_leave_the_generator_alone(preprocess: Preprocess, preset: str) -> None:
    transform, image = train_transform(preset, flip="auto", preprocess=preprocess), photo(60, 40)
    before = torch.default_generator.get_state()

    def drawn(seed: int) -> torch.Tensor:
        with drawing_from(seed):
            return transform(image)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert torch.equal(torch.default_generator.get_state(), before)


def test_the_generator_is_restored_after_an_error() -> None:
    before = torch.default_generator.get_state()
    with pytest.raises(KeyError), drawing_from(5):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.default_generator.get_state(), before)


def test_strong_changes_of_colours_are_refused_for_other_bands(preprocess: Preprocess) -> None:
    with pytest.raises(DataError, match=r"images of 4 bands have none; give --augment.preset standard, light or none"):
        train_transform("strong", flip=True, preprocess=replace(preprocess, mean=(0.0,) * 4, std=(1.0,) * 4))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixed_targets_sum_to_one_and_follow_the_seed(mixup: float, cutmix: float) -> None:
    pixels = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    targets = torch.arange(6) % 4
    results = [
        mix_batch(pixels, targets, num_classes=4, mixup=mixup, cutmix=cutmix, seed=seed) for seed in (*range(8), 0)
    ]
    for mixed, soft in results:
        assert mixed.shape == pixels.shape
        assert mixed.min() >= 0
        assert mixed.max() <= 255.001
        torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert torch.equal(results[0][0], results[-1][0])
    assert len({float(soft[0].max()) for _, soft in results[:8]}) > 4


def test_mixup_is_the_weighted_mean_of_two_pictures() -> None:
    pixels = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 200.0)]).to(torch.uint8)
    mixed, soft = mix_batch(pixels, torch.tensor([0, 1]), num_classes=2, mixup=1.0, cutmix=0.0, seed=3)
    torch.testing.assert_close(mixed[:, 0, 0, 0], 200 * soft[:, 1])


def test_cutmix_is_refused_for_numbers() -> None:
    check_mixing("classify", cutmix=1.0)
    with pytest.raises(DataError, match=r"augment\.cutmix"):
        check_mixing("regress", cutmix=1.0)


def test_seeds_and_orders_depend_on_every_part() -> None:
    assert len({derive_seed("a", 1, 2), derive_seed("a", 2, 1), derive_seed("b", 1, 2), derive_seed("a", 12)}) == 4
    assert derive_seed("a", 1, 2) == derive_seed("a", 1, 2)
    assert sorted(epoch_order(50, seed=1, epoch=1)) == list(range(50))
    assert epoch_order(50, seed=1, epoch=1) == epoch_order(50, seed=1, epoch=1)
    assert epoch_order(50, seed=1, epoch=1) != epoch_order(50, seed=1, epoch=2)
    assert epoch_order(50, seed=1, epoch=1) != epoch_order(50, seed=2, epoch=1)


def test_a_key_has_the_names_under_which_caches_were_made() -> None:
    preprocess = imagenet_preprocess(channels=3, source="test")
    assert transform_key(eval_transform(preprocess=preprocess)) == f"Framing(preprocess={preprocess!r}, gap=2.5)"
    crop = f"Cropping(preprocess={preprocess!r}, scale=(0.35, 1.0), gap=1.25)"
    changes = train_transform("standard", flip=True, preprocess=preprocess)
    assert transform_key(changes) == f"Changes(framed={crop}, flips=True, colours='jittered')"
