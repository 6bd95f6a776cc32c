"""From crops of images to the tensor a vision tower takes.

Every encoder shares this step so that one crop looks the same to all of them. A crop is squashed to the input whatever
its shape: the usual resize and centre crop would leave a strip at the border unchecked, and a guardrail must
not have one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from guardalign_guardrails.detection.encoders.base import Box, Crop

T = TypeVar("T")
Channels = tuple[float, float, float]
"""One number per colour: red, green, blue."""


def batched(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """Cut ``items`` into lists of ``size``, the last one shorter (`itertools.batched` needs Python 3.12)."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def clip_box(box: Box, width: int, height: int) -> Box:
    """Move a box into an image and make it at least one pixel wide and high.

    Args:
        box: Left, top, right, bottom in pixels, possibly outside the image, empty or fractional.
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Returns:
        A box Pillow accepts, inside the image.
    """
    left = min(max(box[0], 0.0), width - 1.0)
    top = min(max(box[1], 0.0), height - 1.0)
    right = min(max(box[2], left + 1.0), float(width))
    bottom = min(max(box[3], top + 1.0), float(height))
    return left, top, right, bottom


def crop_batch(crops: Sequence[Crop], size: tuple[int, int], mean: Channels, std: Channels) -> Tensor:
    """Squash crops to one size and normalise their colours.

    Args:
        crops: Rectangles of RGB images; boxes are clipped into their image.
        size: Height and width of the result in pixels.
        mean: Colour mean, for values in [0, 1].
        std: Colour standard deviation, for values in [0, 1].

    Returns:
        Shape [len(crops), 3, height, width], float32, on the CPU.
    """
    height, width = size
    stack = np.empty((len(crops), height, width, 3), dtype=np.uint8)
    for row, (image, box) in zip(stack, crops, strict=True):
        # Pillow resizes a palette image by picking single pixels, without a warning.
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        area = clip_box(box, rgb.width, rgb.height)
        row[:] = np.asarray(rgb.resize((width, height), Image.Resampling.BICUBIC, box=area, reducing_gap=3.0))
    pixels = torch.from_numpy(stack).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    offset = torch.tensor(mean).mul_(255).view(3, 1, 1)
    scale = torch.tensor(std).mul_(255).view(3, 1, 1)
    return pixels.sub_(offset).div_(scale)
