"""GIF: every block walked, frames counted by hand, comments and application blocks left out.

A GIF has no frame count and each frame may enlarge the canvas, so only a walk shows what it will cost.
"""

from __future__ import annotations

import struct
from typing import Final

from guardalign_guardrails.images.containers.common import Container, join
from guardalign_guardrails.images.containers.metadata import names_orientation
from guardalign_guardrails.images.limits import MIN_FRAME_PIXELS, ImageLimits, check_frames, check_size, refusal

_EXTENSION, _FRAME, _END, _PADDING = 0x21, 0x2C, 0x3B, 0x00
_GRAPHIC_CONTROL, _COMMENT, _APPLICATION = 0xF9, 0xFE, 0xFF
# Application blocks that say nothing of how one frame looks: loops and XMP.
_HARMLESS: Final = (b"NETSCAPE2.0", b"ANIMEXTS1.0", b"XMP DataXMP")
# 255 bytes a block is what encoders write; a million blocks is a 50 MiB file of 50-byte ones.
_MAX_BLOCKS: Final = 1_000_000


def read_gif(data: bytes, limits: ImageLimits) -> Container:
    """Walk the blocks to the trailer; a missing trailer is forgiven, a block cut short is not."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _table_bytes(flags)
    view = memoryview(data)
    kept: list[memoryview] = [view[:at]]
    most_frames = max(2, limits.max_frame_pixels_total // MIN_FRAME_PIXELS)
    count, blocks, controls = 0, 0, 0
    screen, shared_size = (width, height), _table_bytes(flags) // 3
    departures: set[str] = set()
    palette_size = 0
    while at < len(data) and data[at] != _END:
        start, kind = at, data[at]
        if kind == _PADDING:
            at += 1
            blocks += 1
            departures.add("stray_bytes")
        elif kind == _EXTENSION:
            label = data[at + 1]
            at, blocks = _skip_blocks(data, at + 2, blocks)
            if label == _GRAPHIC_CONTROL:
                kept.append(view[start:at])
                controls += 1
            elif label != _COMMENT and not (label == _APPLICATION and data[start + 3 : start + 14] in _HARMLESS):
                departures.add("unlisted_part")
            elif names_orientation(data[start:at]):
                departures.add("broken_metadata")
        elif kind == _FRAME:
            left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", data, at + 1)
            if not frame_width or not frame_height:
                raise refusal("corrupt")
            width, height = max(width, left + frame_width), max(height, top + frame_height)
            check_size(width, height, limits)
            at, blocks = _skip_blocks(data, at + 11 + _table_bytes(flags), blocks)
            kept.append(view[start:at])
            count += 1
            if (left, top, frame_width, frame_height) != (0, 0, *screen):
                departures.add("partial_frame")
            palette_size = _table_bytes(flags) // 3 or shared_size
            if not palette_size:
                departures.add("palette")
            if count > most_frames:
                raise refusal("too_many_frames")
        else:
            raise refusal("corrupt")
    if at > len(data):
        raise refusal("truncated")
    if not count:
        raise refusal("truncated" if at == len(data) else "empty")
    check_frames(count, width * height, limits)
    if at + 1 != len(data):
        departures.add("trailing_data" if at < len(data) else "no_end")
    if count > 1:
        departures.add("animation")
    elif controls > 1:
        departures.add("repeated_part")
    kept.append(memoryview(b";"))
    return Container(
        "GIF",
        join(kept, data),
        (width, height),
        count,
        is_composited=count > 1,
        palette_size=palette_size,
        departures=tuple(sorted(departures)),
    )


def _table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_blocks(data: bytes, at: int, blocks: int) -> tuple[int, int]:
    """Offset after a chain of sub-blocks, and the running number of blocks in the file."""
    while length := data[at]:
        at += length + 1
        blocks += 1
        if blocks > _MAX_BLOCKS:
            raise refusal("corrupt")
    return at + 1, blocks
