"""TIFF: the chain of directories walked by hand, every tag that does not lay out pixels blanked.

A directory can point anywhere, at any length, in a loop, and into sub-directories; a parser that follows may read the
file a thousand times over. Blanked entries keep their place, so no offset in the file moves. One reading have gray and
RGB pages of 8 bits, raw or compressed in the usual ways.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from guardalign_guardrails.images.containers.common import Container
from guardalign_guardrails.images.containers.metadata import (
    MAX_PROFILE_BYTES,
    ORIENTATION_TAG,
    orientation_value,
    xmp_orientations,
)
from guardalign_guardrails.images.limits import ImageLimits, check_frames, check_size, refusal

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 259, 262, 277
_FILL_ORDER, _LAYOUT, _PREDICTOR, _EXTRA, _FORMAT, _XMP, _PROFILE = 266, 284, 317, 338, 339, 700, 34675
_CMYK: Final = 5
_ROWS, _TILE_WIDTH, _TILE_HEIGHT = 278, 322, 323
_KEPT: Final = {
    *(254, 255, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, 273, _SAMPLES, _ROWS, 279),
    *(_LAYOUT, 292, 293),
    *(_PREDICTOR, 320, _TILE_WIDTH, _TILE_HEIGHT, 324, 325, _EXTRA, _FORMAT, 347, 529, 530, 532),
}
_BLANK_TAG: Final = 0xFFFE
_TYPE_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_INTEGER: Final = {1: "B", 3: "H", 4: "I"}
# Raw, fax, LZW, JPEG, deflate and packbits; the rest is rare and each is another decoder to trust.
_COMPRESSIONS: Final = {1, 2, 3, 4, 5, 7, 8, 32946, 32773}
_MAX_ENTRIES: Final = 512
_MAX_ENTRIES_TOTAL: Final = 100_000
_MAX_VALUES: Final = 200_000
_MIN_TILE_CAP: Final = 1 << 20
_MAX_SAMPLES: Final = 8
_JPEG: Final = 7
_PLAIN_COMPRESSIONS: Final = {1, 5, _JPEG, 8, 32946}
# Photometric interpretation and samples per pixel: gray and RGB.
_PLAIN_COLOURS: Final = {(1, 1), (2, 3)}
# What does not change the pixels: descriptions, resolution, dates, page numbers, EXIF, IPTC, and what is read above.
_HARMLESS: Final = {
    *(254, 269, 270, 271, 272, 280, 281, 282, 283, 285, 286, 287, 296, 297, 305, 306, 315, 316, _XMP),
    *(33432, 33723, 34377, 34665, _PROFILE, 37724, ORIENTATION_TAG),
}
_PLAIN: Final = (_KEPT - {255, 292, 293, 320, _EXTRA, 529, 530, 532}) | _HARMLESS


def read_tiff(data: bytes, limits: ImageLimits) -> Container:
    """Walk all pages; sizes, tiles and tag lengths of each are checked, loops and overlong directories refused."""
    order = "<" if data[:2] == b"II" else ">"
    patched = bytearray(data)
    (at,) = struct.unpack_from(order + "I", data, 4)
    seen: set[int] = set()
    pages: list[_Page] = []
    entries = 0
    while at:
        if at in seen:
            raise refusal("corrupt")
        seen.add(at)
        (count,) = struct.unpack_from(order + "H", data, at)
        entries += count
        if count > _MAX_ENTRIES:
            raise refusal("corrupt")
        if entries > _MAX_ENTRIES_TOTAL:
            raise refusal("too_many_frames")
        pages.append(_read_page(data, patched, at, count, order, limits, is_first=not pages))
        (at,) = struct.unpack_from(order + "I", data, at + 2 + 12 * count)
    if not pages:
        raise refusal("empty")
    check_frames(len(pages), 1, limits)
    departures = {code for page in pages for code in page.departures} | ({"pages"} if len(pages) > 1 else set())
    return Container(
        "TIFF",
        bytes(patched),
        max((page.size for page in pages), key=lambda side: side[0] * side[1]),
        len(pages),
        tuple(page.orientation for page in pages),
        other_orientations=pages[0].xmp,
        profile=pages[0].profile,
        is_lossy=any(page.is_lossy for page in pages),
        departures=tuple(sorted(departures)),
    )


@dataclass(frozen=True)
class _Page:
    """What one directory says; XMP and profile are read of the first only."""

    size: tuple[int, int]
    orientation: int
    is_lossy: bool
    departures: frozenset[str]
    xmp: tuple[int, ...] = ()
    profile: bytes = b""


def _read_page(
    data: bytes, patched: bytearray, start: int, count: int, order: str, limits: ImageLimits, *, is_first: bool
) -> _Page:
    """Check one directory and blank what is not needed in ``patched``."""
    values: dict[int, tuple[int, ...]] = {}
    departures: set[str] = set()
    blocks = {_XMP: b"", _PROFILE: b""}
    orientation, total, last = 1, 0, 0
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", data, entry)
        if tag <= last:
            departures.add("repeated_part" if tag == last else "part_order")
        last = tag
        if tag not in _PLAIN:
            departures.add("unlisted_part")
        if tag == ORIENTATION_TAG:
            orientation, is_plain = orientation_value(data, entry, order)
            if not is_plain:
                departures.add("broken_metadata")
        if tag in blocks and is_first and kind in _TYPE_BYTES:
            block = _block(data, entry, length * _TYPE_BYTES[kind], order)
            if block is None or blocks[tag]:
                departures.add("broken_profile" if tag == _PROFILE else "broken_metadata")
            blocks[tag] = blocks[tag] or block or b""
        if tag not in _KEPT or kind not in _TYPE_BYTES:
            struct.pack_into(order + "HHII", patched, entry, _BLANK_TAG, 4, 1, 0)
            continue
        size = length * _TYPE_BYTES[kind]
        total += size
        if length > _MAX_VALUES or total > len(data):
            raise refusal("corrupt")
        where = entry + 8
        if size > 4:
            (where,) = struct.unpack_from(order + "I", data, where)
            if where + size > len(data):
                raise refusal("truncated")
        if kind in _INTEGER and length and tag not in values:
            values[tag] = struct.unpack_from(f"{order}{min(length, _MAX_SAMPLES)}{_INTEGER[kind]}", data, where)
    first = {tag: numbers[0] for tag, numbers in values.items()}
    width, height = first.get(_WIDTH, 0), first.get(_HEIGHT, 0)
    check_size(width, height, limits)
    if first.get(_COMPRESSION, 1) not in _COMPRESSIONS:
        raise refusal("unsupported_format", "This TIFF compression is not accepted; save the image as PNG.")
    # libtiff allocates whole tiles, so a tile may not be much larger than the page it is a part of.
    tile = first.get(_TILE_WIDTH, 0) * first.get(_TILE_HEIGHT, 0)
    if (
        tile > max(4 * width * height, _MIN_TILE_CAP)
        or first.get(_SAMPLES, 1) > _MAX_SAMPLES
        or first.get(_BITS, 1) > 64
    ):
        raise refusal("corrupt")
    xmp, is_plain = xmp_orientations(blocks[_XMP])
    if not is_plain:
        departures.add("broken_metadata")
    return _Page(
        (width, height),
        orientation,
        first.get(_COMPRESSION, 1) == _JPEG,
        frozenset(departures | set(_layout_departures(values))),
        xmp,
        blocks[_PROFILE],
    )


def _layout_departures(values: Mapping[int, tuple[int, ...]]) -> Iterator[str]:
    """Why readers may disagree on how a page's pixels are laid out."""

    def one(tag: int, default: int) -> int:
        return values.get(tag, (default,))[0]

    samples, compression, colours = one(_SAMPLES, 1), one(_COMPRESSION, 1), one(_PHOTOMETRIC, -1)
    if values.get(_BITS, (1,)) != (8,) * samples:
        yield "bit_depth"
    if colours == _CMYK:
        yield "cmyk"
    elif (colours, samples) not in _PLAIN_COLOURS:
        yield "colour_space"
    if compression not in _PLAIN_COMPRESSIONS:
        yield "coding"
    if one(_FILL_ORDER, 1) != 1 or one(_LAYOUT, 1) != 1 or one(_FORMAT, 1) != 1 or one(_PREDICTOR, 1) > 2:
        yield "bit_layout"


def _block(data: bytes, entry: int, size: int, order: str) -> bytes | None:
    """The bytes of an entry's value, None if they are not in the file or too many."""
    where = entry + 8
    if size > 4:
        (where,) = struct.unpack_from(order + "I", data, where)
    return data[where : where + size] if size <= MAX_PROFILE_BYTES and where + size <= len(data) else None
