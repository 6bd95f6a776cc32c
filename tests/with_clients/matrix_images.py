"""The images that the matrices send, and how to know them again."""

from __future__ import annotations

import io

from PIL import Image

from guardalign_guardrails.testing.colours import CELL, COLOURS, painted


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def pixels(data: bytes) -> bytes:
    """The pixels of an encoded image."""
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


# What is masked or blocked is a JPEG, so that a guard's PNG in its place must change what states its type.
SAFE = encoded(painted("white", "magenta"), "PNG")
MASK = encoded(painted("red", "magenta"), "JPEG")
BLOCK = encoded(painted("blue", "magenta"), "JPEG")
NEIGHBOUR = encoded(painted("black", "magenta"), "PNG")
"""A harmless image beside another one."""

FORBIDDEN = {"mask": COLOURS["red"], "block": COLOURS["blue"]}

_LIKE_A_COLOUR = 60


def shows(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    """Whether a colour, or one like it, is in an image."""
    return any(
        all(abs(one - other) < _LIKE_A_COLOUR for one, other in zip(pixel, colour, strict=True))
        for _, pixel in image.convert("RGB").getcolors(image.width * image.height)
    )


def is_masked(image: Image.Image) -> bool:
    """Whether an image is `MASK` without its red square and with everything beside it."""
    with Image.open(io.BytesIO(MASK)) as original:
        beside = (CELL, 0, *original.size)
        below = (0, CELL, CELL, original.height)
        same = all(
            image.size == original.size and image.crop(box).tobytes() == original.convert("RGB").crop(box).tobytes()
            for box in (beside, below)
        )
    return same and not shows(image, FORBIDDEN["mask"])
