"""Gemini: LangChain's ``media`` blocks, and the API's own parts in both spellings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from guardalign_guardrails.content.dialect import (
    Block,
    Dialect,
    Kind,
    Reading,
    located,
    mime_of,
    read_one,
    replaced,
    written,
)
from guardalign_guardrails.content.payload import Payload, to_base64

_MEDIA: Final[Mapping[str, Kind]] = {"data": "data", "file_uri": "url"}
_PARTS: Final[Mapping[str, Mapping[str, Kind]]] = {
    "inline_data": {"data": "data"},
    "inlineData": {"data": "data"},
    "file_data": {"file_uri": "url", "fileUri": "url"},
    "fileData": {"file_uri": "url", "fileUri": "url"},
}
_INLINE: Final = {"file_data": "inline_data", "fileData": "inlineData"}
_OTHER_MEDIA: Final = ("audio/", "video/")


def media(block: Block) -> Reading | None:
    """``{"type": "media", "mime_type": ..., "data": text or bytes | "file_uri": ...}``."""
    if block.get("type") != "media" or mime_of(block).startswith(_OTHER_MEDIA):
        return None

    def write(data: bytes, mime: str) -> dict[Any, Any]:
        old = block.get("data")
        new = to_base64(data) if old is None else written(old, data, mime)
        return {**replaced(block, new, mime, key="data"), "mime_type": mime}

    return Reading(lambda max_bytes: read_one(block, _MEDIA, max_bytes), write)


def part(block: Block) -> Reading | None:
    """``{"inline_data": {"mime_type", "data"}}`` or ``{"file_data": {"mime_type", "file_uri"}}``, camel case too."""
    key = next((name for name in _PARTS if isinstance(block.get(name), Mapping)), None)
    if key is None:
        return None
    holder: Block = block[key]
    if mime_of(holder).startswith(_OTHER_MEDIA):
        return None

    def read(max_bytes: int) -> Payload:
        return read_one(holder, _PARTS[key], max_bytes) if located(block) == {key} else "several_locators"

    def write(data: bytes, mime: str) -> dict[Any, Any]:
        old = holder.get("data")
        new = to_base64(data) if old is None else written(old, data, mime)
        inner = replaced(holder, new, mime, key="data")
        if not mime_of(inner):
            inner["mimeType" if key.endswith("Data") else "mime_type"] = mime
        return replaced(block, inner, mime, key=_INLINE.get(key, key), over=key)

    return Reading(read, write)


DIALECTS: Final[tuple[Dialect, ...]] = (media, part)
