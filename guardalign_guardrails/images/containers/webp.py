"""WebP: the canvas and every inner bitstream's own size, because libwebp allocates the canvas when it opens a file."""

from __future__ import annotations

import struct
from typing import Final

from guardalign_guardrails.images.containers.common import MAX_PARTS, Container, exif_orientation
from guardalign_guardrails.images.limits import ImageLimits, check_frames, check_size, refusal

_FRAME_HEADER_BYTES: Final = 16


def read_webp(data: bytes, limits: ImageLimits) -> Container:
    """Walk the RIFF chunks; sizes inside the frames are checked against the same cap as the canvas."""
    (riff,) = struct.unpack_from("<I", data, 4)
    end = 8 + riff
    if end > len(data):
        raise refusal("truncated")
    canvas: tuple[int, int] | None = None
    count, exif, parts = 0, b"", 0
    at = 12
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        body = at + 8
        parts += 1
        if body + length > end or parts > MAX_PARTS:
            raise refusal("corrupt")
        inner: tuple[int, int] | None = None
        if kind == b"VP8X":
            canvas = (1 + _u24(data, body + 4), 1 + _u24(data, body + 7))
            check_size(*canvas, limits)
        elif kind == b"ANMF":
            count += 1
            inner = (1 + _u24(data, body + 6), 1 + _u24(data, body + 9))
            # The frame's own chunks follow its header and are walked like the rest.
            length = _FRAME_HEADER_BYTES
        elif kind in (b"VP8 ", b"VP8L"):
            inner = _bitstream_size(data, body, kind)
        elif kind == b"EXIF" and not exif:
            exif = data[body : body + length]
        if inner is not None:
            check_size(*inner, limits)
            canvas = canvas or inner
        at = body + length + (length & 1)
    if canvas is None:
        raise refusal("truncated" if riff < 22 else "corrupt")
    check_frames(count, canvas[0] * canvas[1], limits)
    return Container("WEBP", data, canvas, max(count, 1), (exif_orientation(exif),), is_composited=count > 1)


def _u24(data: bytes, at: int) -> int:
    low, high = struct.unpack_from("<HB", data, at)
    return int(low | high << 16)


def _bitstream_size(data: bytes, at: int, kind: bytes) -> tuple[int, int]:
    """Width and height in the first bytes of a lossy or lossless bitstream."""
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, at + 6)
        return width & 0x3FFF, height & 0x3FFF
    (bits,) = struct.unpack_from("<I", data, at + 1)
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
