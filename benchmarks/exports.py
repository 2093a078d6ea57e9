"""Exports of unlike architectures against PyTorch, on odd images: the same answers in every format?

``python -m benchmarks.exports`` prints a table. Weights are random, and heads are scaled so that answers differ from
image to image. Images are drawn: EXIF orientations, CMYK, grey, opacity, palettes, 16 bits, each of another size.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import headstart as hs
from headstart.data.images import image_batches
from headstart.data.sources.source import read_content
from headstart.exports.about import describe_export
from headstart.exports.check import TorchModel, compare, measure_difference
from headstart.exports.graph import make_served_model, trace
from headstart.exports.onnx_file import open_onnx, write_onnx
from headstart.exports.openvino_file import open_openvino, write_openvino
from headstart.exports.pictures import Pictures, decode_whole
from headstart.exports.torch_program import open_program, write_program
from headstart.runs.bundle import Evaluated
from headstart.tasks.task import TaskSpec
from headstart.training.evaluate import predict

ARCHITECTURES = (
    "timm/resnet18", "timm/test_vit", "timm/test_convnext", "timm/test_efficientnet", "timm/test_byobnet",
    "timm/mobilenetv3_small_050", "timm/test_resnet", "torchvision/squeezenet1_1", "torchvision/shufflenet_v2_x0_5",
    "timm/vit_tiny_patch16_224", "timm/deit_tiny_patch16_224", "timm/mobilevit_xxs", "timm/efficientnet_b0",
    "timm/regnetx_002", "timm/ghostnet_050", "timm/edgenext_xx_small", "timm/xcit_nano_12_p16_224",
    "timm/convnext_atto", "timm/swin_tiny_patch4_window7_224", "torchvision/mobilenet_v3_small",
)  # fmt: skip
FORMATS = {
    "pt2": (write_program, open_program),
    "onnx": (write_onnx, open_onnx),
    "openvino": (write_openvino, open_openvino),
}
CLASSES = 10
CLEAR = 2e-3  # by how much the first class leads where it has to be the same


def draw_images(folder: Path, *, count: int) -> list[Path]:
    """Pictures with soft edges, of six kinds in turns and of sizes from 30 to 700 pixels."""
    draw = np.random.default_rng(0)
    for number in range(count):
        small = draw.integers(0, 256, (*draw.integers(3, 12, 2), 4), dtype=np.uint8)
        width, height = (int(side) for side in draw.integers(30, 700, 2))
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        plain, place = image.convert("RGB"), folder / f"{number:03}"
        match number % 6:
            case 0:
                exif = Image.Exif()
                exif[0x0112] = 1 + number // 6 % 8
                plain.save(place.with_suffix(".jpg"), exif=exif, quality=90)
            case 1:
                plain.convert("CMYK").save(place.with_suffix(".jpg"), quality=90)
            case 2:
                plain.convert("L").save(place.with_suffix(".png"))
            case 3:
                image.save(place.with_suffix(".png"))
            case 4:
                plain.convert("P").save(place.with_suffix(".png"))
            case 5:
                grey = np.asarray(plain.convert("L")).astype(np.uint16) * 257
                Image.fromarray(grey).save(place.with_suffix(".png"))
    return sorted(folder.iterdir())


def open_random(name: str) -> hs.OpenedRun:
    """The architecture with random weights and a head of ten classes, as a run is opened."""
    torch.manual_seed(0)
    opened = hs.open_model(name, weights="none")
    hs.replace_head(opened.module, outputs=CLASSES)
    return hs.OpenedRun(
        path=Path(name), model=opened.module.eval(), preprocess=opened.preprocess,
        task=TaskSpec(kind="classify", classes=tuple(map(str, range(CLASSES)))),
        evaluated=Evaluated(batch_size=16, precision="fp32", memory_format="contiguous"),
        facts={"model": {"architecture": opened.architecture}},
    )  # fmt: skip


def list_pictures(opened: hs.OpenedRun, paths: list[Path]) -> Pictures:
    batches = image_batches(paths, preprocess=opened.preprocess, task=opened.task, batch_size=16)
    pixels = tuple(
        decode_whole(read_content(batches.source, sample.record)[0], where=sample.key, preprocess=opened.preprocess)
        for sample in batches.samples
    )
    return Pictures(batches=batches, pixels=pixels, which=f"{len(paths)} drawn images")


def spread_answers(opened: hs.OpenedRun, pictures: Pictures) -> None:
    """Have the scores of each class vary by 2 from image to image around 0."""
    torch_model = TorchModel(make_served_model(opened, inside=False), opened.preprocess)
    inputs = torch.cat([torch_model.prepare(each[None]) for each in pictures.pixels[:24]])
    with torch.no_grad():
        scores = opened.model(inputs)
        (head,) = hs.find_head(opened.model).paths
        layer = opened.model.get_submodule(head)
        assert isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None, head
        factor = 2 / scores.std(0)
        layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.copy_((layer.bias - scores.mean(0)) * factor)


def measure(name: str, paths: list[Path]) -> list[str]:
    """The cells of the architecture's row."""
    opened = open_random(name)
    pictures = list_pictures(opened, paths)
    spread_answers(opened, pictures)
    own = predict(opened.model, pictures.batches).outputs
    served = make_served_model(opened, inside=True)
    torch_model = TorchModel(served, opened.preprocess)
    program, cells = trace(served), []
    lead = own.sort(1, descending=True).values
    clear = lead[:, 0] - lead[:, 1] > CLEAR
    for write, read in FORMATS.values():
        with tempfile.TemporaryDirectory() as folder:
            write(program, Path(folder), about=describe_export(opened, inside=True, precision="fp32"))
            found = compare(read(Path(folder)), torch_model, pictures, task=opened.task, inside=True)
        same = (found.answers.argmax(1) == own.argmax(1))[clear].float().mean()
        apart = measure_difference(opened.task, found.answers, own).max()
        cells.append(f"{found.difference:.1e} / {apart:.1e} / {same:.0%}")
    pre = opened.preprocess
    told = f"{pre.height} x {pre.width}, {pre.interpolation}, {pre.crop_pct:.3g}, mean {pre.mean[0]:.2g}"
    return [f"{name} ({told})", *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--images", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.images} images; largest difference from PyTorch / from the run's own predictions / same class\n")
    print(f"| architecture | {' | '.join(FORMATS)} |\n|---|{'---:|' * len(FORMATS)}")
    with tempfile.TemporaryDirectory() as folder:
        paths = draw_images(Path(folder), count=options.images)
        for name in options.architectures:
            print(f"| {' | '.join(measure(name, paths))} |", flush=True)


if __name__ == "__main__":
    main()
