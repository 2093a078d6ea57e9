"""The page at /: all of it in one file, and the header that lets the browser run nothing else and ask nobody else."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import Response

_FILE = Path(__file__).with_name("page.html")


def answer_page() -> Response:
    """The page, which shows pictures of its own, asks this service, and may use the camera."""
    text = _FILE.read_text(encoding="utf-8")
    style, script = (_name_hash(text, tag) for tag in ("style", "script"))
    policy = (
        f"default-src 'none'; style-src {style}; script-src {script}; img-src 'self' blob: data:; "
        "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Permissions-Policy": "camera=(self), microphone=(), geolocation=()"}
    return Response(text, headers=headers, media_type="text/html; charset=utf-8")


def _name_hash(text: str, tag: str) -> str:
    """What a policy calls the page's only element of this kind by."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
