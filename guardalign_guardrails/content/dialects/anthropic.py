"""Anthropic's Messages API: ``image`` and ``document`` with a ``source``; results of the tools that run at Anthropic.

What takes the place of a part of such a result has the type that the API takes there: a history with any other is
refused as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any, Final

from guardalign_guardrails.content.dialect import (
    Block,
    Dialect,
    Kind,
    Path,
    Reading,
    located,
    read_one,
    read_value,
    replaced,
    written,
)
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


def fetched(block: Block) -> Reading | None:
    """``{"type": "web_fetch_result", "url": ..., "content": {"type": "document", "source": ...}}``."""
    document = block.get("content")
    inner = source(document) if isinstance(document, Mapping) else None
    if block.get("type") != "web_fetch_result" or inner is None or inner.write is None:
        return None
    write_inner = inner.write

    def read(max_bytes: int) -> Payload:
        return inner.read(max_bytes) if located(block) <= {"url"} else "several_locators"

    def write(data: bytes, mime: str) -> dict[Any, Any]:
        return {**block, "content": write_inner(data, mime)}

    def withheld(notice: str) -> dict[Any, Any]:
        text = {"type": "text", "media_type": "text/plain", "data": notice}
        return {**block, "content": {"type": "document", "source": text}}

    return Reading(read, write, withheld=withheld)


def viewed(block: Block) -> Reading | None:
    """``{"type": "text_editor_code_execution_view_result", "file_type": "image" | "pdf", "content": ...}``."""
    content = block.get("content")
    if block.get("type") != "text_editor_code_execution_view_result" or block.get("file_type") in (None, "text"):
        return None
    if not isinstance(content, str) or not content.strip():
        return None
    return Reading(
        lambda max_bytes: "several_locators" if located(block) else read_value(content, "data", max_bytes),
        lambda data, mime: {**block, "content": written(content, data, mime)},
        withheld=lambda notice: {**block, "file_type": "text", "content": notice},
    )


_RESULTS: Final[Mapping[str, Set[str]]] = {
    "bash_code_execution_tool_result": {"bash_code_execution_result"},
    "code_execution_tool_result": {"code_execution_result", "encrypted_code_execution_result"},
}
_FILE_ID: Final = re.compile("file[_-][A-Za-z0-9_-]{1,100}")


def files_made_by_code(block: Block) -> Set[Path]:
    """Where in the result of code that ran at Anthropic the ids of files are that it made: paths from the block.

    The API does not show these files to the model. This holds only at this very path and for blocks that have nothing
    else in them: who writes a history can give any id the name of an output.
    """
    kind, key = block.get("type"), "content"
    if kind == "server_tool_result":
        # LangChain's standard form of the same.
        extras = block.get("extras")
        kind, key = extras.get("block_type") if isinstance(extras, Mapping) else None, "output"
    result = block.get(key)
    if not isinstance(kind, str) or kind not in _RESULTS or not isinstance(result, Mapping):
        return frozenset()
    outputs = result.get("content")
    if result.get("type") not in _RESULTS[kind] or not isinstance(outputs, list | tuple):
        return frozenset()
    made = kind.replace("_tool_result", "_output")
    return {(key, "content", index) for index, output in enumerate(outputs) if _is_file_id(output, made)}


def _is_file_id(output: object, kind: str) -> bool:
    if not isinstance(output, Mapping) or output.keys() != {"type", "file_id"} or output["type"] != kind:
        return False
    file_id = output["file_id"]
    return isinstance(file_id, str) and _FILE_ID.fullmatch(file_id) is not None


DIALECTS: Final[tuple[Dialect, ...]] = (source, fetched, viewed)
