"""Anthropic's Messages API: ``image`` and ``document`` with a ``source``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from guardalign_guardrails.content.dialect import Block, Dialect, Kind, Reading, located, read_one, replaced
from guardalign_guardrails.content.payload import Payload, to_base64

_KINDS: Final[Mapping[str, Mapping[str, Kind]]] = {
    "base64": {"data": "data"},
    "url": {"url": "url"},
    "file": {"file_id": "reference"},
}


def source(block: Block) -> Reading | None:
    """``{"type": "image" | "document", "source": {"type": "base64" | "url" | "file", ...}, ...}``.

    A document's bytes may be an image whatever its type says; if they are a PDF, they cannot be opened.
    """
    holder = block.get("source")
    if block.get("type") not in ("image", "document") or not isinstance(holder, Mapping):
        return None
    stated = holder.get("type")
    kinds = _KINDS.get(stated) if isinstance(stated, str) else None
    if kinds is None:
        return None

    def read(max_bytes: int) -> Payload:
        return read_one(holder, kinds, max_bytes) if located(block) == {"source"} else "several_locators"

    def write(data: bytes, mime: str) -> dict[Any, Any]:
        new = {**replaced(holder, to_base64(data), mime, key="data"), "type": "base64", "media_type": mime}
        # A document may not be an image there, so what is put in its place is one.
        return {**replaced(block, new, mime, key="source"), "type": "image"}

    return Reading(read, write)


DIALECTS: Final[tuple[Dialect, ...]] = (source,)
