"""JPEG: segments up to the first scan, of which only those that make pixels are kept.

Dropping the application segments takes MPO's extra images, EXIF directories and colour-profile tricks out of Pillow's
reach; orientation is read by us.
"""

from __future__ import annotations

import struct
from typing import Final

from guardalign_guardrails.images.containers.common import MAX_PARTS, Container, exif_orientation, join
from guardalign_guardrails.images.limits import ImageLimits, check_size, refusal

_FRAME_HEADERS: Final = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_STANDALONE: Final = {0x01, *range(0xD0, 0xD8)}
# JFIF and Adobe segments say how to turn the components into colours.
_KEPT_APPS: Final = {0xE0, 0xEE}
_METADATA: Final = {*range(0xE0, 0xF0), 0xFE} - _KEPT_APPS
# Each progressive scan passes over the whole image, so thousands of empty ones are a bomb without size.
_MAX_SCANS: Final = 256
_MAX_SCAN_PIXELS: Final = 1_200_000_000


def read_jpeg(data: bytes, limits: ImageLimits) -> Container:
    """Walk the segments before the first scan and count the scans after it."""
    view = memoryview(data)
    kept: list[memoryview] = [view[:2]]
    size: tuple[int, int] | None = None
    exif = b""
    at = 2
    for _ in range(MAX_PARTS):
        start = data.find(b"\xff", at)
        if start < 0:
            raise refusal("truncated")
        marker = data[start + 1]
        if marker in (0xFF, 0x00) or marker in _STANDALONE:
            at = start + (1 if marker == 0xFF else 2)
            continue
        if marker in (0xD8, 0xD9):
            raise refusal("corrupt")
        (length,) = struct.unpack_from(">H", data, start + 2)
        at = start + 2 + length
        if length < 2:
            raise refusal("corrupt")
        if at > len(data):
            raise refusal("truncated")
        if marker == 0xDA:
            kept.append(view[start:])
            break
        if marker in _FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", data, start + 5)
            check_size(width, height, limits)
            if size is not None:
                raise refusal("corrupt")
            size = (width, height)
        if marker == 0xE1 and not exif and data[start + 4 : start + 10] == b"Exif\0\0":
            exif = data[start + 4 : at]
        if marker not in _METADATA:
            kept.append(view[start:at])
    else:
        raise refusal("corrupt")
    if size is None:
        raise refusal("corrupt")
    scans = data.count(b"\xff\xda", start)
    if scans > _MAX_SCANS or scans * size[0] * size[1] > _MAX_SCAN_PIXELS:
        raise refusal("too_many_pixels", "The JPEG has too many scans; save it again as a baseline JPEG or PNG.")
    return Container("JPEG", join(kept, data), size, orientations=(exif_orientation(exif),))
