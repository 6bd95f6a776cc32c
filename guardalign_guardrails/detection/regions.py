"""From images to regions with features.

A region is a rectangle of the image with a joint-space feature. Regions of several sizes overlap; `Fusion` says how
their evidence is pooled on the finest grid, so that one heat map comes out whatever the way of cutting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

from guardalign_guardrails.detection.encoders.base import Crop, Encoder
from guardalign_guardrails.policy.detection import RegionConfig


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the regions of an image lie; shared by all images cut the same way.

    Attributes:
        boxes: Left, top, right, bottom of each region as fractions of the image, shape [M, 4].
        cells: The same of each cell of the finest grid, reading order, shape [rows * columns, 4].
        rows: Cells down.
        columns: Cells across.
        fusion: Weights that pool region evidence on the cells, rows sum to 1, shape [rows * columns, M].
    """

    boxes: Tensor
    cells: Tensor
    rows: int
    columns: int
    fusion: Tensor

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) if the regions themselves tile the image in reading order, else None."""
        return (self.rows, self.columns) if len(self.boxes) == self.rows * self.columns else None


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of one image.

    Attributes:
        features: Unit-length region features, shape [M, d].
        whole: Unit-length feature of the whole image, shape [d].
        layout: Where the regions lie.
    """

    features: Tensor
    whole: Tensor
    layout: Layout


def reach(encoder: Encoder, config: RegionConfig) -> int:
    """Longest side in pixels up to which an image cut this way is seen in full detail."""
    if config.method == "grid":
        return max(config.scales) * encoder.side
    return max(scale or encoder.side for scale in config.scales)


def cut(encoder: Encoder, images: Sequence[Image.Image], config: RegionConfig) -> list[Regions]:
    """Cut images into regions and encode them.

    Args:
        encoder: Any encoder.
        images: RGB images of any sizes.
        config: How to cut. ``grid`` encodes all crops of all images in one call; ``dense`` makes one call per scale.

    Returns:
        One `Regions` per image, in order.
    """
    if not images:
        return []
    return _grid(encoder, images, config) if config.method == "grid" else _dense(encoder, images, config)


def _grid(encoder: Encoder, images: Sequence[Image.Image], config: RegionConfig) -> list[Regions]:
    layout = _layout(tuple((scale, scale, 1) for scale in config.scales))
    has_whole = 1 in config.scales
    fractions = layout.boxes.tolist()
    if not has_whole:
        fractions.append([0.0, 0.0, 1.0, 1.0])
    crops = [
        Crop(image, (box[0] * image.width, box[1] * image.height, box[2] * image.width, box[3] * image.height))
        for image in images
        for box in fractions
    ]
    features = encoder.encode_crops(crops).view(len(images), len(fractions), -1)
    whole = sum(scale**2 for scale in config.scales[: config.scales.index(1)]) if has_whole else len(fractions) - 1
    return [Regions(rows[: len(layout.boxes)], rows[whole], layout) for rows in features]


def _dense(encoder: Encoder, images: Sequence[Image.Image], config: RegionConfig) -> list[Regions]:
    maps_by_scale = [encoder.encode_map(images, scale or None) for scale in config.scales]
    cut_images = []
    for maps in zip(*maps_by_scale, strict=True):
        levels = tuple(
            (feature_map.shape[0], feature_map.shape[1], min(window, *feature_map.shape[:2]))
            for feature_map in maps
            for window in config.windows
        )
        pooled = [
            pool_windows(feature_map, min(window, *feature_map.shape[:2])).flatten(0, 1)
            for feature_map in maps
            for window in config.windows
        ]
        whole = maps[0].mean((0, 1)).unsqueeze(0)
        embedded = encoder.embed(torch.cat([*pooled, whole]))
        cut_images.append(Regions(embedded[:-1], embedded[-1], _layout(levels)))
    return cut_images


def window_starts(cells: int, window: int) -> list[int]:
    """First cells of the windows along one side: overlapping by about half, the last one flush with the end."""
    stride = max(1, window // 2)
    starts = list(range(0, cells - window + 1, stride))
    if starts[-1] != cells - window:
        starts.append(cells - window)
    return starts


def pool_windows(feature_map: Tensor, window: int) -> Tensor:
    """Mean of a feature map over square windows.

    Args:
        feature_map: Shape [h, w, k].
        window: Cells per side, at most min(h, w).

    Returns:
        Shape [h', w', k] with one entry per `window_starts` of each side.
    """
    if window == 1:
        return feature_map
    return _pool_rows(_pool_rows(feature_map, window).transpose(0, 1), window).transpose(0, 1)


def _pool_rows(feature_map: Tensor, window: int) -> Tensor:
    starts = torch.tensor(window_starts(feature_map.shape[0], window))
    offsets = torch.arange(window)
    return feature_map[starts.unsqueeze(1) + offsets].mean(1)


@lru_cache(maxsize=64)
def _layout(levels: tuple[tuple[int, int, int], ...]) -> Layout:
    """Layout of several levels, each given as (rows, columns, window) of its own grid."""
    level_boxes = [_level_boxes(rows, columns, window) for rows, columns, window in levels]
    rows, columns = max((r - w + 1, c - w + 1) for r, c, w in levels)
    cells = _level_boxes(rows, columns, 1)
    fusion = torch.cat([_overlap(cells, boxes) for boxes in level_boxes], dim=1) / len(levels)
    return Layout(torch.cat(level_boxes), cells, rows, columns, fusion)


def _level_boxes(rows: int, columns: int, window: int) -> Tensor:
    tops = torch.tensor(window_starts(rows, window), dtype=torch.float32)
    lefts = torch.tensor(window_starts(columns, window), dtype=torch.float32)
    top, left = torch.meshgrid(tops, lefts, indexing="ij")
    box = torch.stack([left / columns, top / rows, (left + window) / columns, (top + window) / rows], dim=-1)
    return box.flatten(0, 1)


def _overlap(cells: Tensor, boxes: Tensor) -> Tensor:
    """Share of each cell's overlap with a level that falls to each of the level's boxes, shape [cells, boxes]."""
    low = torch.maximum(cells[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(cells[:, None, 2:], boxes[None, :, 2:])
    area = (high - low).clamp_min(0).prod(-1)
    return area / area.sum(1, keepdim=True)
