"""What to do about a suspicious image: renderings to score as well, and pixels that hide nothing from a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageFilter

from guardalign_guardrails.images.consumers import Consumer, resize
from guardalign_guardrails.images.scaling.detector import ScalingFinding, find_scaling

QUIET: Final = 0.5
"""Share of the detector's limits that a low-passed image stays below: what is just not suspicious may still be read."""

_MEDIANS: Final = (3, 5)

_FIRST_RADIUS: Final = 0.5
_GROWTH: Final = 1.4
_STEPS: Final = 10
_MOST_RENDERINGS: Final = 3
_MOST_TRIED: Final = 12
_ALIKE: Final = 8.0
_THUMBNAIL: Final = (32, 32)


def quiet(image: Image.Image, consumers: Sequence[Consumer]) -> Image.Image:
    """An image from which no consumer's resize brings back anything else than what a person sees.

    The pixels that a sampler reads are few among their neighbours, so a median drops what they hide and keeps edges; an
    average would keep a share of it. Where they are not few, a Gaussian low-pass grows until the detector is silent.
    Should that not help either, the image shrinks with an average until no consumer shrinks it any more, so this always
    ends.

    Args:
        image: RGB image as it would be delivered.
        consumers: Whose samplers and sizes to be safe from.

    Returns:
        ``image`` itself if it is quiet already; else a new RGB image, of the same size unless it had to shrink. The
        same image and consumers give the same result.
    """
    if _is_quiet(image, consumers):
        return image
    cleaned = softened = image
    for width in _MEDIANS:
        cleaned = image.filter(ImageFilter.MedianFilter(width))
        if _is_quiet(cleaned, consumers):
            return cleaned
    for step in range(_STEPS):
        softened = cleaned.filter(ImageFilter.GaussianBlur(_FIRST_RADIUS * _GROWTH**step))
        if _is_quiet(softened, consumers):
            return softened
    shrunk = softened
    while not _is_quiet(shrunk, consumers):
        shrunk = shrunk.reduce(2)
    return shrunk


def renderings(image: Image.Image, finding: ScalingFinding) -> tuple[Image.Image, ...]:
    """What consumers would see of a suspicious image: the worst renderings that differ from each other.

    Args:
        image: The RGB image in which ``finding`` was found.
        finding: What the detector found.

    Returns:
        Up to three RGB images, the worst first; none if nothing is suspicious.
    """
    chosen: list[Image.Image] = []
    seen: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = []
    for pair in finding.pairs[:_MOST_TRIED]:
        rendering = resize(image, pair.size, pair.sampler)
        thumbnail = np.asarray(rendering.resize(_THUMBNAIL, Image.Resampling.BOX), dtype=np.float32)
        if all(float(np.abs(thumbnail - other).mean()) > _ALIKE for other in seen):
            chosen.append(rendering)
            seen.append(thumbnail)
        if len(chosen) == _MOST_RENDERINGS:
            break
    return tuple(chosen)


def _is_quiet(image: Image.Image, consumers: Sequence[Consumer]) -> bool:
    return find_scaling(image, consumers).score < QUIET
