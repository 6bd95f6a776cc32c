"""HEIC by pillow-heif, an extra: imported when such a file comes, and only to read one image out of bytes."""

from __future__ import annotations

import io

from PIL import Image

from guardalign_guardrails.images.limits import refusal


def open_heif(data: bytes) -> Image.Image:
    """The primary image of a HEIC file, turned as the file asks; decoded when it is loaded.

    Raises:
        ImageDecodeError: ``unsupported_format`` where pillow-heif is not installed.
    """
    try:
        from pillow_heif import open_heif as opened
    except ImportError:
        raise refusal(
            "unsupported_format",
            "HEIC needs pillow-heif: pip install 'guardalign-guardrails[heif]', or send the image as JPEG or PNG.",
        ) from None
    image: Image.Image = opened(io.BytesIO(data)).to_pillow()
    return image
