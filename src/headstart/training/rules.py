"""How a step is made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from headstart.config.schema import Loss, Penalties
from headstart.tasks.losses import LossFunction, loss_by_name, make_loss
from headstart.training.attention import Attention
from headstart.training.compile import Compile
from headstart.training.precision import Precision


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """How a step is made. ``loss`` is a name, a config value, or a function (outputs, targets) -> one loss per sample
    (B,), or (losses, weights); its outputs are at least float32. The loss of a step is the sum of losses x weights over
    the sum of weights, however the step is cut. ``recompute``: a block's activations are not kept (see
    ``activation_checkpointing``); ``attention``: how it is computed (see ``attention``); ``compile``: how the model is
    compiled (see ``compile``); ``evaluation_precision``: where it is not training's. ``average_steps``: keep an average
    of the weights whose past counts half after so many steps. What rules need of a state (that average, the loss scaler
    of fp16, the start of ``penalties.l2_start``) is made at the first step with them.
    """

    loss: str | Loss | LossFunction = "cross_entropy"
    penalties: Penalties = Penalties()  # noqa: RUF009  frozen
    precision: Precision = "fp32"
    memory_format: str = "contiguous"
    attention: Attention = "fused"
    accumulate: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None
    recompute: bool = False
    seed: int = 0
    compile: Compile = "never"
    evaluation_precision: Precision | None = None
    average_steps: float | None = None

    @property
    def evaluated_in(self) -> Precision:
        """Precision of validation, evaluation and prediction."""
        return self.evaluation_precision or self.precision

    @cached_property
    def are_plain(self) -> bool:
        """Whether a forward pass is the model's own, in float32, and nothing around it."""
        usual = self.precision == "fp32" and self.attention == "fused" and self.compile == "never"
        return usual and not self.recompute

    def loss_function(self) -> LossFunction:
        """The loss as a function.  Raises: ConfigError: no such loss."""
        return self.loss_per_image

    @cached_property
    def loss_per_image(self) -> LossFunction:
        """The same, without a call.  Raises: ConfigError: no such loss."""
        if callable(self.loss):
            return self.loss
        return make_loss(loss_by_name(self.loss) if isinstance(self.loss, str) else self.loss)
