"""Images in files: read once within limits, and kept under a name made of their bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import stat
import tempfile
from typing import BinaryIO, Final, Literal, TypeAlias

from guardalign_guardrails.errors import ImageDecodeError
from guardalign_guardrails.images.containers import sniff
from guardalign_guardrails.images.limits import refusal

Unread: TypeAlias = Literal["file_reference", "remote_reference", "too_large"]
"""Why a file that a document or a message names is not read."""

# On Windows the first is a file of another machine: to open it would be to connect to that machine.
_NETWORK_PATHS: Final = ("\\\\", "//")


def read_file(path: pathlib.Path, max_bytes: int) -> bytes:
    """The bytes of an image's file, read once.

    Args:
        path: Of a regular file, as the app gave it.
        max_bytes: Most bytes to read.

    Raises:
        ImageDecodeError: ``unreadable``, ``empty`` or ``too_large``.
    """
    try:
        with _opened(path) as file:
            check_bytes(os.fstat(file.fileno()).st_size, max_bytes)
            data = file.read(max_bytes + 1)
    except (OSError, ValueError):
        raise refusal("unreadable") from None
    check_bytes(len(data), max_bytes)
    return data


def read_named_file(path: pathlib.PurePath | str, max_bytes: int) -> bytes | Unread:
    """The bytes of a file that a document or a message names, or why there are none.

    Args:
        path: As it was named; a file of another machine is not opened.
        max_bytes: Most bytes to read.
    """
    if str(path).startswith(_NETWORK_PATHS):
        return "remote_reference"
    try:
        return read_file(pathlib.Path(path), max_bytes)
    except ImageDecodeError as error:
        return "too_large" if error.reason == "too_large" else "file_reference"


def first_bytes(path: pathlib.PurePath | str, count: int) -> bytes:
    """The first bytes of a regular file of this machine; none if there is no such file or it may not be read."""
    if str(path).startswith(_NETWORK_PATHS):
        return b""
    try:
        with _opened(path) as file:
            return file.read(count)
    except (OSError, ValueError):
        return b""


def check_bytes(size: int, max_bytes: int) -> None:
    """Refuse a size in bytes.

    Raises:
        ImageDecodeError: ``empty`` or ``too_large``.
    """
    if size == 0:
        raise refusal("empty")
    if size > max_bytes:
        raise refusal("too_large")


def keep_image(data: bytes, folder: pathlib.Path | str) -> pathlib.Path:
    """A file with an encoded image's bytes, named by them: the same image is one file, however often it is kept.

    Args:
        data: The encoded image.
        folder: Where the file goes; made if it is not there.

    Raises:
        OSError: It cannot be written.
    """
    kind = sniff(data) or "bin"
    suffix = "jpg" if kind == "JPEG" else kind.lower()
    folder = pathlib.Path(folder)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:32]}.{suffix}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        pathlib.Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            pathlib.Path(name).unlink()
        raise
    return path


def _opened(path: pathlib.PurePath | str) -> BinaryIO:
    # Opened before it is inspected, so that it cannot be swapped in between; non-blocking, so that a FIFO cannot hang.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError("This is no regular file.")
