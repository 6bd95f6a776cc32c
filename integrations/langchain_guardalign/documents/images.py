"""Finds the images of a LangChain document, by the conventions of an app.

A LangChain document has no image type: its text or its metadata is, holds or names an image. An app may name metadata
fields that hold nothing but images, and fields with paths. Other fields are searched for what announces an image.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from langchain_core.documents import Document
from PIL import Image

from guardalign_guardrails.content.dialect import Path, Reading, written
from guardalign_guardrails.content.documents.images import (
    FoundImage,
    find_in_text,
    find_in_value,
    of_file,
    of_value,
    unreadable,
)
from guardalign_guardrails.content.payload import Remote
from guardalign_guardrails.content.walk import find_loose
from guardalign_guardrails.images import first_bytes
from guardalign_guardrails.images.containers import announces_image

_MAX_DEPTH: Final = 24
_HEAD_BYTES: Final = 32
_SUFFIX: Final = re.compile(
    r"\.(a?png|avifs?|bmp|dib|gif|hei[cf]|ico|j2k|jfif|jp[2eg]|jpeg|jxl|pjp|pjpeg|svgz?|tiff?|webp)\s*$", re.IGNORECASE
)


@dataclass(frozen=True)
class FieldNames:
    """What an app says of its metadata.

    Attributes:
        images: Fields that hold images and nothing else: what is in them and cannot be opened is a finding.
        paths: Fields that hold local paths or URLs, of images or of other files.
        masked_dir: Folder for masked copies of local files; None for none.
    """

    images: Sequence[str] = ()
    paths: Sequence[str] = ()
    masked_dir: pathlib.Path | str | None = None


def find_images(document: Document, names: FieldNames) -> list[FoundImage]:
    """All images of a document, those of its text first; nothing is decoded yet."""
    found = find_in_text(document.page_content, ("page_content",))
    for key, value in document.metadata.items():
        path = ("metadata", key)
        if key in names.images:
            found += _in_image_field(value, path, _MAX_DEPTH)
        elif key in names.paths and (named := _in_path_field(value, path, names.masked_dir)):
            found += named
        else:
            found += find_in_value(value, path)
    return found


def _in_image_field(value: object, path: Path, depth: int) -> list[FoundImage]:
    """The images of a field that holds nothing else."""
    if isinstance(value, bool | int | float | None) or (isinstance(value, str | list | tuple | Mapping) and not value):
        # Nothing, or the mark that some tables have for nothing.
        return []
    if isinstance(value, list | tuple) and depth > 0:
        return [image for at, item in enumerate(value) for image in _in_image_field(item, (*path, at), depth - 1)]
    if isinstance(value, Mapping) and (slots := find_loose(value)):
        return [FoundImage((*path, *slot.path), slot.reading) for slot in slots]
    if isinstance(value, str | bytes | bytearray | memoryview | Image.Image):
        return [of_value(value, path)]
    return [unreadable(path, "unsupported_block")]


def _in_path_field(value: object, path: Path, masked_dir: pathlib.Path | str | None) -> list[FoundImage]:
    """The images that a field, or each item of a list in it, points to."""
    places = [((*path, at), item) for at, item in enumerate(value)] if isinstance(value, list | tuple) else []
    found = [_at_location(item, where, masked_dir) for where, item in places or [(path, value)]]
    return [image for image in found if image is not None]


def _at_location(location: object, path: Path, masked_dir: pathlib.Path | str | None) -> FoundImage | None:
    """The image at a local path or URL; None if no image is there.

    A file is an image by its suffix or its first bytes, a URL by its suffix, so that a field with the paths of PDFs and
    images may be named as well.
    """
    if not isinstance(location, str | pathlib.PurePath) or not str(location).strip():
        return None
    if isinstance(location, str) and "://" in location[:64]:
        if _SUFFIX.search(_path_of(location)) is None:
            return None
        return FoundImage(path, Reading(lambda _: Remote(location), lambda data, mime: written(location, data, mime)))
    is_named = _SUFFIX.search(str(location)) is not None
    if not is_named and not announces_image(first_bytes(location, _HEAD_BYTES)):
        return None
    return of_file(location, path, masked_dir)


def _path_of(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return url
