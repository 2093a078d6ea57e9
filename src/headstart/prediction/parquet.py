"""Parquet, by pyarrow where it is installed."""

from __future__ import annotations

from typing import Any

from headstart.errors import ConfigError


class Sink:
    """A file in memory that gives away what was written to it."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0

    def write(self, data: bytes) -> int:
        """Take the bytes."""
        self._parts.append(bytes(data))
        self._length += len(data)
        return len(data)

    def tell(self) -> int:
        """How many bytes were written."""
        return self._length

    def flush(self) -> None:
        """Do nothing: all is in memory."""

    def close(self) -> None:
        """Do nothing: what was written is still to be taken."""

    def take(self) -> bytes:
        """What was written since this was last called."""
        data, self._parts = b"".join(self._parts), []
        return data


def load_parquet() -> tuple[Any, Any]:
    """``pyarrow`` and ``pyarrow.parquet``.  Raises: ConfigError: they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install 'headstart[parquet]', or give another ending") from error
    return pyarrow, pyarrow.parquet
