"""Finds images in a document's text and metadata, and puts other images in their places.

Frameworks' documents have in common a text and a mapping of metadata, in which an app puts what it likes. Both are read
here as plain data. What a framework adds (image nodes, media resources, fields that an app names) its adapter finds.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from PIL import Image

from guardalign_guardrails.content.dialect import MIME_KEYS, Path, Reading, read_value, written
from guardalign_guardrails.content.encoded_text import find_encoded
from guardalign_guardrails.content.members import TooDeep
from guardalign_guardrails.content.payload import Payload, Reason, is_data_url
from guardalign_guardrails.content.rewrite import block_at, with_blocks
from guardalign_guardrails.content.walk import find_loose
from guardalign_guardrails.images import keep_image, read_named_file
from guardalign_guardrails.images.containers import announces_image

_MAX_DEPTH: Final = 24
_MAX_CONTAINERS: Final = 100_000


@dataclass(frozen=True)
class FoundImage:
    """One place in a document that stands for an image or other media.

    Attributes:
        path: Leads there from the document's fields.
        reading: How to read it, and to write another one.
        span: The characters that it takes of a text; None if it is the whole value.
        is_labelled: Whether it says itself what kind of file it is; if not, a field beside it may.
    """

    path: Path
    reading: Reading = field(repr=False)
    span: tuple[int, int] | None = None
    is_labelled: bool = True


@dataclass(frozen=True)
class Replacement:
    """What takes a found image's place.

    Attributes:
        image: The one that was found.
        value: What its reading wrote, or a notice.
        is_withheld: Whether it is a notice.
        mime: Media type of the new image; None for a notice.
    """

    image: FoundImage
    value: Any = field(repr=False)
    is_withheld: bool
    mime: str | None = None


def find_in_text(text: str, path: Path) -> list[FoundImage]:
    """The images in a text; ``path`` leads to it."""
    return [FoundImage(path, found.reading, found.span, found.is_labelled) for found in find_encoded(text)]


def find_in_value(value: object, path: Path) -> list[FoundImage]:
    """The images anywhere in a value of metadata; ``path`` leads to it.

    Data URLs (alone or within Markdown, HTML or JSON), base64 and bytes that announce an image, and PIL images. A value
    that is nested too deeply, or without end, is a finding as a whole.
    """
    try:
        return list(_walk(value, path, len(path), iter(range(_MAX_CONTAINERS))))
    except TooDeep:
        return [unreadable(path, "too_complex")]


def of_value(value: str | bytes | bytearray | memoryview | Image.Image, path: Path) -> FoundImage:
    """A value that is an image as a whole: base64, a URL, bytes or a PIL image."""
    is_labelled = isinstance(value, Image.Image) or (isinstance(value, str) and (is_data_url(value) or "://" in value))
    return FoundImage(
        path,
        Reading(lambda most: read_value(value, "any", most), lambda data, mime: written(value, data, mime)),
        is_labelled=is_labelled,
    )


def of_file(location: pathlib.PurePath | str, path: Path, masked_dir: pathlib.Path | str | None = None) -> FoundImage:
    """The image in a file of this machine.

    Args:
        location: The file's path. The file itself is never changed.
        path: Leads to the location from the document's fields.
        masked_dir: Folder for masked and canonical copies, to which the location is changed; without one, an image
            that would go on as such a copy is withheld.
    """

    def read(most: int) -> Payload:
        return read_named_file(location, most)

    if masked_dir is None:
        return FoundImage(path, Reading(read), is_labelled=False)
    write = lambda data, _: type(location)(keep_image(data, masked_dir))  # noqa: E731
    return FoundImage(path, Reading(read, write), is_labelled=False)


def unreadable(path: Path, reason: Reason) -> FoundImage:
    """Something that stands for media and cannot be read."""
    return FoundImage(path, Reading(lambda _: reason))


def with_images(
    fields: Mapping[str, Any], images: Sequence[FoundImage], replacements: Sequence[Replacement]
) -> dict[str, Any]:
    """A document's fields with other images in them; the very same objects where nothing changed.

    Where another image takes the place of one that does not state its media type, the media type beside it becomes the
    new one's.

    Args:
        fields: Text and ``metadata`` of the document, by the names with which paths begin; they stay as they are.
        images: All that were found in these fields.
        replacements: In reading order.
    """
    new = dict(fields)
    # From the last to the first, so that the spans still hold.
    for replacement in reversed(replacements):
        path, span, value = replacement.image.path, replacement.image.span, replacement.value
        if span is not None:
            text = block_at(new, path)
            value = f"{text[: span[0]]}{value}{text[span[1] :]}"
        new = with_blocks(new, {path: value})
    return dict(with_blocks(new, _media_types(new, images, replacements)))


def _walk(value: object, path: Path, top: int, containers: Iterator[int]) -> Iterator[FoundImage]:
    if isinstance(value, str):
        # A data URL that is all of a value is no example in a text, however short.
        found = find_in_text(value, path)
        if not found and is_data_url(value):
            found = [FoundImage(path, slot.reading) for slot in find_loose(value)]
        yield from found
    elif isinstance(value, Image.Image):
        yield of_value(value, path)
    elif isinstance(value, bytes | bytearray | memoryview):
        if announces_image(bytes(value[:32])):
            yield of_value(value, path)
    elif isinstance(value, Mapping | list | tuple):
        if next(containers, None) is None or len(path) - top > _MAX_DEPTH:
            raise TooDeep
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _walk(item, (*path, key), top, containers)


def _media_types(
    fields: Mapping[str, Any], images: Sequence[FoundImage], replacements: Sequence[Replacement]
) -> dict[Path, object]:
    """Media types stated beside images that do not state theirs, where other images have taken their places."""
    new = {id(replacement.image): replacement.mime for replacement in replacements}
    by_home: dict[Path, set[str | None]] = {}
    for image in images:
        if not image.is_labelled:
            home = ("metadata",) if len(image.path) == 1 else image.path[:-1]
            by_home.setdefault(home, set()).add(new.get(id(image)))
    types: dict[Path, object] = {}
    for home, mimes in by_home.items():
        beside = block_at(fields, home)
        mime = next(iter(mimes))
        # If there is another one beside it, nothing says which of them is meant.
        if mime is not None and len(mimes) == 1 and isinstance(beside, Mapping):
            types.update({(*home, key): mime for key, value in beside.items() if _is_type(key, value)})
    return types


def _is_type(key: object, value: object) -> bool:
    is_named = isinstance(key, str) and (key in MIME_KEYS or "mime" in key.lower())
    return is_named and isinstance(value, str) and value.lower().startswith("image/")
