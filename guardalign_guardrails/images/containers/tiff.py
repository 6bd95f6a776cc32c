"""TIFF: the chain of directories walked by hand, every tag that does not lay out pixels blanked.

A directory can point anywhere, at any length, in a loop, and into sub-directories; a parser that follows may read the
file a thousand times over. Blanked entries keep their place, so no offset in the file moves.
"""

from __future__ import annotations

import struct
from typing import Final

from guardalign_guardrails.images.containers.common import ORIENTATION_TAG, Container, orientation_value
from guardalign_guardrails.images.limits import ImageLimits, check_frames, check_size, refusal

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES = 256, 257, 258, 259, 277
_ROWS, _TILE_WIDTH, _TILE_HEIGHT = 278, 322, 323
_KEPT: Final = {
    *(254, 255, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, 262, 266, 273, _SAMPLES, _ROWS, 279, 284, 292, 293),
    *(317, 320, _TILE_WIDTH, _TILE_HEIGHT, 324, 325, 338, 339, 347, 529, 530, 532),
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


def read_tiff(data: bytes, limits: ImageLimits) -> Container:
    """Walk all pages; sizes, tiles and tag lengths of each are checked, loops and overlong directories refused."""
    order = "<" if data[:2] == b"II" else ">"
    patched = bytearray(data)
    (at,) = struct.unpack_from(order + "I", data, 4)
    seen: set[int] = set()
    largest, orientations, entries = (0, 0), [], 0
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
        size, orientation = _read_page(data, patched, at, count, order, limits)
        orientations.append(orientation)
        largest = max(largest, size, key=lambda side: side[0] * side[1])
        (at,) = struct.unpack_from(order + "I", data, at + 2 + 12 * count)
    if not orientations:
        raise refusal("empty")
    check_frames(len(orientations), 1, limits)
    return Container("TIFF", bytes(patched), largest, len(orientations), tuple(orientations))


def _read_page(
    data: bytes, patched: bytearray, start: int, count: int, order: str, limits: ImageLimits
) -> tuple[tuple[int, int], int]:
    """Check one directory, blank what is not needed in ``patched``; return the page's size and orientation."""
    values: dict[int, int] = {}
    orientation, total = 1, 0
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", data, entry)
        if tag == ORIENTATION_TAG:
            orientation = orientation_value(data, entry, order, kind)
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
            (values[tag],) = struct.unpack_from(order + _INTEGER[kind], data, where)
    width, height = values.get(_WIDTH, 0), values.get(_HEIGHT, 0)
    check_size(width, height, limits)
    if values.get(_COMPRESSION, 1) not in _COMPRESSIONS:
        raise refusal("unsupported_format", "This TIFF compression is not accepted; save the image as PNG.")
    # libtiff allocates whole tiles, so a tile may not be much larger than the page it is a part of.
    tile = values.get(_TILE_WIDTH, 0) * values.get(_TILE_HEIGHT, 0)
    if tile > max(4 * width * height, _MIN_TILE_CAP) or values.get(_SAMPLES, 1) > 8 or values.get(_BITS, 1) > 64:
        raise refusal("corrupt")
    return (width, height), orientation
