"""Where the time of training went, in words."""

from __future__ import annotations


def time_shares(input_seconds: float, seconds: float, *, copy_seconds: float) -> str:
    """``compute 93 %, input 7 %``: the largest part first, that is the bottleneck. Input: images decoded, read, waited
    for; copy, where there is one: to an accelerator. ``seconds`` are all of it, above 0.
    """
    waited = round(100 * min(1.0, input_seconds / seconds))
    copied = min(100 - waited, round(100 * copy_seconds / seconds))
    parts = [("compute", 100 - waited - copied), ("input", waited)] + ([("copy", copied)] if copied else [])
    return ", ".join(f"{name} {share} %" for name, share in sorted(parts, key=lambda part: -part[1]))
