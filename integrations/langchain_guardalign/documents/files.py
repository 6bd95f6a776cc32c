"""Images that a document only points to: by a local path or URL in a metadata field that the app named.

The file itself is never changed. Whether a path leads to an image is asked of the file's name and of its first bytes,
so that a field with the paths of PDFs and images may be named as well.
"""

from __future__ import annotations

import os
import pathlib
import re
import stat
from typing import Final
from urllib.parse import urlsplit

from guardalign_guardrails.content.dialect import Reading, written
from guardalign_guardrails.content.payload import Payload, Remote
from guardalign_guardrails.images import keep_png
from langchain_guardalign.documents.text import is_image

_SUFFIX: Final = re.compile(
    r"\.(a?png|avifs?|bmp|dib|gif|hei[cf]|ico|j2k|jfif|jp[2eg]|jpeg|jxl|pjp|pjpeg|svgz?|tiff?|webp)\s*$", re.IGNORECASE
)
_HEAD_BYTES: Final = 32
# On Windows the first is a file of another machine: to open it would be to connect to that machine.
_NETWORK_PATHS: Final = ("\\\\", "//")


def reading_of(location: object, masked_dir: pathlib.Path | None) -> Reading | None:
    """How to read the image at a location; None if no image is there.

    Args:
        location: A local path, or a URL; text or `pathlib.Path`.
        masked_dir: Where a masked copy of a local file is put; None if such a file can only stay or go.
    """
    if not isinstance(location, str | pathlib.PurePath) or not (text := str(location)).strip():
        return None
    is_named = _SUFFIX.search(_path_of(text)) is not None
    if isinstance(location, str) and "://" in text[:64]:
        return Reading(lambda _: Remote(text), lambda data, mime: written(text, data, mime)) if is_named else None
    if text.startswith(_NETWORK_PATHS):
        return Reading(lambda _: "remote_reference") if is_named else None
    path = pathlib.Path(text)
    if not is_named and not is_image(_bytes_of(path, _HEAD_BYTES) or b""):
        return None
    return _in_file(path, masked_dir, is_text=isinstance(location, str))


def _in_file(path: pathlib.Path, masked_dir: pathlib.Path | None, *, is_text: bool) -> Reading:
    def read(max_bytes: int) -> Payload:
        data = _bytes_of(path, max_bytes + 1)
        if data is None:
            return "file_reference"
        return data if len(data) <= max_bytes else "too_large"

    if masked_dir is None:
        return Reading(read)

    def write(data: bytes, _: str) -> str | pathlib.Path:
        copy = keep_png(data, masked_dir)
        return str(copy) if is_text else copy

    return Reading(read, write)


def _bytes_of(path: pathlib.Path, most: int) -> bytes | None:
    """The first bytes of a regular file; None if there is none or it may not be read."""
    # Opened before it is looked at, so that it cannot be swapped in between; non-blocking, so that a FIFO cannot hang.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            return file.read(most) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (OSError, ValueError):
        return None


def _path_of(location: str) -> str:
    """A path as it is, of a URL only the path."""
    if "://" not in location[:64]:
        return location
    try:
        return urlsplit(location).path
    except ValueError:
        return location
