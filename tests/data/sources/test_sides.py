from __future__ import annotations

from pathlib import Path

import pytest

import headstart as hs
from headstart.config.schema import Augment, Config, Data
from headstart.data.images import load_images
from headstart.data.sources.sides import find_sides


@pytest.mark.parametrize(
    ("names", "sides"),
    [
        (("turn left", "turn right", "stop"), ("turn left", "turn right")),
        (("Keep_Right", "stop"), ("Keep_Right",)),
        (("TurnLeft", "Go"), ("TurnLeft",)),
        (("left-handed", "both"), ("left-handed",)),
        (("hand_l", "hand_r", "head"), ("hand_l", "hand_r")),
        (("links", "rechts"), ("links", "rechts")),
        (("clockwise", "counterclockwise"), ("clockwise", "counterclockwise")),
        (("arrow ←", "arrow →"), ("arrow ←", "arrow →")),
        (("right", "wrong"), ()),
        (("bright", "upright"), ()),
        (("links", "golf"), ()),
        (("cat", "dog"), ()),
        (tuple("0123456789"), ()),
    ],
)
def test_names_that_say_a_side_are_found(names: tuple[str, ...], sides: tuple[str, ...]) -> None:
    assert find_sides(names, are_numbers=False) == sides


def test_an_angle_has_a_side_as_a_number_only() -> None:
    assert find_sides(("steering_angle", "speed"), are_numbers=True) == ("steering_angle",)
    assert find_sides(("steering wheel", "speedometer"), are_numbers=False) == ()


@pytest.mark.parametrize(
    ("classes", "flip", "mirrored"),
    [
        (("left", "right"), "auto", False),
        (("left", "right"), True, True),
        (("left", "right"), "alternating", False),
        (("cat", "dog"), "auto", True),
        (("cat", "dog"), False, False),
    ],
)
def test_images_named_by_sides_are_mirrored_only_when_told_and_it_is_said(
    classes: tuple[str, str], flip: str | bool, mirrored: bool, folders, preprocess, tmp_path: Path
) -> None:
    source = folders(dict.fromkeys(classes, 3))
    config = Config(data=Data(source=str(source)), augment=Augment(flip=flip), workers=0)
    images = load_images(config, preprocess)
    assert images.train.images.transform.flips is mirrored
    is_decided = flip == "auto" and not mirrored
    note = "images are not mirrored, for 'left', 'right' say a side; to mirror them: --augment.flip true"
    assert (note in images.notes) == is_decided


def test_the_plan_says_why_images_are_not_mirrored(folders) -> None:
    source = folders({"left": 3, "right": 3})
    model = {"name": "timm/test_resnet", "weights": "none", "image_size": 32}
    config = {"data": {"source": str(source)}, "model": model, "recipe": "full", "workers": 0, "device": "cpu"}
    (decision,) = [one for one in hs.plan(hs.load_config(config)).decisions if one.name == "augment"]
    assert decision.reason.startswith("not mirrored, for 'left', 'right' say a side")
    assert "--augment.flip true" in decision.reason
