"""Bedrock's Converse API: ``{"image": {"format": ..., "source": {"bytes" | "s3Location": ...}}}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from guardalign_guardrails.content.dialect import Block, Dialect, Kind, Reading, located, read_one, replaced, written
from guardalign_guardrails.content.payload import Payload

_KINDS: Final[Mapping[str, Kind]] = {"bytes": "data", "s3Location": "reference"}


def image(block: Block) -> Reading | None:
    """An ``image`` with a ``source``; bytes may be bytes or base64 text."""
    outer = block.get("image")
    holder = outer.get("source") if isinstance(outer, Mapping) else None
    if not isinstance(outer, Mapping) or not isinstance(holder, Mapping):
        return None

    def read(max_bytes: int) -> Payload:
        if located(block) != {"image"} or located(outer) != {"source"}:
            return "several_locators"
        return read_one(holder, _KINDS, max_bytes)

    def write(data: bytes, mime: str) -> dict[Any, Any]:
        old = holder.get("bytes")
        source = replaced(holder, data if old is None else written(old, data, mime), mime, key="bytes")
        new = {**replaced(outer, source, mime, key="source"), "format": mime.removeprefix("image/")}
        return replaced(block, new, mime, key="image")

    return Reading(read, write)


DIALECTS: Final[tuple[Dialect, ...]] = (image,)
