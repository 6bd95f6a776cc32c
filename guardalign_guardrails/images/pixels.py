"""Any pixel layout → plain 8-bit RGB or RGBA, and the images that a model might make of it.

Pillow's own conversions clip deep images to white and drop alpha without a warning; both hide content from a guard that
checks only one of the results. Work goes in strips of rows so that temporary copies stay small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guardalign_guardrails.images.limits import ImageLimits, check_size, refusal

Backdrop = Literal["plain", "white", "black"]

_STRIP_PIXELS: Final = 1 << 20
_DEEP: Final = ("I", "F")
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned as EXIF orientation 1-8 asks; the same object for 1."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def turn_between(one: int, other: int) -> int:
    """The EXIF orientation 1-8 that turns what `upright` makes for ``one`` into what it makes for ``other``."""
    probe = Image.frombytes("L", (3, 2), bytes(range(6)))
    start, goal = upright(probe, one), upright(probe, other)
    return next(turn for turn in range(1, 9) if _is_same(upright(start, turn), goal))


def to_eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Convert any Pillow mode to RGB, or RGBA if some pixel is not opaque; always a copy, so a decoder can be let go.

    Args:
        image: Loaded image of any mode; not changed.

    Returns:
        The 8-bit image, and for deep images (16 and 32 bits, floats) also what ``convert("RGB")`` makes of them,
        which clips where the first one scales. A model's processor may do either.
    """
    if image.mode.startswith(_DEEP):
        return _scaled(image), _clipped(image)
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.has_transparency_data:
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            return image.copy(), None
    return image.convert("RGB"), None


def images(image: Image.Image) -> Iterator[tuple[Backdrop, Image.Image]]:
    """The RGB images that an RGB or RGBA image may be shown as, made one at a time, the base of masks last.

    A caller that lets go of each before it asks for the next never holds two of them.
    """
    yield "plain", image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "RGBA":
        yield "black", _over(image, (0, 0, 0))
        yield "white", _over(image, (255, 255, 255))


def fingerprint(image: Image.Image) -> bytes:
    """SHA-256 of mode, size and pixels."""
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    for strip in _strips(image):
        digest.update(strip.tobytes())
    return digest.digest()


def from_array(array: NDArray[Any], limits: ImageLimits) -> tuple[Image.Image, Image.Image | None]:
    """Convert an array of pixels to 8 bits, as `to_eight_bits` does for Pillow's modes.

    Args:
        array: Shape HxW, HxWx1, HxWx3 or HxWx4; uint8, bool, uint16 (full range) or floats in [0, 1].
        limits: Caps, checked before anything is copied.

    Raises:
        ImageDecodeError: ``empty``, ``too_many_pixels``, or ``wrong_type`` for another shape, type or range.
    """
    if array.size == 0:
        raise refusal("empty")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise refusal("wrong_type", "Pass an array of shape HxW, HxWx1, HxWx3 or HxWx4.")
    check_size(array.shape[1], array.shape[0], limits)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    clipped: Image.Image | None = None
    if array.dtype == np.uint8:
        eight = array
    elif array.dtype == np.bool_:
        eight = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        eight = (array >> 8).astype(np.uint8)
        clipped = Image.fromarray(
            np.minimum(array if array.ndim == 2 else array[..., :3], 255).astype(np.uint8)
        ).convert("RGB")
    elif np.issubdtype(array.dtype, np.floating):
        # Written so that NaN fails it too.
        if not (array.min() >= 0 and array.max() <= 1):
            raise refusal("wrong_type", "Pass floats in [0, 1], or uint8.")
        eight = np.rint(array * 255).astype(np.uint8)
    else:
        raise refusal("wrong_type", "Pass an array of uint8, bool, uint16, or floats in [0, 1].")
    return to_eight_bits(Image.fromarray(np.ascontiguousarray(eight)))[0], clipped


def _is_same(left: Image.Image, right: Image.Image) -> bool:
    return left.size == right.size and left.tobytes() == right.tobytes()


def _over(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    base = Image.new("RGB", image.size, colour)
    base.paste(image, mask=image)
    return base


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _clipped(image: Image.Image) -> Image.Image | None:
    try:
        return image.convert("RGB")
    except ValueError:
        return None


def _scaled(image: Image.Image) -> Image.Image:
    """A deep grey image brought to 8 bits by its range, with the colour that PNG declares transparent cut out."""
    low, factor = (0.0, 1 / 256) if image.mode.startswith("I;16") else _range(image)
    transparent = image.info.get("transparency")
    has_alpha = isinstance(transparent, int)
    result = Image.new("LA" if has_alpha else "L", image.size)
    top = 0
    for strip in _strips(image):
        values = np.asarray(strip)
        # NaN and infinities become black and white: every decoder disagrees on them, none shows content.
        floats = np.nan_to_num(values.astype(np.float64), nan=low, posinf=low + 255 / factor, neginf=low)
        grey = np.clip((floats - low) * factor, 0, 255).astype(np.uint8)
        if has_alpha:
            grey = np.stack([grey, np.where(values == transparent, 0, 255).astype(np.uint8)], axis=-1)
        result.paste(Image.fromarray(grey), (0, top))
        top += strip.height
    return to_eight_bits(result)[0]


def _range(image: Image.Image) -> tuple[float, float]:
    """Offset and factor that map a 32-bit image to 0..255.

    Values that fit the usual ranges (0..1, 0..255, 0..65535) keep their meaning; others are stretched.
    """
    low, high = np.inf, -np.inf
    for strip in _strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low >= 0:
        if image.mode == "F" and high <= 1:
            return 0.0, 255.0
        if high <= 255:
            return 0.0, 1.0
        if high <= 65535:
            return 0.0, 1 / 256
    if low >= high:
        return 0.0, 1.0
    return low, 255 / (high - low)
