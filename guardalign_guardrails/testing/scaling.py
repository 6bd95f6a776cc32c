"""Scaling attacks, for tests and benchmarks: images that show one thing at full size and another once resized.

Least squares over the sampler's matrices, clipped to 8 bits (Quiring et al. 2020). Nothing of the guard uses this.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_array

from guardalign_guardrails.images.consumers import Sampler, taps

_ROUNDS = 6
_DAMPING = 1e-4

_Floats = NDArray[np.float32]


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
    pixels = np.asarray(cover.convert("RGB"), dtype=np.float32)
    down, across = (sampler, cover.height, payload.height), (sampler, cover.width, payload.width)
    seen = _sampled(pixels, down, across)
    wanted = seen + strength * (np.asarray(payload.convert("RGB"), dtype=np.float32) - seen)
    for _ in range(rounds):
        change = _spread(wanted - _sampled(pixels, down, across), down, across)
        pixels = np.clip(pixels + change, 0, 255)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


_Axis = tuple[Sampler, int, int]


def _sampled(pixels: _Floats, down: _Axis, across: _Axis) -> _Floats:
    return _columns(_rows(_reader(*down), pixels), _reader(*across))


def _spread(missing: _Floats, down: _Axis, across: _Axis) -> _Floats:
    """The smallest change of the pixels that changes the samples as wanted."""
    solved = _columns(_rows(_inverse(*down), missing), _inverse(*across))
    return _columns(_rows(_reader(*down).T, solved), _reader(*across).T)


def _rows(matrix: csr_array | _Floats, pixels: _Floats) -> _Floats:
    made: _Floats = (matrix @ pixels.reshape(len(pixels), -1)).reshape(-1, *pixels.shape[1:])
    return made


def _columns(pixels: _Floats, matrix: csr_array | _Floats) -> _Floats:
    return np.ascontiguousarray(_rows(matrix, np.ascontiguousarray(pixels.swapaxes(0, 1))).swapaxes(0, 1))


@lru_cache(maxsize=16)
def _reader(sampler: Sampler, source: int, target: int) -> csr_array:
    """The sampler's matrix, shape [target, source]."""
    indices, weights = taps(sampler, source, target)
    rows = np.repeat(np.arange(target), indices.shape[1])
    return csr_array((weights.ravel(), (rows, indices.ravel())), shape=(target, source))


@lru_cache(maxsize=16)
def _inverse(sampler: Sampler, source: int, target: int) -> _Floats:
    """Undoes how much samples share pixels, shape [target, target]."""
    reader = _reader(sampler, source, target)
    shared = (reader @ reader.T).toarray().astype(np.float64)
    return np.linalg.inv(shared + _DAMPING * np.eye(target)).astype(np.float32)
