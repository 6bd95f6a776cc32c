"""Metadata that changes what a reader shows: EXIF and XMP orientation, and ICC profiles.

The blocks are read here, never by Pillow. What is broken or said twice is reported, because readers differ on it.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable
from typing import Final

ORIENTATION_TAG: Final = 0x0112
# Profiles of displays and cameras have a few hundred bytes to a few kilobytes, printing profiles up to two megabytes.
MAX_PROFILE_BYTES: Final = 4 << 20
_MAX_XMP_BYTES: Final = 4 << 20
_MAX_EXIF_ENTRIES: Final = 512
_SHORT: Final = 3
_INTEGER: Final = {1: "B", _SHORT: "H", 4: "I"}
# XMP binds any prefix to TIFF's names, as an attribute or as an element. The first pattern finds each mention outside
# of a closing tag, the second those whose value can be read.
_NAMED: Final = re.compile(rb"(?<![\w/.-])[\w.-]+:Orientation\b")
_STATED: Final = re.compile(rb""":Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]""")


def exif_orientation(exif: bytes) -> tuple[int, bool]:
    """Orientation in an EXIF block.

    Args:
        exif: The block, with or without ``Exif`` in front.

    Returns:
        EXIF orientation 1-8, 1 (upright) if the block is broken or says nothing sensible; and whether every reader
        will find the same: the block can be read and states the orientation at most once and in the usual type.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1, False
    found: list[tuple[int, bool]] = []
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * min(count, _MAX_EXIF_ENTRIES), 12):
            (tag,) = struct.unpack_from(order + "H", exif, entry)
            if tag == ORIENTATION_TAG:
                found.append(orientation_value(exif, entry, order))
    except struct.error:
        return (found[0][0] if found else 1), False
    value, is_plain = found[0] if found else (1, True)
    return value, is_plain and len(found) < 2 and count <= _MAX_EXIF_ENTRIES


def orientation_value(data: bytes, entry: int, order: str) -> tuple[int, bool]:
    """Value of an orientation entry at offset ``entry``, 1 if it makes no sense, and whether it is a usual entry."""
    _, kind, length = struct.unpack_from(order + "HHI", data, entry)
    if kind not in _INTEGER:
        return 1, False
    (value,) = struct.unpack_from(order + _INTEGER[kind], data, entry + 8)
    is_known = 1 <= value <= 8
    return (value if is_known else 1), is_known and kind == _SHORT and length == 1


def xmp_orientations(xmp: bytes) -> tuple[tuple[int, ...], bool]:
    """Every orientation 1-8 that an XMP block states, ascending, and whether all its mentions could be read."""
    # UTF-16 and UTF-32 are allowed; the names and digits in question are ASCII.
    text = xmp[:_MAX_XMP_BYTES].replace(b"\0", b"")
    stated = _STATED.findall(text)
    is_plain = len(xmp) <= _MAX_XMP_BYTES and len(stated) == len(_NAMED.findall(text))
    return tuple(sorted({int(value) for value in stated})), is_plain


def names_orientation(block: bytes) -> bool:
    """Whether a block that hardly a reader takes for XMP names an orientation even so."""
    return _NAMED.search(block.replace(b"\0", b"")) is not None


def join_profile(parts: Iterable[tuple[int, int, bytes]]) -> bytes | None:
    """The ICC profile in numbered pieces, empty if there are none.

    Args:
        parts: Number from 1, how many there are, and bytes of each.

    Returns:
        None if they do not fit together or are too long.
    """
    pieces = sorted(parts)
    total = len(pieces)
    if [(number, count) for number, count, _ in pieces] != [(number, total) for number in range(1, total + 1)]:
        return None
    profile = b"".join(piece for _, _, piece in pieces)
    return profile if len(profile) <= MAX_PROFILE_BYTES else None


def inflate(data: bytes, most: int = MAX_PROFILE_BYTES) -> bytes | None:
    """Decompress a zlib stream; None if it is broken, cut short or longer than ``most`` bytes."""
    stream = zlib.decompressobj()
    try:
        result = stream.decompress(data, most + 1)
    except zlib.error:
        return None
    return result if stream.eof and len(result) <= most else None
