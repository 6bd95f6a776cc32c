"""How programs shrink images, as small matrices: which pixels of a line are read, and with which weights.

A resize works on columns and rows one after the other, so one matrix per axis describes it. Samplers that read a fixed
number of pixels whatever the ratio are *sparse*: most pixels of a large image do not count, and who knows which ones
do can hide an image in them. The others average, as a resize should.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Sampler = Literal[
    "pillow-bilinear",
    "pillow-bicubic",
    "pillow-lanczos",
    "opencv-area",
    "nearest-floor",
    "nearest-center",
    "opencv-linear",
    "opencv-cubic",
    "opencv-lanczos4",
    "align-corners",
    "llama.cpp-bilinear",
    "llama.cpp-bicubic",
]
Floats: TypeAlias = NDArray[np.float32]
Taps: TypeAlias = tuple[NDArray[np.intp], Floats]

SAMPLERS: Final[tuple[Sampler, ...]] = get_args(Sampler)
AVERAGING: Final[frozenset[Sampler]] = frozenset(("pillow-bilinear", "pillow-bicubic", "pillow-lanczos", "opencv-area"))
"""Samplers that read every pixel when they shrink."""

_PILLOW: Final = {
    "pillow-bilinear": Image.Resampling.BILINEAR,
    "pillow-bicubic": Image.Resampling.BICUBIC,
    "pillow-lanczos": Image.Resampling.LANCZOS,
}


def taps(sampler: Sampler, source: int, target: int) -> Taps:
    """Pixels that a sparse sampler reads of one line, and their weights.

    Args:
        sampler: One that is not in `AVERAGING`.
        source: Length of the line, at least 1.
        target: Length after the resize, at least 1.

    Returns:
        Indices in 0 .. ``source`` - 1 and weights, both of shape [target, taps]; each row of weights sums to 1.
    """
    positions, kernel, offsets = _positions(sampler, source, target), _KERNELS[sampler], _OFFSETS[sampler]
    base = np.floor(positions)
    weights = np.stack([kernel(positions - base, offset) for offset in offsets], axis=1)
    weights /= weights.sum(axis=1, keepdims=True)
    indices = base[:, None].astype(np.intp) + np.asarray(offsets, dtype=np.intp)
    return np.clip(indices, 0, source - 1), weights.astype(np.float32)


@lru_cache(maxsize=64)
def matrix(sampler: Sampler, source: int, target: int) -> Floats:
    """The matrix of a sparse sampler or of ``opencv-area`` for one axis, shape [target, source]; not to be changed."""
    if sampler == "opencv-area":
        dense = _overlaps(source, target)
    else:
        indices, weights = taps(sampler, source, target)
        dense = np.zeros((target, source), dtype=np.float32)
        np.add.at(dense, (np.arange(target)[:, None], indices), weights)
    dense.setflags(write=False)
    return dense


def resize(image: Image.Image, size: tuple[int, int], sampler: Sampler) -> Image.Image:
    """Resize an image as a program with this sampler does.

    Args:
        image: RGB image.
        size: (width, height) of the result.
        sampler: Which program's arithmetic.

    Returns:
        An RGB image; within two levels of the program's own result. ``image`` itself if the size is the same.
    """
    if image.size == size:
        return image
    if sampler in _PILLOW:
        return image.resize(size, _PILLOW[sampler])
    pixels = np.asarray(image, dtype=np.float32)
    width, height = size
    if sampler == "opencv-area" and (width > image.width or height > image.height):
        sampler = "opencv-linear"  # there is nothing to average
    if sampler == "opencv-area":
        rows = np.tensordot(matrix(sampler, image.height, height), pixels, axes=(1, 0))
        values = np.einsum("wx,hxc->hwc", matrix(sampler, image.width, width), rows, optimize=True)
    else:
        values = _gather(_gather(pixels, taps(sampler, image.height, height), 0), taps(sampler, image.width, width), 1)
    # llama.cpp's bilinear cuts fractions off; a hair more, since weights that should sum to 1 may sum to 1 - 1e-7
    rounded = np.floor(values + 1e-3) if sampler == "llama.cpp-bilinear" else np.rint(values)
    return Image.fromarray(np.clip(rounded, 0, 255).astype(np.uint8))


def _gather(pixels: Floats, found: Taps, axis: Literal[0, 1]) -> Floats:
    indices, weights = found
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    total = np.zeros((), dtype=np.float32)
    for tap in range(indices.shape[1]):
        total = total + pixels.take(indices[:, tap], axis=axis) * weights[:, tap].reshape(shape)
    return total


def _positions(sampler: Sampler, source: int, target: int) -> NDArray[np.float64]:
    """Where on the line each sample lies, in pixels; whole numbers are the centres of pixels."""
    steps = np.arange(target, dtype=np.float64)
    ratio = source / target
    match sampler:
        case "nearest-floor":
            found = np.floor(steps * ratio)
        case "nearest-center":
            found = np.floor(np.cumsum(np.where(steps, ratio, ratio / 2)))  # summed up as Pillow does: it decides ties
        case "opencv-linear":
            found = (steps + 0.5) * ratio - 0.5
            return np.clip(found, 0, source - 1)
        case "opencv-cubic" | "opencv-lanczos4":
            return (steps + 0.5) * ratio - 0.5
        case "align-corners":
            found = steps * (source - 1) / max(target - 1, 1)
        case "llama.cpp-bilinear":
            found = steps * (source - 1) / target
        case "llama.cpp-bicubic":
            found = steps * ratio
        case _:
            raise ValueError(f"{sampler} averages: it has no fixed number of pixels.")
    return np.minimum(found, source - 1)


def _nearest(fraction: NDArray[np.float64], offset: int) -> NDArray[np.float64]:
    return np.ones_like(fraction)


def _linear(fraction: NDArray[np.float64], offset: int) -> NDArray[np.float64]:
    return fraction if offset else 1 - fraction


def _cubic(fraction: NDArray[np.float64], offset: int) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.75, OpenCV's and PyTorch's."""
    a, x = -0.75, np.abs(fraction - offset)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _lagrange(fraction: NDArray[np.float64], offset: int) -> NDArray[np.float64]:
    """The cubic through four pixels, llama.cpp's."""
    others = [other for other in (-1, 0, 1, 2) if other != offset]
    weights = np.ones_like(fraction)
    for other in others:
        weights *= (fraction - other) / (offset - other)
    return weights


def _lanczos4(fraction: NDArray[np.float64], offset: int) -> NDArray[np.float64]:
    x = fraction - offset
    return np.sinc(x) * np.sinc(x / 4)


_Kernel: TypeAlias = Callable[[NDArray[np.float64], int], NDArray[np.float64]]
_KERNELS: Final[dict[str, _Kernel]] = {
    "nearest-floor": _nearest,
    "nearest-center": _nearest,
    "opencv-linear": _linear,
    "align-corners": _linear,
    "llama.cpp-bilinear": _linear,
    "opencv-cubic": _cubic,
    "llama.cpp-bicubic": _lagrange,
    "opencv-lanczos4": _lanczos4,
}
_OFFSETS: Final[dict[str, range]] = {
    "nearest-floor": range(1),
    "nearest-center": range(1),
    "opencv-linear": range(2),
    "align-corners": range(2),
    "llama.cpp-bilinear": range(2),
    "opencv-cubic": range(-1, 3),
    "llama.cpp-bicubic": range(-1, 3),
    "opencv-lanczos4": range(-3, 5),
}


def _overlaps(source: int, target: int) -> Floats:
    """Share of each target pixel that each source pixel covers, shape [target, source]."""
    edges = np.linspace(0, source, target + 1)
    pixels = np.arange(source)
    low = np.maximum(edges[:-1, None], pixels[None, :])
    high = np.minimum(edges[1:, None], pixels[None, :] + 1)
    shares: Floats = np.clip(high - low, 0, None).astype(np.float32)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares
