"""The images in a request's body: files of a form, or base64 in JSON. Names are text; nothing is fetched or opened."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from headstart.serve.settings import MEGABYTE, Settings

_MAX_HEADER_BYTES = 4_000  # of one part of a form
_SPARE_PARTS = 16  # of a form beside its images
FORM, JSON = "multipart/form-data", "application/json"
_SHOWN = 80  # characters of what was sent, in messages


class Refusal(Exception):
    """A request that is not answered with predictions: the HTTP ``status``, and a sentence that says why.

    ``errors``: the images' names with the reason of each, where none could be read.
    """

    def __init__(self, status: int, sentence: str, *, errors: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.errors = status, sentence, tuple(errors)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One image of a request: its ``name``, as the answer calls it, and its bytes; or why there are none."""

    name: str
    content: bytes = field(repr=False, default=b"")
    error: str | None = None


def read_uploads(body: bytes, content_type: str, settings: Settings) -> list[Upload]:
    """The images in a body.  Raises: Refusal: it holds none, too many, one that is too large, or is damaged."""
    media, options = parse_options_header(content_type)
    kind = media.decode("latin-1").strip().lower()
    if kind == FORM:
        found = _read_form(body, options.get(b"boundary", b""), settings)
    elif kind == JSON:
        found = _read_json(body, settings)
    else:
        given = kind[:_SHOWN] or "none"
        raise Refusal(415, f"Content-Type: {given}; accepted are {FORM} with files, and {JSON} with a list of base64")
    if not found:
        raise Refusal(422, "there is no image in the request; send files of a form, or a JSON list of base64")
    large = next((upload for upload in found if len(upload.content) > settings.max_file_bytes), None)
    if large is not None:
        most = settings.max_file_bytes / MEGABYTE
        raise Refusal(413, f"{large.name}: {len(large.content) / MEGABYTE:,.1f} MB; at most {most:g} MB are accepted")
    return found


def _refuse_many(settings: Settings) -> Refusal:
    return Refusal(413, f"there are more than {settings.max_images} images in the request; send several requests")


def _read_json(body: bytes, settings: Settings) -> list[Upload]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is no JSON") from None
    if not isinstance(given, list) or not all(isinstance(image, str) for image in given):
        raise Refusal(422, 'the JSON is no list of texts; accepted is a list of base64, such as ["/9j/4AAQ..."]')
    if len(given) > settings.max_images:
        raise _refuse_many(settings)
    return [_decode_text(text, f"images[{number}]") for number, text in enumerate(given)]


def _decode_text(text: str, name: str) -> Upload:
    try:
        return Upload(name=name, content=base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return Upload(name=name, error="it is no base64 of a file; addresses are not fetched")


@dataclass
class _Form:
    """The parts of a form, as the parser meets them."""

    most: int
    parts: list[tuple[dict[bytes, bytes], list[bytes]]] = field(default_factory=list)
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    header_bytes: int = 0

    def begin_part(self) -> None:
        """A part begins."""
        self.parts.append(({}, []))
        self.header_bytes = 0
        if len(self.parts) > self.most:
            raise Refusal(413, f"there are more than {self.most} parts in the form; send several requests")

    def add_name(self, data: bytes, start: int, end: int) -> None:
        """Some letters of a header's name."""
        self.header += self._count_header(data[start:end])

    def add_value(self, data: bytes, start: int, end: int) -> None:
        """Some letters of a header's value."""
        self.value += self._count_header(data[start:end])

    def end_header(self) -> None:
        """A header is whole."""
        self.parts[-1][0][bytes(self.header).lower()] = bytes(self.value)
        self.header.clear()
        self.value.clear()

    def add_data(self, data: bytes, start: int, end: int) -> None:
        """Some bytes of the part's content."""
        self.parts[-1][1].append(data[start:end])

    def _count_header(self, text: bytes) -> bytes:
        self.header_bytes += len(text)
        if self.header_bytes > _MAX_HEADER_BYTES:
            raise Refusal(400, f"the headers of a part take more than {_MAX_HEADER_BYTES:,} bytes")
        return text


def _read_form(body: bytes, boundary: bytes, settings: Settings) -> list[Upload]:
    form = _Form(most=settings.max_images + _SPARE_PARTS)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin_part,
                "on_header_field": form.add_name,
                "on_header_value": form.add_value,
                "on_header_end": form.end_header,
                "on_part_data": form.add_data,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise Refusal(400, "the form is damaged: its parts are not those that its Content-Type announces") from None
    found = list[Upload]()
    for headers, pieces in form.parts:
        _, options = parse_options_header(headers.get(b"content-disposition", b""))
        name = options.get(b"filename")
        if name is not None:  # else a field of text
            text = name.decode("utf-8", "backslashreplace")
            found.append(Upload(name=text or f"images[{len(found)}]", content=b"".join(pieces)))
    if len(found) > settings.max_images:
        raise _refuse_many(settings)
    return found
