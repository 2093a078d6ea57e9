"""What is cached of timm's and torchvision's models: proved on images, beside what their traced graphs alone allow.

    python -m benchmarks.guarantees_zoo                       the smallest of each family (tests/models/smallest.txt)
    python -m benchmarks.guarantees_zoo --seconds 600 --out zoo.jsonl

For each model the backbone is frozen, then half of its stages. ``traced`` is where the graph can be cut, ``proved``
where a run would cut it; CPU seconds of the proof stand beside those of a forward pass of one image.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import headstart as hs
from headstart.errors import Error
from headstart.surgery.boundary import find_boundary
from headstart.surgery.freeze import freeze
from headstart.surgery.head import replace_head
from headstart.surgery.layout import find_layout
from headstart.training.boundary_proof import prove_boundary
from headstart.training.rules import StepRules

NAMES = Path(__file__).parents[1] / "tests" / "models" / "smallest.txt"


def judge(name: str, folder: Path, *, most: float) -> Iterator[dict[str, Any]]:
    """A line for each frozen part of one model."""
    torch.manual_seed(0)
    opened = hs.open_model(name, weights="none")
    if sum(parameter.numel() for parameter in opened.module.parameters()) > most:
        return
    images = hs.open_images(folder, like=opened, batch_size=2, augment="none").train
    module = opened.module
    replace_head(module, outputs=3)
    pixels = images.example_batch(2).inputs(torch.device("cpu"), torch.contiguous_format)
    with torch.no_grad():
        module.eval()(pixels)
        started = time.process_time()
        module(pixels)
    each = (time.process_time() - started) / 2
    stages = max(1, len(find_layout(module).stages) // 2)
    for rule in ({"rule": "backbone"}, {"stages": stages}):
        frozen, found = freeze(module, **rule), dict[str, Any]()
        for kind in ("traced", "proved"):
            started = time.process_time()
            try:
                if kind == "traced":
                    found[kind] = list(find_boundary(module, frozen, example=pixels).labels)
                else:
                    boundary = prove_boundary(module, frozen, images, StepRules())
                    found |= {kind: list(boundary.labels), "refused": list(boundary.refused)}
            except Error as error:
                found |= {kind: None, f"{kind}_why": str(error)}
            found[f"{kind}_cpu"] = round(time.process_time() - started, 3)
        yield {"model": name, "frozen": frozen.rule, "image_cpu": round(each, 4), **found}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="model specs; default: the smallest of each family")
    parser.add_argument("--seconds", type=float, default=1e9, help="no new model after so many")
    parser.add_argument("--most-parameters", type=float, default=30e6, help="larger models are left out")
    parser.add_argument("--out", default="guarantees_zoo.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ends, lines = time.monotonic() + given.seconds, list[dict[str, Any]]()
    names = given.names or NAMES.read_text().split()
    with tempfile.TemporaryDirectory() as folder, Path(given.out).open("w") as out:
        for number in range(10):
            values = np.random.default_rng(number).integers(0, 255, (256, 256, 3), dtype=np.uint8)
            path = Path(folder, "ab"[number % 2], f"{number}.png")
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(values).save(path)
        for name in names:
            if time.monotonic() > ends:
                break
            try:
                for line in judge(name, Path(folder), most=given.most_parameters):
                    lines.append(line)
                    out.write(json.dumps(line) + "\n")
                    out.flush()
            except Exception as error:  # one model that does not build must not end the others
                print(f"{name}: {type(error).__name__}: {str(error)[:120]}")
    report(lines)


def report(lines: list[dict[str, Any]]) -> None:
    """Print what is the same, what is not, and what the proof costs."""
    traced = [line for line in lines if line["traced"] is not None]
    same = [line for line in traced if line["proved"] == line["traced"]]
    more = [line for line in lines if line["traced"] is None and line["proved"] is not None]
    less = [line for line in traced if line["proved"] != line["traced"]]
    passes = sorted(line["proved_cpu"] / line["image_cpu"] for line in lines if line["proved"])
    print(f"{len(lines)} cuts: {len(traced)} traced, {len(same)} of these proved at the same place")
    print(f"{len(more)} more that torch.fx cannot trace, by their own code")
    print(f"a proof costs as much as {passes[len(passes) // 2]:.0f} images (median)" if passes else "")
    for line in less:
        print(f"  {line['model']} {line['frozen']}: {line['traced']} -> {line['proved']}")
        print(f"      {line.get('proved_why') or line.get('refused')}")


if __name__ == "__main__":
    main()
