"""How one image block is read and written back, for each way of writing image blocks.

A dialect looks at one block only. To support another, write one function and add it to `DIALECTS`; whatever no dialect
reads and still looks like media is reported as uninspectable by the walker, so a gap here fails closed.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from langchain_guardalign._data_url import Reason, is_data_url, png_data_url, read_base64, read_data_url

Block = Mapping[str, Any]

LOCATORS: Final = frozenset(
    {
        "base64",
        "blob",
        "bytes",
        "data",
        "file",
        "file_data",
        "fileData",
        "file_id",
        "file_uri",
        "fileUri",
        "image",
        "image_path",
        "image_url",
        "inline_data",
        "inlineData",
        "path",
        "s3Location",
        "source",
        "source_type",
        "uri",
        "url",
    }
)
"""Keys by which some provider finds the pixels of an image block."""

_MIME_KEYS: Final = {"mime_type": "image/png", "mimeType": "image/png", "media_type": "image/png"}


@dataclass(frozen=True)
class Reading:
    """What a dialect makes of a block.

    Attributes:
        read: Given the most bytes to accept, the encoded image or why there is none.
        write: Given PNG bytes, the same block with them as its only picture; None if the dialect cannot be written.
    """

    read: Callable[[int], bytes | Reason] = field(repr=False)
    write: Callable[[bytes], dict[str, Any]] | None = field(default=None, repr=False)


Dialect = Callable[[Block], Reading | None]
"""A block to its reading, None if the block is written in another dialect."""


def openai_image_url(block: Block) -> Reading | None:
    """``{"type": "image_url", "image_url": {"url": ..., "detail": ...} | "...", ...}``."""
    inner = block.get("image_url")
    holder: Block = {"url": inner} if isinstance(inner, str) else inner if isinstance(inner, Mapping) else {}
    url = holder.get("url")
    if block.get("type") != "image_url" or not isinstance(url, str):
        return None

    def read(max_bytes: int) -> bytes | Reason:
        if _located(block) != {"image_url"} or _located(holder) != {"url"}:
            return "several_locators"
        return _read_url(url, max_bytes)

    def write(png: bytes) -> dict[str, Any]:
        new = png_data_url(png)
        # LiteLLM reads the media type from "format" rather than from the data URL.
        clean = _only(holder, "url", new) | ({"format": "image/png"} if "format" in holder else {})
        return _only(block, "image_url", new if isinstance(inner, str) else clean)

    return Reading(read, write)


def v1_image(block: Block) -> Reading | None:
    """``{"type": "image", "base64" | "url" | "file_id": ..., "mime_type": ..., ...}``, LangChain's own."""
    located = _located(block)
    extras = block.get("extras")
    if block.get("type") != "image" or not located <= {"base64", "url", "file_id"}:
        return None
    if isinstance(extras, Mapping) and _located(extras):
        return None

    def read(max_bytes: int) -> bytes | Reason:
        if len(located) != 1:
            return "several_locators" if located else "no_locator"
        (key,) = located
        value = block[key]
        if not isinstance(value, str):
            return "malformed"
        if key == "file_id":
            return "file_reference"
        if key == "url" or is_data_url(value):
            return _read_url(value, max_bytes)
        return read_base64(value, max_bytes)

    def write(png: bytes) -> dict[str, Any]:
        if located == {"url"} and isinstance(block["url"], str) and is_data_url(block["url"]):
            return _only(block, "url", png_data_url(png))
        key = "base64" if "base64" in located or not located else next(iter(sorted(located)))
        plain = base64.b64encode(png).decode("ascii")
        written = {("base64" if name == key else name): value for name, value in _only(block, key, plain).items()}
        return {**written, "mime_type": "image/png"}

    return Reading(read, write)


DIALECTS: Final[tuple[Dialect, ...]] = (openai_image_url, v1_image)


def _located(block: Block) -> set[str]:
    return {key for key in LOCATORS.intersection(block) if block[key] is not None}


def _read_url(url: str, max_bytes: int) -> bytes | Reason:
    return read_data_url(url, max_bytes) if is_data_url(url) else "remote_reference"


def _only(block: Block, key: str, value: object) -> dict[str, Any]:
    """The block, in its order, with ``key`` as its only locator; media types, if given, become PNG's."""
    kept = {name: old for name, old in block.items() if name == key or name not in LOCATORS}
    return {**kept, **{name: mime for name, mime in _MIME_KEYS.items() if name in kept}, key: value}
