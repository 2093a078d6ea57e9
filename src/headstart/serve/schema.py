"""The bodies of requests and answers, for /openapi.json."""

from __future__ import annotations

from typing import Any

_LABEL = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "confidence": {"type": "number"}},
    "required": ["name", "confidence"],
}
_PREDICTION = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "The file's name, or images[2] for the third text of a list"},
        "labels": {"type": "array", "items": _LABEL, "description": "Classes or tags, the likeliest first"},
        "tags": {"type": "array", "items": {"type": "string"}, "description": "The tags that are on"},
        "values": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
        "error": {"type": "string", "description": "Why the image could not be read"},
    },
    "required": ["name"],
}
_PREDICTIONS = {"type": "array", "items": _PREDICTION}
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "predictions": _PREDICTIONS},
    "required": ["error"],
}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}

BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"files": _FILES}, "required": ["files"]},
        },
        "application/json": {
            "schema": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "byte"}},
        },
    },
}
"""What a request holds: files of a form, under any name, or a list of base64."""
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One prediction per image, in order",
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"predictions": _PREDICTIONS}, "required": ["predictions"]},
            }
        },
    }
}
"""What is answered."""
_REASONS = {
    400: "The body is damaged",
    401: "A token is needed",
    413: "The request, an image or their number is too large",
    415: "The content type is another one",
    422: "There is no image that can be read",
    500: "The model failed",
    503: "Too many images wait, or the service is ending; ask again after Retry-After seconds",
}
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for status, text in _REASONS.items()
}
"""What is answered instead, with a sentence each."""
