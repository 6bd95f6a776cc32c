"""Finds everything in raw message content that stands for media.

Works on ``content`` and never on ``content_blocks``, which drops or hides several ways of writing an image. What no
dialect reads but looks like media is found as well, with a reason: "no image" and "an image nobody looked at" must not
look the same. To support another provider, add a dialect; nothing changes here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, FunctionMessage, HumanMessage, ToolMessage

from guardalign_guardrails import Source
from langchain_guardalign._data_url import Reason
from langchain_guardalign._dialects import DIALECTS, Reading

Path = tuple[int | str, ...]
"""Keys and indices that lead from a message's content to a block."""

_MEDIA_KINDS: Final = re.compile("image|video|audio|media|file|document|screenshot|pdf|blob|resource_link")
_MEDIA_MIMES: Final = re.compile("image/|video/|audio/|application/pdf", re.IGNORECASE)
# Stricter than what a URL field may hold: a sentence may begin with "Data:".
_MEDIA_URL: Final = re.compile(r"\s*data:((image|video|audio|application)/|[^,\s]*;\s*base64\s*,)", re.IGNORECASE)
_MIME_KEYS: Final = ("mime_type", "mimeType", "media_type", "mimetype")
# Some chat templates take a block for an image by one of these keys, whatever its type says.
_MEDIA_KEYS: Final = frozenset(
    {
        "audio",
        "blob",
        "file_data",
        "fileData",
        "file_id",
        "file_uri",
        "fileUri",
        "image",
        "image_bytes",
        "image_url",
        "images",
        "inline_data",
        "inlineData",
        "input_audio",
        "input_image",
        "media",
        "pixel_values",
        "s3Location",
        "screenshot",
        "video",
        "video_url",
    }
)
# Bedrock and OpenAI nest a file under these; as plain words they are everyday keys of a tool's JSON.
_MEDIA_KEYS_OF_MAPPINGS: Final = frozenset({"document", "file"})
# Their inner values are words of a model or of a caller's schema, not content blocks.
_OPAQUE_KINDS: Final = frozenset(
    {
        "custom_tool_call",
        "file_search_call",
        "function_call",
        "input_text",
        "invalid_tool_call",
        "mcp_call",
        "output_text",
        "reasoning",
        "reasoning_content",
        "redacted_thinking",
        "refusal",
        "server_tool_call",
        "server_tool_call_chunk",
        "server_tool_use",
        "text",
        "thinking",
        "tool_call",
        "tool_call_chunk",
        "tool_use",
        "web_search_call",
    }
)
_TEXT_KEYS: Final = frozenset({"text", "content"})
_MAX_DEPTH: Final = 24
# Large enough for a tool result with thousands of rows, small enough to end a loop within a tenth of a second.
_MAX_NODES: Final = 100_000


@dataclass(frozen=True)
class Found:
    """One place in the messages that stands for media.

    Attributes:
        message: Index of the message.
        path: Where in its content the block is.
        source: Where the image came from.
        read: Given the most bytes to accept, the encoded image or why there is none.
        write: Given PNG bytes, the block with them as its only picture; None if that cannot be written.
    """

    message: int
    path: Path
    source: Source
    read: Callable[[int], bytes | Reason] = field(repr=False)
    write: Callable[[bytes], dict[str, Any]] | None = field(repr=False)


class _TooComplex(Exception):
    """A block is nested too deeply, or without end."""


def find_media(messages: Sequence[BaseMessage]) -> list[Found]:
    """Everything in the messages that stands for media, in reading order; nothing is decoded yet."""
    found = []
    for index, (message, source) in enumerate(zip(messages, sources(messages), strict=True)):
        if isinstance(message.content, str):
            continue
        for place, block in enumerate(message.content):
            found += [Found(index, path, source, hit.read, hit.write) for path, hit in _in_block(block, (place,))]
    return found


def sources(messages: Sequence[BaseMessage]) -> list[Source]:
    """Where the content of each message came from.

    The last unbroken run of human messages is what the ``user`` says now, earlier ones are ``history``; tools and
    models are ``tool`` and ``generated`` wherever they stand; everything else counts as ``user``.
    """
    last = next((i for i in reversed(range(len(messages))) if isinstance(messages[i], HumanMessage)), 0)
    first = last
    while first > 0 and isinstance(messages[first - 1], HumanMessage):
        first -= 1
    return [_source(message, is_past=index < first) for index, message in enumerate(messages)]


def _source(message: BaseMessage, *, is_past: bool) -> Source:
    if isinstance(message, ToolMessage | FunctionMessage):
        return "tool"
    if isinstance(message, AIMessage) or (isinstance(message, ChatMessage) and message.role == "assistant"):
        return "generated"
    return "history" if is_past and isinstance(message, HumanMessage) else "user"


def _in_block(block: object, path: Path) -> list[tuple[Path, Reading]]:
    nodes = iter(range(_MAX_NODES))
    try:
        hits = dict(_walk(block, path, path, nodes))
    except _TooComplex:
        return [(path, _unread("too_complex"))]
    # A place inside another that is replaced as a whole needs no treatment of its own.
    return [(where, hit) for where, hit in hits.items() if not any(where[:size] in hits for size in range(len(where)))]


def _walk(value: object, path: Path, home: Path, nodes: Iterator[int]) -> Iterator[tuple[Path, Reading]]:
    """Findings at and below a value; ``home`` leads to the nearest mapping, which is what can be replaced."""
    if next(nodes, None) is None or len(path) > _MAX_DEPTH:
        raise _TooComplex
    if isinstance(value, Mapping):
        yield from _walk_mapping(value, path, nodes)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, index), home, nodes)
    elif isinstance(value, str):
        if path[-1] not in _TEXT_KEYS and len(path) > 1 and _MEDIA_URL.match(value):
            yield home, _unread("unsupported_block")
    elif not isinstance(value, bool | int | float | None):
        # Bytes, a PIL image, an array: whatever it is, it is not text.
        yield home, _unread("unsupported_block")


def _walk_mapping(block: Mapping[Any, Any], path: Path, nodes: Iterator[int]) -> Iterator[tuple[Path, Reading]]:
    reading = next((hit for dialect in DIALECTS if (hit := dialect(block)) is not None), None)
    if reading is None and _looks_like_media(block):
        reading = _unread("unsupported_block")
    if reading is not None:
        yield path, reading
    elif _kind(block) not in _OPAQUE_KINDS:
        for key, item in block.items():
            yield from _walk(item, (*path, key), path, nodes)


def _looks_like_media(block: Mapping[Any, Any]) -> bool:
    if any(block[key] is not None for key in _MEDIA_KEYS.intersection(block)):
        return True
    if any(isinstance(block[key], Mapping) for key in _MEDIA_KEYS_OF_MAPPINGS.intersection(block)):
        return True
    mimes = (block.get(key) for key in _MIME_KEYS)
    if any(isinstance(mime, str) and _MEDIA_MIMES.match(mime.strip()) for mime in mimes):
        return True
    kind = _kind(block)
    if kind in _OPAQUE_KINDS or not _MEDIA_KINDS.search(kind):
        return False
    source = block.get("source")
    # Anthropic's documents may be plain text, or a list of blocks that are walked like any others.
    is_text = isinstance(source, Mapping) and source.get("type") in ("text", "content")
    return not (kind == "document" and is_text)


def _kind(block: Mapping[Any, Any]) -> str:
    kind = block.get("type")
    return kind.lower() if isinstance(kind, str) else ""


def _unread(reason: Reason) -> Reading:
    return Reading(lambda _: reason)
