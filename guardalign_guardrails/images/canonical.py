"""The guard's own reading of an image, as a file that every reader reads alike.

Opaque, 8 bits, upright, sRGB, one still or the frames that were seen, without metadata. The same pixels always give
the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

from PIL import Image

from guardalign_guardrails.images.mask import encode_png

# Where losses of an ordinary photo saved twice stay below what its first encoder lost, at about its size.
_JPEG_QUALITY: Final = 88


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """An RGB image with its longest side at most ``side`` pixels; itself if it is no larger.

    Each pixel is an average of all that it stands for, so nothing can hide between the samples.
    """
    longest = max(image.size)
    if longest <= side:
        return image
    size = (max(1, round(image.width * side / longest)), max(1, round(image.height * side / longest)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def encode_canonical(frames: Sequence[Image.Image], *, is_lossy: bool, is_paged: bool = False) -> bytes:
    """Encode opaque RGB images as one file.

    Args:
        frames: At least one. Several make an APNG, which shows the first one where animations are not known.
        is_lossy: Whether a single still becomes a JPEG (4:4:4, fixed tables, no metadata) instead of a PNG.
        is_paged: Whether several are pages, which may differ in size; they make a TIFF.
    """
    buffer = io.BytesIO()
    first, *others = [_bare(frame) for frame in frames]
    if is_paged and others:
        first.save(buffer, "TIFF", save_all=True, append_images=others, compression="tiff_adobe_deflate")
    elif others:
        first.save(buffer, "PNG", save_all=True, append_images=others, duration=_FRAME_MS, loop=0, disposal=0, blend=0)
    elif is_lossy:
        first.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4", optimize=True)
    else:
        return encode_png(first)
    return buffer.getvalue()


_FRAME_MS: Final = 500


def _bare(image: Image.Image) -> Image.Image:
    """A copy without what a file would carry along, such as a profile or EXIF."""
    bare = Image.new("RGB", image.size)
    bare.paste(image)
    return bare
