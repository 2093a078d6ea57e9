"""Modules drawn by seeds, each trained in several ways and held against the laws in ``fuzz_laws``.

python -m tests.fuzz_modules --count 3000 --jobs 2 --seconds 3600 --out fuzz.jsonl   # again: it goes on where it was
python -m tests.fuzz_modules --seed 17 --count 1 --shrink        # one of them, made as small as it still fails
python -m tests.fuzz_modules --case 'Case(spec=Spec(blocks=(B("mix_roll"),)), freeze="until:stem")'
python -m tests.fuzz_modules --planted                           # faults put in on purpose must be found
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # found by pytest and by ``python -m`` alike

import fuzz_laws
import fuzz_planted
import torch
from fuzz_grammar import B, Spec, smaller
from fuzz_kept import KEPT
from fuzz_laws import LAWS, Case, Verdict, World, check, draw_case

SHRINK_SECONDS = 60.0


def shrink(case: Case, law: str, world: World, *, seconds: float = SHRINK_SECONDS) -> Case:
    """The smallest case that can be reached by leaving things out and still breaks the law."""
    ends = time.monotonic() + seconds
    found = True
    while found and time.monotonic() < ends:
        found = False
        for other in simpler(case):
            if time.monotonic() > ends:
                break
            if any(broken.law == law for broken in check(other, world).broken):
                case, found = other, True
                break
    return case


def simpler(case: Case) -> Iterator[Case]:
    """Cases one step simpler."""
    for name in case.checks:
        yield replace(case, checks=tuple(other for other in case.checks if other != name))
    for which in case.more:
        yield replace(case, more=tuple(other for other in case.more if other != which))
    for spec in smaller(case.spec):
        last = case.freeze.removeprefix("until:")
        paths = ["stem", *fuzz_laws.block_paths(spec)]
        yield replace(case, spec=spec, freeze=case.freeze if last in (case.freeze, *paths) else "until:stem")
        if case.freeze.startswith("until:"):
            yield replace(case, spec=spec, freeze=f"until:{paths[-2]}")
    if case.recipe != "full":
        yield replace(case, recipe="full", freeze="backbone")
    if case.freeze not in ("backbone", "until:stem"):
        yield replace(case, freeze="backbone")


def short(case: Case) -> str:
    """A constructor expression without what is as by default."""
    text = repr(case)
    for default in (
        ", k=0.5", ", always=False", ", bare=False", ", container='list'", ", root=()", ", head='plain'",
        ", stem='conv'", ", seed=0", ", recipe='full'", ", freeze='backbone'", ", stop=4", ", more=()",
        ", checks=('cache',)",
    ):  # fmt: skip
        text = text.replace(default, "")
    return text.replace("kind=", "")


def read_case(text: str) -> Case:
    """A case from its expression, typed by the person at the keyboard."""
    return eval(text, {"Case": Case, "Spec": Spec, "B": B})


def judged(seed: int, world: World) -> dict[str, Any]:
    """A line of the record: what became of one seed."""
    case = draw_case(seed)
    started = time.process_time()
    verdict = check(case, world)
    return {"seed": seed, "case": short(case), "cpu": round(time.process_time() - started, 2), **asdict(verdict)}


def work(seeds: Sequence[int], *, out: Path, seconds: float, wanted: bool) -> None:
    """Judge the seeds one after the other, a line each; ``wanted``: shrink the first failure of each law."""
    torch.set_num_threads(1)
    fuzz_laws.quick_report()
    ends, world, shrunk = time.monotonic() + seconds, World(), Counter[str]()
    try:
        with out.open("a") as file:
            for seed in seeds:
                if time.monotonic() > ends:
                    break
                line = judged(seed, world)
                for broken in line["broken"]:
                    kind = broken["law"] + re.sub(r"\W*\d[\d.e-]*|'.*?'", "", broken["what"])[:40]
                    shrunk[kind] += 1
                    if wanted and shrunk[kind] <= 2:
                        broken["shrunk"] = short(shrink(draw_case(seed), broken["law"], world))
                file.write(json.dumps(line) + "\n")
                file.flush()
    finally:
        world.close()


def summary(lines: Sequence[dict[str, Any]], *, most: int = 6) -> str:
    """A table of the laws, the share that is cached, the reasons, and the failures."""
    checked, broken = Counter[str](), Counter[str]()
    for line in lines:
        checked.update(dict.fromkeys(line["laws"], 1))
        broken.update({one["law"]: 1 for one in line["broken"]})
    text = [
        f"{len(lines)} modules, {sum(line['cpu'] for line in lines):,.0f} s of CPU",
        "",
        "law        checked  broken",
    ]
    text += [f"{law:10} {checked[law]:7} {broken[law]:7}  {LAWS[law]}" for law in LAWS if checked[law] or broken[law]]
    can = [line for line in lines if line["cacheable"] and "cache" in line["laws"]]
    cached = sum(line["cached"] for line in can)
    clean = [line for line in can if line["clean"]]
    text += ["", f"cacheable by construction: {len(can)}, cached: {cached} ({cached / max(1, len(can)):.1%})"]
    text += [f"of these with nothing outside the rules: {len(clean)}, cached: {sum(one['cached'] for one in clean)}"]
    for title, of in (("refused", "refusal"), ("not cached", "reason")):
        reasons = Counter(_pattern(line[of]) for line in lines if line[of])
        text += ["", f"{title}:"] + [f"{count:6}  {reason}" for reason, count in reasons.most_common(40)]
    text += ["", "broken:"]
    groups: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    for line in lines:
        for one in line["broken"]:
            case = one.get("shrunk") or line["case"]
            groups.setdefault((one["law"], _pattern(one["what"])[:60]), []).append((line["seed"], one["what"], case))
    shown = Counter[str]()
    for (law, _), found in sorted(groups.items(), key=lambda pair: (list(LAWS).index(pair[0][0]), -len(pair[1]))):
        shown[law] += 1
        if shown[law] > most:
            continue
        seed, what, case = min(found, key=lambda one: len(one[2]))
        text += [f"  {law} x {len(found)}, e.g. seed {seed}: {what[:220]}", f"      {case}"]
    return "\n".join(text)


def _pattern(text: str) -> str:
    return re.sub(r"blocks?\.?(block)?\d+", "BLOCK", re.sub(r"\d+(\.\d+)?(e-?\d+)?", "N", text))[:160]


def spread(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Share the seeds that the file does not have yet among processes, and collect the lines of all of them."""
    out = Path(arguments.out)
    collect(out)
    parts = [out.with_suffix(f".{job}.jsonl") for job in range(arguments.jobs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = []
    for job, part in enumerate(parts):
        options = [
            "--worker", str(job), "--jobs", str(arguments.jobs), "--seed", str(arguments.seed),
            "--count", str(arguments.count), "--seconds", str(arguments.seconds), "--out", str(part),
            "--known", str(out),
        ]  # fmt: skip
        options += ["--shrink"] if arguments.shrink else []
        running.append(subprocess.Popen([sys.executable, __file__, *options], env=environment))
    codes = [process.wait() for process in running]
    if any(codes):
        print(f"processes ended with {codes}; what they had not judged is missing")
    return collect(out)


def collect(out: Path) -> list[dict[str, Any]]:
    """The lines in the file and in its processes' files, in order of the seeds; they are in the file alone then."""
    parts = sorted(out.parent.glob(f"{out.stem}.*.jsonl"))
    found = {line["seed"]: line for path in (out, *parts) for line in read_lines(path)}
    lines = [found[seed] for seed in sorted(found)]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for part in parts:
        part.unlink()
    return lines


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a record that are whole; a process that was killed may have left half a line."""
    texts = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(text) for text in texts if text.endswith("}\n")]


def one_case(text: str, *, wanted: bool) -> Verdict:
    """Judge one expression and tell everything."""
    torch.set_num_threads(1)
    fuzz_laws.quick_report()
    world = World()
    try:
        case = read_case(text)
        verdict = check(case, world)
        for broken in verdict.broken:
            print(f"{broken.law}: {broken.what}")
            if wanted:
                print("   ", short(shrink(case, broken.law, world)))
        print(json.dumps(asdict(verdict), indent=1))
        return verdict
    finally:
        world.close()


def first_broken(skipped: Sequence[str], first: Sequence[str], seeds: int) -> dict[str, str]:
    """The first small case, or drawn one, that breaks a law; of all small cases where ``skipped`` is ALL.

    ``skipped``: small cases that break one anyway, with the laws that they break, ``name/law``; ``first``: small cases
    to begin with.
    """
    torch.set_num_threads(1)
    fuzz_laws.quick_report()
    world, everything, found = World(), list(skipped) == ["ALL"], dict[str, str]()
    known = {told.rpartition("/")[2] for told in skipped}
    cases = (
        {name: KEPT[name] for name in first}
        | (KEPT if seeds >= 0 else {})
        | {f"seed {seed}": draw_case(seed) for seed in range(seeds)}
    )
    try:
        for name, case in cases.items():
            for broken in check(case, world).broken:
                key = f"{name}/{broken.law}"
                if key in skipped or (name.startswith("seed") and broken.law in known):
                    continue
                found[key] = broken.what[:120]
            if found and not everything:
                return found
        return found
    finally:
        world.close()


def main(given: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_modules", description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="no new module after so many")
    parser.add_argument("--out", default="fuzz_modules.jsonl")
    parser.add_argument("--shrink", action="store_true", help="make the first failures of each kind smaller")
    parser.add_argument("--case", help="judge this expression alone")
    parser.add_argument("--planted", action="store_true", help="put faults in and find them")
    parser.add_argument("--only", default="", help="of the planted faults those with these words in their names")
    parser.add_argument("--named", action="store_true", help="only by the cases that the planted faults name")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--known", help=argparse.SUPPRESS)
    parser.add_argument("--hunt", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.planted:
        return fuzz_planted.hunt(arguments.only, seeds=-1 if arguments.named else 40)
    if arguments.hunt is not None:
        print(json.dumps(first_broken(*json.loads(arguments.hunt), arguments.count)))
        return 0
    if arguments.case:
        return bool(one_case(arguments.case, wanted=arguments.shrink).broken)
    if arguments.worker is not None:
        known = {line["seed"] for line in read_lines(Path(arguments.known))}
        span = range(arguments.seed, arguments.seed + arguments.count)
        seeds = [seed for seed in span if seed not in known]
        work(
            seeds[arguments.worker :: arguments.jobs],
            out=Path(arguments.out),
            seconds=arguments.seconds,
            wanted=arguments.shrink,
        )
        return 0
    lines = spread(arguments)
    print(summary(lines))
    return int(any(line["broken"] for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
