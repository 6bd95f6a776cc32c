"""BMP: header arithmetic, so that a file of fifty bytes cannot ask for an image of fifty megapixels.

One reading have palettes and 24 bits a pixel as Windows writes them. Readers disagree on the fourth byte of 32 bits,
on bit fields and on what a run-length code leaves out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from guardalign_guardrails.images.containers.common import Container
from guardalign_guardrails.images.limits import ImageLimits, check_size, refusal

_RAW, _RLE8, _RLE4, _BITFIELDS, _ALPHA_BITFIELDS = 0, 1, 2, 3, 6
# Pillow unpacks run lengths in Python, and a run may skip 255 rows at once.
_MAX_RLE_PIXELS: Final = 4_000_000
_MAX_RLE_WIDTH: Final = 16_384
_FILE_HEADER: Final = 14
_HEADERS: Final = {40, 108, 124}
_PLAIN_BITS: Final = {1, 4, 8, 24}
# "sRGB" and "Win " as the numbers that they are in the file; the header before them has no colour space.
_COLOUR_SPACES: Final = {0x73524742, 0x57696E20}


def read_bmp(data: bytes, limits: ImageLimits) -> Container:
    """Read the size and check that the file is long enough to hold the pixels that it announces."""
    offset, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, planes, bits = struct.unpack_from("<HHHH", data, 18)
        compression = _RAW
    elif 40 <= header <= 128:
        width, height, planes, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    else:
        raise refusal("corrupt")
    height = abs(height)
    check_size(width, height, limits)
    row = (width * bits + 31) // 32 * 4
    if compression in (_RLE8, _RLE4):
        if width * height > _MAX_RLE_PIXELS or width > _MAX_RLE_WIDTH:
            raise refusal("too_many_pixels", "The run-length BMP is too large; save it as PNG.")
    elif compression in (_RAW, _BITFIELDS, _ALPHA_BITFIELDS):
        # The last row's padding is left out by some writers.
        if offset + row * (height - 1) + (width * bits + 7) // 8 > len(data):
            raise refusal("truncated")
    else:
        raise refusal("unsupported_format")
    departures = set(_departures(data, header, bits))
    if compression != _RAW or bits not in _PLAIN_BITS or planes != 1:
        departures.add("bit_layout")
    if len(data) > offset + row * height:
        departures.add("trailing_data")
    # Headers before Windows' do not say how long the palette is.
    palette_size = struct.unpack_from("<I", data, 46)[0] or 1 << bits if bits <= 8 and header >= 40 else 0
    return Container("BMP", data, (width, height), palette_size=palette_size, departures=tuple(sorted(departures)))


def _departures(data: bytes, header: int, bits: int) -> Iterator[str]:
    if header not in _HEADERS:
        yield "unlisted_part"
        return
    (offset,) = struct.unpack_from("<I", data, 10)
    (entries,) = struct.unpack_from("<I", data, 46)
    most = 1 << bits if bits <= 8 else 0
    if entries > (most or 256):
        yield "palette"
    # What lies between palette and pixels is shown by readers that go by one of the two.
    elif offset != _FILE_HEADER + header + 4 * (entries or most):
        yield "stray_bytes"
    if header > 40 and struct.unpack_from("<I", data, 70)[0] not in _COLOUR_SPACES:
        yield "colour_space"
