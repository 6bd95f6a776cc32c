"""Which format a file has, by its own first bytes, and the walk through it.

MIME types, file names and Pillow's guesses are never used: a sender chooses the first two, and Pillow would open forty
formats more.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from guardalign_guardrails.images.containers.bmp import read_bmp
from guardalign_guardrails.images.containers.boxed import heif_format, read_avif, read_heif, read_jp2
from guardalign_guardrails.images.containers.common import Container
from guardalign_guardrails.images.containers.gif import read_gif
from guardalign_guardrails.images.containers.jpeg import read_jpeg
from guardalign_guardrails.images.containers.png import read_png
from guardalign_guardrails.images.containers.tiff import read_tiff
from guardalign_guardrails.images.containers.webp import read_webp
from guardalign_guardrails.images.limits import ImageLimits, refusal

_READERS: Final[dict[str, Callable[[bytes, ImageLimits], Container]]] = {
    "PNG": read_png,
    "JPEG": read_jpeg,
    "GIF": read_gif,
    "WEBP": read_webp,
    "BMP": read_bmp,
    "TIFF": read_tiff,
    "AVIF": read_avif,
    "HEIF": read_heif,
    "JPEG2000": read_jp2,
}
_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)
# A media file states its kin in its first box.
_MOST_BRANDS: Final = 256
_MEDIA_TYPES: Final = {"HEIF": "image/heic", "JPEG2000": "image/jp2"}


def sniff(data: bytes) -> str | None:
    """The accepted format that the first bytes announce, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None) or heif_format(data[:_MOST_BRANDS])


def media_type(data: bytes) -> str | None:
    """The media type that the first bytes announce, None for formats that are not accepted."""
    name = sniff(data)
    return None if name is None else _MEDIA_TYPES.get(name, f"image/{name.lower()}")


def announces_image(head: bytes) -> bool:
    """Whether a file's first 18 bytes or more announce an image, of an accepted format or not."""
    name = sniff(head)
    if name == "BMP":
        # Its two letters begin many a word; the size of the header that follows does not.
        return len(head) >= 18 and 12 <= int.from_bytes(head[14:18], "little") <= 124
    # The others are kin of HEIC and AVIF, JPEG 2000, JPEG XL, icons and BigTIFF.
    return (
        name is not None
        or head[4:8] == b"ftyp"
        or head[:8] in (b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL ")
        or head[:4] in (b"\0\0\1\0", b"II+\0", b"MM\0+")
    )


def inspect(data: bytes, limits: ImageLimits) -> Container:
    """Walk a file's structure and keep what makes pixels.

    Args:
        data: The whole encoded file.
        limits: What it may cost.

    Returns:
        Sizes, frame count and orientation as found by us, and bytes that are safe to hand to Pillow.

    Raises:
        ImageDecodeError: ``unsupported_format``, ``too_many_pixels``, ``too_many_frames``, ``truncated``,
            ``corrupt`` or ``empty``.
    """
    name = sniff(data)
    if name is None:
        raise refusal("unsupported_format")
    try:
        return _READERS[name](data, limits)
    except (struct.error, IndexError):
        # Every reader indexes the file only forwards, so running off its end is all that these can mean.
        raise refusal("truncated") from None
