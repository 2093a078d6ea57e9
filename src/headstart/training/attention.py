"""Attention by its formula, scores kept for the backward pass, in place of torch's fused kernel.

On a CPU the fused kernel's backward pass is slow in bf16: ViT-tiny trains 1.3 times faster by the formula
(``docs/measured/speed.md``). Forward passes without a gradient, validation and frozen layers among them, stay fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Attention = Literal["fused", "plain"]
_POSITIONAL = 5  # query, key, value, mask, dropout; nobody gives the rest without its name


def has_attention(module: nn.Module) -> bool:
    """Whether layers of timm in it can compute attention either way (``fused_attn`` is timm's own switch, read when a
    model is built).
    """
    return any(getattr(part, "fused_attn", False) is True for part in module.modules())


@contextmanager
def attending(how: Attention) -> Iterator[None]:
    """Within, attention that a gradient goes back through is computed ``how``; backward passes belong within, too."""
    if how == "fused":
        yield
        return
    with _ByFormula():
        yield


class _ByFormula(TorchFunctionMode):
    """Calls of ``scaled_dot_product_attention`` from Python; what is traced by torch.fx calls it, too."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention and len(args) <= _POSITIONAL:
            found = _by_formula(*args, **kwargs)
            if found is not None:
                return found
        return function(*args, **kwargs)


def _by_formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    **options: Any,
) -> Tensor | None:
    """``softmax(query @ key^T * scale + mask) @ value``, (..., L, E), as timm's layers do it without the fused kernel;
    None where no gradient is wanted, or for what they do not do.
    """
    learns = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    scale = options.pop("scale", None)
    if not learns or any(options.values()) or (attn_mask is not None and not attn_mask.is_floating_point()):
        return None  # is_causal, enable_gqa
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores + attn_mask
    return functional.dropout(scores.softmax(dim=-1), dropout_p) @ value
