"""The HTTP service of a run: POST /predict, and what it says of itself at /health, /model, /metrics, /openapi.json."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from headstart.prediction.predictor import Predictor
from headstart.prediction.record import Prediction
from headstart.serve.batcher import Batcher, Full
from headstart.serve.counters import Counters
from headstart.serve.facts import describe_model
from headstart.serve.gate import Gate, State
from headstart.serve.page import answer_page
from headstart.serve.replies import describe_prediction, write_error, write_json
from headstart.serve.schema import ANSWERS, BODY, FAILURES
from headstart.serve.settings import MEGABYTE, Settings
from headstart.serve.uploads import Refusal, Upload, read_uploads

_DRAINED = 4  # times the largest request: what is read and thrown away, so that the client hears the answer
_SMALL_BODY = 200_000  # bytes that are taken apart within a millisecond
_WORDS = {404: "there is nothing here; see /openapi.json", 405: "this method is not accepted here; see /openapi.json"}


@dataclass(frozen=True, kw_only=True)
class Service:
    """A run's model behind HTTP: ``gate`` is the application, ``close`` ends its threads."""

    predictor: Predictor
    batcher: Batcher
    settings: Settings
    counters: Counters
    state: State
    token: str | None = field(default=None, repr=False)

    @cached_property
    def gate(self) -> Gate:
        """The application."""
        return Gate(app=_make_app(self), state=self.state, counters=self.counters, token=self.token)

    def close(self) -> None:
        """Compute what is waiting, and end the threads."""
        self.batcher.close()

    async def predict(self, request: Request, *, top: int) -> Response:
        """Answer the images of a request."""
        try:
            async with asyncio.timeout(self.settings.max_seconds):
                held = _Held(self.state, self.settings)
                try:
                    body = await held.read(request)
                    found = await self._compute(await self._take_apart(body, request))
                finally:
                    held.release()
        except Refusal as refusal:
            return write_error(refusal.status, refusal.sentence, errors=refusal.errors)
        except ClientDisconnect:
            return write_error(400, "the client left before the request was whole")
        except Full:
            return write_error(503, f"{self.settings.queue} images are waiting already; ask again in a moment")
        except TimeoutError:
            return write_error(503, f"there was no answer within {self.settings.max_seconds:g} s; ask again later")
        return write_json({"predictions": [describe_prediction(prediction, top=top) for prediction in found]})

    async def _take_apart(self, body: bytes, request: Request) -> list[Upload]:
        kind = request.headers.get("content-type", "")
        if len(body) < _SMALL_BODY:
            return read_uploads(body, kind, self.settings)
        return await run_in_threadpool(read_uploads, body, kind, self.settings)

    async def _compute(self, uploads: Sequence[Upload]) -> list[Prediction]:
        """The answers.  Raises: Refusal: no image could be read. Full: there is no room."""
        answers = [asyncio.wrap_future(answer) for answer in self.batcher.submit(uploads)]
        try:
            found = await asyncio.gather(*answers)
        finally:
            for answer in answers:
                answer.cancel()
        errors = [(prediction.path, prediction.error) for prediction in found if prediction.error is not None]
        if len(errors) == len(found):
            which = f"none of the {len(found)} images" if len(found) > 1 else "no image"
            raise Refusal(422, f"{which} could be read; the reason is beside its name", errors=errors)
        return found


class _Held:
    """The body of a request, within the bounds of one and of all requests together."""

    def __init__(self, state: State, settings: Settings) -> None:
        self._state, self._settings, self._bytes = state, settings, 0

    async def read(self, request: Request) -> bytes:
        """The whole body.  Raises: Refusal: it is too large, or there is no room."""
        most, pieces, size = self._settings.max_request_bytes, list[bytes](), 0
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > _DRAINED * most:
            raise self._refuse_size()
        async for piece in request.stream():
            size += len(piece)
            if size > _DRAINED * most:
                break
            if size > most:
                self.release()
                pieces.clear()
                continue
            if self._state.held_bytes + len(piece) > self._settings.max_held_bytes:
                raise Refusal(503, "too many requests are being read; ask again in a moment")
            self._state.held_bytes += len(piece)
            self._bytes += len(piece)
            pieces.append(piece)
        if size > most:
            raise self._refuse_size()
        return b"".join(pieces)

    def release(self) -> None:
        """The body is no longer in memory."""
        self._state.held_bytes -= self._bytes
        self._bytes = 0

    def _refuse_size(self) -> Refusal:
        most = self._settings.max_request_bytes / MEGABYTE
        return Refusal(413, f"the request is larger than {most:g} MB; send fewer or smaller images")


def open_service(
    predictor: Predictor, *, settings: Settings, counters: Counters | None = None, token: str | None = None
) -> Service:
    """The service of a run that is open; ``token``: what requests must bring along, but for / and /health."""
    counters = counters or Counters()
    batcher = Batcher(predictor, settings=settings, counters=counters)
    return Service(
        predictor=predictor, batcher=batcher, settings=settings, counters=counters, state=State(), token=token
    )


def _make_app(service: Service) -> FastAPI:
    app = FastAPI(
        title="headstart", summary="A fine-tuned image model", docs_url=None, redoc_url=None, redirect_slashes=False
    )
    facts = describe_model(service.predictor, service.settings)
    _add_errors(app)

    @app.post("/predict", openapi_extra={"requestBody": BODY}, responses={**ANSWERS, **FAILURES})
    async def predict(request: Request, top: int = Query(5, ge=1, le=100_000)) -> Response:
        """Say what the model says of each image: classes with confidences, tags, or numbers."""
        return await service.predict(request, top=top)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """Show the page on which pictures are tried."""
        return answer_page()

    @app.get("/health")
    async def health() -> Response:
        """Say that the model is there, and how many images wait."""
        return write_json({"status": "ok", "waiting": int(service.counters.read("headstart_waiting_images"))})

    @app.get("/model")
    async def model() -> Response:
        """Describe the model: task, names, thresholds, metrics of validation, input, licence, limits of requests."""
        return write_json(facts)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Give the counters of the service in the text format of Prometheus."""
        return Response(service.counters.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _add_errors(app: FastAPI) -> None:
    """Every error is a sentence in JSON."""

    @app.exception_handler(HTTPException)
    async def explain(_: Request, error: HTTPException) -> Response:
        """Say what is wrong with the address or the method."""
        return write_error(error.status_code, _WORDS.get(error.status_code, str(error.detail)), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def explain_value(_: Request, error: RequestValidationError) -> Response:
        """Say what is wrong with a value."""
        first: Any = next(iter(error.errors()), {"loc": (), "msg": "is wrong"})
        return write_error(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(Exception)
    async def confess(_: Request, __: Exception) -> Response:
        """Say that it is the service's fault."""
        return write_error(500, "the model failed at this request; the log of the service says why")
