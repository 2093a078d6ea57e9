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
    """How an optimizer step is made.

    The loss of a step is the sum of losses x weights over the sum of weights, however the step is cut. What rules need
    of a state (an average of the weights, the loss scaler of fp16, the start of ``penalties.l2_start``) is made at the
    first step with them.

    Attributes:
        ``loss``: A name such as ``cross_entropy``, a section of a config, or a function (outputs, targets) that returns
            one loss per sample (B,), or (losses, weights). Its outputs are at least float32.
        ``penalties``: Terms that are added to the loss.
        ``precision``: The arithmetic of the forward pass: fp32, bf16 or fp16.
        ``memory_format``: The order of image tensors in memory: contiguous or channels_last.
        ``attention``: Whether attention is torch's fused kernel (fused) or the plain formula (plain).
        ``accumulate``: How many micro-batches a step is cut into.
        ``clip_norm``: The norm that the gradient is scaled down to where it is larger; None leaves it.
        ``clip_value``: The largest size of each value of the gradient; None leaves them.
        ``recompute``: Whether the activations of blocks are computed again for the backward pass, not kept.
        ``seed``: The number that dropout draws from, together with the step and the process.
        ``compile``: The mode of ``torch.compile``, or never.
        ``evaluation_precision``: The precision of validation; None takes ``precision``.
        ``average_steps``: Keep an average of the weights whose past counts half after so many steps; None keeps none.

    Example:
        >>> import headstart as hs
        >>> rules = hs.StepRules(loss="cross_entropy", accumulate=2, clip_norm=1.0)
        >>> rules.evaluated_in
        'fp32'
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
        """The precision of validation, evaluation and prediction."""
        return self.evaluation_precision or self.precision

    @cached_property
    def are_plain(self) -> bool:
        """Whether a forward pass is the model's own, in float32, and nothing around it."""
        usual = self.precision == "fp32" and self.attention == "fused" and self.compile == "never"
        return usual and not self.recompute

    def loss_function(self) -> LossFunction:
        """Return the loss as a function.

        Raises:
            ConfigError: There is no such loss.
        """
        return self.loss_per_image

    @cached_property
    def loss_per_image(self) -> LossFunction:
        """The loss as a function, made once.

        Raises:
            ConfigError: There is no such loss.
        """
        if callable(self.loss):
            return self.loss
        return make_loss(loss_by_name(self.loss) if isinstance(self.loss, str) else self.loss)
