"""The planning: every decision before the first step, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import nn

from headstart.config.schema import Config, Head
from headstart.data.images import Images
from headstart.errors import ConfigError
from headstart.events import Decided, Plan, Watch
from headstart.models.sources import OpenedModel
from headstart.planning.about import describe_steps
from headstart.planning.activation_cache import choose_cache
from headstart.planning.activation_checkpointing import check_recompute
from headstart.planning.compile import choose_compile
from headstart.planning.data import list_images, read_images
from headstart.planning.device import choose_allocator, choose_device
from headstart.planning.distributed import check_parallel, choose_parallel
from headstart.planning.document import make_document
from headstart.planning.draft import Choices, Draft, Own
from headstart.planning.evaluation import choose_evaluation
from headstart.planning.framing import check_framing
from headstart.planning.head import choose_head
from headstart.planning.head_rate import limit_head_rate
from headstart.planning.idle import name_idle_options
from headstart.planning.loading import choose_workers
from headstart.planning.loss import choose_loss
from headstart.planning.memory import check_memory, measure_memory
from headstart.planning.metric import check_metric, choose_metric
from headstart.planning.model import choose_model
from headstart.planning.own_module import explain_fixed
from headstart.planning.own_state import check_own_state
from headstart.planning.peft import add_adapters
from headstart.planning.phases import choose_phases
from headstart.planning.precision import choose_arithmetic
from headstart.planning.shapes import check_shapes
from headstart.planning.trained_before import name_trained_before
from headstart.surgery.head import HeadSwap
from headstart.surgery.module_copy import InPlace
from headstart.surgery.no_trace import no_trace
from headstart.tasks.losses import LossFunction
from headstart.timing import is_out_of_memory
from headstart.training.phases import TrainingPlan
from headstart.training.precision import MEMORY_FORMATS
from headstart.wording import option

OPENED: tuple[Callable[[Draft], Draft], ...] = (
    check_metric,
    choose_device,
    choose_allocator,
    check_parallel,
    list_images,
    choose_model,
    check_framing,
    read_images,
    name_trained_before,
    choose_loss,
    choose_metric,
    choose_head,
    add_adapters,
    limit_head_rate,
    choose_phases,
    explain_fixed,
    describe_steps,
    check_recompute,
    choose_parallel,
)
"""From the options to a model with its head, its data and its phases."""

TRIED: tuple[Callable[[Draft], Draft], ...] = (
    measure_memory,  # before anything is tried: no trial takes more than there is
    check_shapes,
    choose_arithmetic,
    check_own_state,
    choose_cache,
    choose_evaluation,
    choose_workers,
    choose_compile,
    check_memory,
    name_idle_options,
)
"""What running the model on a few images decides; afterwards it is as before."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run ready for its first step. ``head``: as asked, or as it was kept. ``can_retain_memory``: there is memory for
    what is freed and kept, too.
    """

    config: Config
    plan: Plan
    opened: OpenedModel
    head: Head
    swap: HeadSwap
    images: Images
    training_plan: TrainingPlan
    device: torch.device
    sharded: bool
    can_retain_memory: bool

    @property
    def document(self) -> dict[str, Any]:
        """The content of plan.json."""
        return self.plan.document


def prepare(
    config: Config, *, module: nn.Module | InPlace | None, loss: LossFunction | None, emit: Watch,
    own: Own | None = None, recorded: Choices | None = None,
) -> Prepared:  # fmt: skip
    """Open the model, read every image, replace the head, decide the rest; nothing is written.

    A module of the user's own is copied, unless it is ``InPlace``; the global generators are seeded in any case.
    ``own``: images instead of those of the config, a transform, metrics. ``recorded``: the choices that were measured
    when the run began; they stay.

    Raises: ConfigError, ModelError, DataError: the user's mistakes.
    """
    draft = Draft(config=config, own_module=module, own_loss=loss, own=own or Own(), emit=emit, recorded=recorded or {})
    draft = _take(OPENED, draft)
    with no_trace(draft.module):
        draft = _take(TRIED, draft)
    draft.module.to(memory_format=MEMORY_FORMATS[draft.rules.memory_format])
    plan = Plan(decisions=draft.decisions, document=make_document(draft))
    emit(Decided(plan))
    return Prepared(
        config=config, plan=plan, opened=draft.opened, head=draft.config.head, swap=draft.swap, images=draft.images,
        training_plan=draft.training_plan, device=draft.device, sharded=draft.sharded,
        can_retain_memory=draft.can_retain_memory,
    )  # fmt: skip


def _take(steps: Sequence[Callable[[Draft], Draft]], draft: Draft) -> Draft:
    """The draft after all the steps.

    Raises: ConfigError: memory ran out in one of them.
    """
    try:
        return reduce(lambda before, step: step(before), steps, draft)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            "batch: memory ran out while the run was planned, before its first step; give a smaller "
            f"{option('image_size')}, {option('batch_size')} or {option('model')}"
        ) from error
