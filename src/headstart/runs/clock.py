"""Where the time of training went, in words."""

from __future__ import annotations


def time_shares(input_seconds: float, seconds: float) -> str:
    """``compute 93 %, input 7 %``: the larger part first, that is the bottleneck. Input: images decoded, read, waited
    for; ``seconds`` are all of it, above 0.
    """
    waited = round(100 * min(1.0, input_seconds / seconds))
    parts = sorted((("compute", 100 - waited), ("input", waited)), key=lambda part: -part[1])
    return ", ".join(f"{name} {share} %" for name, share in parts)
