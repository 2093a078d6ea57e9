"""``predict.py`` beside an export: how it is used without headstart, by its runtime, Pillow and NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headstart.exports.framing import Framing
from headstart.models.preprocess import Preprocess
from headstart.tasks.kinds import find_kind
from headstart.tasks.task import TaskSpec


@dataclass(frozen=True, kw_only=True)
class _Runtime:
    """A runtime in Python: what is imported, how the model is opened, and how it is called."""

    imports: str
    opening: str
    call: str


_RUNTIMES = {
    "onnx": _Runtime(
        imports="import onnxruntime",
        opening="""\
model = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
about = json.loads(model.get_modelmeta().custom_metadata_map["headstart"])""",
        call='model.run(None, {"images": images})[0]',
    ),
    "openvino": _Runtime(
        imports="import openvino",
        opening="""\
file = openvino.Core().read_model(Path(__file__).with_name("model.xml"))
about = json.loads(file.get_rt_info("headstart").value)
exact = {"INFERENCE_PRECISION_HINT": "f32"}  # without it some processors compute in bf16
model = openvino.Core().compile_model(file, "CPU", exact)""",
        call="model(images)[0]",
    ),
    "pt2": _Runtime(
        imports="import torch",
        opening="""\
facts = {"headstart.json": ""}
model = torch.export.load(Path(__file__).with_name("model.pt2"), extra_files=facts).module()
about = json.loads(facts["headstart.json"])""",
        call="model(torch.tensor(images)).detach().numpy()",
    ),
}
_TIMM = """\
import json
import sys
from pathlib import Path

import timm
import torch
from PIL import Image, ImageOps

folder = Path(__file__).resolve().parent
about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)

for path in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    with torch.inference_mode():
        (row,) = ANSWER
    for name, value in PAIRS:
        print(path, name, f"{value:.6g}", sep="\\t")
"""
_READ = """\
def read(path):
    image = Image.open(path)
    image.draft(None, about["draft"])  # a large JPEG at 1/2, 1/4 or 1/8 of its size, as headstart decodes it
    if image.mode.startswith("I"):  # 16 bits
        low, high = about["image"].get("levels", (0, 65535))
        scaled = (np.asarray(image, dtype=np.float64) - low) * 255 / (high - low)
        image = Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return {pixels}"""
_PREPARE = """\
def prepare(image):
    {size}
    image = image.resize((size[0], image.height), Image.Resampling.{filter})  # rows first, whatever Pillow does
    image = image.resize(size, Image.Resampling.{filter})
    left, top = (round((a - b) / 2) if a >= b else -((b - a) // 2) for a, b in zip(size, {shown}))
    shown = Image.new("{mode}", {shown}, {fill})
    shown.paste(image, (-left, -top))
    pixels = np.asarray(shown, dtype=np.float32).reshape({height}, {width}, {channels}) / 255
    return ((pixels - np.float32({mean})) / np.float32({std})).transpose(2, 0, 1)"""
_LOOP = """\
for path in sys.argv[1:]:
    images = {images}[None]
    (row,) = {call}
    for name, value in {answers}:
        print(path, name, f"{{value:.6g}}", sep="\\t")"""


def write_script(to: str, about: Mapping[str, Any], preprocess: Preprocess) -> str:
    """The text of ``predict.py`` for an export of this format and these facts."""
    runtime, inside, bands = _RUNTIMES[to], about["preprocess"] == "inside", preprocess.channels
    is_file = bands in (1, 3)
    imports = sorted(["import numpy as np", runtime.imports]) + ["from PIL import Image, ImageOps"] * is_file
    images = "prepare(read(path))" if is_file and not inside else "read(path)"
    parts = [
        f'"""{about["output"].capitalize()} of images, a line each: python predict.py IMAGE..."""\n\n'
        "import json\nimport sys\nfrom pathlib import Path\n\n" + "\n".join(imports),
        runtime.opening,
        _write_reading(about, bands, inside=inside),
        *([_write_framing(preprocess)] if is_file and not inside else []),
        _LOOP.format(images=images, call=runtime.call, answers=_list_pairs(about)),
    ]
    return "\n\n\n".join(parts) + "\n"


def write_timm_script(about: Mapping[str, Any], task: TaskSpec) -> str:
    """The text of ``predict.py`` for a folder that timm opens."""
    kind, scores = find_kind(task.kind), "model(prepare(image)[None])"
    answer = f"{scores}.softmax(1)" if kind.one_label else f"{scores}.sigmoid()"
    if kind.gives_numbers:
        answer = f"{scores} * torch.tensor({list(task.std)}) + torch.tensor({list(task.mean)})"
        answer = f"10 ** ({answer})" if task.log else answer
    text = _TIMM.replace("ANSWER", answer).replace("PAIRS", _list_pairs(about))
    return f'"""{about["output"].capitalize()} of images, a line each: python predict.py IMAGE..."""\n\n{text}'


def _list_pairs(about: Mapping[str, Any]) -> str:
    pairs = 'zip(about["names"], row.tolist())'
    return pairs if about["output"] == "values" else f"sorted({pairs}, key=lambda pair: -pair[1])[:5]"


def _write_reading(about: Mapping[str, Any], bands: int, *, inside: bool) -> str:
    if bands not in (1, 3):
        return f"def read(path):\n    return np.load(path)  # {about['input']}, of one image and {bands} bands"
    image = f'ImageOps.exif_transpose(image).convert("{_name_mode(bands)}")'
    pixels = f"np.array({image}){'[:, :, None]' if bands == 1 else ''}"
    return _READ.replace("{pixels}", pixels if inside else image)


def _write_framing(preprocess: Preprocess) -> str:
    (high, wide), shown = Framing(preprocess).targets, (preprocess.width, preprocess.height)
    if preprocess.crop_mode == "squash":
        size = f"size = ({wide}, {high})"
    elif preprocess.crop_mode == "center" and shown[0] == shown[1]:
        size = f"size = [max(1, {wide} * side // min(image.size)) for side in image.size]"
    else:
        which = "max" if preprocess.crop_mode == "border" else "min"
        ratio = f"{which}(image.width / {wide}, image.height / {high})"
        size = f"size = [max(1, round(side / {ratio})) for side in image.size]"
    fill = tuple(round(255 * mean) if preprocess.crop_mode == "border" else 0 for mean in preprocess.mean)
    return _PREPARE.format(
        size=size,
        filter=preprocess.interpolation.upper().replace("RANDOM", "BILINEAR"),
        shown=shown,
        mode=_name_mode(preprocess.channels),
        fill=fill if len(fill) > 1 else fill[0],
        height=preprocess.height,
        width=preprocess.width,
        channels=preprocess.channels,
        mean=preprocess.mean,
        std=preprocess.std,
    )


def _name_mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"
