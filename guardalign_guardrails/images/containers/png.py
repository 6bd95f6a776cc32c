"""PNG and APNG: chunks counted and bounded, everything that is not pixels left out."""

from __future__ import annotations

import struct
from typing import Final

from guardalign_guardrails.images.containers.common import MAX_PARTS, Container, exif_orientation, join
from guardalign_guardrails.images.limits import ImageLimits, check_frames, check_size, refusal

_KEPT: Final = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_ANIMATION: Final = {b"acTL", b"fcTL", b"fdAT"}


def read_png(data: bytes, limits: ImageLimits) -> Container:
    """Walk the chunks from IHDR to IEND; what follows IEND is dropped.

    An animation whose number of frames differs from the number it announces is refused as ``corrupt``: viewers
    disagree on what it shows.
    """
    width, height = struct.unpack_from(">II", data, 16)
    if data[12:16] != b"IHDR":
        raise refusal("corrupt")
    check_size(width, height, limits)
    view = memoryview(data)
    still: list[memoryview] = [view[:8]]
    animated: list[memoryview] = [view[:8]]
    announced, frames, exif = 0, 0, b""
    has_pixels = is_first_separate = False
    at, kind = 8, b""
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise refusal("truncated")
        if kind in _KEPT:
            still.append(view[at:end])
        if kind in _KEPT or kind in _ANIMATION:
            animated.append(view[at:end])
        if kind == b"acTL" and not has_pixels:
            (announced,) = struct.unpack_from(">I", data, at + 8)
        elif kind == b"fcTL":
            frames += 1
        elif kind == b"IDAT" and not has_pixels:
            has_pixels, is_first_separate = True, frames == 0
        elif kind == b"eXIf" and not exif:
            exif = data[at + 8 : end - 4]
        at = end
        if kind == b"IEND":
            break
    if kind != b"IEND" or not has_pixels:
        raise refusal("corrupt")
    if announced and announced != frames:
        raise refusal("corrupt")
    count = frames + is_first_separate if announced else 1
    check_frames(count, width * height, limits)
    return Container(
        "PNG",
        join(animated if announced else still, data),
        (width, height),
        count,
        (exif_orientation(exif),),
        is_composited=count > 1,
    )
