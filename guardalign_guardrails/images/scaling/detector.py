"""Scaling detector: does any consumer's resize show another image than the average? No encoder is needed.

For each sampler and size of the consumers, cell means of what it would show are compared with cell means of the image.
They differ by a level or two in photos and documents, by dozens where something is hidden. The same is done with the
*detail* of the image (how far pixels depart from their surroundings): hidden lines, such as text, may not change any
mean, but then the pixels that are read depart more than the others, as in no ordinary image.

A regular pattern as fine as the samples (a checkerboard, a dither, a fabric) differs too, and rightly: consumers do see
something else there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageFilter

from guardalign_guardrails.images.consumers import Consumer, Sampler
from guardalign_guardrails.images.scaling.combs import Floats, cell_means, detail, planes

MIN_SHRINK: Final = 1.5
"""Renderings with at least this share of the image's pixels read most of them and hide nothing."""

MEAN_LIMIT: Final = 6.0
TOP_LIMIT: Final = 20.0
"""Levels (0-255) that are suspicious: on average over all cells, and over the few cells that differ most."""

DETAIL_LIMITS: Final = (6.0, 18.0)
"""Levels of detail that only the pixels that are read have, over the few cells with most of it: in smooth and in busy
cells."""

LINES: Final = {16: 1.75, 24: 2.5}
"""By cells per axis, how many times as much detail the rows or columns that are read may have by themselves: a page of
text has that by chance, and the more cells, the more often."""

CROSSING: Final = 1 / 3
"""The share of that which counts where rows and columns cross that are read: nothing ordinary has detail there only."""

_SURROUNDINGS: Final = 4  # pixels to each side: wider than half the distance of samples up to a ratio of 8
_FLAT: Final = 30.0  # squared levels: detail below this is noise, and its ratios mean nothing
_BUSY: Final = 25.0  # levels of detail
_ORDINARY: Final = 0.5  # the pixels that are read may have this share more detail than all, by chance

_SAMPLES: Final = 196  # pixels read of a cell for which the limits hold; with fewer they rise as chance does

_TOP_SHARE: Final = 0.02
_FEWEST_TOP: Final = 4
_SMALL: Final = 640
_CELLS: Final = (16, 24)


@dataclass(frozen=True)
class ScaledPair:
    """One sampler and size whose rendering differs.

    Attributes:
        sampler: The sampler.
        size: (width, height) that it makes.
        score: How much it differs; 1 is the limit.
    """

    sampler: Sampler
    size: tuple[int, int]
    score: float


@dataclass(frozen=True)
class ScalingFinding:
    """What the detector found in one image.

    Attributes:
        score: How much the worst rendering differs; from 1 on the image is suspicious.
        pairs: The samplers and sizes that reach 1, the worst first.
    """

    score: float
    pairs: tuple[ScaledPair, ...] = ()

    @property
    def is_suspicious(self) -> bool:
        """Whether a consumer may see another image than the one that was scored."""
        return self.score >= 1


def find_scaling(image: Image.Image, consumers: Sequence[Consumer]) -> ScalingFinding:
    """Look for anything that a consumer's resize would show and the image does not.

    Args:
        image: RGB image as it would be delivered.
        consumers: Whose samplers and sizes to look at; those that average are harmless and left out.

    Returns:
        The finding; score 0 if no consumer shrinks the image without averaging.
    """
    cells = _CELLS[max(image.size) >= _SMALL]
    made = _sparse_renderings(image.size, consumers, cells)
    if not made:
        return ScalingFinding(0.0)
    keys = [((sampler, size[0]), (sampler, size[1])) for sampler, size in made]
    pixels = planes(image)
    surroundings = planes(image.filter(ImageFilter.BoxBlur(_SURROUNDINGS)))
    means, differences, apart = cell_means(np.concatenate([pixels, detail(pixels, surroundings)], axis=1), keys, cells)
    levels = np.abs(differences[:, :, :3]).mean(axis=2).reshape(len(made), -1)
    more = differences[:, :, 3]
    hidden = _top(_hidden_detail(means[:, 3], more).reshape(len(made), -1))
    crossing = _top(_hidden_detail(means[:, 3], more - apart[:, :, 3]).reshape(len(made), -1))
    # What is read of a cell is a sample, and of few pixels a coarse one.
    read = np.array([width * height for _, (width, height) in made]) / cells**2
    chance = np.sqrt(np.maximum(_SAMPLES / read, 1))
    few = np.maximum.reduce([_top(levels) / TOP_LIMIT, hidden / LINES[cells], crossing / CROSSING]) / chance
    scores = np.maximum(levels.mean(1) / MEAN_LIMIT, few)
    order = np.argsort(-scores, kind="stable")
    pairs = tuple(
        ScaledPair(made[index][0], made[index][1], float(scores[index])) for index in order if scores[index] >= 1
    )
    return ScalingFinding(float(scores.max()), pairs)


def _hidden_detail(usual: Floats, more: Floats) -> Floats:
    """Detail that only the pixels that are read have, as a share of its limit; none where chance gives as much.

    Args:
        usual: Mean detail of all pixels of a cell, in squared levels, shape [cells, cells].
        more: What the pixels that are read have more, shape [pairs, cells, cells].
    """
    extra = np.maximum(more, 0)
    smooth, busy = DETAIL_LIMITS
    limit = smooth + (busy - smooth) * np.clip(np.sqrt(usual) / _BUSY, 0, 1)
    hidden: Floats = np.sqrt(extra) / limit * np.clip(extra / (usual + _FLAT) - _ORDINARY, 0, 1)
    return hidden


def _top(values: Floats) -> Floats:
    """Mean of the few largest values of each row."""
    few = max(_FEWEST_TOP, round(values.shape[1] * _TOP_SHARE))
    largest: Floats = np.partition(values, -few, axis=1)[:, -few:].mean(axis=1)
    return largest


def _sparse_renderings(
    size: tuple[int, int], consumers: Sequence[Consumer], cells: int
) -> list[tuple[Sampler, tuple[int, int]]]:
    """Samplers and sizes to look at, each once: sparse, smaller than the image, and not too small for the cells."""
    if min(size) < cells:
        return []
    pixels = size[0] * size[1]
    found = (
        (consumer.sampler, made)
        for consumer in consumers
        if not consumer.averages
        for made in consumer.sizes(size)
        if made[0] * made[1] * MIN_SHRINK <= pixels and min(made) >= cells
    )
    return list(dict.fromkeys(found))
