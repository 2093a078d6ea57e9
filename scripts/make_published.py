"""Write src/headstart/models/published.csv: exact parameter counts, ImageNet top-1 and published speeds per model spec.

python scripts/make_published.py --top1 FILE [FILE ...] --cpu FILE --gpu FILE

The files are timm's results tables (huggingface/pytorch-image-models, results/, Apache-2.0) at the commits named in
SOURCES below, whole or only the columns used here: the model, the image size in pixels, and top-1 or images per second.
torchvision's top-1 and GFLOPs are in its weights' metadata. Parameters are counted on ``meta`` with the installed timm
and torchvision; counts in the present published.csv are kept when they are of the same versions (``--recount``: all
again, about 8 minutes). Equal inputs give an equal file. Rows are all specs that the installed timm and torchvision
know; a name that they do not know is left out and reported.

A speed is taken at the input size of the spec's weights only. Of several top-1 values of a spec the one at the weights'
input size is taken, else the one at the largest size, and its size is noted.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torchvision
from timm.models import get_pretrained_cfg

from headstart.models.catalog import count_parameters
from headstart.models.origins import torchvision_names

OUT = Path(__file__).parent.parent / "src" / "headstart" / "models" / "published.csv"
TIMM = "huggingface/pytorch-image-models (Apache-2.0) results"
READ = "read 2026-11-26"
SOURCES = {
    "top1": f"ImageNet-1k validation, from {TIMM}/results-imagenet.csv at 0173a13, what that lacks at 7479d45, "
    f"{READ}; torchvision's from its metadata",
    "cpu": f"images per second of a Core i9-10940X, fp32, PyTorch 2.4 compiled, from {TIMM}/"
    f"benchmark-infer-fp32-nchw-pt240-cpu-i9_10940x-dynamo.csv at 7479d45, {READ}",
    "gpu": f"images per second of an RTX 4090, amp, PyTorch 2.9, from {TIMM}/"
    f"benchmark-infer-amp-nchw-pt291-cu128-4090.csv at 90cae8c, {READ}",
}
COLUMNS = ("model", "parameters", "top1", "top1_size", "cpu_images_per_second", "gpu_images_per_second", "gflops")
VALUES = {"top1": ("top1",), "speed": ("images_per_second", "infer_samples_per_sec")}
SIZES = ("img_size", "infer_img_size")

Sized = Mapping[str, Mapping[int, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--top1", nargs="+", type=Path, required=True, help="later files add what earlier ones lack")
    parser.add_argument("--cpu", type=Path, required=True)
    parser.add_argument("--gpu", type=Path, required=True)
    parser.add_argument("--recount", action="store_true", help="count all parameters again")
    args = parser.parse_args()
    top1, cpu, gpu = read(args.top1, "top1"), read([args.cpu], "speed"), read([args.gpu], "speed")
    assert all(0 < value <= 100 for sizes in top1.values() for value in sizes.values()), "a top-1 outside 0..100"
    specs = [f"timm/{name}" for name in timm.list_models(include_tags=True)]
    report_unknown(top1, {spec.partition("/")[2] for spec in specs}, "top-1")
    for table, what in ((cpu, "CPU speed"), (gpu, "GPU speed")):
        report_unknown(table, set(timm.list_models()), what)
    known = {} if args.recount else counted()
    rows = [timm_row(spec, top1, cpu, gpu) for spec in specs]
    rows += [row for name in torchvision_names() for row in torchvision_rows(name)]
    for number, row in enumerate(rows):
        row["parameters"] = known.get(row["model"]) or count_parameters(row["model"])
        if number % 100 == 0:
            print(f"parameters: {number:,} of {len(rows):,}", file=sys.stderr)
    write(rows)
    report(rows, cpu, gpu)


def read(paths: Iterable[Path], kind: str) -> Sized:
    """Value by model and image size."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                size = next(row[name] for name in SIZES if name in row)
                value = next(row[name] for name in VALUES[kind] if name in row)
                found[row["model"].removeprefix("timm/")].setdefault(int(size), float(value))
    return found


def counted() -> dict[str, int]:
    """The present file's counts, if they are of the installed versions."""
    if not OUT.exists() or f"# parameters: {counted_with()}" not in OUT.read_text(encoding="utf-8").splitlines():
        return {}
    lines = [line for line in OUT.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {row["model"]: int(row["parameters"]) for row in csv.DictReader(lines)}


def counted_with() -> str:
    return f"counted with timm {version('timm')} and torchvision {version('torchvision').partition('+')[0]}"


def timm_row(spec: str, top1: Sized, cpu: Sized, gpu: Sized) -> dict[str, Any]:
    name = spec.partition("/")[2]
    architecture, size = name.partition(".")[0], get_pretrained_cfg(name).input_size[-1]
    scores = top1.get(name, {})
    at = size if size in scores else max(scores, default=None)
    return {
        "model": spec,
        "top1": scores.get(at),
        "top1_size": at,
        "cpu_images_per_second": cpu.get(architecture, {}).get(size),
        "gpu_images_per_second": gpu.get(architecture, {}).get(size),
    }


def torchvision_rows(name: str) -> list[dict[str, Any]]:
    rows = []
    for entry in torchvision.models.get_model_weights(name):
        facts = {"model": f"torchvision/{name}.{entry.name}", "gflops": entry.meta["_ops"]}
        score = entry.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        if math.isfinite(score):  # NaN for VGG16's feature weights, which have no head
            facts |= {"top1": score, "top1_size": int(entry.transforms().crop_size[0])}
        rows.append(facts)
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    notes = {"parameters": counted_with(), **SOURCES}
    with OUT.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {kind}: {text}\n" for kind, text in notes.items())
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: str(row["model"])))


def report_unknown(table: Sized, names: set[str], what: str) -> None:
    unknown = sorted(set(table) - names)
    if unknown:
        print(f"{what}: {len(unknown)} names are not known and left out: {', '.join(unknown)}")


def report(rows: list[dict[str, Any]], cpu: Sized, gpu: Sized) -> None:
    def share(test: Callable[[str], bool], column: str) -> str:
        chosen = [row for row in rows if test(row["model"])]
        return f"{sum(row.get(column) is not None for row in chosen):,} of {len(chosen):,}"

    tags = {f"timm/{name}" for name in timm.list_pretrained()}
    architectures = set(timm.list_models())
    print(f"\n{len(rows):,} specs; {counted_with()}")
    for column in ("top1", "cpu_images_per_second", "gpu_images_per_second"):
        print(f"{column}: {share(lambda spec: spec in tags, column)} of timm's pretrained tags")
    print(f"top1: {share(lambda spec: spec.startswith('torchvision/'), 'top1')} of torchvision's weights")
    for table, what in ((cpu, "CPU"), (gpu, "GPU")):
        print(f"{what} speed at some size: {len(architectures & set(table)):,} of {len(architectures):,} architectures")
    print(f"either: {len(architectures & {*cpu, *gpu}):,}")


if __name__ == "__main__":
    main()
