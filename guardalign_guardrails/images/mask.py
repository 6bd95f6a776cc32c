"""Unsafe boxes → pixels that cannot be recovered.

This is the only place that changes an image before a model sees it. It decides nothing: boxes come in, a new image
goes out. A mask that lets a hint through is worse than none, so every pixel of a box is replaced outright and
softening happens only outside of it.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import numpy as np
from PIL import Image, ImageFilter

Fill = Literal["solid", "blur", "pixelate"]
Box = tuple[float, float, float, float]
MarkedT = TypeVar("MarkedT", bytes, Image.Image)

DEFAULT_FEATHER: Final = 0.04
# Blurs and mosaics with more detail than this have been undone in public; eight cells carry colour and no shape.
_MAX_CELLS: Final = 8
_PNG_COMPRESSION: Final = 6
# A text chunk, which readers of PNG skip, right behind the header.
_MARK_KEY: Final = "guardalign"
_MARK_VALUE: Final = "masked"
_MARK_TEXT: Final = b"tEXt" + f"{_MARK_KEY}\0{_MARK_VALUE}".encode()
_MARK: Final = (len(_MARK_TEXT) - 4).to_bytes(4, "big") + _MARK_TEXT + zlib.crc32(_MARK_TEXT).to_bytes(4, "big")
_PNG_START: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_HEADER_BYTES: Final = 33
# Other writers put their own chunks in front when they copy it.
_MARK_WITHIN: Final = 1024


def mask_regions(
    image: Image.Image,
    boxes: Sequence[Box],
    *,
    fill: Fill = "solid",
    colour: tuple[int, int, int] = (0, 0, 0),
    feather: float = DEFAULT_FEATHER,
) -> Image.Image:
    """Cover boxes of an image.

    Args:
        image: Image of any mode; not changed.
        boxes: (left, top, right, bottom) in pixels, clipped to the image and rounded outwards, so that a pixel
            touched by a box is covered.
        fill: ``solid`` paints ``colour``. ``blur`` and ``pixelate`` keep at most eight cells along the longer side of
            a box, smooth or blocky, which leaves its overall colours.
        colour: RGB, 0-255; only ``solid`` uses it.
        feather: Width of a soft edge around each box, as a share of the box's shorter side; 0 for a hard edge.

    Returns:
        A new RGB image, or ``image`` itself if there are no boxes.

    Raises:
        ValueError: A box is not finite or is inside out, or ``feather`` is negative or not finite.
    """
    if not math.isfinite(feather) or feather < 0:
        raise ValueError("feather must be a finite number >= 0.")
    if not boxes:
        return image
    original = image.convert("RGB")
    result = original.copy()
    areas = [area for box in boxes if (area := _pixel_box(box, image.size)) is not None]
    if feather:
        for area in areas:
            _soften(result, original, area, fill, colour, feather)
    # All edges first, then all boxes: no soft edge may thin out a neighbour's cover.
    for area in areas:
        result.paste(_cover(original, area, fill, colour), area[:2])
    return result


def encode_png(image: Image.Image) -> bytes:
    """The image as PNG: lossless, the same bytes for the same pixels, no metadata."""
    bare = Image.new(image.mode, image.size)
    if image.mode == "P":
        bare = image.convert("RGBA" if image.has_transparency_data else "RGB")
        bare.info.clear()
    else:
        bare.paste(image)
    buffer = io.BytesIO()
    bare.save(buffer, "PNG", compress_level=_PNG_COMPRESSION)
    return buffer.getvalue()


def with_mark(image: MarkedT) -> MarkedT:
    """A masked image with a mark that says so: in a text chunk of a PNG, in the ``info`` of a PIL image.

    A guard that finds the mark on an image it did not mask itself can give a model the safety prefix. Anyone can write
    the mark, so it is no reason for anything else. Bytes that are no PNG stay as they are.
    """
    if isinstance(image, Image.Image):
        marked = image.copy()
        marked.info[_MARK_KEY] = _MARK_VALUE
        return marked
    return image[:_HEADER_BYTES] + _MARK + image[_HEADER_BYTES:] if image.startswith(_PNG_START) else image


def is_marked(image: bytes | Image.Image) -> bool:
    """Whether an encoded or decoded image says that a guard masked it."""
    if isinstance(image, Image.Image):
        return image.info.get(_MARK_KEY) == _MARK_VALUE
    return _MARK in image[:_MARK_WITHIN]


def coverage(boxes: Sequence[Box], size: tuple[int, int]) -> float:
    """Share of an image's area that lies under at least one box.

    Exact for fractional boxes: the image is cut along all box edges and the covered cells are added up.

    Args:
        boxes: (left, top, right, bottom) in pixels; parts outside of the image do not count.
        size: Width and height in pixels, positive.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: A box is not finite or is inside out.
    """
    if not boxes:
        return 0.0
    corners = np.array([_checked(box) for box in boxes], dtype=np.float64)
    corners = np.clip(corners, 0, np.array([*size, *size], dtype=np.float64))
    xs, ys = np.unique(corners[:, [0, 2]]), np.unique(corners[:, [1, 3]])
    # Each box adds 1 at its corners' cells; summing up along both axes counts the boxes over every cell.
    steps = np.zeros((len(ys), len(xs)), dtype=np.int64)
    left, right = np.searchsorted(xs, corners[:, 0]), np.searchsorted(xs, corners[:, 2])
    top, bottom = np.searchsorted(ys, corners[:, 1]), np.searchsorted(ys, corners[:, 3])
    for row, column, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(steps, (row, column), sign)
    covered = steps.cumsum(0).cumsum(1)[:-1, :-1] > 0
    area = np.diff(ys) @ covered @ np.diff(xs)
    return min(1.0, float(area) / (size[0] * size[1]))


def _checked(box: Box) -> Box:
    left, top, right, bottom = box
    if not all(map(math.isfinite, box)):
        raise ValueError("A box must have finite corners.")
    if right < left or bottom < top:
        raise ValueError("A box must be (left, top, right, bottom) with left <= right and top <= bottom.")
    return box


def _pixel_box(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Whole pixels touched by a box, or None if it has no area within the image."""
    left, top, right, bottom = _checked(box)
    width, height = size
    left, top = max(0, math.floor(left)), max(0, math.floor(top))
    right, bottom = min(width, math.ceil(right)), min(height, math.ceil(bottom))
    return (left, top, right, bottom) if left < right and top < bottom else None


def _cover(
    image: Image.Image, area: tuple[int, int, int, int], fill: Fill, colour: tuple[int, int, int]
) -> Image.Image:
    """An opaque patch of the area's size."""
    size = (area[2] - area[0], area[3] - area[1])
    if fill == "solid":
        return Image.new("RGB", size, colour)
    # A box of a few pixels would be "reduced" to itself, so cells are at least four pixels wide, or one per box.
    cell = max(max(size) / _MAX_CELLS, 4.0)
    cells = (max(1, int(size[0] / cell)), max(1, int(size[1] / cell)))
    small = image.resize(cells, Image.Resampling.BOX, box=area)
    if fill == "pixelate":
        return small.resize(size, Image.Resampling.NEAREST)
    return small.filter(ImageFilter.GaussianBlur(1)).resize(size, Image.Resampling.BICUBIC)


def _soften(
    result: Image.Image,
    original: Image.Image,
    area: tuple[int, int, int, int],
    fill: Fill,
    colour: tuple[int, int, int],
    feather: float,
) -> None:
    """Blend the surroundings of a box into its cover, from full at the edge to nothing ``feather`` away."""
    left, top, right, bottom = area
    reach = round(feather * min(right - left, bottom - top))
    if reach < 1:
        return
    around = _pixel_box((left - reach, top - reach, right + reach, bottom + reach), result.size)
    if around is None:
        return
    # Distance to the box along each axis; the nearer the pixel, the more of the cover it takes.
    xs, ys = np.arange(around[0], around[2]), np.arange(around[1], around[3])
    across = np.maximum(np.maximum(left - xs, xs - right + 1), 0)
    down = np.maximum(np.maximum(top - ys, ys - bottom + 1), 0)
    distance = np.hypot(across[None, :], down[:, None])
    weight = np.clip(1 - distance / (reach + 1), 0, 1)
    patch = _cover(original, around, fill, colour)
    alpha = Image.fromarray((weight * 255).astype(np.uint8))
    result.paste(patch, around[:2], alpha)
