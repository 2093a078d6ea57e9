"""What a service accepts, and how it computes: all that ``headstart serve`` is told."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of a service.

    Attributes:
        ``batch_size``: Most images that are computed together; None: as many as in validation.
        ``exact``: Whether batches are padded as ``headstart predict`` pads them, so that the bits are the same.
        ``wait_seconds``: How long a batch waits for images that are still being decoded.
        ``queue``: Most images that wait or are computed; beyond them requests are refused with 503.
        ``max_images``: Most images of one request.
        ``max_file_bytes``: Most bytes of one image.
        ``max_request_bytes``: Most bytes of one request.
        ``max_seconds``: How long one request may take, from its first byte to its answer.
    """

    batch_size: int | None = None
    exact: bool = False
    wait_seconds: float = 0.005
    queue: int = 256
    max_images: int = 64
    max_file_bytes: int = 20 * MEGABYTE
    max_request_bytes: int = 64 * MEGABYTE
    max_seconds: float = 30.0

    @property
    def max_held_bytes(self) -> int:
        """Most bytes of all requests that are read and not yet answered."""
        return 8 * self.max_request_bytes
