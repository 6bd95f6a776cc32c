"""LangChain's own blocks: v1 (``base64``, ``url``, ``file_id``) and v0 (``source_type``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from guardalign_guardrails.content.dialect import (
    Block,
    Dialect,
    Kind,
    Reading,
    located,
    read_one,
    replaced,
    written,
)
from guardalign_guardrails.content.payload import Payload, is_data_url, to_base64, to_data_url

_TYPES: Final = ("image", "file")
_V1: Final[Mapping[str, Kind]] = {"base64": "data", "url": "url", "file_id": "reference"}
_V0: Final[Mapping[str, tuple[str, Kind]]] = {
    "base64": ("data", "data"),
    "url": ("url", "url"),
    "id": ("id", "reference"),
}


def v1(block: Block) -> Reading | None:
    """``{"type": "image" | "file", "base64" | "url" | "file_id": ..., "mime_type": ..., "extras": ..., ...}``."""
    keys = located(block)
    extras = block.get("extras")
    if block.get("type") not in _TYPES or not keys <= _V1.keys():
        return None
    if block["type"] == "file" and not keys:
        # A tool that lists files has nothing else of them.
        return None
    if isinstance(extras, Mapping) and located(extras):
        return None

    def write(data: bytes, mime: str) -> dict[Any, Any]:
        url = block.get("url")
        if keys == {"url"} and isinstance(url, str) and is_data_url(url):
            return replaced(block, to_data_url(data, mime), mime, key="url")
        old = block.get("base64")
        new = written(old, data, mime) if isinstance(old, str) else to_base64(data)
        return {**replaced(block, new, mime, key="base64"), "mime_type": mime}

    return Reading(lambda max_bytes: read_one(block, _V1, max_bytes), write)


def v0(block: Block) -> Reading | None:
    """``{"type": "image" | "file", "source_type": "base64" | "url" | "id", "data" | "url" | "id": ..., ...}``."""
    source = block.get("source_type")
    if block.get("type") not in _TYPES or not isinstance(source, str) or source not in _V0:
        return None
    key, kind = _V0[source]
    holder = {name: value for name, value in block.items() if name != "source_type"}

    def read(max_bytes: int) -> Payload:
        if kind == "reference":
            return "several_locators" if located(holder) else "file_reference"
        return read_one(holder, {key: kind}, max_bytes)

    def write(data: bytes, mime: str) -> dict[Any, Any]:
        url = block.get("url")
        if source == "url" and isinstance(url, str) and is_data_url(url):
            inline = {**replaced(holder, to_data_url(data, mime), mime, key="url"), "source_type": "url"}
            return {name: inline[name] for name in block if name in inline}
        # An "id" locates in this dialect only if the source type says so; else it names the block.
        kept = {k: v for k, v in block.items() if k != "source_type" and not (k == "id" and source == "id")}
        old = block.get("data")
        new = written(old, data, mime) if isinstance(old, str | bytes) else to_base64(data)
        body = {**replaced(kept, new, mime, key="data"), "mime_type": mime}
        return {"type": block["type"], "source_type": "base64", **body}

    return Reading(read, write)


DIALECTS: Final[tuple[Dialect, ...]] = (v0, v1)
