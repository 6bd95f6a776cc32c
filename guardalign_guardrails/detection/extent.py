"""From a score map to the boxes that a mask covers.

The hottest region says where unsafe content is; it rarely spans it. A box grows from every region above the threshold
over neighbouring regions that are clearly hotter than the image's background, and reaches a margin beyond them: an
object's edge is cooler than its middle, and its parts may be hot with a cooler gap between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from guardalign_guardrails.detection.scoring import ScoreMap

FractionBox = tuple[float, float, float, float]
"""Left, top, right, bottom as fractions of the image."""


def unsafe_boxes(
    score_map: ScoreMap, thresholds: Sequence[float], extent: float, margin: float = 0.0
) -> list[FractionBox]:
    """Boxes around the regions that reach a threshold.

    Args:
        score_map: Scores of one image.
        thresholds: Per category, the score from which a region is unsafe; infinity for never.
        extent: How far a box grows from its peak: to connected regions that keep at least this share of the peak's
            height above the image's median, in (0, 1]. 1 does not grow.
        margin: How far a box reaches beyond these regions, as a share of the sides of what was scored (the image, or
            a tile of it), in [0, 0.5]. Regions whose margins touch, to the nearest whole cell, count as connected.
            Regions that form no grid get none.

    Returns:
        Boxes within the image, possibly overlapping; empty if no region reaches its threshold.
    """
    scores = score_map.scores.numpy()
    boxes: list[FractionBox] = []
    for category, threshold in enumerate(thresholds):
        heat = scores[:, category]
        if heat.max() < threshold:
            continue
        if score_map.grid is None:
            boxes += [_as_box(box) for box in score_map.boxes.numpy()[heat >= threshold]]
        else:
            boxes += _grown(heat.reshape(score_map.grid), score_map.boxes.numpy(), threshold, extent, margin)
    return boxes


def outermost(boxes: Sequence[FractionBox]) -> list[FractionBox]:
    """The boxes that lie in no other one, each once, in order."""
    distinct = list(dict.fromkeys(boxes))
    return [box for box in distinct if not any(_contains(other, box) for other in distinct if other != box)]


def _contains(outer: FractionBox, inner: FractionBox) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


def _grown(
    heat: np.ndarray, cell_boxes: np.ndarray, threshold: float, extent: float, margin: float
) -> list[FractionBox]:
    """Boxes grown around each peak, hottest first, until every region above the threshold is inside one."""
    columns = heat.shape[1]
    reach = margin * (cell_boxes[-1, 2:] - cell_boxes[0, :2])
    base = float(np.median(heat))
    is_open = heat >= threshold
    boxes = []
    while is_open.any():
        peak = np.unravel_index(np.where(is_open, heat, -np.inf).argmax(), heat.shape)
        level = base + extent * (float(heat[peak]) - base)
        is_hot = heat >= min(level, float(heat[peak]))
        groups, _ = ndimage.label(_widened(is_hot, margin))
        rows, cols = ndimage.find_objects(np.where(is_hot, groups, 0))[groups[peak] - 1]
        first = cell_boxes[rows.start * columns + cols.start]
        last = cell_boxes[(rows.stop - 1) * columns + cols.stop - 1]
        boxes.append(_as_box((*np.maximum(first[:2] - reach, 0.0), *np.minimum(last[2:] + reach, 1.0))))
        is_open[rows, cols] = False
    return boxes


def _widened(is_hot: np.ndarray, margin: float) -> np.ndarray:
    """Hot cells and those within the margin of them."""
    rows, columns = (2 * round(margin * cells) + 1 for cells in is_hot.shape)
    return is_hot if rows == columns == 1 else ndimage.binary_dilation(is_hot, np.ones((rows, columns)))


def _as_box(values: Sequence[float] | np.ndarray) -> FractionBox:
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom
