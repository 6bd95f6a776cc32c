"""What a stand-in for a model says of a picture: the one thing that a guard in front of it changes."""

from __future__ import annotations

import io

from PIL import Image


def described(data: bytes) -> str:
    """Size of a picture, and how much of it is masked."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    black = sum(pixel == (0, 0, 0) for pixel in picture.get_flattened_data()) / (picture.width * picture.height)
    return f"{picture.width} x {picture.height}" + (f", {black:.0%} of it black" if black > 0.05 else "")
