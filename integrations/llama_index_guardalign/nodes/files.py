"""Local files that an app names in a block or a node: read once, within limits, and never another machine's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from guardalign_guardrails.errors import ImageDecodeError
from guardalign_guardrails.images import read_file

# On Windows the first is a file of another machine: to open it would be to connect to that machine.
_NETWORK_PATHS: Final = ("\\\\", "//")


def bytes_of(path: Path | str, max_bytes: int) -> bytes | None:
    """The bytes of a file; None if it cannot be read, is no regular file, is empty or too large.

    Args:
        path: Of a file on this machine.
        max_bytes: Most bytes to read.
    """
    if str(path).startswith(_NETWORK_PATHS):
        return None
    try:
        return read_file(Path(path), max_bytes)
    except ImageDecodeError:
        return None
