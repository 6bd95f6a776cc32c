"""Images in files: read once within limits, and kept under a name made of their bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import stat
import tempfile

from guardalign_guardrails.images.limits import refusal


def read_file(path: pathlib.Path, max_bytes: int) -> bytes:
    """The bytes of an image's file, read once.

    Args:
        path: Of a regular file, as the app gave it.
        max_bytes: Most bytes to read.

    Raises:
        ImageDecodeError: ``unreadable``, ``empty`` or ``too_large``.
    """
    # Opened before it is looked at, so that it cannot be swapped in between; non-blocking, so that a FIFO cannot hang.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise refusal("unreadable")
            check_bytes(status.st_size, max_bytes)
            data = file.read(max_bytes + 1)
    except (OSError, ValueError):
        raise refusal("unreadable") from None
    check_bytes(len(data), max_bytes)
    return data


def check_bytes(size: int, max_bytes: int) -> None:
    """Refuse a size in bytes.

    Raises:
        ImageDecodeError: ``empty`` or ``too_large``.
    """
    if size == 0:
        raise refusal("empty")
    if size > max_bytes:
        raise refusal("too_large")


def keep_png(data: bytes, folder: pathlib.Path) -> pathlib.Path:
    """A file with a PNG's bytes, named by them: the same image is one file, however often it is kept.

    Raises:
        OSError: It cannot be written.
    """
    path = folder / f"{hashlib.sha256(data).hexdigest()[:32]}.png"
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
