"""Tools and local models: MCP's ``image`` and ``resource``, Hugging Face's ``image`` with an image, URL or path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from guardalign_guardrails.content.dialect import (
    MIME_KEYS,
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

_IMAGE: Final[Mapping[str, Kind]] = {"data": "data", "image": "any", "path": "reference"}


def image(block: Block) -> Reading | None:
    """``{"type": "image", "data": ..., "mimeType": ...}`` and ``{"type": "image", "image" | "path": ...}``.

    A path is never opened: what it names on this machine is none of the sender's business.
    """
    keys = located(block)
    if block.get("type") != "image" or not keys or not keys <= _IMAGE.keys() or isinstance(block.get("image"), Mapping):
        return None

    def write(data: bytes, mime: str) -> dict[Any, Any]:
        key = "data" if keys == {"data"} else "image"
        old = block.get(key)
        return replaced(block, to_base64(data) if old is None else written(old, data, mime), mime, key=key)

    return Reading(lambda max_bytes: read_one(block, _IMAGE, max_bytes), write)


def resource(block: Block) -> Reading | None:
    """``{"type": "resource", "resource": {"uri": ..., "mimeType": "image/...", "blob": ...}}``."""
    holder = block.get("resource")
    if block.get("type") != "resource" or not isinstance(holder, Mapping) or "blob" not in holder:
        return None

    def read(max_bytes: int) -> Payload:
        if located(block):
            return "several_locators"
        # Its URI names the resource; the bytes are what a client hands to a model.
        return read_one({k: v for k, v in holder.items() if k != "uri"}, {"blob": "data"}, max_bytes)

    def write(data: bytes, mime: str) -> dict[Any, Any]:
        stated = {key: mime for key in MIME_KEYS if key in holder}
        return {**block, "resource": {**holder, "blob": to_base64(data), **stated}}

    return Reading(read, write)


def resource_link(block: Block) -> Reading | None:
    """``{"type": "resource_link", "uri": ..., "mimeType": "image/..."}``: the server chose where it leads."""
    if block.get("type") != "resource_link" or not mime_of(block).startswith("image/"):
        return None
    return Reading(
        lambda max_bytes: read_one(block, {"uri": "url"}, max_bytes),
        lambda data, mime: {"type": "image", "data": to_base64(data), "mimeType": mime},
    )


DIALECTS: Final[tuple[Dialect, ...]] = (image, resource, resource_link)
