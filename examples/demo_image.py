"""What a stand-in for a model says of an image: the one thing that a guard in front of it changes."""

from __future__ import annotations

import io

from PIL import Image


def described(data: bytes) -> str:
    """Size of an image, and how much of it is masked."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    black = sum(pixel == (0, 0, 0) for pixel in image.get_flattened_data()) / (image.width * image.height)
    return f"{image.width} x {image.height}" + (f", {black:.0%} of it black" if black > 0.05 else "")
