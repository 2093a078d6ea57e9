"""The laws that every module of the grammar is held against, through the public door (``hs.train``)."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import os
import random
import shutil
import tempfile
import traceback
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_grammar import Drawn, Spec, Truth, build, draw_spec, hidden_state, truth, twisted
from PIL import Image
from torch import Tensor, nn

import headstart as hs
from headstart.data.images import image_batches
from headstart.planning import activation_cache as plan_cache
from headstart.reports import report

SCORES: dict[str, str | int] = {"equal": "all", "aux": "logits", "dict": "logits", "embedding": 0}
COLOURS = {"blue": (60, 60, 160), "green": (60, 160, 60), "red": (160, 60, 60)}
EACH, SIZE, BATCH = 10, 32, 8
NOTHING = "nothing can be cached"
LAWS = {
    "grammar": "the module itself runs and trains in plain PyTorch",
    "crash": "an error of the package's own classes, or none",
    "refused": "only what is documented as refused is refused, and the message names it",
    "look": "looking (find_head, describe, freeze, groups, plan) changes nothing",
    "caller": "the caller's module, generators and modes are as before training",
    "repeat": "the same seed gives the same bits",
    "cache": "a cached run equals an uncached one to the bit: predictions, weights, losses, metrics",
    "state": "a cached run leaves the same attributes, closures and generators in the model as an uncached one",
    "reason": "what is not cached is so for a true reason, in one line",
    "key": "the same weights under other constants are not read from each other's cache",
    "resume": "a run that was stopped and went on equals a whole one, or the plan names the state that is not saved",
    "bundle": "the bundle predicts what was validated, or the plan names the state that is not in it",
    "groups": "every trainable tensor is in exactly one group",
    "frozen": "what is frozen stays as it was, and the rule freezes what it says",
    "outputs": "an output that is no score gets no loss",
    "model": "run.model is in evaluation, trains when asked to, and all of it does that the user did not freeze",
}


@dataclass(frozen=True)
class Case:
    """A module and how it is trained."""

    spec: Spec
    recipe: str = "full"
    freeze: str = "backbone"
    stop: int = 4
    more: tuple[tuple[str, Any], ...] = ()
    checks: tuple[str, ...] = ("cache",)

    def options(self) -> dict[str, Any]:
        """Sections of the configuration."""
        found: dict[str, Any] = {"recipe": self.recipe}
        if self.recipe != "probe":
            found["freeze"] = self.freeze
        for name, value in self.more:
            section, _, option = name.partition(".")
            found[section] = {**found.get(section, {}), option: value} if option else value
        return found


@dataclass
class Outcome:
    """What a run left, or why there is none."""

    path: Path
    error: BaseException | None = None
    where: str = ""
    predictions: str = ""
    weights: dict[str, Tensor] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    decided: str = ""
    cached: bool = False
    model: nn.Module | None = None


@dataclass(frozen=True)
class Broken:
    """A law that does not hold, and how it shows."""

    law: str
    what: str


@dataclass
class Verdict:
    """All that is known of a case after its laws were checked."""

    broken: list[Broken] = field(default_factory=list)
    refusal: str = ""
    cacheable: bool = False
    clean: bool = False
    cached: bool = False
    reason: str = ""
    laws: list[str] = field(default_factory=list)


class Stopped(Exception):
    """Stands for a process that ends."""


class World:
    """A folder of pictures and of runs; each run in it is a call of ``hs.train``."""

    def __init__(self, *, own_cache: bool = True) -> None:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="fuzz", dir=base))
        self.count, self.own_cache = 0, own_cache
        for name, colour in COLOURS.items():
            (self.root / "data" / name).mkdir(parents=True)
            for number in range(EACH):
                noise = np.random.default_rng([*name.encode(), number]).normal(0, 50, (SIZE, SIZE, 3))
                values = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(values).save(self.root / "data" / name / f"{number:02}.png")

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """Within, runs have a cache of their own; their folders are gone afterwards."""
        before = os.environ.get("HEADSTART_CACHE")
        os.environ["HEADSTART_CACHE"] = str(self.root / f"cache{self.count}")
        try:
            yield
        finally:
            for path in self.root.iterdir():
                if path.name != "data":
                    shutil.rmtree(path, ignore_errors=True)
            os.environ.pop("HEADSTART_CACHE")
            if before is not None:
                os.environ["HEADSTART_CACHE"] = before

    def config(self, case: Case, *, use: str, out: Path, **more: Any) -> hs.Config:
        """The small run of a case."""
        given: dict[str, Any] = {
            "data": {"source": str(self.root / "data")}, "out": str(out), "epochs": 2, "workers": 0, "device": "cpu",
            "model": {"image_size": SIZE}, "batch": {"size": BATCH}, "precision": "fp32", "cache": {"use": use},
            "memory_format": "contiguous", "augment": {"preset": "none"}, "optimizer": {"lr": 0.02, "head_lr": 0.02},
        }  # fmt: skip
        for name, value in {**case.options(), **more}.items():
            both = isinstance(value, dict) and isinstance(given.get(name), dict)
            given[name] = {**given[name], **value} if both else value
        return hs.load_config(given)

    def new(self) -> Path:
        """A run folder that is not there yet."""
        self.count += 1
        return self.root / f"run{self.count}"

    def train(
        self, case: Case, *, use: str, out: Path | None = None, module: nn.Module | None = None, **more: Any
    ) -> Outcome:
        """A run; ``more``: options besides the case's, ``stop_at``: a step to end at, ``copy_at``: a step at which its
        folder is copied (``killed``), ``resume``, ``seed_by``.
        """
        stop_at, resume, seed_by = more.pop("stop_at", 0), more.pop("resume", False), more.pop("seed_by", 5)
        copy_at = more.pop("copy_at", 0)
        outcome = Outcome(path=out or self.new())

        def watch(event: object) -> None:
            if isinstance(event, hs.StepDone):
                if event.step == stop_at:
                    raise Stopped
                if event.step == copy_at and not killed(outcome.path).exists():  # made again where a cache was given up
                    shutil.copytree(outcome.path, killed(outcome.path))
                outcome.losses[event.step - 1 :] = [event.loss]  # made again where a cache was given up
            text = getattr(event, "text", None)
            if isinstance(text, str):
                outcome.notes.append(text)
            if (made := getattr(event, "plan", None)) is not None:
                decisions = {one.name: f"{one.name}: {one.value} ({one.reason})" for one in made.decisions}
                outcome.notes += [line for name, line in decisions.items() if name == "cache"]
                outcome.decided = "; ".join(decisions.values())

        module = build(case.spec) if module is None else module
        seed_all(seed_by)
        try:
            config = self.config(case, use=use, out=outcome.path, **more)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run = hs.train(config, model=module, watch=watch, resume=resume)
        except Stopped:
            return outcome
        except Exception as error:
            outcome.error, outcome.where = error, _where(error)
            return outcome
        outcome.predictions = (run.path / "predictions.csv").read_text()
        outcome.weights = {name: value.clone() for name, value in run.model.state_dict().items()}
        outcome.attributes = attributes_of(run.model)
        outcome.metrics, outcome.model = run.metrics, run.model
        outcome.cached = any(note.startswith(("cache: train,", "cache: val,")) for note in outcome.notes)
        return outcome


def killed(path: Path) -> Path:
    """Where the copy of a run's folder is that was made while the run went on: what a kill would have left."""
    return path.with_name(path.name + "killed")


def quick_report() -> None:
    """Runs without the page that matplotlib draws (0.6 s): no law is about it."""
    report.write_report = lambda run, **_: None


def seed_all(seed: int) -> None:
    """Every global generator that user code draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def generators() -> tuple[Any, ...]:
    """States of the global generators."""
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().numpy().tobytes()


def attributes_of(module: nn.Module) -> dict[str, str]:
    """Everything that a module holds besides parameters, buffers, children and modes, as text by place."""
    found = {}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in ("training", "train") and not name.startswith("_") and (text := _text(value)):
                found[f"{path}.{name}"] = text
    for place, value in enumerate(hidden_state(module)):
        found[f"closure {place}"] = repr(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if isinstance(value, random.Random):
        return str(hash(value.getstate()))
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, torch.Generator):
        return str(hash(value.get_state().numpy().tobytes()))
    if isinstance(value, (bool, int, float, str, tuple, list, dict, types.SimpleNamespace, type(None))):
        return repr(value)
    return ""


def snapshot(module: nn.Module) -> dict[str, Any]:
    """A module as it is, by place."""
    found: dict[str, Any] = dict(attributes_of(module))
    found |= {f"{name} (mode)": part.training for name, part in module.named_modules()}
    found |= {f"{name} (hooks)": _hooks(part) for name, part in module.named_modules()}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, value in tensors:
        if not isinstance(value, nn.parameter.UninitializedTensorMixin):
            bits = value.detach().flatten().view(torch.uint8).numpy().tobytes()
            found[name] = (id(value), value.requires_grad, bits, value.grad is None)
    return found


def _hooks(part: nn.Module) -> tuple[int, ...]:
    return len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks), "forward" in vars(part)


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Places that differ."""
    return [name for name in {**before, **after} if before.get(name, "-") != after.get(name, "-")]


def draw_case(seed: int) -> Case:
    """A module of the grammar, a recipe, a rule, and which of the costly laws are checked."""
    spec, draw = draw_spec(seed), random.Random(f"case {seed}")
    recipe = draw.choice(("probe", "full", "full", "full", "lp_ft"))
    paths = block_paths(spec)
    weighted = [path for path, which in zip(paths, spec.blocks, strict=True) if not which.bare]
    until = draw.choice(["stem", *weighted]) if spec.container != "plain" else "stem"
    freeze = draw.choice(("backbone", f"until:{until}", f"until:{until}", "stages:1", "names:stem*", "none"))
    if recipe == "lp_ft" and freeze == "backbone":
        freeze = "none"
    more: list[tuple[str, Any]] = []
    for chance, what in (
        (0.12, ("average.kind", "ema")), (0.1, ("batch.accumulate", 2)), (0.1, ("batch.clip_norm", 0.5)),
        (0.1, ("penalties.l2_start", 0.1)), (0.1, ("optimizer.kind", "sgd")), (0.1, ("augment.flip", "alternating")),
    ):  # fmt: skip
        if draw.random() < chance:
            more.append(what)
    if spec.head in SCORES and draw.random() < 0.8:
        more.append(("head.scores", SCORES[spec.head]))
    checks = ["cache"]
    checks += ["resume"] if draw.random() < 0.5 else []
    checks += ["repeat"] if draw.random() < 0.25 else []
    checks += ["key"] if draw.random() < 0.3 else []
    return Case(
        spec=spec, recipe=recipe, freeze=freeze, stop=draw.randint(1, 6), more=tuple(more), checks=tuple(checks)
    )


def declared(case: Case) -> Drawn:
    """The module, its scores said as the options of a run say them."""
    module = build(case.spec)
    scores = dict(case.more).get("head.scores")
    if scores is not None:
        hs.declare_scores(module, scores)
    return module


def block_paths(spec: Spec) -> list[str]:
    """What the blocks are called in the module."""
    form = {"dict": "blocks.block{}", "attributes": "block{}"}.get(spec.container, "blocks.{}")
    return [form.format(place) for place in range(len(spec.blocks))]


def check(case: Case, world: World, *, only: str = "") -> Verdict:
    """Hold a case against the laws; ``only``: stop after what this one needs."""
    verdict = Verdict()
    known = truth(case.spec)
    verdict.clean = known.clean
    with world.fresh():
        if (broken := _runs_by_itself(case)) is not None:
            verdict.broken.append(broken)
            return verdict
        if not _look(case, world, known, verdict) or only == "look":
            return verdict
        verdict.cacheable = known.cacheable and _stem_is_frozen(case, verdict)
        _train(case, world, known, verdict)
    return verdict


def _runs_by_itself(case: Case) -> Broken | None:
    module = build(case.spec)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(2):
                made = module.train()(torch.randn(4, 3, SIZE, SIZE))
                tensors = made.values() if isinstance(made, dict) else [made] if isinstance(made, Tensor) else made
                sum(value.float().mean() for value in tensors).backward()
                module.eval()(torch.randn(4, 3, SIZE, SIZE))
    except Exception as error:
        return Broken("grammar", _short(error))
    return None


def _look(case: Case, world: World, known: Truth, verdict: Verdict) -> bool:
    """Look at a module in every way; False: it is refused, and that is all there is to say."""
    verdict.laws += ["look", "groups", "frozen"]
    module = declared(case)
    seed_all(11)
    state, before = generators(), snapshot(module)
    steps = {
        "find_head": lambda: hs.find_head(module),
        "describe": lambda: str(hs.describe(module)),
        "plan": lambda: hs.plan(world.config(case, use="auto", out=world.new()), model=module),
    }
    for name, step in steps.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                step()
        except hs.Error as error:
            return _refused(error, known, verdict)
        except Exception as error:
            verdict.broken.append(Broken("crash", f"{name}: {_short(error)} at {_where(error)}"))
            return False
        changed = changes(before, after := snapshot(module))
        if changed:
            verdict.broken.append(Broken("look", f"{name} changed {', '.join(changed[:4])}"))
            before = after
        if generators() != state:
            verdict.broken.append(Broken("look", f"{name} moved a global generator"))
            state = generators()
    _groups(case, verdict)
    return True


def _refused(error: hs.Error, known: Truth, verdict: Verdict) -> bool:
    text = str(error)
    verdict.refusal = text
    documented = any(word in text for word in known.refusals)
    named = not known.clean and any(word in text for word in known.words) and "no such module" not in text
    if not (documented or named):
        verdict.broken.append(Broken("refused", f"{type(error).__name__}: {text[:300]}"))
    return False


def _groups(case: Case, verdict: Verdict) -> None:
    """Freeze a module by the rule, and group it."""
    module = declared(case)
    before = snapshot(module)
    rule = "backbone" if case.recipe == "probe" else case.freeze
    try:
        if rule != "none":
            frozen = hs.freeze(module, rule=rule)
            _check_frozen(module, rule, frozen.tensors, case, verdict)
        groups = hs.param_groups(module, lr=0.1, weight_decay=0.1)
    except hs.Error as error:
        verdict.broken.append(Broken("refused", f"freeze {rule}: {error}"))
        return
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    if len(grouped) != len(set(grouped)) or set(grouped) != trainable:
        verdict.broken.append(Broken("groups", f"{len(grouped)} in groups, {len(trainable)} train, rule {rule}"))
    allowed = ("(mode)", "(hooks)")
    changed = [
        name for name in changes(before, snapshot(module))
        if not name.endswith(allowed) and not _only_requires_grad(before.get(name), module, name)
    ]  # fmt: skip
    if changed:
        verdict.broken.append(Broken("look", f"freeze or groups changed {', '.join(changed[:4])}"))


def _only_requires_grad(before: Any, module: nn.Module, name: str) -> bool:
    after = snapshot(module).get(name)
    both = isinstance(before, tuple) and isinstance(after, tuple)
    return both and (*before[:1], *before[2:]) == (*after[:1], *after[2:])


def _check_frozen(module: nn.Module, rule: str, tensors: tuple[str, ...], case: Case, verdict: Verdict) -> None:
    named = dict(module.named_parameters(remove_duplicate=False))
    wrong = [name for name in tensors if name in named and named[name].requires_grad]
    if rule == "backbone":
        wrong += [name for name, value in named.items() if value.requires_grad and not name.startswith(("fc", "pre"))]
    if rule.startswith("until:") and not {"tied", "repeat"} & set(case.spec.root):
        paths = ["stem", *block_paths(case.spec)]
        last = paths.index(rule.removeprefix("until:"))
        inside, outside = (tuple(path + "." for path in some) for some in (paths[: last + 1], paths[last + 1 :]))
        wrong += [name for name, value in named.items() if value.requires_grad and name.startswith(inside)]
        wrong += [
            name for name, value in named.items() if not value.requires_grad and name.startswith(outside)
        ] if "user_frozen" not in case.spec.root else []  # fmt: skip
    if wrong:
        verdict.broken.append(Broken("frozen", f"{rule}: {', '.join(dict.fromkeys(wrong))[:200]}"))


def _stem_is_frozen(case: Case, verdict: Verdict) -> bool:
    """Whether some phase freezes the stem before what trains, with all of it in evaluation mode."""
    if case.recipe in ("probe", "lp_ft") or case.freeze == "backbone" or case.freeze.startswith("until:"):
        return True
    if case.freeze in ("none",) or case.spec.stem == "conv_norm":
        return False
    module = declared(case)
    with contextlib.suppress(hs.Error):
        frozen = set(hs.freeze(module, rule=case.freeze).tensors)
        return {name for name, _ in module.named_parameters() if name.startswith("stem.")} <= frozen
    return False


def _train(case: Case, world: World, known: Truth, verdict: Verdict) -> None:
    verdict.laws += ["crash", "refused", "caller", "model", "bundle", "cache", "reason", "state"]
    module = build(case.spec)
    before = snapshot(module)
    never = world.train(case, use="never", module=module)
    if never.error is not None:
        if isinstance(never.error, hs.Error):
            _refused(never.error, known, verdict)
        else:
            verdict.broken.append(Broken("crash", f"train: {_short(never.error)} at {never.where}"))
        return
    changed = changes(before, snapshot(module))
    if changed:
        verdict.broken.append(Broken("caller", f"train changed {', '.join(changed[:4])}"))
    _check_model(case, never, verdict)
    _check_kept(case, never, verdict)
    _bundle(case, world, never, known, verdict)
    if "repeat" in case.checks:
        verdict.laws.append("repeat")
        _same("repeat", never, world.train(case, use="never"), verdict)
    whole = _cached(case, world, never, known, verdict)
    if "resume" in case.checks:
        verdict.laws.append("resume")
        _resumed(case, world, whole, known, verdict)
    others = {"key": twisted(case.spec), "weights": replace(case.spec, seed=case.spec.seed + 1)}
    for name in [name for name in others if name in case.checks and whole.cached]:
        verdict.laws.append("key")
        _read_again(replace(case, spec=others[name]), world, verdict)


def _read_again(other: Case, world: World, verdict: Verdict) -> None:
    """What looks almost like another module must not read its cache."""
    plain = world.train(other, use="never")
    if plain.error is None:
        again = world.train(other, use="always")
        if again.error is None or NOTHING not in str(again.error):
            _same("key", plain, again, verdict)


def _cached(case: Case, world: World, never: Outcome, known: Truth, verdict: Verdict) -> Outcome:
    """Trains with the cache where it can be; the run to compare others with."""
    copied: dict[str, Any] = {"copy_at": case.stop, "checkpoint": {"every_steps": 1}} if "resume" in case.checks else {}
    always = world.train(case, use="always", **copied)
    verdict.cached = always.cached
    if always.error is None:
        _same("cache", never, always, verdict)
        differ = changes(never.attributes, always.attributes)
        if differ:
            verdict.broken.append(Broken("state", f"never and always leave other {', '.join(differ[:4])}"))
        unused = [note for note in always.notes if "not used" in note]
        verdict.reason = unused[0] if unused else ""
        given_up = [note for note in always.notes if "given up" in note]
        if given_up and known.clean:
            verdict.broken.append(Broken("reason", given_up[0]))
        return always
    text = str(always.error)
    if not isinstance(always.error, hs.Error):
        verdict.broken.append(Broken("crash", f"cache always: {_short(always.error)} at {always.where}"))
        return never
    if NOTHING not in text:
        verdict.broken.append(Broken("refused", f"cache always: {text[:300]}"))
        return never
    verdict.reason = text
    if verdict.cacheable:
        verdict.laws.append("reason")
        if known.clean or not any(word in text for word in known.words):
            verdict.broken.append(Broken("reason", text[:400]))
    with few_passes():
        auto = world.train(case, use="auto")
    _same("cache", never, auto, verdict)
    differ = changes(never.attributes, auto.attributes)
    if differ:
        verdict.broken.append(Broken("state", f"never and auto leave other {', '.join(differ[:4])}"))
    return never


@contextlib.contextmanager
def few_passes() -> Iterator[None]:
    """Within, ``auto`` weighs the cache in short runs too."""
    before = getattr(plan_cache, "_FEW", None)
    if before is not None:
        plan_cache._FEW = 0
    try:
        yield
    finally:
        if before is not None:
            plan_cache._FEW = before


def _same(law: str, one: Outcome, other: Outcome, verdict: Verdict) -> None:
    """Two runs whose bits must be equal."""
    if other.error is not None:
        verdict.broken.append(Broken(law, f"{_short(other.error)} at {other.where}"))
        return
    found = []
    if law != "resume" and one.losses != other.losses:
        pairs = enumerate(zip(one.losses, other.losses, strict=False))
        step = next((place for place, (first, second) in pairs if first != second), -1)
        found.append(f"loss of step {step + 1}: {one.losses[step]} and {other.losses[step]}")
    if one.predictions != other.predictions:
        found.append(f"predictions differ by {_distance(one.predictions, other.predictions):.2g}")
    held, others = one.weights, other.weights
    differ = [name for name in held if name not in others or not torch.equal(held[name], others[name])]
    differ += [name for name in others if name not in held]
    if differ:
        found.append(f"tensors differ: {', '.join(differ[:3])}")
    if one.metrics != other.metrics:
        found.append("metrics differ")
    if found:
        verdict.broken.append(Broken(law, "; ".join(found)))


def _distance(one: str, other: str) -> float:
    rows = zip(csv.DictReader(io.StringIO(one)), csv.DictReader(io.StringIO(other)), strict=False)
    return max((abs(float(a.get("confidence") or 0) - float(b.get("confidence") or 0)) for a, b in rows), default=0.0)


def _resumed(case: Case, world: World, whole: Outcome, known: Truth, verdict: Verdict) -> None:
    """A run goes on from what a kill left of it or, where nothing is cached, from what an error in it left."""
    use, out = ("always", whole.path) if killed(whole.path).exists() else ("never", world.new())
    if use == "always":
        shutil.rmtree(out)
        killed(out).rename(out)
    else:
        world.train(case, use=use, out=out, stop_at=case.stop, checkpoint={"every_steps": 1})
    resumed = world.train(
        case, use=use, out=out, resume=True, seed_by=99, checkpoint={"every_steps": 1}
    )  # a new process has other generators
    if not (known.python_state and "not saved" in resumed.decided):
        _same("resume", whole, resumed, verdict)


def _check_model(case: Case, outcome: Outcome, verdict: Verdict) -> None:
    """``run.model`` as the README says."""
    model = outcome.model
    assert model is not None
    if any(part.training for part in model.modules()):
        verdict.broken.append(Broken("model", "parts of run.model are in training mode"))
    stuck = [name for name, value in model.named_parameters() if not value.requires_grad]
    if stuck and "user_frozen" not in case.spec.root:
        verdict.broken.append(Broken("model", f"run.model does not train {', '.join(stuck[:3])}"))
    try:
        awake = copy.deepcopy(model).train()
    except Exception as error:
        verdict.broken.append(Broken("model", f"a copy of run.model: {_short(error)}"))
        return
    asleep = [name for name, part in awake.named_modules() if not part.training]
    if asleep:
        verdict.broken.append(Broken("model", f"run.model.train() leaves {', '.join(asleep[:3])} in evaluation"))


def _check_kept(case: Case, outcome: Outcome, verdict: Verdict) -> None:
    """What the rule froze is as it began, and so is what makes an output that is no score."""
    if case.spec.head == "embedding" and "penalties.l2_start" not in dict(case.more):  # which decays it, too
        verdict.laws.append("outputs")
        if not torch.equal(build(case.spec).fc2.weight, outcome.weights["fc2.weight"]):
            verdict.broken.append(Broken("outputs", "fc2, which makes an embedding, was trained"))
    if case.recipe == "lp_ft":
        return
    verdict.laws.append("frozen")
    begun = build(case.spec)
    rule = "backbone" if case.recipe == "probe" else case.freeze
    if rule == "none" or isinstance(begun.stem, nn.LazyConv2d):
        return
    copied = declared(case)
    frozen = hs.freeze(copied, rule=rule)
    names = {name for name, _ in begun.named_parameters()} & set(frozen.tensors)
    start = begun.state_dict()
    moved = [name for name in names if not torch.equal(start[name], outcome.weights[name])]
    if moved:
        verdict.broken.append(Broken("frozen", f"{rule}: {', '.join(sorted(moved)[:3])} moved"))


def _bundle(case: Case, world: World, outcome: Outcome, known: Truth, verdict: Verdict) -> None:
    """The bundle, opened on a fresh module, predicts the images of validation."""
    rows = list(csv.DictReader(io.StringIO(outcome.predictions)))
    seed_all(21)
    try:
        opened = hs.open_run(outcome.path, model=build(case.spec))
        key = "id"
        paths = [world.root / "data" / row[key] for row in rows]
        batches = image_batches(paths, preprocess=opened.preprocess, task=opened.task, batch_size=BATCH)
        made = hs.predict(opened.model, batches).outputs
    except Exception as error:
        verdict.broken.append(Broken("bundle", f"{_short(error)} at {_where(error)}"))
        return
    found = [float(value) for value in made.max(1).values]
    told = [float(row["confidence"]) for row in rows]
    worst = max(abs(one - other) for one, other in zip(found, told, strict=True))
    if worst > 1e-6 and not (known.python_state and "not in the bundle" in outcome.decided):
        verdict.broken.append(Broken("bundle", f"validated and predicted differ by {worst:.2g}"))


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"


def _where(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "headstart" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else "outside"
