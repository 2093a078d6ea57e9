"""What a plan says of the data and of how a step is made."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

from headstart.config.peft import wants_lora
from headstart.config.schema import Augment, Config, Schedule
from headstart.data.images import Images
from headstart.data.sources.samples import some
from headstart.data.sources.sides import find_sides
from headstart.events import Decision
from headstart.optim.optimizers import decay_kind
from headstart.planning.draft import Draft
from headstart.tasks.kinds import find_kind
from headstart.wording import option


def about_data(images: Images) -> tuple[Decision, ...]:
    """The task, and how many images each split has."""
    task = images.task
    names = ", ".join((task.classes or task.targets)[:10]) + (", ..." if task.num_outputs > 10 else "")
    what = Decision("task", f"{task.kind}: {outputs_text(task.num_outputs)} ({names})", "from the data")
    splits = {"train": images.train, "val": images.val, "test": images.test}
    sizes = ", ".join(f"{len(split.samples)} {name}" for name, split in splits.items() if split)
    return what, Decision("data", sizes, "; ".join(plain_notes(images)) or "every image decoded once")


def plain_notes(images: Images) -> list[str]:
    """The notes on the data that are no warnings: these are a block of their own."""
    warned = {caution.text for caution in images.cautions}
    return [note for note in images.notes if note not in warned]


def describe_steps(draft: Draft) -> Draft:
    """The draft with decisions about optimizer, schedule, batch, random changes, penalties and when to stop."""
    config, images = draft.config, draft.images
    chosen, augment = config.optimizer, config.augment
    exempt = "norms, biases and adapters" if wants_lora(config) else "norms and biases"
    decay = f"weight decay {chosen.weight_decay:g}, {decay_kind(chosen)}, none on {exempt}"
    mixing = "".join(
        f", {name} {value:g}" for name, value in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if value
    )
    return draft.decide(
        Decision(
            "optimizer", chosen.kind + details(chosen, but=("lr", "head_lr", "layer_decay", "weight_decay")), decay
        ),
        Decision("schedule", _format_schedule(config.schedule), f"average of the weights: {_format_average(config)}"),
        Decision("batch", f"{count_images(draft.batch_size)} per step", _format_cuts(draft)),
        Decision("augment", f"{augment.preset}{mixing}", _format_flips(augment, images)),
        *_decide_decoded_cache(images),
        *_penalties_and_stop(draft),
    )


def _format_schedule(schedule: Schedule) -> str:
    rise = "a rise over the first 30 %" if schedule.kind == "one_cycle" else f"warm-up {schedule.warmup:.0%}"
    drops = f", x{schedule.step_factor:g} after each {schedule.step_share:.0%}" if schedule.kind == "step" else ""
    return f"{schedule.kind} in each phase, {rise}{drops}"


def _format_average(config: Config) -> str:
    average = config.average
    return "none" if average.kind == "none" else f"ema, half-life {average.half_life:.0%} of the steps"


def _format_cuts(draft: Draft) -> str:
    """How a step is cut, and its gradient clipped."""
    batch, count = draft.config.batch, draft.micro_batches
    clips = [f"{name} {value:g}" for name, value in (("norm", batch.clip_norm), ("value", batch.clip_value)) if value]
    fewer = f", not {batch.accumulate}: none is of a single image" if count < batch.accumulate else ""
    cut = f"in {count} micro-batch{'es' * (count != 1)}{fewer}; " if batch.accumulate > 1 else ""
    return f"{cut}{f'clipped by {chr(32).join(clips)}' if clips else 'gradients are not clipped'}"


def _format_flips(augment: Augment, images: Images) -> str:
    if augment.flip == "alternating":
        return f"mirrored in every other epoch; where left and right matter: {option('augment.flip', False)}"
    if augment.flip is True or (augment.flip == "auto" and augment.preset != "none"):
        sides = find_sides(images.task.names, are_numbers=find_kind(images.task.kind).gives_numbers)
        if augment.flip is True or not sides:
            return f"mirrored at random; where left and right matter: {option('augment.flip', False)}"
        return f"not mirrored, for {some(sides)} say a side; to mirror all the same: {option('augment.flip', True)}"
    return "not mirrored"


def _decide_decoded_cache(images: Images) -> tuple[Decision, ...]:
    """The decision on decoded images, where they are kept."""
    kept = [split.images.decoded.transform for split in (images.train, images.val) if split.images.decoded is not None]
    if not kept:
        return ()
    sizes = [len(split.samples) for split in (images.train, images.val)]
    room = sum(count * form.cached_bytes for count, form in zip(sizes, kept, strict=True))
    return (Decision("decoded images", f"kept, up to {room / 2**20:,.0f} MiB", f"as asked: {kept[0].cache_key}"),)


def _penalties_and_stop(draft: Draft) -> tuple[Decision, ...]:
    penalties, patience = draft.config.penalties, draft.config.stop.patience
    decisions = []
    if penalties.l1 or penalties.l2_start:
        on = f" on {_plain(penalties.l1_on)}" if penalties.l1 else ""
        shown = f"l1 {penalties.l1:g}{on}, l2_start {penalties.l2_start:g}"
        decisions.append(Decision("penalties", shown, "once per optimizer step"))
    if 0 < patience < draft.training_plan.phases[-1].epochs:
        decisions.append(
            Decision("stop", f"after {patience} epochs of the last phase without a better one", "as asked")
        )
    return tuple(decisions)


def details(chosen: object, *, but: tuple[str, ...] = ()) -> str:
    """The options of a choice that differ from their defaults, e.g. ``, label_smoothing 0.1``."""
    assert is_dataclass(chosen) and not isinstance(chosen, type)
    shown = [field for field in fields(chosen) if field.name not in ("kind", "at", "keep", *but)]
    changed = [field.name for field in shown if getattr(chosen, field.name) != field.default or field.name == "hidden"]
    return "".join(f", {name} {_plain(getattr(chosen, name))}" for name in changed)


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def outputs_text(count: int) -> str:
    """The number with its noun: ``1 output``, ``1,000 outputs``."""
    return f"{count:,} output{'s' * (count != 1)}"


def count_images(count: int) -> str:
    """A number of images as text: 1 image, 2 images."""
    return "1 image" if count == 1 else f"{count} images"
