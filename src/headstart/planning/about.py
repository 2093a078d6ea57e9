"""What a plan says of the data and of how a step is made."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

from headstart.config.peft import wants_lora
from headstart.config.schema import Augment, Config
from headstart.data.images import Images
from headstart.data.sources.samples import some
from headstart.data.sources.sides import find_sides
from headstart.events import Decision
from headstart.optim.optimizers import decay_kind
from headstart.tasks.kinds import find_kind


def about_data(images: Images) -> tuple[Decision, ...]:
    """The task, and how many images each split has."""
    task = images.task
    names = ", ".join((task.classes or task.targets)[:10]) + (", ..." if task.num_outputs > 10 else "")
    what = Decision("task", f"{task.kind}: {outputs_text(task.num_outputs)} ({names})", "from the data")
    splits = {"train": images.train, "val": images.val, "test": images.test}
    sizes = ", ".join(f"{len(split.samples)} {name}" for name, split in splits.items() if split)
    return what, Decision("data", sizes, "; ".join(images.notes) or "every image decoded once")


def about_steps(config: Config, images: Images) -> tuple[Decision, ...]:
    """Optimizer, schedule, batch, random changes, penalties and when to stop."""
    chosen, batch, augment, average = config.optimizer, config.batch, config.augment, config.average
    exempt = "norms, biases and adapters" if wants_lora(config) else "norms and biases"
    decay = f"weight decay {chosen.weight_decay:g}, {decay_kind(chosen)}, none on {exempt}"
    clips = [f"{name} {value:g}" for name, value in (("norm", batch.clip_norm), ("value", batch.clip_value)) if value]
    cut = f"in {batch.accumulate} micro-batches; " if batch.accumulate > 1 else ""
    size = f"{cut}{f'clipped by {chr(32).join(clips)}' if clips else 'gradients are not clipped'}"
    mixing = "".join(
        f", {name} {value:g}" for name, value in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if value
    )
    schedule = f"{config.schedule.kind} in each phase, warm-up {config.schedule.warmup:.0%}"
    average_text = "none" if average.kind == "none" else f"ema, half-life {average.half_life:.0%} of the steps"
    return (
        Decision(
            "optimizer", chosen.kind + details(chosen, but=("lr", "head_lr", "layer_decay", "weight_decay")), decay
        ),
        Decision("schedule", schedule, f"average of the weights: {average_text}"),
        Decision("batch", f"{min(images.train.batch_size, len(images.train.samples))} images per step", size),
        Decision("augment", f"{augment.preset}{mixing}", _format_flips(augment, images)),
        *_decide_decoded_cache(images),
        *_penalties_and_stop(config),
    )


def _format_flips(augment: Augment, images: Images) -> str:
    if augment.flip == "alternating":
        return "mirrored in every other epoch; where left and right matter: --augment.flip false"
    if augment.flip is True or (augment.flip == "auto" and augment.preset != "none"):
        sides = find_sides(images.task.names, are_numbers=find_kind(images.task.kind).gives_numbers)
        if augment.flip is True or not sides:
            return "mirrored at random; where left and right matter: --augment.flip false"
        return f"not mirrored, for {some(sides)} say a side; to mirror all the same: --augment.flip true"
    return "not mirrored"


def _decide_decoded_cache(images: Images) -> tuple[Decision, ...]:
    """Where decoded images are kept."""
    kept = [split.images.decoded.transform for split in (images.train, images.val) if split.images.decoded is not None]
    if not kept:
        return ()
    sizes = [len(split.samples) for split in (images.train, images.val)]
    room = sum(count * form.cached_bytes for count, form in zip(sizes, kept, strict=True))
    return (Decision("decoded images", f"kept, up to {room / 2**20:,.0f} MiB", f"as asked: {kept[0].cache_key}"),)


def _penalties_and_stop(config: Config) -> tuple[Decision, ...]:
    penalties, patience = config.penalties, config.stop.patience
    found = []
    if penalties.l1 or penalties.l2_start:
        shown = f"l1 {penalties.l1:g} on {_plain(penalties.l1_on)}, l2_start {penalties.l2_start:g}"
        found.append(Decision("penalties", shown, "once per optimizer step"))
    if patience:
        found.append(Decision("stop", f"after {patience} epochs of the last phase without a better one", "as asked"))
    return tuple(found)


def details(chosen: object, *, but: tuple[str, ...] = ()) -> str:
    """What of a choice is not as by default, e.g. ``, label_smoothing 0.1``."""
    assert is_dataclass(chosen) and not isinstance(chosen, type)
    shown = [field for field in fields(chosen) if field.name not in ("kind", "at", *but)]
    changed = [field.name for field in shown if getattr(chosen, field.name) != field.default or field.name == "hidden"]
    return "".join(f", {name} {_plain(getattr(chosen, name))}" for name in changed)


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def outputs_text(count: int) -> str:
    """``1 output``, ``1,000 outputs``."""
    return f"{count:,} output{'s' * (count != 1)}"
