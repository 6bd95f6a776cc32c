"""The result of every container walk, and the one kind of metadata that changes pixels: orientation."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

ORIENTATION_TAG: Final = 0x0112
# Real files have a few hundred parts; a file with more is built to keep a parser busy.
MAX_PARTS: Final = 200_000
_MAX_EXIF_ENTRIES: Final = 512


@dataclass(frozen=True)
class Container:
    """A file whose structure has been walked and bounded.

    Attributes:
        format: Pillow's name of the format.
        data: The parts that make pixels, in the same format; metadata is left out where that is cheap.
        size: Width and height in pixels of the largest frame or page.
        frame_count: Frames or pages, counted rather than believed.
        orientations: EXIF orientation 1-8; one for all frames, or one per page.
        is_composited: True if a frame can only be drawn on top of the earlier ones.
        is_lossy: True if its pixels were compressed with loss.
        departures: Why readers may disagree on what the file shows, short codes such as ``trailing_data``; empty if the
            file holds only what is on its format's list of what has one reading.
    """

    format: str
    data: bytes = field(repr=False)
    size: tuple[int, int]
    frame_count: int = 1
    orientations: tuple[int, ...] = (1,)
    is_composited: bool = False
    is_lossy: bool = False
    departures: tuple[str, ...] = ()

    def orientation(self, frame: int) -> int:
        """EXIF orientation of one frame."""
        return self.orientations[min(frame, len(self.orientations) - 1)]


def exif_orientation(exif: bytes) -> int:
    """Orientation in an EXIF block, 1 (upright) if the block is absent, broken or says nothing sensible."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for index in range(min(count, _MAX_EXIF_ENTRIES)):
            tag, kind, _ = struct.unpack_from(order + "HHI", exif, start + 2 + 12 * index)
            if tag == ORIENTATION_TAG:
                return orientation_value(exif, start + 2 + 12 * index, order, kind)
    except struct.error:
        pass
    return 1


def orientation_value(data: bytes, entry: int, order: str, kind: int) -> int:
    """Value of an orientation entry at offset ``entry``, 1 if its type or value makes no sense."""
    code = {1: "B", 3: "H", 4: "I"}.get(kind)
    if code is None:
        return 1
    (value,) = struct.unpack_from(order + code, data, entry + 8)
    return value if 1 <= value <= 8 else 1


def join(parts: list[memoryview], data: bytes) -> bytes:
    """The kept parts as one file; ``data`` itself when nothing was left out, so that big files are not copied."""
    return data if sum(map(len, parts)) == len(data) else b"".join(parts)
