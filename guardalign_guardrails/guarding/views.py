"""What of an image is scored: the pixels that go on, their tiles in full detail, and what else a reader may see.

Pure: it cuts and names, and maps scores back to where they belong in the image as displayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from guardalign_guardrails.detection.scoring import ScoreMap

FractionBox = tuple[float, float, float, float]

WHOLE: Final[FractionBox] = (0.0, 0.0, 1.0, 1.0)
# Neighbouring tiles share an eighth, so that what lies on their border is whole in one of them.
_OVERLAP: Final = 8
# 896 of 1,568 pixels.
_TILE_SHARE: Final = 4 / 7
_FLIPS: Final[dict[int, tuple[int, ...]]] = {1: (), 2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}
_TRANSPOSED: Final = (5, 6, 7, 8)


@dataclass(frozen=True, eq=False)
class ScoredView:
    """One image that is scored for another.

    Attributes:
        pixels: RGB image.
        name: What a verdict calls it.
        box: The part of the image as displayed that it shows, as fractions.
        orientation: EXIF orientation 1-8 that turns it into the image as displayed.
        is_delivered: Whether these pixels go on, as a whole or as a tile, if the image may pass.
    """

    pixels: Image.Image = field(repr=False)
    name: str
    box: FractionBox = WHOLE
    orientation: int = 1
    is_delivered: bool = False

    def placed(self, score_map: ScoreMap) -> ScoreMap:
        """The scores of this view with their regions where they lie in the image as displayed."""
        if self.orientation == 1 and self.box == WHOLE:
            return score_map
        upright = turned(score_map, self.orientation)
        left, top, right, bottom = self.box
        scale = torch.tensor([right - left, bottom - top] * 2)
        return replace(upright, boxes=upright.boxes * scale + torch.tensor([left, top] * 2))


def seen_side(size: tuple[int, int], reach: int, most_tiles: int) -> int:
    """The longest side, in pixels, to which an image can be looked at in full detail.

    Args:
        size: Width and height of the image in pixels.
        reach: Longest side up to which one look is enough.
        most_tiles: Most tiles it may be cut into.
    """
    best = float(reach)
    for columns in range(1, most_tiles + 1):
        rows = most_tiles // columns
        scale = min(_span(columns, reach) / size[0], _span(rows, reach) / size[1])
        best = max(best, scale * max(size))
    return int(best)


def tile_boxes(size: tuple[int, int], reach: int) -> list[tuple[int, int, int, int]]:
    """Overlapping tiles of at most ``reach`` pixels a side that cover an image, in pixels; none if one look is enough.

    Args:
        size: Width and height of the image in pixels.
        reach: Longest side up to which one look is enough.
    """
    if max(size) <= reach:
        return []
    return [
        (left, top, left + min(reach, size[0]), top + min(reach, size[1]))
        for top in _starts(size[1], reach)
        for left in _starts(size[0], reach)
    ]


def with_tiles(view: ScoredView, reach: int) -> list[ScoredView]:
    """A view, and the tiles of it that are needed to see it in full detail."""
    boxes = tile_boxes(view.pixels.size, reach)
    width, height = view.pixels.size
    tiles = [
        ScoredView(
            view.pixels.crop(box),
            f"{view.name}, tile {number} of {len(boxes)}",
            (box[0] / width, box[1] / height, box[2] / width, box[3] / height),
            is_delivered=view.is_delivered,
        )
        for number, box in enumerate(boxes, start=1)
    ]
    return [view, *tiles]


def reference_tiles(still: Image.Image) -> list[Image.Image]:
    """Tiles of a benign image as an image in its place would be cut that is twice as large as one look sees.

    Four, one in each corner, whatever the image's own size: what counts is the share of the image that a tile shows.
    """
    width, height = (max(1, round(side * _TILE_SHARE)) for side in still.size)
    lefts, tops = (0, still.width - width), (0, still.height - height)
    return [still.crop((left, top, left + width, top + height)) for top in tops for left in lefts]


def turned(score_map: ScoreMap, orientation: int) -> ScoreMap:
    """Scores of an image as stored, as scores of the image as displayed, regions in reading order again."""
    if orientation == 1:
        return score_map
    boxes = _turned_boxes(score_map.boxes, orientation)
    if score_map.grid is None:
        return replace(score_map, boxes=boxes)
    return ScoreMap(
        _turned_grid(boxes, score_map.grid, orientation),
        _turned_grid(score_map.scores, score_map.grid, orientation),
        score_map.grid[::-1] if orientation in _TRANSPOSED else score_map.grid,
    )


def highest(maps: Sequence[ScoreMap]) -> list[float]:
    """The highest image-level score of each category over all views, shape [C]."""
    scores: list[float] = torch.stack([score_map.image_scores for score_map in maps]).amax(0).tolist()
    return scores


def _turned_boxes(boxes: Tensor, orientation: int) -> Tensor:
    left, top, right, bottom = boxes.unbind(-1)
    if orientation in _TRANSPOSED:
        left, top, right, bottom = top, left, bottom, right
    if 1 in _FLIPS[orientation]:
        left, right = 1 - right, 1 - left
    if 0 in _FLIPS[orientation]:
        top, bottom = 1 - bottom, 1 - top
    return torch.stack([left, top, right, bottom], dim=-1)


def _turned_grid(values: Tensor, grid: tuple[int, int], orientation: int) -> Tensor:
    cells = values.reshape(*grid, -1)
    if orientation in _TRANSPOSED:
        cells = cells.transpose(0, 1)
    return cells.flip(_FLIPS[orientation]).flatten(0, 1) if _FLIPS[orientation] else cells.flatten(0, 1)


def _span(count: int, reach: int) -> int:
    """Pixels that so many tiles in a row cover."""
    return reach if count == 1 else count * reach - (count - 1) * (reach // _OVERLAP)


def _starts(length: int, reach: int) -> list[int]:
    """Where tiles begin along one side, evenly spread, the last one flush with the end."""
    if length <= reach:
        return [0]
    step = reach - reach // _OVERLAP
    count = math.ceil((length - reach) / step) + 1
    return [round(number * (length - reach) / (count - 1)) for number in range(count)]
