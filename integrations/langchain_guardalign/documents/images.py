"""Where in a document images are, and documents with other ones in their place.

A LangChain document has no image type: by convention of the app, its text or its metadata is, holds or names one.
This module knows the conventions and nothing of guards or policies.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from langchain_core.documents import Document
from PIL import Image

from guardalign_guardrails.content.dialect import MIME_KEYS, Reading, read_value, written
from guardalign_guardrails.content.payload import Reason, is_data_url
from guardalign_guardrails.content.rewrite import block_at, with_blocks
from guardalign_guardrails.content.screen import Screened
from guardalign_guardrails.content.walk import Path, find_loose
from langchain_guardalign.documents.files import reading_of
from langchain_guardalign.documents.text import find_encoded, is_image

_CONTENT: Final[Path] = ("page_content",)
_METADATA: Final[Path] = ("metadata",)
_MAX_DEPTH: Final = 24
_MAX_CONTAINERS: Final = 100_000


@dataclass(frozen=True)
class Fields:
    """What an app says of its metadata.

    Attributes:
        images: Fields that hold images and nothing else: what is in them and cannot be opened is a finding.
        paths: Fields that hold local paths or URLs, of images or of other files.
        masked_dir: Where masked copies of local files go; None for nowhere.
    """

    images: Sequence[str] = ()
    paths: Sequence[str] = ()
    masked_dir: pathlib.Path | None = None


@dataclass(frozen=True)
class FoundImage:
    """One place in a document that stands for an image.

    Attributes:
        path: Leads there from the document's fields.
        reading: How to read it, and to write another one.
        span: The characters that it takes; None if it is the whole value.
        is_labelled: Whether it says itself what kind of file it is; if not, a field beside it may.
    """

    path: Path
    reading: Reading = field(repr=False)
    span: tuple[int, int] | None = None
    is_labelled: bool = True


class _TooComplex(Exception):
    """A value is nested too deeply, or without end."""


def find_images(document: Document, fields: Fields) -> list[FoundImage]:
    """All images of a document, those of its text first; nothing is decoded yet."""
    found = list(_in_text(document.page_content, _CONTENT))
    for key, value in document.metadata.items():
        path = (*_METADATA, key)
        if key in fields.images:
            found += _in_image_field(value, path)
        elif key in fields.paths and (named := _in_path_field(value, path, fields.masked_dir)):
            found += named
        else:
            found += _in_any_field(value, path)
    return found


def with_images(document: Document, images: Sequence[FoundImage], result: Screened) -> dict[str, Any]:
    """Text and metadata of a document with other images in it; the very same objects where nothing changed.

    Args:
        document: It stays as it is.
        images: All that `find_images` found.
        result: What takes their places.
    """
    content: dict[str, Any] = {"page_content": document.page_content, "metadata": document.metadata}
    new = [(image, value) for image, value in zip(images, result.content, strict=True) if value is not None]
    # From the last to the first, so that the spans still hold.
    for image, value in reversed(new):
        if image.span is not None:
            start, end = image.span
            text = block_at(content, image.path)
            value = f"{text[:start]}{value}{text[end:]}"
        content = with_blocks(content, {image.path: value})
    withheld = {id(verdict) for verdict in result.withheld}
    redrawn = {
        id(image)
        for image, value, verdict in zip(images, result.content, result.verdicts, strict=True)
        if value is not None and id(verdict) not in withheld
    }
    restated: dict[str, Any] = with_blocks(content, _restated(content, images, redrawn))
    return restated


def _in_text(text: str, path: Path) -> Iterator[FoundImage]:
    for encoded in find_encoded(text):
        yield FoundImage(path, encoded.reading, encoded.span, encoded.is_labelled)


def _in_any_field(value: object, path: Path) -> list[FoundImage]:
    """Images anywhere in a value that may be anything."""
    try:
        return list(_walk(value, path, len(path), iter(range(_MAX_CONTAINERS))))
    except _TooComplex:
        return [_unread(path, "too_complex")]


def _walk(value: object, path: Path, top: int, containers: Iterator[int]) -> Iterator[FoundImage]:
    if isinstance(value, str):
        yield from _in_text(value, path)
    elif isinstance(value, Image.Image):
        yield _of_value(value, path)
    elif isinstance(value, bytes | bytearray | memoryview):
        if is_image(bytes(value[:32])):
            yield _of_value(value, path)
    elif isinstance(value, Mapping | list | tuple):
        if next(containers, None) is None or len(path) - top > _MAX_DEPTH:
            raise _TooComplex
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _walk(item, (*path, key), top, containers)


def _in_image_field(value: object, path: Path) -> list[FoundImage]:
    """The images of a field that holds nothing else."""
    if isinstance(value, bool | int | float | None) or (isinstance(value, str | list | tuple | Mapping) and not value):
        # Nothing, or the mark that some tables have for nothing.
        return []
    if isinstance(value, list | tuple) and len(path) - len(_METADATA) <= _MAX_DEPTH:
        return [image for index, item in enumerate(value) for image in _in_image_field(item, (*path, index))]
    if isinstance(value, Mapping) and (slots := find_loose(value)):
        return [FoundImage((*path, *slot.path), slot.reading) for slot in slots]
    if isinstance(value, str | bytes | bytearray | memoryview | Image.Image):
        return [_of_value(value, path)]
    return [_unread(path, "unsupported_block")]


def _in_path_field(value: object, path: Path, masked_dir: pathlib.Path | None) -> list[FoundImage]:
    """The images that a field, or each of a list in it, points to."""
    locations = [((*path, index), item) for index, item in enumerate(value)] if isinstance(value, list | tuple) else []
    readings = [(where, reading_of(item, masked_dir)) for where, item in locations or [(path, value)]]
    return [FoundImage(where, reading) for where, reading in readings if reading is not None]


def _of_value(value: str | bytes | bytearray | memoryview | Image.Image, path: Path) -> FoundImage:
    is_labelled = isinstance(value, Image.Image) or (isinstance(value, str) and (is_data_url(value) or "://" in value))
    return FoundImage(
        path,
        Reading(lambda most: read_value(value, "any", most), lambda data, mime: written(value, data, mime)),
        is_labelled=is_labelled,
    )


def _unread(path: Path, reason: Reason) -> FoundImage:
    return FoundImage(path, Reading(lambda _: reason))


def _restated(content: Mapping[str, Any], images: Sequence[FoundImage], redrawn: set[int]) -> dict[Path, object]:
    """Media types stated beside images that do not state theirs, where such an image has become a PNG."""
    homes = [
        (_METADATA if image.path == _CONTENT else image.path[:-1], image) for image in images if not image.is_labelled
    ]
    types: dict[Path, object] = {}
    for home, image in homes:
        beside = block_at(content, home)
        # If there is another one beside it, there is no telling which of them is meant.
        is_alone = sum(other == home for other, _ in homes) == 1
        if id(image) in redrawn and is_alone and isinstance(beside, Mapping):
            types.update({(*home, key): "image/png" for key, value in beside.items() if _is_type(key, value)})
    return types


def _is_type(key: object, value: object) -> bool:
    is_named = isinstance(key, str) and (key in MIME_KEYS or "mime" in key.lower())
    return is_named and isinstance(value, str) and value.lower().startswith("image/")
