"""Cell means of resized renderings, without rendering them.

The mean of a rendering over a cell is linear in the image and needs one number a row and one a column: how much that
row or column counts in the resize, its *comb*. An averaging resize counts all alike; a sparse one does not. Cells
overlap and fade (a Hann window), so that an ordinary edge weighs the same in both means and only what repeats at the
comb's own spacing makes them differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guardalign_guardrails.images.consumers import Sampler, taps

Floats: TypeAlias = NDArray[np.float32]
AxisKey: TypeAlias = tuple[Sampler, int]
"""A sampler and the length that it makes of an axis."""


def planes(image: Image.Image) -> Floats:
    """The pixels of an RGB image with one plane a channel, shape [height, 3, width], 0-255."""
    return np.ascontiguousarray(np.asarray(image).transpose(0, 2, 1), dtype=np.float32)


def detail(pixels: Floats, smooth: Floats) -> Floats:
    """Squared departure of each pixel from its surroundings, the mean of the channels.

    Args:
        pixels: Shape [height, 3, width].
        smooth: The same image, smoothed.

    Returns:
        Shape [height, 1, width], in squared levels.
    """
    apart = pixels - smooth
    apart *= apart
    mean: Floats = apart.mean(axis=1, keepdims=True)
    return mean


def cell_means(pixels: Floats, pairs: Sequence[tuple[AxisKey, AxisKey]], cells: int) -> tuple[Floats, Floats, Floats]:
    """Cell means of an image, what those of its renderings differ from them, and how much of that is the axes' own.

    Lines of text differ wherever the rows that are read happen to meet them, whichever columns are read. What lies
    where the rows and columns that are read cross is more than both axes have by themselves.

    Args:
        pixels: Shape [height, planes, width].
        pairs: For each rendering the key of its width and the key of its height.
        cells: Cells per axis, at least 2 and at most the image's shorter side.

    Returns:
        Means of the image, shape [cells (down), planes, cells (across)]; differences, shape [pairs, cells (down),
        planes, cells (across)]; and the sum of the differences with only the rows, and only the columns, that are read.
    """
    height, count, width = pixels.shape
    across = tuple(dict.fromkeys(pair[0] for pair in pairs))
    down = tuple(dict.fromkeys(pair[1] for pair in pairs))
    rows = _row_means(pixels.reshape(height, count * width), down, cells)
    rows = rows.reshape(len(down) + 1, cells * count, width)
    columns = column_windows(width, across, cells)
    column_of, row_of = ({key: index for index, key in enumerate(keys, 1)} for keys in (across, down))
    found = np.empty((len(pairs), cells * count, cells), dtype=np.float32)
    for index, (column, row) in enumerate(pairs):
        np.matmul(rows[row_of[row]], columns[column_of[column]], out=found[index])
    base = rows[0] @ columns[0]
    found -= base
    by_rows, by_columns = rows @ columns[0] - base, rows[0] @ columns - base
    apart = np.stack([by_rows[row_of[row]] + by_columns[column_of[column]] for column, row in pairs])
    shape = (len(pairs), cells, count, cells)
    return base.reshape(cells, count, cells), found.reshape(shape), apart.reshape(shape)


def _row_means(lines: Floats, keys: tuple[AxisKey, ...], cells: int) -> Floats:
    """Means over each window of rows, shape [1 + keys, cells, columns]; the first with all rows alike.

    A row lies in two windows only, so rows are taken in segments between the windows' centres: one small product each.
    """
    height, columns = lines.shape
    first, windows = row_windows(height, keys, cells)
    means = np.zeros((len(keys) + 1, cells, columns), dtype=np.float32)
    for segment, (start, stop) in enumerate(pairwise(first)):
        if start == stop:
            continue
        part = (windows[:, :, start:stop].reshape(-1, stop - start) @ lines[start:stop]).reshape(2, -1, columns)
        means[:, max(segment - 1, 0)] += part[0]
        means[:, min(segment, cells - 1)] += part[1]
    return means


@lru_cache(maxsize=32)
def row_windows(length: int, keys: tuple[AxisKey, ...], cells: int) -> tuple[tuple[int, ...], Floats]:
    """Where the segments between window centres start, and the weight of each row in the two windows around it.

    Returns:
        ``cells`` + 2 starts (the last is ``length``), and weights of shape [2, 1 + keys, length]; the weights of each
        window sum to 1.
    """
    before, shape = _windows(length, cells)
    starts = (*np.searchsorted(before, np.arange(-1, cells)).tolist(), length)
    counts = combs(length, keys)
    sums = counts @ shape
    steps = np.arange(length)
    ends = np.clip([before, before + 1], 0, cells - 1)
    weights = np.stack([counts * shape[steps, cell] / sums[:, cell] for cell in ends])
    # Beyond the outermost centres there is one window; both parts go to it, so each takes half.
    weights[:, :, ends[0] == ends[1]] /= 2
    return starts, weights


@lru_cache(maxsize=32)
def column_windows(length: int, keys: tuple[AxisKey, ...], cells: int) -> Floats:
    """The weight of each column in each window, shape [1 + keys, length, cells]; over columns they sum to 1."""
    _, shape = _windows(length, cells)
    counts = combs(length, keys)
    weights = counts[:, :, None] * shape
    weights /= (counts @ shape)[:, None]
    return weights


def combs(length: int, keys: tuple[AxisKey, ...]) -> Floats:
    """How much each pixel of an axis counts in each resize, shape [1 + keys, length]; 1 on average, the first all 1."""
    found = np.ones((len(keys) + 1, length), dtype=np.float32)
    for index, (sampler, target) in enumerate(keys, 1):
        pixels, weights = taps(sampler, length, target)
        found[index] = np.bincount(pixels.ravel(), weights.ravel(), minlength=length) * (length / target)
    return found


def _windows(length: int, cells: int) -> tuple[NDArray[np.intp], Floats]:
    """For each pixel the last window whose centre it has passed (-1 before the first), and its share of each window."""
    places = (np.arange(length) + 0.5) / length * cells - 0.5
    before = np.floor(places).astype(np.intp)
    fade = np.sin((places - before) * (np.pi / 2)) ** 2
    shape = np.zeros((length, cells), dtype=np.float32)
    steps = np.arange(length)
    np.add.at(shape, (steps, np.clip(before, 0, cells - 1)), 1 - fade)
    np.add.at(shape, (steps, np.clip(before + 1, 0, cells - 1)), fade)
    return before, shape
