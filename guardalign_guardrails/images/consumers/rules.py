"""Size rules: how large a consumer makes an image. Each is data with one method, so that the registry can be JSON."""

from __future__ import annotations

import math
from itertools import product
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Size = tuple[int, int]
"""(width, height) in pixels."""

Side = Annotated[int, Field(ge=1, le=16384)]


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SquashRule(_Rule):
    """To squares, whatever the shape."""

    kind: Literal["squash"]
    sides: tuple[Side, ...]

    def sizes(self, size: Size) -> tuple[Size, ...]:
        """One square a side."""
        return tuple((side, side) for side in self.sides)


class LongestSideRule(_Rule):
    """Until the longest side has a length, keeping the shape; then up to multiples."""

    kind: Literal["longest_side"]
    sides: tuple[Side, ...]
    multiple: Side = 1
    max_pixels: int | None = None
    enlarges: bool = False

    def sizes(self, size: Size) -> tuple[Size, ...]:
        """One size a side; the image's own (up to multiples) if it is smaller and the rule does not enlarge."""
        return tuple(self._size(size, side) for side in self.sides)

    def _size(self, size: Size, side: int) -> Size:
        scale = side / max(size)
        if self.max_pixels is not None:
            scale = min(scale, math.sqrt(self.max_pixels / (size[0] * size[1])))
        if scale >= 1 and not self.enlarges:
            scale = 1.0
        width, height = (max(1, min(round(length * scale), side)) for length in size)
        return -(-width // self.multiple) * self.multiple, -(-height // self.multiple) * self.multiple


class ShortestSideRule(_Rule):
    """Until the shortest side has a length, keeping the shape."""

    kind: Literal["shortest_side"]
    sides: tuple[Side, ...]

    def sizes(self, size: Size) -> tuple[Size, ...]:
        """One size a side."""
        return tuple(_scaled(size, side / min(size)) for side in self.sides)


class FitThenShortestRule(_Rule):
    """Into a square, then until the shortest side has a length; never enlarged."""

    kind: Literal["fit_then_shortest"]
    fit: Side
    shortest: Side

    def sizes(self, size: Size) -> tuple[Size, ...]:
        """One size."""
        fitted = min(1.0, self.fit / max(size))
        return (_scaled(size, min(fitted, self.shortest / min(size))),)


class PixelBudgetRule(_Rule):
    """To multiples of a length, with a budget of pixels; Qwen-VL's ``smart_resize``."""

    kind: Literal["pixel_budget"]
    multiple: Side
    min_pixels: int
    max_pixels: int

    def sizes(self, size: Size) -> tuple[Size, ...]:
        """One size."""
        step = self.multiple
        width, height = (max(step, round(length / step) * step) for length in size)
        scale = math.sqrt(size[0] * size[1])
        if width * height > self.max_pixels:
            scale = math.sqrt(self.max_pixels) / scale
            width, height = (max(step, math.floor(length * scale / step) * step) for length in size)
        elif width * height < self.min_pixels:
            scale = math.sqrt(self.min_pixels) / scale
            width, height = (math.ceil(length * scale / step) * step for length in size)
        return ((width, height),)


class TileGridRule(_Rule):
    """To a grid of square tiles whose shape is nearest to the image's, and to one tile; InternVL's."""

    kind: Literal["tile_grid"]
    tile: Side
    max_tiles: Annotated[int, Field(ge=1, le=64)]

    def sizes(self, size: Size) -> tuple[Size, ...]:
        """The grid's size, then the tile's."""
        grids = _grids(self.max_tiles)
        shape, area = size[0] / size[1], size[0] * size[1]
        best: tuple[int, int] = (1, 1)
        distance = math.inf
        for grid in sorted(grids, key=math.prod):
            away = abs(shape - grid[0] / grid[1])
            if away < distance or (away == distance and area > 0.5 * self.tile**2 * math.prod(grid)):
                best, distance = grid, away
        whole = (best[0] * self.tile, best[1] * self.tile)
        return tuple(dict.fromkeys((whole, (self.tile, self.tile))))


class PinpointsRule(_Rule):
    """Into the canvas that wastes least, keeping the shape, and to one square; LLaVA-NeXT's ``anyres``."""

    kind: Literal["pinpoints"]
    tile: Side
    canvases: tuple[tuple[Side, Side], ...]

    def sizes(self, size: Size) -> tuple[Size, ...]:
        """The size on the canvas, then the square."""
        chosen, most, least = self.canvases[0], 0, math.inf
        for canvas in self.canvases:
            scale = min(canvas[0] / size[0], canvas[1] / size[1])
            kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
            wasted = math.prod(canvas) - kept
            if kept > most or (kept == most and wasted < least):
                chosen, most, least = canvas, kept, wasted
        scale = min(chosen[0] / size[0], chosen[1] / size[1])
        width, height = (min(math.ceil(one * scale), most) for one, most in zip(size, chosen, strict=True))
        return (width, height), (self.tile, self.tile)


class OverlappingCropsRule(_Rule):
    """To a canvas of overlapping square crops, and to one crop; Molmo2's."""

    kind: Literal["overlapping_crops"]
    crop: Side
    margin: Annotated[int, Field(ge=0)]
    max_crops: Annotated[int, Field(ge=1, le=64)]

    def sizes(self, size: Size) -> tuple[Size, ...]:
        """The canvas's size, then the crop's."""
        window = self.crop - self.margin
        grids = _grids(self.max_crops)
        grids.sort(key=lambda grid: (math.prod(grid), grid[1]))
        inner = [max(1, length - self.margin) for length in size]
        scales = [min(grid[0] * window / inner[0], grid[1] * window / inner[1]) for grid in grids]
        enough = [scale for scale in scales if scale >= 1]
        best = grids[scales.index(min(enough) if enough else max(scales))]
        canvas = (best[0] * window + self.margin, best[1] * window + self.margin)
        return canvas, (self.crop, self.crop)


SizeRule = Annotated[
    SquashRule
    | LongestSideRule
    | ShortestSideRule
    | FitThenShortestRule
    | PixelBudgetRule
    | TileGridRule
    | PinpointsRule
    | OverlappingCropsRule,
    Field(discriminator="kind"),
]


def _grids(most: int) -> list[tuple[int, int]]:
    counts = range(1, most + 1)
    return [(columns, rows) for columns, rows in product(counts, repeat=2) if columns * rows <= most]


def _scaled(size: Size, scale: float) -> Size:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
