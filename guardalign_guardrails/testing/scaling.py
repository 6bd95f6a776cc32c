"""Scaling attacks, for tests and benchmarks: images that show one thing at full size and another once resized.

Least squares over the sampler's matrices, clipped to 8 bits (Quiring et al. 2020). Nothing of the guard uses this.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guardalign_guardrails.images.consumers import Sampler, matrix

_ROUNDS = 6


def scaling_attack(
    cover: Image.Image, payload: Image.Image, sampler: Sampler, *, strength: float = 1.0, rounds: int = _ROUNDS
) -> Image.Image:
    """An image near ``cover`` that a sampler turns into ``payload``.

    Args:
        cover: What a person sees, RGB.
        payload: What the consumer sees; its size is the size that the consumer makes.
        sampler: The consumer's sampler; a sparse one.
        strength: 1 asks for the payload, 0 for the consumer's own rendering of the cover, between them for a mix.
        rounds: Corrections, each followed by clipping; one round leaves more of the cover.

    Returns:
        An RGB image of the cover's size.
    """
    pixels = np.asarray(cover.convert("RGB"), dtype=np.float64)
    height, width = pixels.shape[:2]
    down, across = matrix(sampler, height, payload.height), matrix(sampler, width, payload.width)
    up, back = _inverse(sampler, height, payload.height), _inverse(sampler, width, payload.width)
    seen = np.einsum("hy,yxc,wx->hwc", down, pixels, across, optimize=True)
    wanted = seen + strength * (np.asarray(payload.convert("RGB"), dtype=np.float64) - seen)
    for _ in range(rounds):
        missing = wanted - np.einsum("hy,yxc,wx->hwc", down, pixels, across, optimize=True)
        pixels = np.clip(pixels + np.einsum("yh,hwc,xw->yxc", up, missing, back, optimize=True), 0, 255)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


@lru_cache(maxsize=16)
def _inverse(sampler: Sampler, source: int, target: int) -> NDArray[np.float64]:
    """The smallest change of a line that changes the samples as wanted, shape [source, target]."""
    sampled = matrix(sampler, source, target).astype(np.float64)
    damping = 1e-6 * np.eye(target)
    return sampled.T @ np.linalg.inv(sampled @ sampled.T + damping)
