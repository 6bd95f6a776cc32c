"""Harmless images with more than one reading, of which the guard's own goes on; made here, byte for byte the same."""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image

from guardalign_guardrails.images import decode
from guardalign_guardrails.testing.colours import painted


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def see_through_image(*colours: str) -> Image.Image:
    """A painted image that shows its background in one corner."""
    image = painted(*colours).convert("RGBA")
    image.paste((0, 0, 0, 96), (0, 40, 24, 64))
    return image


def turned_exif() -> Image.Exif:
    """What a phone writes that was held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _wide(*colours: str) -> Image.Image:
    """Wider than high, so that a turned one has another size, with something to see in one corner."""
    image = painted(*colours).crop((0, 0, 64, 48))
    image.paste("black", (0, 32, 12, 48))
    return image


def _photo(width: int, height: int) -> Image.Image:
    """Soft light with some grain, as a camera sees a wall."""
    light = np.linspace(150, 240, width)[None, :] + np.linspace(-20, 15, height)[:, None]
    grain = np.random.default_rng(0).normal(0, 2, (height, width))
    return Image.fromarray(np.clip(light + grain, 0, 255).astype(np.uint8)).convert("RGB")


def _grainy() -> Image.Image:
    """Large enough as a file to be taken for an image in the middle of a text."""
    image = _photo(64, 48).convert("RGBA")
    image.paste((0, 0, 0, 96), (0, 24, 24, 48))
    return image


SEE_THROUGH: Final = encoded(see_through_image(), "PNG")
TURNED: Final = encoded(_wide(), "JPEG", quality=92, exif=turned_exif())
LARGE: Final = encoded(_photo(1800, 1000), "JPEG", quality=80)
REREAD: Final = {"see-through PNG": SEE_THROUGH, "turned JPEG": TURNED, "large photo": LARGE}
"""What the guard delivers as its own reading, with ``allow``."""

SLOW_IF_LARGE: Final = [pytest.param(name, marks=pytest.mark.slow) if "large" in name else name for name in REREAD]
"""Their names, for tests of each place that an image may have: a large one takes a second."""

CHANGING_TYPE: Final = {
    "image/jpeg": encoded(_grainy(), "WEBP", quality=90),
    "image/png": encoded(_grainy(), "WEBP", lossless=True),
}
"""Files whose canonical reading is of another media type than they are, by that type."""


def opened(data: bytes) -> Image.Image:
    """A file as an app opens it, with whatever it says of itself."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def pixels_of(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Size and pixels of an opaque file with one reading, as any reader sees them."""
    with Image.open(io.BytesIO(data)) as image:
        assert (image.mode, image.getexif().get(0x0112, 1)) == ("RGB", 1)
        return image.size, image.tobytes()


def original_pixels(data: bytes) -> bytes:
    """Pixels as a reader sees them that knows neither alpha nor orientation."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB").tobytes()


def seen(image: Image.Image) -> tuple[tuple[int, int], bytes]:
    """Size and pixels of a decoded image."""
    return image.size, decode(image).flattened.tobytes()
