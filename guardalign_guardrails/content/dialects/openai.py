"""OpenAI's two APIs: ``image_url`` and ``file`` of chat completions; the input and output items of Responses."""

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
from guardalign_guardrails.content.payload import Payload, to_data_url

_INPUT_IMAGE: Final[Mapping[str, Kind]] = {"image_url": "url", "file_id": "reference"}
_FILE: Final[Mapping[str, Kind]] = {"file_data": "data", "file_url": "url", "file_id": "reference"}


def image_url(block: Block) -> Reading | None:
    """``{"type": "image_url", "image_url": {"url": ..., "detail": ...} | "...", ...}``."""
    inner = block.get("image_url")
    holder: Block = {"url": inner} if isinstance(inner, str) else inner if isinstance(inner, Mapping) else {}
    if block.get("type") != "image_url" or not isinstance(holder.get("url"), str):
        return None

    def read(max_bytes: int) -> Payload:
        if located(block) != {"image_url"}:
            return "several_locators"
        return read_one(holder, {"url": "url"}, max_bytes)

    def write(data: bytes, mime: str) -> dict[Any, Any]:
        new = _bare(holder, data, mime)
        return replaced(block, new["url"] if isinstance(inner, str) else new, mime, key="image_url")

    return Reading(read, write)


def bare_image_url(block: Block) -> Reading | None:
    """``{"url": ..., "detail": ...}`` without a type, as LangChain's ``ImagePromptValue`` writes it."""
    if not isinstance(block.get("url"), str) or not block.keys() <= {"url", "detail"}:
        return None
    return Reading(
        lambda max_bytes: read_one(block, {"url": "url"}, max_bytes), lambda data, mime: _bare(block, data, mime)
    )


def input_image(block: Block) -> Reading | None:
    """``{"type": "input_image" | "computer_screenshot", "image_url": "..." | "file_id": ..., ...}``."""
    if block.get("type") not in ("input_image", "computer_screenshot"):
        return None
    url = block.get("image_url")
    if url is not None and not isinstance(url, str):
        return None
    return Reading(
        lambda max_bytes: read_one(block, _INPUT_IMAGE, max_bytes),
        lambda data, mime: replaced(block, to_data_url(data, mime), mime, key="image_url", over="file_id"),
        # A computer call is answered by a screenshot and nothing else.
        takes_text=block["type"] == "input_image",
    )


def input_file(block: Block) -> Reading | None:
    """``{"type": "input_file", "file_data": ... | "file_url": ... | "file_id": ..., ...}``; it may be an image."""
    if block.get("type") != "input_file":
        return None
    return _file(block)


def chat_file(block: Block) -> Reading | None:
    """``{"type": "file", "file": {"file_data": ... | "file_id": ..., ...}}``; it may be an image."""
    holder = block.get("file")
    if block.get("type") != "file" or not isinstance(holder, Mapping):
        return None
    inner = _file(holder)

    def read(max_bytes: int) -> Payload:
        return inner.read(max_bytes) if located(block) == {"file"} else "several_locators"

    def write(data: bytes, mime: str) -> dict[Any, Any]:
        return replaced(block, _written_file(holder, data, mime), mime, key="file")

    return Reading(read, write)


def generated_image(block: Block) -> Reading | None:
    """``{"type": "image_generation_call", "result": ..., "output_format": ...}``, an image the model made."""
    result = block.get("result")
    if block.get("type") != "image_generation_call" or not isinstance(result, str):
        return None

    def write(data: bytes, mime: str) -> dict[Any, Any]:
        stated = {key: mime.removeprefix("image/") for key in ("output_format",) if key in block}
        return {**block, **stated, "result": written(result, data, mime)}

    return Reading(
        lambda max_bytes: "several_locators" if located(block) else read_value(result, "data", max_bytes), write
    )


_SEARCHED: Final = frozenset({"attributes", "file_id", "filename", "score", "text", "vector_store_id"})
_FILE_ID: Final = re.compile("file[_-][A-Za-z0-9_-]{1,100}")


def files_searched(block: Block) -> Set[Path]:
    """Where in the results of a file search, in LangChain's standard form, the files are of which they have the text.

    The model is shown the text. Entries with anything else in them are read like others.
    """
    results = block.get("output")
    if block.get("type") != "server_tool_result" or not isinstance(results, list | tuple):
        return frozenset()
    return {("output", index) for index, result in enumerate(results) if _is_searched(result)}


def _is_searched(result: object) -> bool:
    if not isinstance(result, Mapping) or not result.keys() <= _SEARCHED or not isinstance(result.get("text"), str):
        return False
    attributes, file_id = result.get("attributes") or {}, result.get("file_id")
    is_plain = isinstance(attributes, Mapping) and all(
        isinstance(each, str | int | float) for each in attributes.values()
    )
    return is_plain and isinstance(file_id, str) and _FILE_ID.fullmatch(file_id) is not None


DIALECTS: Final[tuple[Dialect, ...]] = (image_url, input_image, input_file, chat_file, generated_image)


def _bare(holder: Block, data: bytes, mime: str) -> dict[Any, Any]:
    # LiteLLM reads the media type from "format" rather than from the data URL.
    stated = {"format": mime} if "format" in holder else {}
    return replaced(holder, to_data_url(data, mime), mime, key="url") | stated


def _file(holder: Block) -> Reading:
    return Reading(
        lambda max_bytes: read_one(holder, _FILE, max_bytes), lambda data, mime: _written_file(holder, data, mime)
    )


def _written_file(holder: Block, data: bytes, mime: str) -> dict[Any, Any]:
    return replaced(holder, to_data_url(data, mime), mime, key="file_data")
