"""Finds media in JSON and in values of an app's own making: by what a member holds, never by its key.

A tool's JSON has names, numbers and links under keys like "image", "file" or "source"; a model reads them as text. What
is found is the string, the bytes or the image itself, so that everything around it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final, TypeAlias

from PIL import Image

from guardalign_guardrails.content.dialect import MIME_KEYS, Path, Reading, read_value, written
from guardalign_guardrails.content.media_text import media_of_value
from guardalign_guardrails.images.containers import sniff

Hit: TypeAlias = tuple[Path, Reading]
"""Where something is that stands for media, and how to read and write it."""

SCALARS: Final = (bool, int, float, Decimal, type(None))
"""Values that hold nothing; not counted, since tokens to be embedded come as lists of very many numbers."""

STRUCTURED_KEYS: Final = frozenset({"structured_content", "structuredContent"})
"""Where MCP has the JSON of a tool's result."""

MAX_DEPTH: Final = 24
"""How deep a value may be nested."""

# Large enough for a tool result with thousands of rows, small enough to end a loop within a tenth of a second.
MAX_NODES: Final = 100_000
"""How many values in it are visited."""

_SIGNATURE: Final = 16
_UNREAD: Final = Reading(lambda _: "unsupported_block")


class TooDeep(Exception):
    """A value is nested too deeply, or without end."""


def count(path: Path, nodes: Iterator[int]) -> None:
    """Count one more value.

    Args:
        path: Path of the value.
        nodes: Ends when too many values were visited.

    Raises:
        TooDeep: It is one too many, or too deep.
    """
    if next(nodes, None) is None or len(path) > MAX_DEPTH:
        raise TooDeep


def find_members(
    value: object,
    path: Path,
    nodes: Iterator[int],
    *,
    read_block: Callable[[Mapping[Any, Any]], Reading | None] | None = None,
    is_of_app: bool = False,
) -> Iterator[Hit]:
    """The media in a value.

    Args:
        value: Any value.
        path: Path of the value.
        nodes: Ends when too many values were visited.
        read_block: Reads mappings that are content blocks, which are found whole; None for JSON, which has none.
        is_of_app: Whether objects that are neither plain data nor an image are the app's own business. In what a model
            is given they are a finding.

    Raises:
        TooDeep: The value is nested too deeply, or without end.
    """
    count(path, nodes)
    if isinstance(value, Mapping):
        block = read_block(value) if read_block is not None else None
        if block is not None:
            yield path, block
            return
        found: list[Hit] = []
        for key, item in value.items():
            if not isinstance(item, SCALARS):
                reader = None if key in STRUCTURED_KEYS else read_block
                found += find_members(item, (*path, key), nodes, read_block=reader, is_of_app=is_of_app)
        yield from _with_media_types(value, path, found)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if not isinstance(item, SCALARS):
                yield from find_members(item, (*path, index), nodes, read_block=read_block, is_of_app=is_of_app)
    elif (bare := read_bare(value)) is not None:
        yield path, bare
    elif not is_of_app and not isinstance(value, (str, *SCALARS)):
        yield path, _UNREAD


def read_bare(value: object) -> Reading | None:
    """The reading of an image without a block around it: a PIL image, bytes or text that begin like media."""
    if isinstance(value, str):
        return media_of_value(value)
    is_image = isinstance(value, Image.Image) or (
        isinstance(value, bytes | bytearray | memoryview) and sniff(bytes(value[:_SIGNATURE])) is not None
    )
    if not is_image:
        return None
    return Reading(lambda limit: read_value(value, "any", limit), lambda data, mime: written(value, data, mime))


def _with_media_types(mapping: Mapping[Any, Any], path: Path, found: list[Hit]) -> Iterator[Hit]:
    """What was found in a mapping; the only image directly in it knows which members beside it state its type."""
    own = [where for where, _ in found if len(where) == len(path) + 1]
    stated = tuple(key for key in MIME_KEYS if _is_image_type(mapping.get(key)))
    for where, reading in found:
        is_stated = stated and own == [where]
        yield where, replace(reading, beside=stated) if is_stated else reading


def _is_image_type(value: object) -> bool:
    return isinstance(value, str) and value.strip().lower().startswith("image/")
