"""Answers as JSON that any reader takes, whatever letters a name has."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from headstart.prediction.record import Prediction
from headstart.prediction.rows import as_dict

RETRY_SECONDS = 1


def write_json(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The value as strict JSON in ASCII; what is not finite is null."""
    text = json.dumps(_finite(value), allow_nan=False)
    return Response(text, status_code=status, headers=dict(headers or {}), media_type="application/json")


def write_error(
    status: int,
    sentence: str,
    *,
    errors: Sequence[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Why a request is not answered; ``errors``: the images' names with the reason of each."""
    rows = {"predictions": [{"name": name, "error": error} for name, error in errors]} if errors else {}
    retry = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else {}
    return write_json({"error": sentence, **rows}, status=status, headers={**retry, **(headers or {})})


def describe_prediction(prediction: Prediction, *, top: int) -> dict[str, Any]:
    """What ``headstart predict --format json`` says of an image, under its ``name``."""
    row = as_dict(prediction, top=top)
    return {"name": row.pop("path"), **row}


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
