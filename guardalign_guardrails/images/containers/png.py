"""PNG and APNG: chunks counted and bounded, everything that is not pixels left out.

A second palette, or one after the pixels, makes decoders disagree and is refused. What a chunk may say without a
second reading is listed here; everything else is a departure.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from guardalign_guardrails.images.containers.common import MAX_PARTS, Container, join
from guardalign_guardrails.images.containers.metadata import exif_orientation, inflate, xmp_orientations
from guardalign_guardrails.images.limits import ImageLimits, check_frames, check_size, refusal

_KEPT: Final = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_ANIMATION: Final = {b"acTL", b"fcTL", b"fdAT"}
_TEXT: Final = {b"tEXt", b"zTXt", b"iTXt"}
_COLOUR: Final = {b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT"}
_LISTED: Final = {*_KEPT, *_TEXT, *_COLOUR, b"bKGD", b"hIST", b"pHYs", b"tIME", b"eXIf"}
_BEFORE_PIXELS: Final = {*_COLOUR, b"bKGD", b"hIST", b"pHYs"}
_XMP_KEYWORD: Final = b"XML:com.adobe.xmp"
_PILLOW_NAMES: Final = frozenset(
    b"exif xmp icc_profile gamma chromaticity srgb transparency background interlace dpi aspect loop duration disposal "
    b"blend bbox default_image timestamp photoshop".split()
)
# The sRGB primaries and white point in units of 1/100,000, and how far rounding may take a writer from them.
_PRIMARIES: Final = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
_PRIMARY_TOLERANCE: Final = 50
_USUAL_GAMMA: Final = 1 / 2.2
_PALETTE, _TRUECOLOUR_ALPHA = 3, 6
_CHANNELS: Final = {0: 1, 2: 3, _PALETTE: 3, 4: 2, _TRUECOLOUR_ALPHA: 4}


@dataclass
class _PngParts:
    """What the chunks have said so far."""

    depth: int
    colour: int
    chunks: Counter[bytes] = field(default_factory=Counter)
    orientations: list[int] = field(default_factory=list)
    xmp: list[tuple[int, ...]] = field(default_factory=list)
    profile: bytes = b""
    gamma: float = 0.0
    palette_size: int = 0
    departures: set[str] = field(default_factory=set)


def read_png(data: bytes, limits: ImageLimits) -> Container:
    """Walk the chunks from IHDR to IEND; what follows IEND is dropped.

    An animation whose number of frames differs from the number it announces is refused as ``corrupt``: viewers
    disagree on what it shows. So are repeated or late palettes and data chunks with others between them.
    """
    width, height, depth, colour, *methods = struct.unpack_from(">IIBBBBB", data, 16)
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise refusal("corrupt")
    check_size(width, height, limits)
    if methods[:2] != [0, 0] or methods[2] > 1 or colour not in _CHANNELS:
        raise refusal("corrupt")
    view = memoryview(data)
    still: list[memoryview] = [view[:8]]
    animated: list[memoryview] = [view[:8]]
    image = _PngParts(depth, colour)
    announced, is_first_separate = 0, False
    at, kind = 8, b""
    for _ in range(MAX_PARTS):
        before = kind
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise refusal("truncated")
        if kind in _KEPT:
            still.append(view[at:end])
        if kind in _KEPT or kind in _ANIMATION:
            animated.append(view[at:end])
        has_pixels = image.chunks[b"IDAT"] > 0
        if kind == b"acTL" and not has_pixels:
            (announced,) = struct.unpack_from(">I", data, at + 8)
        elif kind == b"IDAT" and not has_pixels:
            is_first_separate = image.chunks[b"fcTL"] == 0
        if (
            (kind in (b"IHDR", b"PLTE", b"tRNS") and image.chunks[kind])
            or (kind in (b"PLTE", b"tRNS") and has_pixels)
            or (kind == b"IDAT" and has_pixels and before != b"IDAT")
        ):
            raise refusal("corrupt")
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            image.departures.add("checksum")
        _read_chunk(image, kind, view[at + 8 : end - 4])
        image.chunks[kind] += 1
        at = end
        if kind == b"IEND":
            break
    if kind != b"IEND" or not image.chunks[b"IDAT"] or (colour == _PALETTE and not image.chunks[b"PLTE"]):
        raise refusal("corrupt")
    frames = image.chunks[b"fcTL"]
    if announced and announced != frames:
        raise refusal("corrupt")
    if at < len(data):
        image.departures.add("trailing_data")
    if image.chunks[b"acTL"]:
        image.departures.add("animation")
    _check_colour(image)
    count = frames + is_first_separate if announced else 1
    check_frames(count, width * height, limits)
    return Container(
        "PNG",
        join(animated if announced else still, data),
        (width, height),
        count,
        (image.orientations[0] if image.orientations else 1,),
        other_orientations=tuple(sorted({value for values in image.xmp for value in values})),
        profile=image.profile,
        gamma=0.0 if image.chunks[b"sRGB"] or image.profile or is_usual_gamma(image.gamma) else image.gamma,
        is_composited=count > 1,
        palette_size=image.palette_size if colour == _PALETTE else 0,
        departures=tuple(sorted(image.departures)),
    )


def is_usual_gamma(gamma: float) -> bool:
    """Whether applying an encoding exponent changes no 8-bit level by more than one; 0 stands for none."""
    if gamma == 0:
        return True
    exponent = _USUAL_GAMMA / gamma
    return all(abs(255 * (level / 255) ** exponent - level) <= 1 for level in range(256))


def _read_chunk(image: _PngParts, kind: bytes, body: memoryview) -> None:
    """Note what one chunk says, and whether it may say so here."""
    if kind in _ANIMATION and (image.chunks[b"acTL"] or kind == b"acTL"):
        return
    if kind not in _LISTED:
        image.departures.add("unlisted_part")
        return
    if image.chunks[kind] and kind not in (*_TEXT, b"IDAT"):
        image.departures.add("repeated_part")
    if (kind in _BEFORE_PIXELS and image.chunks[b"IDAT"]) or (kind in _COLOUR and image.chunks[b"PLTE"]):
        image.departures.add("part_order")
    if kind == b"PLTE":
        entries = len(body) // 3
        if len(body) % 3 or not 1 <= entries <= 256:
            raise refusal("corrupt")
        if image.colour != _PALETTE or entries > 1 << image.depth or image.chunks[b"tRNS"]:
            image.departures.add("palette")
        image.palette_size = entries
    elif kind == b"tRNS" and image.colour == _PALETTE and len(body) > image.palette_size:
        image.departures.add("palette")
    elif kind == b"sBIT" and bytes(body) != bytes([8]) * _CHANNELS[image.colour]:
        image.departures.add("bit_depth")
    elif kind == b"gAMA":
        image.gamma = int.from_bytes(body[:4], "big") / 100_000
    elif kind == b"cHRM":
        stated = struct.unpack(">8I", body) if len(body) == 32 else (0,) * 8
        if any(abs(value - usual) > _PRIMARY_TOLERANCE for value, usual in zip(stated, _PRIMARIES, strict=True)):
            image.departures.add("colour_space")
    elif kind == b"iCCP" and not image.profile:
        _, _, packed = bytes(body).partition(b"\0")
        image.profile = inflate(packed[1:]) or b""
        if not image.profile or packed[:1] != b"\0":
            image.departures.add("broken_profile")
    elif kind == b"eXIf":
        orientation, is_plain = exif_orientation(bytes(body))
        image.orientations.append(orientation)
        if not is_plain:
            image.departures.add("broken_metadata")
    elif kind in _TEXT:
        _read_text(image, kind, bytes(body))


def _read_text(image: _PngParts, kind: bytes, body: bytes) -> None:
    keyword, _, rest = body.partition(b"\0")
    # ImageMagick puts EXIF and profiles into text, and Pillow takes text with these names for what they name.
    if keyword.lower().startswith(b"raw profile type") or keyword.lower() in _PILLOW_NAMES:
        image.departures.add("raw_profile")
    if keyword != _XMP_KEYWORD:
        return
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed = rest[:1] == b"\1"
        # Two bytes on compression, then the language and a translated keyword.
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    text = inflate(rest[kind == b"zTXt" :]) if is_packed else rest
    orientations, is_plain = xmp_orientations(text or b"")
    if text is None or not is_plain:
        image.departures.add("broken_metadata")
    if image.xmp:
        image.departures.add("repeated_part")
    image.xmp.append(orientations)


def _check_colour(image: _PngParts) -> None:
    if image.depth != 8 and image.colour != _PALETTE:
        image.departures.add("bit_depth")
    if image.chunks[b"gAMA"] and (not image.gamma or not is_usual_gamma(image.gamma)):
        image.departures.add("gamma")
    if image.chunks[b"sRGB"] and image.chunks[b"iCCP"]:
        image.departures.add("colour_space")
