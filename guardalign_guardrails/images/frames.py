"""Which frames of an animation, or pages of a file, are looked at.

The sender knows the file, so a rule without a secret can be stepped around. Half of the answer is to look where frames
differ most, the other half to look where nobody can foresee.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guardalign_guardrails.images.limits import ImageLimits
from guardalign_guardrails.images.pixels import to_eight_bits
from guardalign_guardrails.images.views import SCORED_PIXELS, own_reading

_SIDE: Final = 16
# As much as a view of an encoder's size: a tiny animation earns no more views than a transparent still.
_PIXELS_PER_VIEW: Final = 65_536
_FEWEST: Final = 2
# Thumbnails compared at once.
_ROWS: Final = 1024
# Pixels held in views at once, as a multiple of max_pixels; the floor lets small limits still hold some.
_HELD_FACTOR: Final = 3
_HELD_FLOOR: Final = 48_000_000


def frame_budget(count: int, pixels: int, limits: ImageLimits) -> int:
    """How many of ``count`` frames of ``pixels`` each are looked at.

    min(max_frames, count, max(2, count * pixels / 65,536)), and no more than can be held.
    """
    fitting = max(_HELD_FACTOR * limits.max_pixels, _HELD_FLOOR) // min(pixels, SCORED_PIXELS)
    return max(1, min(limits.max_frames, count, max(_FEWEST, count * pixels // _PIXELS_PER_VIEW), fitting))


def view_budget(wanted: int) -> int:
    """Most views of an animation of which ``wanted`` frames are looked at."""
    return max(_FEWEST, wanted)


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """A loaded frame over white, averaged to 16 x 16 pixels: shape [768], values 0-255."""
    if image.mode not in ("RGB", "RGBA"):
        image = to_eight_bits(image)[0]
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(own_reading(small)[1]).reshape(-1)


def shuffled(count: int, key: bytes) -> list[int]:
    """The indices 1 to ``count`` - 1 in an order that only the holder of the key can foresee."""
    return sorted(range(1, count), key=lambda index: hmac.digest(key, index.to_bytes(8, "big"), "sha256"))


def choose(thumbnails: Mapping[int, NDArray[np.uint8]], order: list[int], wanted: int) -> list[int]:
    """Choose frames: the first, then those that differ most from the chosen ones, then some at random.

    Args:
        thumbnails: By index, of the first frame and as many others as could be drawn.
        order: All other indices, shuffled with a secret.
        wanted: How many to choose, at least 1.

    Returns:
        Indices, ascending.
    """
    chosen = [0]
    # A few decoys use up the places for frames that differ, so nearly half of the places are chance's.
    at_random = (wanted - 1) // 2
    known = [index for index in order if index in thumbnails]
    if known:
        drawn = np.stack([thumbnails[index] for index in known])
        distance = _distance(drawn, thumbnails[0])
        while len(chosen) < wanted - at_random and distance.max() > 0:
            place = int(distance.argmax())
            chosen.append(known[place])
            distance = np.minimum(distance, _distance(drawn, drawn[place]))
    rest = [index for index in order if index not in set(chosen)]
    return sorted([*chosen, *rest[: wanted - len(chosen)]])


def _distance(frames: NDArray[np.uint8], one: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Sum of squared differences, shape [N], of frames of shape [N, 768] from one of shape [768]."""
    distance = np.empty(len(frames), np.float32)
    for start in range(0, len(frames), _ROWS):
        off = frames[start : start + _ROWS].astype(np.float32) - one
        distance[start : start + _ROWS] = (off * off).sum(-1)
    return distance
