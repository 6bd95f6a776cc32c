"""Finds the blocks of a message's content that stand for media, and its text.

Content is plain data: text, or mappings and lists as a provider takes them. What looks like media but is written in no
known dialect is found as well, with a reason: "no image" and "an unchecked image" must not look the same. To support
another provider, add a dialect; nothing changes here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Final

from guardalign_guardrails.content.dialect import Path, Reading, mime_of, read_value, written
from guardalign_guardrails.content.dialects import DIALECTS, WHOLE_BLOCK_DIALECTS
from guardalign_guardrails.content.dialects.anthropic import files_made_by_code
from guardalign_guardrails.content.dialects.openai import files_searched
from guardalign_guardrails.content.dialects.unknown import (
    OPAQUE_KINDS,
    is_of_image,
    is_only_block,
    is_stored_file,
    kind_of,
    leads_to_image,
    looks_like_media,
)
from guardalign_guardrails.content.encoded_text import find_encoded
from guardalign_guardrails.content.media_text import begins_like_text, media_of_promoted_text, media_of_value
from guardalign_guardrails.content.members import (
    MAX_DEPTH,
    MAX_NODES,
    SCALARS,
    STRUCTURED_KEYS,
    TooDeep,
    count,
    find_members,
    read_bare,
)
from guardalign_guardrails.content.payload import Reason, is_data_url, mime_of_data_url
from guardalign_guardrails.images.containers import sniff

# Stricter than a URL field: a sentence may begin with "Data:". The media type may be anything where what follows can be
# nothing but base64, since some servers read no more than that.
_MEDIA_URL: Final = re.compile(
    r"\s*data:((image|video|audio|application)/|[^,\s]*;\s*base64\s*,|[^,]{0,1024},[a-z0-9+/_=-]{64})", re.IGNORECASE
)
# Within these keys, a provider has the JSON that a tool was given or gave back, without content blocks.
_JSON_KEYS: Final[Mapping[object, Set[str]]] = {
    "args": frozenset({"functionCall", "function_call"}),
    "input": frozenset({"toolUse", "tool_use"}),
    "response": frozenset({"functionResponse", "function_response"}),
}
PLAIN_TEXT_KEYS: Final = frozenset({"type", "text", "id", "index", "cache_control"})
"""A block of text with no other keys needs no closer look for media; most blocks are such."""

KINDS_OF_TOOLS: Final = ("_output", "tool_result", "mcp_call")
"""Endings of the types of blocks and items that hold what a tool gave back."""

_TEXT_KEYS: Final = frozenset({"text", "content", "logs", "stderr", "stdout"})
# Keys of a block's text, or of blocks with text: results of tools have "content" or "output".
_TEXT_HOLDERS: Final = ("text", "refusal", "content", "output")
# "data:", and something behind it.
_SHORTEST_URL: Final = 6
# Where a scheme ends at the latest, with some blanks in front.
_SCHEME: Final = 64
# Image formats that are text, which Pillow opens whatever a block says of them (PPM, XBM, XPM, FITS, IM, EPS).
_TEXT_IMAGE: Final = re.compile(
    rb"\A\s*(P([1-7]|f|y\w+)\s+[#\d]|/\* XPM|SIMPLE\s*=|Image type|%!PS)|#define[ \t].*_width[ \t]", re.IGNORECASE
)
_SVG: Final = re.compile(r"<(\w+:)?svg\b", re.IGNORECASE)
# Readers allow anything in front of it.
_PDF: Final = b"%PDF-"
_PDF_REACH: Final = 1024
# Text files may be attached in blocks of these types; of one called "document" LiteLLM makes an image.
_FILE_KINDS: Final = frozenset({"file", "input_file", "media"})
_TEXT_MIMES: Final = ("text/", "application/json", "application/yaml")
_MARKUP_MIMES: Final = re.compile("text/(html|xml)")
_MAX_TEXT_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class MediaBlock:
    """A content block that stands for an image or other media.

    Attributes:
        path: Where in the content it is.
        reading: How to read and write it.
    """

    path: Path
    reading: Reading = field(repr=False)


@dataclass(frozen=True)
class TextBlock:
    """Text in a message's content.

    Attributes:
        path: Where in the content the text is.
        text: The text.
    """

    path: Path
    text: str = field(repr=False)


def find(content: object) -> list[MediaBlock]:
    """The blocks of a message's content that stand for media, in reading order; none is decoded yet.

    Args:
        content: Text, in which there is no image, a list of blocks, or a single block.
    """
    if content is None or isinstance(content, str):
        return []
    if isinstance(content, list | tuple):
        return [found for place, block in enumerate(content) for found in _in_block(block, (place,), is_loose=False)]
    return _in_block(content, (), is_loose=False)


def find_loose(value: object, under: Path = ()) -> list[MediaBlock]:
    """The images in a value of an app's own making, such as a tool's artifact.

    Besides blocks, bare images are found: PIL images, encoded bytes, text that begins like media; URLs and names of
    files under keys that say that an image is there. Objects that are neither plain data nor an image are left alone,
    since no model is given them.

    Args:
        value: Any value.
        under: The keys under which it stands, outermost first.
    """
    return [MediaBlock(each.path[len(under) :], each.reading) for each in _in_block(value, under, is_loose=True)]


def find_data(value: object) -> list[MediaBlock]:
    """The images in the data of a tool, such as its artifact: content blocks, and members that hold an image.

    Unlike `find_loose` it goes by what a member holds, and not by its key: a mapping that only resembles a content
    block is data, and so is a URL or a file's name under a key such as "image".
    """
    try:
        hits = list(find_members(value, (), iter(range(MAX_NODES)), read_block=_read_only_block, is_of_app=True))
    except TooDeep:
        return [MediaBlock((), _unread("too_complex"))]
    return [MediaBlock(where, hit) for where, hit in hits]


def find_text(content: object) -> list[TextBlock]:
    """All text of a message's content, in reading order: its own, and that of the tool results in it.

    Arguments of tool calls and a model's thoughts are left out. Content that is nested without end is searched as far
    as `find` searches it.
    """
    return list(_text_in(content, (), iter(range(MAX_NODES))))


def _text_in(value: object, path: Path, nodes: Iterator[int]) -> Iterator[TextBlock]:
    if next(nodes, None) is None or len(path) > MAX_DEPTH:
        return
    if isinstance(value, str):
        yield TextBlock(path, value)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _text_in(item, (*path, index), nodes)
    elif isinstance(value, Mapping):
        for key in _TEXT_HOLDERS:
            if key in value:
                yield from _text_in(value[key], (*path, key), nodes)
        source = value.get("source")
        # Anthropic's documents: plain text, or a list of blocks.
        if isinstance(source, Mapping) and source.get("type") in ("text", "content"):
            key = "data" if source["type"] == "text" else "content"
            yield from _text_in(source.get(key), (*path, "source", key), nodes)


def text_of_file(data: bytes, media_types: Set[str]) -> str | None:
    """The text of a file that is text and is said to be nothing else; None for any other file.

    A file with a drawing or an encoded image in it is not: a model may be shown that.

    Args:
        data: The file.
        media_types: All media types that are stated of it, in lower case.
    """
    if not _state_text(media_types) or sniff(data) is not None or b"\0" in data or _TEXT_IMAGE.search(data):
        return None
    if _PDF in data[:_PDF_REACH]:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    is_markup = text.lstrip("\ufeff \t\r\n").startswith("<") or any(map(_MARKUP_MIMES.match, media_types))
    is_media = (is_markup and _SVG.search(text)) or find_encoded(text) or media_of_promoted_text(text)
    return None if is_media else text


def _state_text(media_types: Set[str]) -> bool:
    return bool(media_types) and all(media_type.startswith(_TEXT_MIMES) for media_type in media_types)


def _in_block(block: object, path: Path, *, is_loose: bool) -> list[MediaBlock]:
    if isinstance(block, str) and not is_loose:
        return []
    if isinstance(block, Mapping):
        is_text = block.keys() <= PLAIN_TEXT_KEYS and block.get("type") == "text"
        if is_text and not is_loose and isinstance(block.get("text"), str):
            return []
        for dialect in WHOLE_BLOCK_DIALECTS:
            if (whole := dialect(block)) is not None:
                return [MediaBlock(path, whole)]
    nodes = iter(range(MAX_NODES))
    unshown = _not_shown(block) if not is_loose and isinstance(block, Mapping) else frozenset()
    try:
        hits = dict(_walk(block, path, None if is_loose else path, nodes))
    except TooDeep:
        return [MediaBlock(path, _unread("too_complex"))]
    # A block inside another that is replaced as a whole needs no treatment of its own.
    return [
        MediaBlock(where, hit)
        for where, hit in hits.items()
        if not any(where[:size] in hits for size in range(len(where))) and where[len(path) :] not in unshown
    ]


def _not_shown(block: Mapping[Any, Any]) -> Set[Path]:
    """Where in the result of a provider's own tool ids of files are that the model is not shown."""
    return files_made_by_code(block) | files_searched(block)


def _walk(value: object, path: Path, home: Path | None, nodes: Iterator[int]) -> Iterator[tuple[Path, Reading]]:
    """Media at and below a value.

    Args:
        value: Any value.
        path: Path of the value.
        home: Path of the nearest mapping, which is what can be replaced; None where bare images are looked for.
        nodes: Ends when too many values were visited.
    """
    count(path, nodes)
    if isinstance(value, Mapping):
        yield from _walk_mapping(value, path, nodes, is_loose=home is None)
    elif isinstance(value, list | tuple):
        is_plain = home is not None or not is_of_image(path)
        for index, item in enumerate(value):
            # Skipped here, as tokens and texts to be embedded come by the thousand.
            if not (isinstance(item, SCALARS) or (is_plain and _is_text(item))):
                yield from _walk(item, (*path, index), home, nodes)
    elif home is None:
        if (bare := read_bare(value) or _located(value, path)) is not None:
            yield path, bare
    elif isinstance(value, str):
        if path and path[-1] not in _TEXT_KEYS and (_MEDIA_URL.match(value) or media_of_value(value) is not None):
            yield home, _unread("unsupported_block")
    elif not isinstance(value, SCALARS):
        # Bytes, a PIL image, an array: anything but text.
        yield home, _unread("unsupported_block")


def _walk_mapping(
    block: Mapping[Any, Any], path: Path, nodes: Iterator[int], *, is_loose: bool
) -> Iterator[tuple[Path, Reading]]:
    reading = _read_block(block, is_strict=is_loose)
    if reading is not None:
        if not _is_text_file(block, reading):
            yield path, reading
    elif (kind := kind_of(block)) not in OPAQUE_KINDS:
        is_plain = not is_loose or not is_of_image((*path, *block))
        for key, item in block.items():
            if isinstance(item, SCALARS) or (is_plain and _is_text(item)):
                continue
            if not is_loose and _is_json(kind, path, key, item):
                yield from find_members(item, (*path, key), nodes)
            elif not (key == "output" and isinstance(item, str) and kind.endswith(KINDS_OF_TOOLS)):
                yield from _walk(item, (*path, key), None if is_loose else path, nodes)
    elif is_loose and isinstance(text := block.get("text"), str) and (promoted := media_of_promoted_text(text)):
        yield (*path, "text"), promoted


def _is_text(value: object) -> bool:
    """Whether a value is text that needs no closer look, unless its key says that it is an image.

    A URL may name a file in a provider's storage.
    """
    return isinstance(value, str) and (
        len(value) < _SHORTEST_URL or (begins_like_text(value) and "://" not in value[:_SCHEME])
    )


def _is_json(kind: str, path: Path, key: object, item: object) -> bool:
    """Whether a member of a block is a tool's JSON, in which no provider and no client looks for content blocks.

    Args:
        kind: The block's type.
        path: Path of the block.
        key: The member's key.
        item: The member.
    """
    if key == "json":
        return kind in ("", "json")
    if key == "output":
        # A list may be of content blocks, and a mapping with a type is one of Anthropic's results.
        return kind == "server_tool_result" and isinstance(item, Mapping) and "type" not in item
    return key in STRUCTURED_KEYS or (bool(path) and path[-1] in _JSON_KEYS.get(key, ()))


def _read_block(block: Mapping[Any, Any], *, is_strict: bool = False) -> Reading | None:
    """The reading of a block that stands for media."""
    reading = next((hit for dialect in DIALECTS if (hit := dialect(block)) is not None), None)
    return _unread("unsupported_block") if reading is None and looks_like_media(block, is_strict=is_strict) else reading


def _read_only_block(block: Mapping[Any, Any]) -> Reading | None:
    """The reading of a mapping that is a content block with media, and nothing that only resembles one."""
    reading = _read_block(block) if is_only_block(block) else None
    return None if reading is None or _is_text_file(block, reading) else reading


def _located(value: object, path: Path) -> Reading | None:
    """The reading of what leads to an image by its key, or of a data URL that is too short to be media elsewhere."""
    if not isinstance(value, str):
        return None
    is_named = (is_of_image(path) and leads_to_image(value)) or is_stored_file(value, path)
    if not is_named and not _MEDIA_URL.match(value):
        return None
    return Reading(lambda limit: read_value(value, "any", limit), lambda data, mime: written(value, data, mime))


def _is_text_file(block: Mapping[Any, Any], reading: Reading) -> bool:
    """Whether an attached file is text, and everything that states its type says so."""
    stated = _stated(block) if kind_of(block) in _FILE_KINDS else set()
    if not _state_text(stated):
        return False
    data = reading.read(_MAX_TEXT_BYTES)
    return isinstance(data, bytes) and text_of_file(data, stated) is not None


def _stated(block: Mapping[Any, Any]) -> set[str]:
    """The media types that a block, the mapping that holds its file, and their data URLs state."""
    holders = (block, *(value for value in block.values() if isinstance(value, Mapping)))
    urls = (value for holder in holders for value in holder.values() if isinstance(value, str) and is_data_url(value))
    return {mime for mime in (*map(mime_of, holders), *map(mime_of_data_url, urls)) if mime}


def _unread(reason: Reason) -> Reading:
    return Reading(lambda _: reason)
