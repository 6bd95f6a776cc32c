"""BMP: header arithmetic, so that a file of fifty bytes cannot ask for an image of fifty megapixels."""

from __future__ import annotations

import struct
from typing import Final

from guardalign_guardrails.images.containers.common import Container
from guardalign_guardrails.images.limits import ImageLimits, check_size, refusal

_RAW, _RLE8, _RLE4, _BITFIELDS, _ALPHA_BITFIELDS = 0, 1, 2, 3, 6
# Pillow unpacks run lengths in Python, and a run may skip 255 rows at once.
_MAX_RLE_PIXELS: Final = 4_000_000
_MAX_RLE_WIDTH: Final = 16_384


def read_bmp(data: bytes, limits: ImageLimits) -> Container:
    """Read the size and check that the file is long enough to hold the pixels that it announces."""
    offset, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = _RAW
    elif 40 <= header <= 128:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    else:
        raise refusal("corrupt")
    height = abs(height)
    check_size(width, height, limits)
    if compression in (_RLE8, _RLE4):
        if width * height > _MAX_RLE_PIXELS or width > _MAX_RLE_WIDTH:
            raise refusal("too_many_pixels", "The run-length BMP is too large; save it as PNG.")
    elif compression in (_RAW, _BITFIELDS, _ALPHA_BITFIELDS):
        row = (width * bits + 31) // 32 * 4
        # The last row's padding is left out by some writers.
        if offset + row * (height - 1) + (width * bits + 7) // 8 > len(data):
            raise refusal("truncated")
    else:
        raise refusal("unsupported_format")
    return Container("BMP", data, (width, height))
