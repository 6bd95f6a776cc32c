"""JPEG: segments up to the end of the image, of which only those that make pixels are kept.

Dropping the application segments takes MPO's extra images, EXIF directories and colour-profile tricks out of Pillow's
reach; orientation and profile are read by us. Everything that cameras, phones, browsers and Pillow do not write is a
departure.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from guardalign_guardrails.images.containers.common import MAX_PARTS, Container, join
from guardalign_guardrails.images.containers.metadata import (
    exif_orientation,
    join_profile,
    names_orientation,
    xmp_orientations,
)
from guardalign_guardrails.images.limits import ImageLimits, check_size, refusal

_FRAME_HEADERS: Final = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_HUFFMAN, _START, _END, _SCAN, _QUANTISERS, _INTERVAL, _COMMENT = 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE
_STANDALONE: Final = {0x01, *range(0xD0, 0xD8)}
# JFIF and Adobe segments say how to turn the components into colours.
_JFIF, _ADOBE = 0xE0, 0xEE
_METADATA: Final = {*range(0xE0, 0xF0), _COMMENT} - {_JFIF, _ADOBE}
# Each progressive scan passes over the whole image, so thousands of empty ones are a bomb without size.
_MAX_SCANS: Final = 256
_MAX_SCAN_PIXELS: Final = 1_200_000_000

_EXIF, _XMP, _PROFILE = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
# Application segments that change nothing of what is shown: longer XMP, Photoshop's and FlashPix's own notes.
_HARMLESS: Final = (
    (0xE1, b"http://ns.adobe.com/xmp/extension/\0"),
    (0xE2, b"FPXR\0"),
    (0xEC, b"Ducky"),
    (0xED, b"Photoshop 3.0\0"),
)
_PHOTOSHOP_EXIF: Final = b"8BIM\x04\x22"
# In scan data: the next marker that is no stuffed byte, restart or filling; and the restarts.
_NEXT: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART: Final = re.compile(rb"\xff[\xd0-\xd7]")
_FILLING: Final = re.compile(rb"\xff\xff")


@dataclass
class _JpegParts:
    """What the segments have said so far; ``sampling`` holds (horizontal, vertical) by component, in order."""

    size: tuple[int, int] = (0, 0)
    coding: int = 0
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)
    interval: int = 0
    has_jfif: bool = False
    adobe_transform: int | None = None
    orientations: list[int] = field(default_factory=list)
    xmp: list[tuple[int, ...]] = field(default_factory=list)
    pieces: list[tuple[int, int, bytes]] = field(default_factory=list)
    departures: set[str] = field(default_factory=set)


def read_jpeg(data: bytes, limits: ImageLimits) -> Container:
    """Walk the segments and scans to the end of the first image; what follows it is dropped."""
    view = memoryview(data)
    image = _JpegParts()
    kept: list[memoryview] = [view[:2]]
    at = 2
    for _ in range(MAX_PARTS):
        start = data.find(b"\xff", at)
        if start < 0:
            raise refusal("truncated")
        marker = data[start + 1]
        if start > at or marker in (0xFF, 0x00) or marker in _STANDALONE:
            image.departures.add("stray_bytes")
        if marker in (0xFF, 0x00) or marker in _STANDALONE:
            at = start + (1 if marker == 0xFF else 2)
            continue
        if marker in (_START, _END):
            raise refusal("corrupt")
        at = _segment_end(data, start)
        if marker == _SCAN:
            break
        if marker in _FRAME_HEADERS:
            _read_frame(image, data, start, limits)
        else:
            _read_segment(image, marker, data, start, at)
        if marker not in _METADATA:
            kept.append(view[start:at])
    else:
        raise refusal("corrupt")
    if not image.coding:
        raise refusal("corrupt")
    end = _read_scans(image, data, start)
    kept.append(view[start:end])
    if end < len(data):
        image.departures.add("trailing_data")
    scans = data.count(b"\xff\xda", start, end)
    if scans > _MAX_SCANS or scans * image.size[0] * image.size[1] > _MAX_SCAN_PIXELS:
        raise refusal("too_many_pixels", "The JPEG has too many scans; save it again as a baseline JPEG or PNG.")
    image.departures |= set(_colour_departures(image))
    profile = join_profile(image.pieces)
    if profile is None:
        image.departures.add("broken_profile")
    return Container(
        "JPEG",
        join(kept, data),
        image.size,
        orientations=(image.orientations[0] if image.orientations else 1,),
        other_orientations=tuple(sorted({value for values in image.xmp for value in values})),
        profile=profile or b"",
        is_lossy=True,
        departures=tuple(sorted(image.departures)),
    )


def _segment_end(data: bytes, start: int) -> int:
    (length,) = struct.unpack_from(">H", data, start + 2)
    if length < 2:
        raise refusal("corrupt")
    if start + 2 + length > len(data):
        raise refusal("truncated")
    return start + 2 + int(length)


def _read_frame(image: _JpegParts, data: bytes, start: int, limits: ImageLimits) -> None:
    precision, height, width, count = struct.unpack_from(">BHHB", data, start + 4)
    check_size(width, height, limits)
    if image.coding:
        raise refusal("corrupt")
    image.size, image.coding = (width, height), data[start + 1]
    for at in range(start + 10, start + 10 + 3 * count, 3):
        image.sampling[data[at]] = (data[at + 1] >> 4, data[at + 1] & 15)
    if precision != 8:
        image.departures.add("bit_depth")
    if image.coding not in (_BASELINE, _EXTENDED, _PROGRESSIVE) or len(image.sampling) != count:
        image.departures.add("coding")


def _read_segment(image: _JpegParts, marker: int, data: bytes, start: int, end: int) -> None:
    """Note what one segment before the first scan says."""
    body = data[start + 4 : end]
    if marker == 0xE1 and body.startswith(_EXIF):
        orientation, is_plain = exif_orientation(body)
        _note(image, is_plain=is_plain, is_first=not image.orientations)
        image.orientations.append(orientation)
    elif marker == 0xE1 and body.startswith(_XMP):
        orientations, is_plain = xmp_orientations(body[len(_XMP) :])
        _note(image, is_plain=is_plain, is_first=not image.xmp)
        image.xmp.append(orientations)
    elif marker == 0xE2 and body.startswith(_PROFILE) and len(body) > 14:
        image.pieces.append((body[12], body[13], body[14:]))
    elif marker == 0xE2 and body.startswith(b"MPF\0"):
        image.departures.add("further_images")
    elif marker == _JFIF and body.startswith(b"JFIF\0"):
        _note(image, is_plain=True, is_first=not image.has_jfif)
        image.has_jfif = True
    elif marker == _ADOBE and body.startswith(b"Adobe") and len(body) >= 12:
        _note(image, is_plain=True, is_first=image.adobe_transform is None)
        image.adobe_transform = body[11]
    elif marker == _INTERVAL and len(body) == 2:
        image.interval = int.from_bytes(body, "big")
    # Content credentials (C2PA); the other boxes of this segment hold layers of high dynamic range.
    elif marker == 0xEB and body[:2] == b"JP" and body[12:16] == b"jumb":
        pass
    elif any(marker == known and body.startswith(name) for known, name in _HARMLESS):
        # Photoshop's notes may hold EXIF and XMP of their own.
        if names_orientation(body) or _PHOTOSHOP_EXIF in body:
            image.departures.add("broken_metadata")
    elif marker not in (_QUANTISERS, _HUFFMAN, _COMMENT):
        image.departures.add("unlisted_part")


def _note(image: _JpegParts, *, is_plain: bool, is_first: bool) -> None:
    if not is_plain:
        image.departures.add("broken_metadata")
    if not is_first:
        image.departures.add("repeated_part")


def _read_scans(image: _JpegParts, data: bytes, start: int) -> int:
    """Walk the scans that begin at ``start``; return where the image ends."""
    drawn: Counter[int] = Counter()
    for _ in range(MAX_PARTS):
        marker = data[start + 1]
        at = start + 2
        if marker not in _STANDALONE:
            at += max(int.from_bytes(data[at : at + 2], "big"), 2)
        if at > len(data):
            image.departures.add("no_end")
            return len(data)
        if marker == _SCAN:
            components = [data[start + 5 + 2 * index] for index in range(data[start + 4])]
            drawn.update(components)
        elif marker == _INTERVAL and at == start + 6:
            image.interval = int.from_bytes(data[start + 4 : at], "big")
        elif marker not in (_HUFFMAN, _COMMENT):
            # Some decoders go by the tables of the first scan, some by the latest.
            image.departures.add("part_order")
        found = _NEXT.search(data, at)
        end = found.start() if found else len(data)
        if marker == _SCAN:
            image.departures |= set(_scan_departures(image, components, data, at, end))
        elif end > at:
            image.departures.add("stray_bytes")
        if found is None:
            image.departures.add("no_end")
            return len(data)
        if data[end + 1] == _END:
            if image.coding != _PROGRESSIVE and any(drawn[each] != 1 for each in image.sampling):
                image.departures.add("coding")
            return end + 2
        start = end
    raise refusal("corrupt")


def _scan_departures(image: _JpegParts, components: list[int], data: bytes, at: int, end: int) -> Iterator[str]:
    if any(each not in image.sampling for each in components) or not components:
        yield "coding"
        return
    if _FILLING.search(data, at, end):
        yield "stray_bytes"
    due = -(-_unit_count(image, components) // image.interval) - 1 if image.interval else 0
    # Decoders that lose step find back in different ways.
    if due <= 0 or end == at:
        has_lost_step = due > 0 or _RESTART.search(data, at, end) is not None
    else:
        raw = np.frombuffer(data, np.uint8, end - at, at)
        marks = raw[1:][(raw[:-1] == 0xFF) & (raw[1:] & 0xF8 == 0xD0)]
        has_lost_step = not np.array_equal(marks, 0xD0 + np.arange(due) % 8)
    if has_lost_step:
        yield "restarts"


def _unit_count(image: _JpegParts, components: list[int]) -> int:
    """How many coded units (MCUs) a scan has: of all its components, or blocks of its only one."""
    across = max(max(horizontal for horizontal, _ in image.sampling.values()), 1)
    down = max(max(vertical for _, vertical in image.sampling.values()), 1)
    width, height = image.size
    if len(components) == 1:
        horizontal, vertical = image.sampling[components[0]]
        width, height = -(-width * horizontal // across), -(-height * vertical // down)
        across = down = 1
    return int(-(-width // (8 * across)) * -(-height // (8 * down)))


def _colour_departures(image: _JpegParts) -> Iterator[str]:
    names, sampling = list(image.sampling), list(image.sampling.values())
    if len(names) == 1:
        return
    if len(names) != 3:
        yield "cmyk" if len(names) == 4 else "coding"
        return
    # Without a segment that says so, decoders guess the colours by the components' names.
    is_said = image.has_jfif or image.adobe_transform == 1
    if image.adobe_transform not in (None, 1) or names not in ([1, 2, 3], [0, 1, 2] if is_said else [1, 2, 3]):
        yield "colour_transform"
    luma, *chroma = sampling
    if chroma[0] != chroma[1] or any(luma[axis] not in (1, 2, 4) or chroma[0][axis] > luma[axis] for axis in (0, 1)):
        yield "sampling"
