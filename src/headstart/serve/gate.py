"""What surrounds every request: who may ask, whether the service is ending, what is counted, and headers of safety."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.serve.counters import Counters
from headstart.serve.replies import RETRY_SECONDS, write_error

_FREE = ("/", "/health")  # without a token
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
_NO_CONTENT = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


@dataclass
class State:
    """How the service is: whether it is ``ending``, and how many requests it has begun and not yet answered."""

    ending: bool = False
    open_requests: int = 0
    held_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The application behind its doors."""

    app: ASGIApp
    state: State
    counters: Counters
    token: str | None = field(default=None, repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": _guard(list(message["headers"]))}
            await send(message)

        self.state.open_requests += 1
        try:
            await (self._find_refusal(scope) or self.app)(scope, receive, send_guarded)
        finally:
            self.state.open_requests -= 1
            self.counters.add("headstart_requests_total", str(status))
            self.counters.observe("headstart_request_seconds", time.perf_counter() - started)

    def _find_refusal(self, scope: Scope) -> ASGIApp | None:
        if self.state.ending:
            ending = {"Connection": "close", "Retry-After": str(RETRY_SECONDS)}
            return write_error(503, "the service is ending", headers=ending)
        if self.token is not None and scope["path"] not in _FREE and not self._is_known(scope):
            asks = {"WWW-Authenticate": "Bearer"}
            return write_error(401, "a token is needed; send the header Authorization: Bearer TOKEN", headers=asks)
        return None

    def _is_known(self, scope: Scope) -> bool:
        """Whether the request has the token; the time that it takes does not say how much of it is right."""
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        expected = f"Bearer {self.token}".encode()
        return hmac.compare_digest(given, expected)


def _guard(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    has_policy = any(name == _NO_CONTENT[0] for name, _ in headers)
    return [*headers, *_HEADERS, *(() if has_policy else (_NO_CONTENT,))]
