"""LlamaIndex's content blocks as plain data that the core reads, and back.

What is read is what is sent: a block that leads elsewhere (a file, a stream, several places at once) is put back with
the very bytes that were read, so that no model opens the place a second time and finds something else. Bytes stay bytes
on the way: the base64 of a block is decoded once, and only what is put into a block is encoded.
"""

from __future__ import annotations

import base64
import binascii
import io
import mimetypes
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import (
    AudioBlock,
    BaseContentBlock,
    BaseRecursiveContentBlock,
    CachePoint,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)

from guardalign_guardrails.content.media_text import media_of_promoted_text
from guardalign_guardrails.content.walk import text_of_file
from guardalign_guardrails.images import read_named_file
from guardalign_guardrails.images.containers import media_type

Plain = dict[str, Any]

_UNREADABLE: Final[Mapping[str, Any]] = {"type": "image", "path": ""}
_BASE64_GROWTH: Final = 2


def plain_of(blocks: Sequence[BaseContentBlock], max_bytes: int) -> list[Plain]:
    """Blocks as plain data, one for one; local files are read, nothing is fetched.

    Args:
        blocks: Of a message, a tool's output or another block.
        max_bytes: Most bytes of a file to read.
    """
    return [_plain(block, max_bytes) for block in blocks]


def restored(
    blocks: Sequence[BaseContentBlock], before: Sequence[Any], after: Sequence[Any], *, is_pinned: bool
) -> list[BaseContentBlock]:
    """Blocks with what changed in their plain data; the very same objects where nothing did.

    Args:
        blocks: The original blocks.
        before: Their plain data.
        after: The same, with other blocks in place of some.
        is_pinned: Whether an image that leads elsewhere becomes the bytes that were read of it.
    """
    return [
        _restored(block, old, new, is_pinned=is_pinned) for block, old, new in zip(blocks, before, after, strict=True)
    ]


def without_media(block: BaseContentBlock, text: str) -> BaseContentBlock:
    """A block with a text in place of every image, file and recording in it; itself if there is none."""
    if isinstance(block, ImageBlock | AudioBlock | VideoBlock | DocumentBlock):
        return TextBlock(text=text)
    if isinstance(block, TextBlock) and media_of_promoted_text(block.text) is not None:
        return TextBlock(text=text)
    if isinstance(block, BaseRecursiveContentBlock):
        return _with_nested(block, [without_media(inner, text) for inner in block.nested_blocks])
    return block


def _plain(block: BaseContentBlock, max_bytes: int) -> Plain:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    if isinstance(block, ImageBlock):
        return _image(block, max_bytes)
    if isinstance(block, DocumentBlock):
        return _document(block, max_bytes)
    if isinstance(block, BaseRecursiveContentBlock):
        return {"type": "nested", "content": plain_of(block.nested_blocks, max_bytes)}
    if isinstance(block, ThinkingBlock):
        return {"type": "thinking", "thinking": block.content or ""}
    if isinstance(block, ToolCallBlock):
        return {"type": "tool_call", "name": block.tool_name}
    if isinstance(block, CachePoint):
        return {"type": "text", "text": ""}
    # Audio, video, and blocks of later versions of LlamaIndex: a finding, since nothing here can read them.
    return {"type": "media_of_another_kind"}


def _image(block: ImageBlock, max_bytes: int) -> Plain:
    # In the order in which LlamaIndex resolves them.
    if block.image is not None:
        return _inline("image", _read(block.image, max_bytes))
    if block.path is not None:
        data = read_named_file(block.path, max_bytes)
        return _inline("image", data) if isinstance(data, bytes) else dict(_UNREADABLE)
    return {"type": "image"} if block.url is None else _remote("image", str(block.url))


def _document(block: DocumentBlock, max_bytes: int) -> Plain:
    # LLM classes send the title as the file's name, whose ending has to go with what takes its place.
    name = {"filename": block.title} if block.title and mimetypes.guess_type(block.title)[0] else {}
    if block.data is None and block.path is None:
        plain = {"type": "file"} if block.url is None else _remote("file", block.url, block.document_mimetype or "")
        return {**plain, **name}
    data = _read(block.data, max_bytes) if block.data is not None else read_named_file(block.path or "", max_bytes)
    if not isinstance(data, bytes):
        return dict(_UNREADABLE)
    mime = _mime_of(block)
    text = text_of_file(data, {mime.lower()})
    return {**_inline("file", data, mime), **name} if text is None else {"type": "text", "text": text}


def _inline(kind: str, data: bytes, mime: str = "") -> Plain:
    # Of all dialects that the core reads, this one takes bytes as they are, and gives bytes back.
    return {"type": kind, "source_type": "base64", "data": data, "mime_type": mime}


def _remote(kind: str, url: str, mime: str = "") -> Plain:
    return {"type": kind, "source_type": "url", "url": url, "mime_type": mime}


def _mime_of(block: DocumentBlock) -> str:
    return block.document_mimetype or mimetypes.guess_type(str(block.path or block.title or ""))[0] or ""


def _read(value: bytes | io.IOBase, max_bytes: int) -> bytes:
    """What LlamaIndex would send for a block's bytes: they are base64 once validated, but may be put in later."""
    if isinstance(value, io.IOBase):
        return _read_stream(value, max_bytes)
    if len(value) > _BASE64_GROWTH * max_bytes:
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        return value


def _read_stream(stream: io.IOBase, max_bytes: int) -> bytes:
    """The bytes of a stream, which is left at its start as LlamaIndex does; none if it cannot be read twice."""
    try:
        stream.seek(0)
        data = stream.read(max_bytes + 1)
        stream.seek(0)
    except (OSError, ValueError):
        return b""
    return data if isinstance(data, bytes) else b""


def _restored(block: BaseContentBlock, before: Any, after: Any, *, is_pinned: bool) -> BaseContentBlock:
    if isinstance(block, BaseRecursiveContentBlock):
        old, new = before["content"], after["content"]
        return _with_nested(block, restored(block.nested_blocks, old, new, is_pinned=is_pinned))
    if after is not before:
        return _written(block, after)
    if is_pinned and isinstance(block, ImageBlock | DocumentBlock) and _leads_elsewhere(block):
        data = before["text"].encode() if before["type"] == "text" else before.get("data")
        return block if data is None else _holding(block, base64.b64encode(data), _mime(data, block))
    return block


def _with_nested(block: BaseRecursiveContentBlock, nested: Sequence[BaseContentBlock]) -> BaseRecursiveContentBlock:
    if all(new is old for new, old in zip(nested, block.nested_blocks, strict=True)):
        return block
    name = block.nested_blocks_field_name()
    is_list = isinstance(getattr(block, name), list)
    return block.model_copy(update={name: list(nested) if is_list else nested[0]})


def _written(block: BaseContentBlock, plain: Mapping[str, Any]) -> BaseContentBlock:
    if plain.get("type") == "text":
        return TextBlock(text=str(plain.get("text", "")))
    if not isinstance(block, ImageBlock | DocumentBlock):
        raise TypeError(f"A {type(block).__name__} cannot hold what took its place.")
    data = plain["data"] if "data" in plain else plain["url"].partition(",")[2]
    held = _holding(block, data.encode() if isinstance(data, str) else base64.b64encode(data), plain["mime_type"])
    return held.model_copy(update={"title": plain["filename"]}) if "filename" in plain else held


def _leads_elsewhere(block: ImageBlock | DocumentBlock) -> bool:
    own = block.image if isinstance(block, ImageBlock) else block.data
    url = None if block.url is None else str(block.url)
    is_inline = own is None and block.path is None and url is not None and url[:5].lower() == "data:"
    return not is_inline and (block.path is not None or url is not None or isinstance(own, io.IOBase))


def _mime(data: bytes, block: ImageBlock | DocumentBlock) -> str | None:
    """The media type of bytes that were read for a block: by themselves if they are an image, else as stated."""
    stated = block.image_mimetype if isinstance(block, ImageBlock) else _mime_of(block)
    return media_type(data) or stated or None


def _holding(block: ImageBlock | DocumentBlock, encoded: bytes, mime: str | None) -> BaseContentBlock:
    """The block with bytes in base64, as LlamaIndex keeps them, and nothing else that leads to an image."""
    own: dict[str, Any] = {"path": None, "url": None}
    if isinstance(block, ImageBlock):
        own |= {"image": encoded, "image_mimetype": mime}
    else:
        own |= {"data": encoded, "document_mimetype": mime}
    return block.model_copy(update=own)
