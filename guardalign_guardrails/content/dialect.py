"""A dialect reads and writes the image blocks of one provider; this has the steps that dialects share.

A dialect looks at one block only. Nearly all blocks have the same shape: somewhere in the block is a *holder*, a
mapping in which one of several *locators* says where the image is. The dialects differ in the names.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from PIL import Image

from guardalign_guardrails.content.payload import (
    Payload,
    is_data_url,
    read_bytes,
    read_url,
    to_base64,
    to_data_url,
)

Block: TypeAlias = Mapping[Any, Any]

Path: TypeAlias = tuple[Any, ...]
"""Keys and indices from a message's content to a block."""

Kind = Literal["data", "url", "any", "reference"]
"""The value of a locator: ``data`` for bytes, base64 text or a data URL; ``url``; ``any`` for either of them or a
decoded image; ``reference`` for the name of a file that is elsewhere."""

LOCATORS: Final = frozenset(
    {
        "audio",
        "audio_url",
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
        "file_url",
        "image",
        "image_bytes",
        "image_embeds",
        "image_path",
        "image_pil",
        "image_url",
        "images",
        "inline_data",
        "inlineData",
        "input_audio",
        "input_image",
        "media",
        "path",
        "pixel_values",
        "s3Location",
        "screenshot",
        "source",
        "source_type",
        "uri",
        "url",
        "video",
        "video_url",
    }
)
"""Keys under which some provider looks for an image, or another medium, in a block."""

MIME_KEYS: Final = ("mime_type", "mimeType", "media_type", "mimetype", "image_mimetype")
"""Keys that state the media type of a block's file."""

# Some servers go by the ending of this.
_FILE_NAME: Final = "filename"


@dataclass(frozen=True)
class Reading:
    """A block as its dialect reads and writes it.

    Attributes:
        read: Given the most bytes to accept, the image, where it is, or why there is none.
        write: Given an encoded image and its media type, the same block with it as its only image; None if the
            dialect cannot be written.
        takes_text: Whether text may stand where the block stands; else only an image may.
        withheld: Given a notice, what takes the block's place if it is withheld; None for a text block.
        beside: Keys beside the block, in the mapping around it, that state the image's media type.
    """

    read: Callable[[int], Payload] = field(repr=False)
    write: Callable[[bytes, str], object] | None = field(default=None, repr=False)
    takes_text: bool = True
    withheld: Callable[[str], object] | None = field(default=None, repr=False)
    beside: tuple[Any, ...] = ()


Dialect: TypeAlias = Callable[[Block], Reading | None]
"""Gives a block's reading; None if the block is written in another dialect."""


def located(block: Block) -> set[str]:
    """The locators of a block that are not None."""
    return {key for key in LOCATORS.intersection(block) if block[key] is not None}


def mime_of(block: Block) -> str:
    """The media type a block states, in lower case; empty if it states none."""
    stated = next((block[key] for key in MIME_KEYS if isinstance(block.get(key), str)), "")
    return str(stated).strip().lower()


def read_one(holder: Block, kinds: Mapping[str, Kind], max_bytes: int) -> Payload:
    """Read the only locator of a holder.

    Args:
        holder: The mapping with the locator.
        kinds: The locators that the dialect knows. Any other one, or a second one, leaves open which image a model
            would see.
        max_bytes: Most bytes to accept.
    """
    keys = located(holder)
    if len(keys) != 1 or not keys <= kinds.keys():
        return "several_locators" if keys else "no_locator"
    (key,) = keys
    return read_value(holder[key], kinds[key], max_bytes)


def read_value(value: object, kind: Kind, max_bytes: int) -> Payload:
    """Read a locator's value."""
    if kind == "reference":
        return "file_reference"
    if isinstance(value, Image.Image):
        return value if kind == "any" else "malformed"
    if kind == "data":
        return read_bytes(value, max_bytes)
    if not isinstance(value, str):
        return read_bytes(value, max_bytes) if kind == "any" else "malformed"
    if kind == "any" and not is_data_url(value) and "://" not in value[:64]:
        return read_bytes(value, max_bytes)
    return read_url(value, max_bytes)


def written(old: object, data: bytes, mime: str) -> object:
    """An image in the form of the old value: a PIL image, bytes, a data URL, else base64 text."""
    if isinstance(old, Image.Image):
        image = Image.open(io.BytesIO(data))
        image.load()
        return image
    if isinstance(old, bytes | bytearray | memoryview):
        return data
    if isinstance(old, str) and (is_data_url(old) or "://" in old[:64]):
        return to_data_url(data, mime)
    return to_base64(data)


def replaced(block: Block, value: object, mime: str, *, key: str, over: str | None = None) -> dict[Any, Any]:
    """The block, in its order, with ``value`` at ``key`` as its only locator.

    Media types in it become ``mime``, and the file's name gets the ending that goes with it.

    Args:
        block: Any mapping.
        value: The new locator's value.
        mime: Media type of the new image.
        key: The new locator.
        over: The old locator whose position it takes; None to take that of any locator.
    """
    home = key if key in block else over if over in block else next((name for name in block if name in LOCATORS), key)
    kept = {(key if name == home else name): old for name, old in block.items() if name == home or name not in LOCATORS}
    stated: dict[Any, Any] = {name: mime for name in MIME_KEYS if name in kept}
    if isinstance(kept.get(_FILE_NAME), str):
        stated[_FILE_NAME] = _named(kept[_FILE_NAME], mime)
    return {**kept, **stated, key: value}


def _named(name: str, mime: str) -> str:
    """A file's name with an ending for a media type; itself if it has one."""
    kind = mime.removeprefix("image/")
    endings = (".jpg", ".jpeg") if kind == "jpeg" else (f".{kind}",)
    path = pathlib.PurePosixPath(name)
    return name if path.suffix.lower() in endings else name.removesuffix(path.suffix) + endings[0]
