"""What fastai and AutoGluon do with every architecture of timm and torchvision: does the new head work, which rates?

    python -m benchmarks.zoo_peers --peer fastai                        run what is missing, then write the page
    python -m benchmarks.zoo_peers --peer autogluon --autogluon-source FOLDER
    python -m benchmarks.zoo_peers --peer fastai --shard 0/4            one of four processes
    python -m benchmarks.zoo_peers --peer fastai --only 'timm/vit*'     some architectures
    python -m benchmarks.zoo_peers --table                              only write docs/measured/zoo_peers.md

Each architecture is one line in benchmarks/results/zoo_peers.jsonl; what is there is not run again. Nothing is
downloaded. A head passes when the model, built for 7 outputs with random weights, turns a batch of 2 of the model's own
input size into (2, 7) in eval mode. Everything runs on the meta device, so that models of billions of parameters are
judged too. What fails there is tried again on real CPU tensors: below 60 million parameters in any case, above when
the message says that meta is to blame. The reason in the results is the last one.

Environment: fastai's metadata allows torch 2.14; AutoGluon 1.6.3 wants torch < 2.14 and timm < 1.0.7, so that its
source is unpacked, not installed. fastprogress is older than the newest, which needs a web framework.

    python -m venv peers && . peers/bin/activate
    pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 scipy scikit-learn matplotlib pandas requests
    pip install --no-deps fastai==2.8.12 fastcore==2.2.41 fasttransform==0.0.5 fastdownload==0.0.8 fastprogress==1.0.3
    pip install plum-dispatch==2.9.0 cloudpickle packaging
    pip download --no-deps autogluon.multimodal==1.6.3
    python -m zipfile -e autogluon_multimodal-1.6.3-py3-none-any.whl FOLDER

fastai: the calls that ``vision_learner`` makes, with its defaults: ``create_timm_model(name, 7, default_split, False)``
and ``create_vision_model(builder, 7, pretrained=False)``; googlenet without its auxiliary heads, as its pretrained
weights come. ``groups`` counts the parameter groups of the splitter that ``vision_learner`` takes. The argument
``cut``, by which a user can say where the body ends, is not given.

AutoGluon: ``TimmAutoModelForImagePrediction("timm_image", name, num_classes=7, pretrained=False)`` with the default
configuration's ``image_norm="imagenet"``: the class and its ``forward``, executed from models/timm_image.py with the
functions of models/utils.py. It takes names of timm only. ``rates`` come from its ``name_to_id``, which
``layerwise_decay``, the default, makes into rates: lr * 0.9 ** id. Counted are the backbone's tensors. A rate is too
high when a tensor nearer to the output has a lower one: nearer both by timm's own ``group_matcher`` and by the order in
which the layers run.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import functools
import json
import logging
import os
import re
import resource
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import date
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.workload import refuse_mixed

if TYPE_CHECKING:
    from torch import nn

RESULTS = Path(__file__).parent / "results" / "zoo_peers.jsonl"
PAGE = Path(__file__).parent.parent / "docs" / "measured" / "zoo_peers.md"
TITLES = {"fastai": "fastai", "autogluon": "AutoGluon MultiModal"}
TOTALS = {"timm": 1371, "torchvision": 80}  # architectures of timm 1.0.31 and torchvision 0.29.1
OUTPUTS, BATCH = 7, 2
SMALL, LARGEST = 60_000_000, 700_000_000  # parameters: always retried on real tensors, and retried at all
MEMORY = 10 * 2**30  # bytes that the process may write to
AUTOGLUON_CLASS = "TimmAutoModelForImagePrediction"


class Built(NamedTuple):
    """A peer's model, ready to be asked."""

    scores: Callable[[], Any]  # what the model makes of a batch of 2
    facts: Callable[[], dict[str, Any]]  # what else is measured, after scores


Peer = Callable[[str], Built]


def families(peer: str) -> dict[str, str]:
    """The module that defines it, by library/NAME: every classification architecture that the peer takes."""
    import torchvision
    from timm.models import _registry, list_models

    found = {f"timm/{name}": _registry._model_to_module[name] for name in list_models()}
    if peer == "fastai":
        for name in torchvision.models.list_models(module=torchvision.models):
            module = torchvision.models.get_model_builder(name).__module__
            found[f"torchvision/{name}"] = module.rpartition(".")[2]
    return found


def spread(found: dict[str, str]) -> list[str]:
    """The first member of every family, then the second: a run that is cut short has seen all families."""
    members: dict[str, list[str]] = defaultdict(list)
    for name, family in found.items():
        members[name.partition("/")[0] + family].append(name)
    return [name for turn in zip_longest(*members.values()) for name in turn if name is not None]


def fastai(name: str) -> Built:
    """As ``vision_learner`` builds it."""
    import torch
    import torchvision
    from fastai.vision.learner import _default_meta, create_timm_model, create_vision_model, default_split, model_meta

    library, _, plain = name.partition("/")
    if library == "timm":
        model, cfg = create_timm_model(plain, OUTPUTS, default_split, False)
        split, size = default_split, cfg["input_size"]
    else:
        builder = torchvision.models.get_model_builder(plain)
        builder = functools.partial(builder, aux_logits=False) if plain == "googlenet" else builder
        model = create_vision_model(builder, OUTPUTS, pretrained=False)
        side = next(iter(torchvision.models.get_model_weights(plain))).transforms().crop_size[0]
        split, size = model_meta.get(builder, _default_meta)["split"], (3, side, side)
    return Built(
        scores=lambda: model.eval()(torch.zeros(BATCH, *size)),
        facts=lambda: {"groups": len(split(model))},
    )


def autogluon(source: Path) -> Peer:
    """Its class for timm models, from the unpacked source."""
    import torch

    kind = autogluon_class(source / "autogluon" / "multimodal")

    def build(name: str) -> Built:
        plain = name.partition("/")[2]
        model = kind("timm_image", plain, num_classes=OUTPUTS, pretrained=False, image_norm="imagenet")
        size, seen = model.config["input_size"], dict[str, None]()
        watch(model, seen)
        return Built(
            # one image per sample: (B, 1, C, H, W)
            scores=lambda: model.eval()(torch.zeros(BATCH, 1, *size), torch.ones(BATCH))[1],
            facts=lambda: rates(model, seen),
        )

    return build


def autogluon_class(folder: Path) -> Any:
    """``TimmAutoModelForImagePrediction``, executed without the imports of the files that it needs."""
    import timm
    import torch
    from timm.data import constants

    space: dict[str, Any] = {key: value for key, value in vars(constants).items() if key.isupper()}
    space |= {"torch": torch, "nn": torch.nn, "os": os}
    space |= {"logger": logging.getLogger("autogluon"), "__name__": "autogluon_source"}
    for file in ("constants.py", "models/utils.py", "models/timm_image.py"):
        wanted = [node for node in ast.parse((folder / file).read_text()).body if is_wanted(node)]
        space["create_model"] = timm.create_model  # models/utils.py has another of that name
        exec(compile(ast.Module(wanted, []), file, "exec"), space)  # annotations stay text, as they do here
    return space[AUTOGLUON_CLASS]


def is_wanted(node: ast.stmt) -> bool:
    """A constant, a function, or the class."""
    if isinstance(node, ast.Assign):
        return all(isinstance(part, ast.Constant | ast.Set | ast.Load) for part in ast.walk(node.value))
    return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.ClassDef) and node.name == AUTOGLUON_CLASS)


def watch(model: nn.Module, seen: dict[str, None]) -> None:
    """Fills ``seen`` with the layers without children, in the order in which they are called first."""
    for path, module in model.named_modules():
        if not any(module.children()):
            module.register_forward_pre_hook(lambda _module, _inputs, path=path: seen.setdefault(path))


def rates(model: nn.Module, seen: dict[str, None]) -> dict[str, Any]:
    """The layer ids of the backbone's tensors: how many, how many at the head's rate, how many in a wrong order."""
    order = {path: turn for turn, path in enumerate(seen)}
    ids = {name: layer for name, layer in model.name_to_id.items() if name.startswith("model.")}
    ordered = [(timm_turn, order[path], ids[name], name)
               for name, timm_turn in timm_order(model.model).items()
               if (path := name.rpartition(".")[0]) in order and name in ids]  # fmt: skip
    bad = too_high([row[:3] for row in ordered])
    found: dict[str, Any] = {
        "ids": len(set(model.name_to_id.values())),
        "tensors": len(ids),
        "head_rate": sum(layer == 0 for layer in ids.values()),
    }
    if found["ids"] == 1:
        return {"rates": found, "rates_problem": "off"}
    if not ordered:
        return {"rates": found, "rates_problem": "not judged"}
    found |= {
        "ordered": len(ordered),
        "too_high": sum(bad),
        "too_high_beside_head_rate": sum(too_high([row[:3] for row in ordered if row[2] != 0])),
        "example": next((row[3] for row, wrong in zip(ordered, bad, strict=True) if wrong), None),
    }
    return {"rates": found, "rates_problem": "not_monotone" if any(bad) else None}


def timm_order(model: nn.Module) -> dict[str, int]:
    """timm's own layer number of every tensor, from the input on; empty where timm has none."""
    from timm.models._manipulate import group_parameters

    if not hasattr(model, "group_matcher"):
        return {}
    numbers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return {f"model.{name}": number for name, number in numbers.items()}


def too_high(rows: list[tuple[int, int, int]]) -> list[bool]:
    """For each (timm's turn, turn, id): does a tensor that is later by both turns have a higher id, a lower rate?"""
    import torch

    if not rows:
        return []
    groups, turns, ids = torch.tensor(rows, device="cpu").unbind(1)
    later = (groups[None] > groups[:, None]) & (turns[None] > turns[:, None])
    wrong: list[bool] = (later & (ids[None] > ids[:, None])).any(dim=1).tolist()
    return wrong


def examine(name: str, peer: Peer) -> dict[str, Any]:
    """The verdict on the head, where it was reached, and what else the peer's model tells."""
    found = attempt(name, peer, "meta")
    if found["head"] != "pass":
        size = parameters(name)
        if size < SMALL or (size < LARGEST and "meta" in found["head"]):
            real = attempt(name, peer, "cpu")
            return {**found, **real}  # what only meta could tell stays
        found["head"] += f" ({size:,} parameters: not tried on real tensors)"
    return found


def attempt(name: str, peer: Peer, device: str) -> dict[str, Any]:
    """Build and run on a device."""
    import torch

    row: dict[str, Any] = {"device": device}
    built: Built | None = None
    try:
        with torch.device(device), torch.no_grad():
            built = peer(name)
            scores = built.scores()
    except Exception as error:  # libraries not ours raise anything
        if "allocate memory" in str(error) or isinstance(error, MemoryError | NameError):
            raise  # our limit, or a name that we left out of AutoGluon's source: no verdict
        text = next(iter(str(error).strip().splitlines()), "")
        row["head"] = f"{type(error).__name__}: {text}"[:200].removesuffix(": ")
    else:
        shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        row["head"] = "pass" if shape == (BATCH, OUTPUTS) else f"gives {shape}"
    return row | (built.facts() if built else {})


def parameters(name: str) -> int:
    """Parameters of the plain architecture."""
    import timm
    import torch
    import torchvision

    library, _, plain = name.partition("/")
    if library == "torchvision":
        return int(next(iter(torchvision.models.get_model_weights(plain))).meta["num_params"])
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(plain).parameters())


def versions(peer: str, source: Path | None) -> dict[str, str]:
    """The peer's version, and that of what it ran on."""
    from importlib.metadata import version

    unpacked = None if source is None else next(source.glob("autogluon*.dist-info"))
    own = version(peer) if unpacked is None else unpacked.stem.rpartition("-")[2]
    return {"version": own, "on": ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))}


def run_missing(peer: str, source: Path | None, only: str, shard: tuple[int, int]) -> None:
    """Examine every architecture that has no line yet, and append each as it is done."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    build = fastai if source is None else autogluon(source)
    found, there = families(peer), {row["name"] for row in read() if row["peer"] == peer}
    mine = spread(found)[shard[0] :: shard[1]]
    todo = [name for name in mine if name not in there and fnmatch.fnmatchcase(name, only)]
    about = {"peer": peer, **versions(peer, source)}
    RESULTS.parent.mkdir(exist_ok=True)
    for number, name in enumerate(todo, start=1):
        started = time.perf_counter()
        row = {**about, "library": name.partition("/")[0], "name": name, "family": found[name], **examine(name, build)}
        row["seconds"] = round(time.perf_counter() - started, 2)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{number} of {len(todo)}: {name} {row['head']} {row.get('rates_problem') or ''}", flush=True)


def read() -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def write_table() -> None:
    """docs/measured/zoo_peers.md."""
    lines = [
        "# Other libraries on the same architectures",
        "",
        f"Made by `python -m benchmarks.zoo_peers`, {date.today().isoformat()}; the script says which functions were",
        "called, and how. Passed: a model built for 7 outputs turns a batch of 2 of its own input size into (2, 7), in",
        "eval mode, with random weights, without being told anything but its name. What fails on the meta device is",
        "tried again on real tensors, if it is below 60 million parameters.",
        "",
        f"| | on | {' | '.join(f'{library} ({total:,} in all)' for library, total in TOTALS.items())} |",
        "|---|---|---:|---:|",
    ]
    by_peer = {peer: [row for row in read() if row["peer"] == peer] for peer in TITLES}
    for peer, rows in ((peer, rows) for peer, rows in by_peer.items() if rows):
        refuse_mixed(
            ((row["name"], row) for row in rows), page=PAGE.name, said={key: rows[0][key] for key in ("version", "on")}
        )
        cells = [summary([row for row in rows if row["library"] == library]) for library in TOTALS]
        lines.append(f"| {TITLES[peer]} {rows[0]['version']} | {rows[0]['on']} | {' | '.join(cells)} |")
    lines += [
        "",
        "Run are the first architecture of every module, then the second, and so on; what is not in the counts has not",
        "been run, and is no failure. Some modules have more members run than others, so compare the modules.",
        "AutoGluon takes timm's names only, and asks for older versions (torch < 2.14, timm < 1.0.7) than those above.",
    ]
    for peer, rows in by_peer.items():
        lines += ["", f"## {TITLES[peer]}: heads that fail", "", *failures(rows)]
    counts = Counter((row["library"], row["groups"]) for row in by_peer["fastai"] if row["head"] == "pass")
    lines += ["", "## fastai: parameter groups", "", "What the default splitter makes where the head passed:", ""]
    lines += [f"- {number} groups: {count:,} of {library}'s" for (library, number), count in sorted(counts.items())]
    lines += ["", "## AutoGluon: layer-wise rates", "", *layer_rates(by_peer["autogluon"])]
    PAGE.write_text("\n".join(lines) + "\n")


def summary(rows: list[dict[str, Any]]) -> str:
    """How many of how many that were run, and how many modules of timm or torchvision hold no failure among them."""
    failed, modules = [row["family"] for row in rows if row["head"] != "pass"], {row["family"] for row in rows}
    good = f"no failure in {len(modules - set(failed))} of {len(modules)} modules"
    return f"{len(rows) - len(failed):,} of {len(rows):,} run; {good}" if rows else "-"


def failures(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Failing architectures by reason; numbers in a message are left out, for they differ from one to the next."""
    members = Counter((row["library"], row["family"]) for row in rows)
    reasons: dict[str, dict[tuple[str, str], list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in (row for row in rows if row["head"] != "pass"):
        reason = re.sub(r"\d[\d,]*", "N", re.sub(r" \([\d,]+ parameters: .*\)$", "", row["head"]))
        reasons[reason.replace("|", "/")][row["library"], row["family"]].append(row["name"].partition("/")[2])
    yield "| reason | how many | which |"
    yield "|---|---:|---|"
    for reason, found in sorted(reasons.items(), key=lambda item: -sum(map(len, item[1].values()))):
        which = [
            f"{library}'s {family}: "
            + (f"all {len(names)}" if len(names) == members[library, family] else ", ".join(sorted(names)))
            for (library, family), names in sorted(found.items())
        ]
        yield f"| {reason} | {sum(map(len, found.values()))} | {'; '.join(which)} |"


def layer_rates(rows: list[dict[str, Any]]) -> Iterator[str]:
    """AutoGluon's ids, in total and by family where they are off."""
    rated = [row for row in rows if "rates" in row]
    problems = Counter(row["rates_problem"] for row in rated)
    off = Counter(row["family"] for row in rated if row["rates_problem"] == "off")
    members = Counter(row["family"] for row in rated)
    on = [row["rates"] for row in rated if row["rates_problem"] != "off"]
    share = sorted(found["head_rate"] / found["tensors"] for found in on)
    beside = sum(found.get("too_high_beside_head_rate", 0) > 0 for found in on)
    yield f"Of {len(rated):,} models that were built:"
    yield ""
    yield f"- {problems['off']:,} have one rate for all tensors; the error met on the way is logged as debug output:"
    yield "  " + ", ".join(f"{name} ({n} of {members[name]})" for name, n in sorted(off.items())) + "."
    yield f"- {problems['not_monotone']:,} have a tensor whose rate is higher than that of one nearer to the output. In"
    yield f"  {beside:,} of them that is so even among the tensors below the head's rate."
    yield f"- {problems[None]:,} have no such pair. {problems['not judged']:,} were not judged, timm giving no order."
    if share:
        yield f"- Where rates differ, {share[len(share) // 2]:.0%} of the backbone's tensors (median; {share[0]:.0%} to"
        yield f"  {share[-1]:.0%}) train at the head's rate: those whose name holds `norm`, `bn2` or `head`."


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=tuple(TITLES))
    parser.add_argument("--autogluon-source", type=Path, help="the folder of the unpacked wheel")
    parser.add_argument("--shard", default="0/1", help="I/N: the I-th of N processes, from 0")
    parser.add_argument("--only", default="*", help="glob over library/NAME")
    parser.add_argument("--table", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.peer is None or (arguments.peer == "autogluon") != (arguments.autogluon_source is not None):
            parser.error("give --peer fastai, or --peer autogluon with --autogluon-source FOLDER")
        first, _, of = arguments.shard.partition("/")
        run_missing(arguments.peer, arguments.autogluon_source, arguments.only, (int(first), int(of)))
    write_table()


if __name__ == "__main__":
    main()
