"""JPEG 2000: the boxes around a codestream, and of the codestream every number that makes a decoder allocate.

Tiles, precincts and code blocks each cost memory of their own, so a small file can ask for gigabytes of them. Headers
that change the coding of a component or a tile are refused: they would undo what was counted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from guardalign_guardrails.images.containers.boxed.boxes import Span, boxes
from guardalign_guardrails.images.containers.common import Container
from guardalign_guardrails.images.containers.metadata import MAX_PROFILE_BYTES
from guardalign_guardrails.images.limits import ImageLimits, check_size, refusal

_START, _SIZE, _CODING, _TILE_PART, _DATA, _END = 0xFF4F, 0xFF51, 0xFF52, 0xFF90, 0xFF93, 0xFFD9
# Quantisers, comments, and lengths of tile parts and packets.
_LISTED: Final = {0xFF5C, 0xFF5D, 0xFF64, 0xFF55, 0xFF57, 0xFF58}
_HEADER_BOXES: Final = {b"ihdr", b"colr", b"res ", b"bpcc"}
_SRGB, _GRAY = 16, 17
_MAX_COMPONENTS: Final = 4
_MAX_TILES: Final = 4_096
_MAX_TILE_PARTS: Final = 20_000
_MAX_PART_MARKERS: Final = 64
_MAX_LEVELS: Final = 32
_MAX_LAYERS: Final = 256
_MAX_BLOCKS: Final = 1_000_000
# OpenJPEG keeps four bytes for each sample beside Pillow's image, and takes a second for ten million of them.
_MAX_PIXELS: Final = 20_000_000


@dataclass(frozen=True)
class _Codestream:
    size: tuple[int, int]
    components: int
    is_lossy: bool
    end: int
    departures: frozenset[str]


def read_jp2(data: bytes, limits: ImageLimits) -> Container:
    """Walk a JP2 file or a bare codestream."""
    departures: set[str] = set()
    profile = b""
    start, end = 0, len(data)
    if not data.startswith(b"\xff\x4f"):
        kinds = []
        streams: list[Span] = []
        for box in boxes(data, 0, len(data)):
            kinds.append(box.kind)
            if box.kind == b"jp2c":
                streams.append(box)
            elif box.kind == b"jp2h":
                profile, found = _header(data, box)
                departures |= found
        if not streams or b"jp2h" not in kinds:
            raise refusal("corrupt")
        if kinds != [b"jP  ", b"ftyp", b"jp2h", b"jp2c"]:
            departures.add("unlisted_part")
        start, end = streams[0].start, streams[0].end
    stream = _codestream(data, start, end, limits)
    if stream.end != end:
        departures.add("trailing_data")
    if start == 0 and stream.components not in (1, 3):
        # A bare codestream does not say what its components are.
        departures.add("colour_space")
    return Container(
        "JPEG2000",
        data,
        stream.size,
        profile=profile,
        is_lossy=stream.is_lossy,
        departures=tuple(sorted(departures | stream.departures)),
    )


def _header(data: bytes, header: Span) -> tuple[bytes, set[str]]:
    """The profile in a header box, and its departures."""
    profile, departures = b"", set()
    colours = 0
    for box in boxes(data, header.start, header.end):
        if box.kind not in _HEADER_BOXES:
            # Palettes, which component is alpha, and what is unknown.
            departures.add("alpha" if box.kind == b"cdef" else "palette" if box.kind == b"pclr" else "unlisted_part")
        elif box.kind == b"ihdr" and data[box.start + 10] != 7:
            departures.add("bit_depth")
        elif box.kind == b"colr":
            colours += 1
            method = data[box.start]
            if method == 1 and struct.unpack_from(">I", data, box.start + 3)[0] not in (_SRGB, _GRAY):
                departures.add("colour_space")
            elif method == 2 and box.end - box.start - 3 <= MAX_PROFILE_BYTES:
                profile = data[box.start + 3 : box.end]
            elif method != 1:
                departures.add("broken_profile")
    if colours != 1:
        departures.add("colour_space")
    return profile, departures


def _codestream(data: bytes, start: int, end: int, limits: ImageLimits) -> _Codestream:
    if struct.unpack_from(">HH", data, start) != (_START, _SIZE):
        raise refusal("corrupt")
    departures: set[str] = set()
    size, tile, components = _sizes(data, start + 4, limits, departures)
    is_lossy: bool | None = None
    at = start + 4 + struct.unpack_from(">H", data, start + 4)[0]
    for _ in range(_MAX_TILE_PARTS):
        (marker,) = struct.unpack_from(">H", data, at)
        if marker == _TILE_PART:
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == _CODING:
            if is_lossy is not None:
                raise refusal("corrupt")
            is_lossy = _coding(data, at + 4, size, tile, components)
        elif marker not in _LISTED:
            raise refusal("unsupported_format", "This JPEG 2000 coding is not accepted; save the image as PNG.")
        at += 2 + length
        if length < 2 or at > end:
            raise refusal("truncated")
    if is_lossy is None:
        raise refusal("corrupt")
    stop = _tile_parts(data, at, end)
    return _Codestream(size, components, is_lossy, stop, frozenset(departures))


def _sizes(
    data: bytes, at: int, limits: ImageLimits, departures: set[str]
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Width and height of the image and of a tile, and how many components there are."""
    _, right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, components = struct.unpack_from(
        ">H8IH", data, at + 2
    )
    width, height = right - left, bottom - top
    check_size(width, height, limits)
    # The grid that an image lies on may be much larger than the image.
    if right > 2 * width or bottom > 2 * height or not tile_width or not tile_height or tile_left or tile_top:
        raise refusal("corrupt")
    if width * height > _MAX_PIXELS:
        raise refusal("too_many_pixels", "The JPEG 2000 image is too large; save it as JPEG or PNG, or scale it down.")
    if not 1 <= components <= _MAX_COMPONENTS:
        raise refusal("unsupported_format")
    tiles = -(-right // tile_width) * -(-bottom // tile_height)
    if tiles > _MAX_TILES:
        raise refusal("corrupt")
    if left or top:
        departures.add("crop")
    if components not in (1, 3):
        departures.add("alpha" if components == 2 else "colour_space")
    for index in range(components):
        depth, across, down = data[at + 38 + 3 * index : at + 41 + 3 * index]
        if depth != 7:
            departures.add("bit_depth")
        if (across, down) != (1, 1):
            departures.add("sampling")
    return (width, height), (min(tile_width, right), min(tile_height, bottom)), components


def _coding(data: bytes, at: int, size: tuple[int, int], tile: tuple[int, int], components: int) -> bool:
    """Check how many blocks and precincts a coding style makes; whether its wavelet loses something."""
    style, _, layers, _, levels, block_across, block_down, _, wavelet = struct.unpack_from(">BBHBBBBBB", data, at)
    if levels > _MAX_LEVELS or layers > _MAX_LAYERS or block_across > 8 or block_down > 8:
        raise refusal("corrupt")
    tiles = -(-size[0] // tile[0]) * -(-size[1] // tile[1]) + 1
    blocks = 0
    for level in range(levels + 1):
        precinct = data[at + 10 + level] if style & 1 else 0xFF
        across = min(1 << (precinct & 15), 1 << (block_across + 2))
        down = min(1 << (precinct >> 4), 1 << (block_down + 2))
        # Level 0 is the smallest resolution.
        scale = levels - level
        blocks += (-(-tile[0] >> scale) // across + 2) * (-(-tile[1] >> scale) // down + 2)
    if blocks * tiles * components > _MAX_BLOCKS:
        raise refusal("too_many_pixels", "The JPEG 2000 image has too many blocks; save it as JPEG or PNG.")
    return bool(wavelet == 0)


def _tile_parts(data: bytes, at: int, end: int) -> int:
    """Walk the parts of all tiles; where the codestream ends."""
    for _ in range(_MAX_TILE_PARTS):
        (marker,) = struct.unpack_from(">H", data, at)
        if marker == _END:
            return at + 2
        if marker != _TILE_PART:
            raise refusal("corrupt")
        (length,) = struct.unpack_from(">I", data, at + 6)
        stop = at + length if length else end - 2
        if stop > end or (length and length < 14):
            raise refusal("truncated")
        if any(marker not in _LISTED for marker in _part_markers(data, at + 12, stop)):
            raise refusal("unsupported_format", "This JPEG 2000 coding is not accepted; save the image as PNG.")
        at = stop
    raise refusal("corrupt")


def _part_markers(data: bytes, at: int, stop: int) -> Iterator[int]:
    """The markers of one tile part before its data."""
    for _ in range(_MAX_PART_MARKERS):
        if at >= stop:
            raise refusal("truncated")
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _DATA:
            return
        yield marker
        at += 2 + max(length, 2)
    raise refusal("corrupt")
