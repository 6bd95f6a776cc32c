"""Objects that stand on a plain ground, as in drawings, diagrams and product photos.

A score map is coarse, and a mask grown on it may leave a tip of an object uncovered. On a plain ground the pixels say
where an object ends. Photos without such a ground are left as they are: this finds edges, not content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image
from scipy import ndimage

from guardalign_guardrails.images import Box, coverage

_SIDE: Final = 256
_TOLERANCE: Final = 24
_PLAIN_SHARE: Final = 0.4
_MOSTLY: Final = 0.6
_SMALLEST: Final = 0.0025


def half_covered_objects(image: Image.Image, boxes: Sequence[Box], size: tuple[int, int]) -> list[Box]:
    """Rectangles of the objects that lie mostly, but not wholly, under boxes.

    An object is what hangs together and is not of the ground's colour; small things such as letters are left out. At
    least 60 % of its rectangle must lie under the boxes, so that a page's frame is not taken for an object.

    Args:
        image: RGB image of any size.
        boxes: What is covered: left, top, right, bottom, parts outside of the image do not count.
        size: Width and height of the image in the units of the boxes: another size than its own if it was shrunk.

    Returns:
        Boxes within the image, in the same units; empty if less than 40 % of the image is of one colour.
    """
    if not boxes:
        return []
    scale = max(1.0, max(image.size) / _SIDE)
    width, height = (max(1, round(side / scale)) for side in image.size)
    small = np.asarray(image.resize((width, height), Image.Resampling.BOX))
    is_ground = _ground(small)
    if is_ground.mean() < _PLAIN_SHARE:
        return []
    # What is two pixels apart hangs together: thin strokes break when an image is shrunk.
    groups, _ = ndimage.label(ndimage.binary_dilation(~is_ground, np.ones((3, 3))))
    across, down = size[0] / width, size[1] / height
    shrunk = [(box[0] / across, box[1] / down, box[2] / across, box[3] / down) for box in boxes]
    found = []
    for rows, columns in ndimage.find_objects(np.where(is_ground, 0, groups)):
        rectangle = columns.start, rows.start, columns.stop, rows.stop
        if _area(rectangle) >= _SMALLEST * width * height and _MOSTLY <= _covered(rectangle, shrunk) < 1:
            # A pixel wider on each side: the object's edge may be fainter than the tolerance.
            left, top = max(0, columns.start - 1), max(0, rows.start - 1)
            right, bottom = min(width, columns.stop + 1), min(height, rows.stop + 1)
            # Divided last: the image's own edge comes out as it is, not a rounding error beyond.
            xs, ys = (
                (left * size[0] / width, right * size[0] / width),
                (top * size[1] / height, bottom * size[1] / height),
            )
            found.append((xs[0], ys[0], xs[1], ys[1]))
    return found


def _ground(pixels: np.ndarray) -> np.ndarray:
    """Which pixels have the commonest colour, give or take the tolerance; shape [h, w] for [h, w, 3] of 8 bits."""
    sixteenths = (pixels >> 4).astype(np.int32)
    colours = (sixteenths[..., 0] << 8) | (sixteenths[..., 1] << 4) | sixteenths[..., 2]
    commonest = np.bincount(colours.ravel()).argmax()
    colour = np.median(pixels[colours == commonest], axis=0)
    return np.asarray(np.abs(pixels - colour).max(-1) <= _TOLERANCE)


def _area(rectangle: tuple[int, int, int, int]) -> int:
    return (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1])


def _covered(rectangle: tuple[int, int, int, int], boxes: Sequence[Box]) -> float:
    """Share of a rectangle under boxes."""
    left, top, right, bottom = rectangle
    moved = [(box[0] - left, box[1] - top, box[2] - left, box[3] - top) for box in boxes]
    return coverage(moved, (right - left, bottom - top))
