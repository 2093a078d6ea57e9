"""The tables of docs/measured/speed.md, between markers, from ``benchmarks.speed``'s lines; the rest of it stays.

Rows stand beside one another only where their work is equal (``benchmarks.workload``): images, epochs, batch, threads
and machine. Peers run few images and epochs on purpose; they are scaled to the work of each block of headstart's rows.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.workload import Workload, read_workload

PAGE = Path(__file__).parent.parent / "docs" / "measured" / "speed.md"
NAMES = {
    "headstart": "headstart", "bare": "bare PyTorch", "timm": "timm's loop", "fastai": "fastai", "hf": "HF Trainer",
    "lightning": "Lightning", "tensors": "tensors in memory",
}  # fmt: skip
PEERS = ("bare", "timm", "fastai", "hf", "lightning")
Rows = list[dict[str, Any]]
SCALED = ("head", "suffix")
"""Tables of whole runs, for which the peers' are scaled."""
MARKERS = ("head", "suffix", "full", "evaluate", "memory", "growth")


def write_page(results: Rows) -> None:
    """Each table in its place; a page without the markers gets them at its end."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Speed and memory\n"
    made = {"head": frozen_table, "suffix": frozen_table, "full": rate_table, "evaluate": rate_table}
    for name in MARKERS:
        rows = _newest([row for row in results if _is_of(row, name)], scaled=name in SCALED)
        if name == "memory":
            lines = [*memory_table(results)]
        else:
            lines = [*(growth_table(rows) if name == "growth" else made[name](name, rows))]
        if not lines:
            continue
        block = f"<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- /{name} -->"
        pattern = re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
        text = pattern.sub(lambda _, block=block: block, text) if pattern.search(text) else f"{text}\n{block}\n"
    PAGE.write_text(text, encoding="utf-8")


def _is_of(row: dict[str, Any], table: str) -> bool:
    """Passes over tensors in memory are measured with the steps."""
    return row["table"] == table or (table == "evaluate" and row["table"] == "full" and row["tool"] == "tensors")


def _newest(rows: Rows, *, scaled: bool) -> Rows:
    """Of every model, tool and work the last command's, with all its repeats."""
    last = {_measured(row, scaled): row["run"] for row in rows}
    return [row for row in rows if row["run"] == last[_measured(row, scaled)]]


def _measured(row: dict[str, Any], scaled: bool) -> tuple[object, ...]:
    done = read_workload(row)
    return row["table"], row["model"], row["work"], label(row), row["arithmetic"], _key(row, done, scaled)


def _key(row: dict[str, Any], done: Workload, scaled: bool) -> object:
    """What must be equal for two rows to be compared: a peer of a scaled table, and tensors, have no images."""
    free = row["tool"] == "tensors" or (scaled and row["tool"] in PEERS)
    return done.conditions if free else done


def blocks(rows: Rows, *, scaled: bool) -> list[tuple[Workload, Rows]]:
    """One model's rows by work: what headstart did, and with it the peers that did the same or are scaled to it.

    Peers that none of headstart's rows can be compared with are blocks of their own.
    """
    works = {read_workload(row): None for row in rows if row["tool"] == "headstart"}
    for row in rows:
        if not any(_belongs(row, done, scaled) for done in works):
            works[read_workload(row)] = None
    return [(done, [row for row in rows if _belongs(row, done, scaled)]) for done in works]


def _belongs(row: dict[str, Any], done: Workload, scaled: bool) -> bool:
    return _key(row, read_workload(row), scaled) == _key(row, done, scaled)


def _block_name(model: str, done: Workload, count: int) -> str:
    """The model, and what was done where there is more than one block of it."""
    if count == 1:
        return model
    where = f"batch {done.batch}, {done.threads} threads, {done.cpu} with {done.cores} cores"
    return f"{model}: {done.photos} photos, {done.epochs} epochs, {where}"


def label(row: dict[str, Any]) -> str:
    """The tool, and what is special about its runs."""
    views = f", {row['views']} views" if row["views"] > 1 else ""
    return NAMES[row["tool"]] + views + (", tcmalloc" if row.get("tcmalloc") else "")


def _groups(rows: Rows) -> dict[tuple[Any, ...], Rows]:
    """Repeats of the same thing."""
    found: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        key = (row["model"], label(row), row["arithmetic"], row["work"], row["workers"], row["data"], row["epochs"])
        found.setdefault(key, []).append(row)
    return found


def total_seconds(row: dict[str, Any], *, work: Workload) -> float:
    """CPU seconds for that work; of what a peer did not run, an image costs what one of its last epoch did."""
    if row["tool"] not in PEERS:
        assert read_workload(row) == work, f"{label(row)} is not scaled: {read_workload(row)} is not {work}"
        return float(row["cpu_seconds"])
    train, val = row["parts"]["train"][-1], row["parts"]["eval"][-1]
    start = float(row["cpu_seconds"]) - row["epochs"] * (train + val)
    each = train * work.train_images / row["train_images"] + val * work.val_images / row["val_images"]
    return start + work.epochs * each


def frozen_table(name: str, rows: Rows) -> Iterator[str]:
    """CPU seconds of a whole run; the ratios are of medians."""
    if not rows:
        return
    yield from _about(rows)
    yield "| model | tool | arithmetic | CPU seconds (min .. max) | of each peer's | of the best peer's | MiB | right |"
    yield "|---|---|---|---:|---:|---:|---:|---:|"
    for model in dict.fromkeys(row["model"] for row in rows):
        found = blocks([row for row in rows if row["model"] == model and row["work"] == name], scaled=True)
        for done, block in found:
            yield from _frozen_rows(_block_name(model, done, len(found)), done, block)
    yield ""
    yield from _limits(name, rows)
    yield from _same_bits(rows)


def _frozen_rows(title: str, done: Workload, rows: Rows) -> Iterator[str]:
    """The rows of one model that did the same work."""
    groups = [*_groups(rows).values()]
    whole = [[total_seconds(row, work=done) for row in some if "reason" not in row] for some in groups]
    medians = {
        (some[0]["tool"], some[0]["arithmetic"]): statistics.median(values)
        for some, values in zip(groups, whole, strict=True)
        if values
    }
    pairs = [*zip(groups, whole, strict=True)]
    for some, values in sorted(pairs, key=lambda pair: pair[0][0]["tool"] != "headstart"):
        yield _frozen_row(title, some, values, medians)


def _frozen_row(title: str, some: Rows, values: Sequence[float], medians: dict[tuple[str, str], float]) -> str:
    first = some[0]
    if not values:
        return f"| {title} | {label(first)} | {first['arithmetic']} | {some[0]['reason']} | | | | |"
    each = best = ""
    if first["tool"] == "headstart":
        middle = statistics.median(values)
        plain = {tool: value for (tool, arithmetic), value in medians.items() if arithmetic == "fp32" and tool in PEERS}
        switched = [value for (tool, arithmetic), value in medians.items() if arithmetic != "fp32" and tool in PEERS]
        each = ", ".join(f"{tool} {value / middle:.1f}x" for tool, value in plain.items())
        best = f"{min(plain.values()) / middle:.1f}x" if plain else ""
        best += f"; with switches {min(switched) / middle:.1f}x" if switched else ""
    right = statistics.median(row["accuracy"] for row in some if "reason" not in row)
    return (
        f"| {title} | {label(first)} | {_arithmetic(some)} | {_spread(values)} | {each} | {best} | "
        f"{_memory(some)} | {right:.3f} |"
    )


def _has_limit(row: dict[str, Any]) -> bool:
    return isinstance(row.get("limit"), dict)


def _limits(name: str, rows: Rows) -> Iterator[str]:
    """What cannot be spared, and how near headstart comes."""
    for some in _groups(rows).values():
        found = [row for row in some if _has_limit(row)]
        if not found or name != "head":
            continue
        parts = {part: statistics.median(row["limit"][part] for row in found) for part in found[0]["limit"]}
        ours = statistics.median(row["cpu_seconds"] for row in some if "reason" not in row)
        share = parts["total"] / ours
        special = label(found[0]).removeprefix(NAMES["headstart"])  # views, tcmalloc
        yield (
            f"- {found[0]['model']} {_arithmetic(found)}{special}: the limit (one decode, one forward pass of every "
            f"image and view, the head's own steps) is {parts['decode']:.2f} + {parts['forward']:.2f} + "
            f"{parts['head']:.2f} = {parts['total']:.1f} CPU seconds; headstart's {ours:.1f} are at {share:.0%} of it."
        )


def _same_bits(rows: Rows) -> Iterator[str]:
    for row in rows:
        if row["work"].endswith("same_bits"):
            if "reason" in row:
                yield f"- {row['model']}: the comparison with `--cache.use never` failed: {row['reason']}"
            else:
                said = "all losses are bitwise equal" if row["equal"] else "**losses differ**"
                yield f"- {row['model']}: first epoch beside `--cache.use never`: {said} ({row['steps']} steps)."
    yield ""


def rate(row: dict[str, Any], name: str) -> float:
    """Images per CPU second."""
    if row["tool"] == "tensors":
        seconds = row["parts"]["train" if name == "full" else "eval"]
        return len(seconds) * int(row["batch"]) / float(sum(seconds))
    if name == "full":
        return float(row["train_images"]) * int(row["epochs"]) / float(sum(row["parts"]["train"]))
    return float(row["val_images"]) * len(row["parts"]["eval"]) / float(sum(row["parts"]["eval"]))


def rate_table(name: str, rows: Rows) -> Iterator[str]:
    """Images per CPU second; ratios of medians."""
    if not rows:
        return
    yield from _about(rows)
    yield "| model | tool | arithmetic | images per CPU second (min .. max) | headstart auto beside it | MiB |"
    yield "|---|---|---|---:|---:|---:|"
    summary = []
    for model in dict.fromkeys(row["model"] for row in rows):
        separate = blocks([row for row in rows if row["model"] == model], scaled=False)
        for done, block in separate:
            title = _block_name(model, done, len(separate))
            groups = [*_groups(block).values()]
            rates = [[rate(row, name) for row in some if "reason" not in row] for some in groups]
            found = [(some[0], statistics.median(values)) for some, values in zip(groups, rates, strict=True) if values]
            ours = next((value for row, value in found if label(row) == NAMES["headstart"] and row["auto"]), None)
            yield from (_rate_row(title, some, values, ours) for some, values in zip(groups, rates, strict=True))
            summary.append(_best(title, found, ours) + _of_limit(block))
    yield ""
    yield from (f"{line}." for line in summary if line)
    yield ""


def _rate_row(title: str, some: Rows, values: Sequence[float], ours: float | None) -> str:
    row = some[0]
    if not values:
        return f"| {title} | {label(row)} | {row['arithmetic']} | {row['reason']} | | |"
    ratio = "" if ours is None or row["tool"] == "headstart" else f"{ours / statistics.median(values):.2f}x"
    return f"| {title} | {label(row)} | {_arithmetic(some)} | {_spread(values)} | {ratio} | {_memory(some)} |"


def _best(model: str, found: Sequence[tuple[dict[str, Any], float]], ours: float | None) -> str:
    plain = [value for row, value in found if row["tool"] in PEERS and row["arithmetic"] == "fp32"]
    switched = [value for row, value in found if row["tool"] in PEERS]
    if ours is None or not plain:
        return ""
    text = f"- {model}: {ours / max(plain):.2f}x the best peer as it comes, {ours / max(switched):.2f}x the best "
    text += "with any switch"
    tensors = [value for row, value in found if row["tool"] == "tensors"]
    return text + (f"; {ours / max(tensors):.0%} of the best arithmetic on tensors in memory" if tensors else "")


def _of_limit(rows: Rows) -> str:
    """Of evaluation: what share of its time a decode and a pass of each photo would take."""
    found = [row["limit"] for row in rows if row["auto"] and _has_limit(row)]
    shares = [one["total"] / one["evaluate"] for one in found]
    return f"; {statistics.median(shares):.0%} of one decode and one pass of each photo" if shares else ""


def growth_table(rows: Rows) -> Iterator[str]:
    """Seconds and memory as the number of images grows, all else being equal to the last command's."""
    if not rows:
        return
    rows = [row for row in rows if _but_images(row) == _but_images(rows[-1])]
    yield from _about(rows)
    yield "| images | loading processes | CPU seconds | per 1,000 images | MiB |"
    yield "|---:|---:|---:|---:|---:|"
    for row in rows:
        count = row.get("train_images", 0) + row.get("val_images", 0)
        if "reason" in row:
            yield f"| {Path(row['data']).name} | {row['workers']} | {row['reason']} | | |"
            continue
        seconds = row["cpu_seconds"]
        each = 1000 * seconds / count
        yield f"| {count:,} | {row['workers']} | {seconds:.1f} | {each:.2f} | {row['peak_mib']:,} |"
    yield ""


def _but_images(row: dict[str, Any]) -> Workload:
    return replace(read_workload(row), train_images=0, val_images=0)


def memory_table(results: Rows) -> Iterator[str]:
    """Peak resident memory of the same runs: a row per tool, a column per model."""
    rows = [row for row in results if "peak_mib" in row and row["table"] in ("head", "suffix", "full")]
    rows = [row for row in rows if not row["work"].endswith("same_bits") and row["tool"] != "tensors"]
    rows = _newest(rows, scaled=False)
    if not rows:
        return
    yield "Largest resident memory of the process, MiB; median of the repeats. Other photos or epochs are other work."
    yield ""
    for table in dict.fromkeys(row["table"] for row in rows):
        models: dict[frozenset[Workload], list[str]] = {}
        for model in dict.fromkeys(row["model"] for row in rows if row["table"] == table):
            done = frozenset(read_workload(row) for row in rows if (row["table"], row["model"]) == (table, model))
            models.setdefault(done, []).append(model)
        for names in models.values():
            yield from _memory_rows(table, names, [row for row in rows if row["table"] == table])


def _memory_rows(table: str, models: Sequence[str], rows: Rows) -> Iterator[str]:
    """A table of models whose runs did the same."""
    yield f"| {table} | arithmetic | photos, epochs | " + " | ".join(models) + " |"
    yield "|---|---|---|" + "---:|" * len(models)
    cells: dict[tuple[str, str, Workload], dict[str, Rows]] = {}
    for row in rows:
        if row["model"] in models:
            key = label(row), "auto" if row["auto"] else _arithmetic([row]), read_workload(row)
            cells.setdefault(key, {}).setdefault(row["model"], []).append(row)
    for (tool, arithmetic, done), found in cells.items():
        values = " | ".join(_memory(found.get(model, [])) for model in models)
        yield f"| {tool} | {arithmetic} | {done.photos}, {done.epochs} | {values} |"
    yield ""


def _memory(rows: Rows) -> str:
    values = [row["peak_mib"] for row in rows if "peak_mib" in row]
    return f"{statistics.median(values):,.0f}" if values else "-"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.1f} ({min(values):,.1f} .. {max(values):,.1f})"


def _arithmetic(some: Rows) -> str:
    """With what ``auto`` chose; a peer's switch that it does not have is said."""
    row = some[0]
    decided = row.get("decided") or {}
    if row["auto"] and decided:
        chosen = [str(decided.get(name, "")).split(" (")[0] for name in ("precision", "memory_format", "attention")]
        plain = ", plain attention" if chosen.pop() == "plain" else ""
        return f"auto: {' '.join(chosen)}{plain}"
    if row["tool"] == "fastai" and row["bf16"]:
        return "fp32 channels_last (its bf16 is for CUDA)"
    return str(row["arithmetic"])


def _about(rows: Rows) -> Iterator[str]:
    """Machine, data, scaling."""
    whole = [row for row in rows if "train_images" in row]
    if not whole:
        return
    row, machine = whole[0], whole[0]["machine"]
    counts = {len(some) for some in _groups(whole).values() if not some[0]["work"].endswith("same_bits")}
    few, many = min(counts), max(counts)
    repeats = f"{few} to {many} runs of a row" if many > few else f"{few} run{'s' * (few > 1)} of each row"
    loads = [one["machine"]["load"] for one in rows]
    versions: dict[str, str] = {}
    for one in whole:
        versions |= one["versions"]
    yield (
        f"{machine['cpu']}, {machine['cores']} cores, one compute thread, {row['run'][:10]}; load of the machine "
        f"{min(loads):.0f} to {max(loads):.0f} (CPU time, which that hardly changes); {repeats}: median (lowest .. "
        f"highest). {' '.join(f'{name} {value}' for name, value in versions.items())}."
    )
    yield ""
    if row["table"] == "growth":
        yield f"A probe of the starter on images of 32 x 32, {row['epochs']} epochs, batch {row['batch']}."
    else:
        yield _work(whole)
    yield ""


def _work(whole: Rows) -> str:
    ours = [row for row in whole if row["tool"] == "headstart"]
    theirs = [row for row in whole if row["tool"] in PEERS]
    row, epochs = whole[0], max(one["epochs"] for one in whole)
    text = f"Photos of 500 x 375, {_photos(ours or theirs)} (training + validation), batch {row['batch']}"
    if row["table"] in ("head", "suffix"):
        text += f", {epochs} epochs, validation after each"
    if ours and theirs:
        few = max(one["epochs"] for one in theirs)
        text += f"; peers ran on {_photos(theirs)}"
        text += f", {few} epochs, and are scaled to headstart's photos and epochs" if few < epochs else ""
    return text + "."


def _photos(rows: Rows) -> str:
    """By model where they differ, all of a model that has several."""
    found = dict.fromkeys((row["model"], read_workload(row).photos) for row in rows)
    same = {count for _, count in found}
    return same.pop() if len(same) == 1 else ", ".join(f"{model} {count}" for model, count in found)
