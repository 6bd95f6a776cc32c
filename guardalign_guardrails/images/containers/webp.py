"""WebP: the canvas and every inner bitstream's own size, because libwebp allocates the canvas when it opens a file."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from guardalign_guardrails.images.containers.common import MAX_PARTS, Container
from guardalign_guardrails.images.containers.metadata import MAX_PROFILE_BYTES, exif_orientation, xmp_orientations
from guardalign_guardrails.images.limits import ImageLimits, check_frames, check_size, refusal

_FRAME_HEADER_BYTES: Final = 16
# In the order in which a still has them; VP8 and VP8L stand for the pixels.
_ORDER: Final = (b"VP8X", b"ICCP", b"ALPH", b"VP8 ", b"VP8L", b"EXIF", b"XMP ")
_ANIMATION: Final = {b"ANIM", b"ANMF"}
_HAS_ALPHA: Final = 0x10


@dataclass
class _WebpParts:
    """What the chunks have said so far."""

    canvas: tuple[int, int] | None = None
    flags: int | None = None
    last: int = -1
    chunks: Counter[bytes] = field(default_factory=Counter)
    orientation: int = 1
    xmp: tuple[int, ...] = ()
    profile: bytes = b""
    departures: set[str] = field(default_factory=set)


def read_webp(data: bytes, limits: ImageLimits) -> Container:
    """Walk the RIFF chunks; sizes inside the frames are checked against the same cap as the canvas."""
    (riff,) = struct.unpack_from("<I", data, 4)
    end = 8 + riff
    if end > len(data):
        raise refusal("truncated")
    image = _WebpParts()
    at, parts = 12, 0
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        body = at + 8
        parts += 1
        if body + length > end or parts > MAX_PARTS:
            raise refusal("corrupt")
        inner: tuple[int, int] | None = None
        if kind == b"VP8X":
            image.canvas = (1 + _u24(data, body + 4), 1 + _u24(data, body + 7))
            image.flags = data[body]
            check_size(*image.canvas, limits)
        elif kind == b"ANMF":
            inner = (1 + _u24(data, body + 6), 1 + _u24(data, body + 9))
            # The frame's own chunks follow its header and are walked like the rest.
            length = _FRAME_HEADER_BYTES
        elif kind in (b"VP8 ", b"VP8L"):
            inner = _bitstream_size(data, body, kind)
        if inner is not None:
            check_size(*inner, limits)
            image.canvas = image.canvas or inner
        _read_chunk(image, kind, data, body, length)
        image.chunks[kind] += 1
        at = body + length + (length & 1)
    if image.canvas is None:
        raise refusal("truncated" if riff < 22 else "corrupt")
    if at != len(data):
        image.departures.add("trailing_data")
    count = image.chunks[b"ANMF"]
    check_frames(count, image.canvas[0] * image.canvas[1], limits)
    return Container(
        "WEBP",
        data,
        image.canvas,
        max(count, 1),
        (image.orientation,),
        other_orientations=image.xmp,
        profile=image.profile,
        is_composited=count > 1,
        is_lossy=image.chunks[b"VP8 "] > 0,
        departures=tuple(sorted(image.departures)),
    )


def _read_chunk(image: _WebpParts, kind: bytes, data: bytes, at: int, length: int) -> None:
    """Note what one chunk says, and whether it may say so here."""
    if kind in _ANIMATION:
        image.departures.add("animation")
        return
    if kind not in _ORDER:
        image.departures.add("unlisted_part")
        return
    place = _ORDER.index(kind)
    is_inner = image.chunks[b"ANMF"] > 0 and kind in (b"ALPH", b"VP8 ", b"VP8L")
    if not is_inner:
        if image.chunks[kind]:
            image.departures.add("repeated_part")
        elif place < image.last or (image.flags is None and kind not in (b"VP8X", b"VP8 ", b"VP8L")):
            image.departures.add("part_order")
        image.last = place
    if kind == b"ICCP":
        if length > MAX_PROFILE_BYTES:
            image.departures.add("broken_profile")
        else:
            image.profile = image.profile or data[at : at + length]
    elif kind == b"EXIF" and not image.chunks[kind]:
        image.orientation, is_plain = exif_orientation(data[at : at + length])
        if not is_plain:
            image.departures.add("broken_metadata")
    elif kind == b"XMP " and not image.chunks[kind]:
        image.xmp, is_plain = xmp_orientations(data[at : at + length])
        if not is_plain:
            image.departures.add("broken_metadata")
    elif kind == b"VP8 ":
        # The two upper bits of each side ask for scaling, which hardly a reader does.
        width, height = struct.unpack_from("<HH", data, at + 6)
        if width >> 14 or height >> 14:
            image.departures.add("scaling")
    elif kind == b"VP8L" and image.flags is not None and not is_inner:
        (bits,) = struct.unpack_from("<I", data, at + 1)
        if bits >> 28 & 1 and not image.flags & _HAS_ALPHA:
            image.departures.add("alpha")


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
