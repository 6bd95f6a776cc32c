"""Images in chats: written as content blocks, read back, and looked for where they must not be.

Plain data only, for any framework. Reading back goes through the package's own dialects, so it does not matter in which
one a guard answers; looking for leaks does not, so that a blind spot of theirs cannot hide one.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from PIL import Image

from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.content.walk import find
from guardalign_guardrails.images import ImageLimits, decode, encode_png
from guardalign_guardrails.testing.colours import CELL, SIDE, painted

QUESTION: Final = "What is this?"
CANARY_URL: Final = "https://example.org/guardalign-canary.png"
"""An image that cannot be looked at; like pixels, it must not be told to anyone."""

_NOISE: Final = 7
_WINDOW: Final = 32
# Heads of whatever else holds an image as text: a mask drawn anew has other bytes than the canary.
_HEADS: Final = {
    "a data URL": "data:image/",
    "a PNG as base64": "iVBORw0KGgo",
    "a PNG as bytes": repr(b"\x89PNG")[2:-1],
}


def text_block(words: str = QUESTION) -> dict[str, Any]:
    """Words as a content block."""
    return {"type": "text", "text": words}


def image_block(image: Image.Image, **extra: Any) -> dict[str, Any]:
    """An image as a LangChain v1 block."""
    return {"type": "image", "base64": to_base64(encode_png(image)), "mime_type": "image/png", **extra}


def image_url_block(image: Image.Image, **extra: Any) -> dict[str, Any]:
    """An image as an OpenAI chat completions block."""
    return {"type": "image_url", "image_url": {"url": to_data_url(encode_png(image), "image/png")}, **extra}


def url_block(url: str = CANARY_URL) -> dict[str, Any]:
    """An image that is elsewhere, as an OpenAI chat completions block."""
    return {"type": "image_url", "image_url": {"url": url}}


def ask(*images: Image.Image, words: str = QUESTION, role: str = "user") -> dict[str, Any]:
    """A message with words and images, as OpenAI and LangChain read it."""
    return {"role": role, "content": [text_block(words), *map(image_block, images)]}


def canary(*colours: str, number: int = 0) -> Image.Image:
    """`painted`, with faint noise that the colour encoder does not see: no two numbers share a stretch of bytes.

    Args:
        colours: One square of each, down the diagonal.
        number: Which one; `number_of` reads it off, masked or not.
    """
    pixels = np.asarray(painted(*colours), dtype=np.int16)
    noise = np.random.default_rng(number).integers(0, _NOISE + 1, pixels.shape)
    return _numbered(Image.fromarray(np.clip(pixels - noise, 0, 255).astype(np.uint8)), number)


def number_of(image: Image.Image) -> int:
    """The number of a `canary`."""
    blue = image.getpixel((SIDE - 1, 0))
    return 255 - blue[2] if isinstance(blue, tuple) else -1


def shows(image: Image.Image, colour: str) -> bool:
    """Whether a colour of `colours.COLOURS` can be seen in a canary that may have been masked."""
    wanted = np.asarray(painted(colour).getpixel((0, 0)), dtype=np.int16)
    return bool((np.abs(np.asarray(image.convert("RGB"), dtype=np.int16) - wanted).max(-1) <= _NOISE).any())


def without_first_square(image: Image.Image) -> bytes:
    """The pixels of a canary outside the square of its first colour, which is what a mask covers."""
    rest = image.convert("RGB")
    rest.paste((0, 0, 0), (0, 0, CELL, CELL))
    return rest.tobytes()


def images_in(content: Any) -> list[Image.Image]:
    """The images that a message's content holds, in reading order, as RGB; what cannot be opened is left out."""
    read = (slot.reading.read(ImageLimits().max_bytes) for slot in find(content))
    return [decode(data).flattened for data in read if isinstance(data, bytes | Image.Image)]


def words_in(content: Any) -> str:
    """All text of a message's content."""
    if isinstance(content, str):
        return content
    blocks = [content] if isinstance(content, dict) else content
    texts = (block if isinstance(block, str) else block.get("text") for block in blocks)
    return "\n".join(text for text in texts if isinstance(text, str))


def leaks(said: str, *images: Image.Image) -> list[str]:
    """In what forms any image shows in something that must not hold one; empty if none does.

    Args:
        said: A log, an exception's text, a ``repr`` of an event or a trace.
        images: The images that were given, canaries at best.
    """
    return sorted({*(form for form, head in _HEADS.items() if head in said), *leaks_of(said, *images)})


def leaks_of(said: str, *images: Image.Image) -> list[str]:
    """In what forms these very images, or `CANARY_URL`, show in something that may hold others; see `leaks`."""
    found = {
        f"image {place} as {form}"
        for place, image in enumerate(images)
        for form, piece in _pieces(image)
        if piece in said
    }
    return sorted(found | ({"the URL of an image"} if CANARY_URL in said else set()))


def _pieces(image: Image.Image) -> Iterator[tuple[str, str]]:
    """Stretches of an image in each form it may leak in."""
    for data in (encode_png(image), image.convert("RGB").tobytes()):
        for share in (4, 2):
            start = len(data) // share
            piece = data[start : start + _WINDOW]
            yield "bytes", repr(piece)[2:-1]
            yield "hex", piece.hex()
            start -= start % 3
            yield "base64", base64.b64encode(data[start : start + _WINDOW]).decode().rstrip("=")[:-1]


def _numbered(image: Image.Image, number: int) -> Image.Image:
    if not 0 <= number <= 100:
        raise ValueError("a canary's number is at most 100: more would be another colour")
    image.putpixel((SIDE - 1, 0), (255, 255, 255 - number))
    return image
