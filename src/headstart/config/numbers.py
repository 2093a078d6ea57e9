"""Numbers with bounds, by name."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

Auto = Literal["auto"]
Positive = Annotated[float, Gt(0), Lt(float("inf"))]
NonNegative = Annotated[float, Ge(0), Lt(float("inf"))]
Probability = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1)]
