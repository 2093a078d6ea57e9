"""What needs values, on the smallest member of every module of timm and torchvision: five real steps, half frozen.

    python -m benchmarks.zoo_real                 run what is missing, then write docs/measured/zoo.md
    python -m benchmarks.zoo_real --only 'timm/*'

Random weights, random images; nothing is downloaded. Each architecture is one line in
benchmarks/results/zoo_real.jsonl. Above 200 million parameters (vit_h_14, vit_l_16, vit_l_32 and regnet_y_128gf of
torchvision, the module deepseek_vit of timm) five steps of AdamW need more memory than a small machine has: those are
left out.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import warnings
from datetime import date
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from benchmarks.zoo_page import REAL_RESULTS as RESULTS
from benchmarks.zoo_page import read_rows, running_on, write_page
from tests.reliability import architectures as zoo

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_SIDES = (64, 96, 128, 160, 192, 224, 256, 299)  # tried in order: the first that the model runs on
LARGEST = 200_000_000  # parameters; five steps of AdamW take 16 bytes and more for each


def members() -> list[str]:
    """The smallest architecture of every module of timm, and all of torchvision's."""
    from headstart.models.catalog import list_models

    sizes = {f"{row.library}/{row.architecture}": row.parameters for row in list_models("*/*")}
    smallest: dict[str, str] = {}
    for name in sorted(zoo.names(), key=lambda name: (sizes.get(name, LARGEST), name)):
        if not name.endswith("_enc"):
            smallest.setdefault(name if name.startswith("torchvision/") else zoo.family(name), name)
    return [name for name in smallest.values() if sizes.get(name, 0) <= LARGEST]


def build(name: str) -> tuple[nn.Module, int]:
    """The model with random weights, no value zero that would stop gradients, and a side that it runs on."""
    import timm
    import torch
    import torchvision

    torch.manual_seed(0)
    library, _, plain = name.partition("/")
    for side in (*SMALLEST_SIDES, None):
        try:
            if library == "timm":
                size = {} if side is None else {"img_size": side}
                module = made_by_timm(timm, plain, size)
            else:
                options = {"init_weights": False} if plain in ("googlenet", "inception_v3") else {}
                module = torchvision.models.get_model(plain, weights=None, **options)
            side = side or zoo.images(module).shape[-1]
            with torch.no_grad():
                module.eval()(torch.zeros(2, 3, side, side))
                module.train()(torch.zeros(2, 3, side, side))  # auxiliary heads may need a larger one
        except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, IndexError, ZeroDivisionError):
            continue
        for parameter in module.parameters():
            if parameter.ndim <= 1 and bool((parameter.abs() < 1e-3).all()):
                torch.nn.init.normal_(parameter, std=0.2)
        return module, side
    raise zoo.Refuted("runs on no size that was tried")


def made_by_timm(timm: Any, name: str, size: dict[str, int]) -> Any:
    """With stochastic depth where the architecture has it, and a size where it must be told."""
    for options in ({"drop_path_rate": 0.2, **size}, size, {"drop_path_rate": 0.2}, {}):
        try:
            return timm.create_model(name, pretrained=False, **options)
        except (TypeError, RuntimeError, ValueError, AssertionError):
            continue
    raise zoo.Refuted("cannot be built")


def check(name: str) -> None:
    """All that needs values."""
    import torch

    from headstart.surgery.boundary import find_boundary
    from headstart.surgery.freeze import freeze
    from headstart.surgery.head import replace_head
    from headstart.surgery.layout import find_layout, iterate_tensors

    module, side = build(name)
    replace_head(module, outputs=3, dropout=0.3)
    stages = len(find_layout(module, example=torch.zeros(1, 3, side, side)).stages)
    frozen = freeze(module, stages=max(1, stages // 2))
    before = {path: tensor.clone() for path, tensor, _ in iterate_tensors(module)}
    average, without = five_steps(module, side)
    now = {path: tensor for path, tensor, _ in iterate_tensors(module)}
    averaged = {path: tensor for path, tensor, _ in iterate_tensors(average)}
    moved = [path for path in frozen.tensors if not same(before[path], now[path], averaged[path])]
    if moved:
        raise zoo.Refuted(f"{len(moved)} frozen tensors moved, e.g. {moved[0]}")
    unused = used_never(module, side)
    if set(without) - unused:
        raise zoo.Refuted(f"no gradient in five steps: {', '.join(sorted(set(without) - unused)[:4])}")
    if find_layout(module).how == "fx":
        check_boundary(module, find_boundary(module, frozen, example=torch.zeros(1, 3, side, side)), side)


def same(first: Tensor, *others: Tensor) -> bool:
    """Bit for bit, NaN and all."""
    import torch

    return all(torch.equal(torch.nan_to_num(first), torch.nan_to_num(other)) for other in others)


def five_steps(module: nn.Module, side: int) -> tuple[nn.Module, list[str]]:
    """AdamW with mixup and an average; the averaged model, and what had no gradient in any step."""
    import torch
    from timm.utils.model_ema import ModelEmaV3

    from headstart.optim.groups import param_groups
    from headstart.surgery.head import model_scores
    from headstart.training.state import update_average

    optimizer = torch.optim.AdamW(param_groups(module, lr=1e-3, head_lr=1e-2, layer_decay=0.9, weight_decay=0.1))
    average, reached = ModelEmaV3(module, decay=0.5), set[str]()
    for step in range(5):
        torch.manual_seed(step)
        module.train()
        images, labels = torch.randn(4, 3, side, side) + step, torch.eye(3)[torch.tensor([0, 1, 2, 0])]
        share = 0.7
        images, labels = (share * values + (1 - share) * values.flip(0) for values in (images, labels))
        outputs = model_scores(module, module(images))
        loss = torch.stack([-(labels * scores.log_softmax(1)).sum(1).mean() for _, scores in outputs]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        reached |= {path for path, p in module.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
        optimizer.step()
        update_average(average, module, step=step)
    trainable = [path for path, parameter in module.named_parameters() if parameter.requires_grad]
    return average.module, [path for path in trainable if path not in reached]


def used_never(module: nn.Module, side: int) -> set[str]:
    """Parameters that the output does not depend on: the model's code holds them and does not use them."""
    import torch

    from headstart.surgery.head import model_scores

    twin = copy.deepcopy(module).train()
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    torch.manual_seed(1)
    outputs = model_scores(twin, twin(torch.randn(4, 3, side, side)))
    torch.stack([scores.square().sum() for _, scores in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    return {path for path, p in twin.named_parameters() if p.grad is None or not bool((p.grad != 0).any())}


def check_boundary(module: nn.Module, boundary: Any, side: int) -> None:
    """Batch mates, modes, and both halves against the whole, bit for bit."""
    import torch

    from headstart.surgery.head import model_scores

    torch.manual_seed(9)
    one, other = torch.randn(2, 3, side, side).split(1)
    with torch.no_grad():
        alone, mates = (boundary.prefix.train()(torch.cat([one, mate])) for mate in (other, other * 30 + 5))
        quiet = boundary.prefix.eval()(torch.cat([one, other]))
        if not all(same(a[0], b[0]) for a, b in zip(alone, mates, strict=True)):
            raise zoo.Refuted("what crosses the boundary depends on batch mates")
        if not all(same(a, b) for a, b in zip(alone, quiet, strict=True)):
            raise zoo.Refuted("what crosses the boundary depends on the mode")
        whole = model_scores(module, module.eval()(torch.cat([one, other])))
        halves = model_scores(module, boundary.eval_suffix.eval()(*quiet))
        if not all(same(a, b) for (_, a), (_, b) in zip(whole, halves, strict=True)):
            raise zoo.Refuted("both halves do not give the model's outputs")


def run(name: str) -> dict[str, Any]:
    """Check in a process of its own pool, on one thread."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return {"name": name, "verdict": zoo.verdict(lambda: check(name)), "on": running_on()}


def run_missing(only: str, processes: int) -> None:
    """Check every member that has no line yet, and append each as it is done."""
    there = {row["name"] for row in read_rows(RESULTS)}
    todo = [name for name in members() if name not in there and fnmatch.fnmatchcase(name, only)]
    # ProcessPoolExecutor's max_tasks_per_child hangs in Python 3.11 (cpython issue 115634)
    with get_context("spawn").Pool(processes, maxtasksperchild=20) as pool:
        for number, row in enumerate(pool.imap_unordered(run, todo), start=1):
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{number} of {len(todo)}: {row['name']}: {row['verdict']}", flush=True)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="glob over library/NAME")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    run_missing(arguments.only, arguments.processes)
    write_page(today=date.today().isoformat())


if __name__ == "__main__":
    main()
