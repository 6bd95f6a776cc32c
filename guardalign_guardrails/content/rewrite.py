"""Replaces blocks of content. Nothing is changed in place; everything beside a replaced block is shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from guardalign_guardrails.content.dialect import Path

_OF_RESPONSES: Final = ("input_image", "input_file")


def block_at(content: Any, path: Path) -> Any:
    """The block to which a path leads."""
    for step in path:
        content = content[step]
    return content


def with_blocks(content: Any, blocks: Mapping[Path, object]) -> Any:
    """The content with some blocks replaced; itself if there are none."""
    for path, block in blocks.items():
        content = _put(content, path, block)
    return content


def text_in_place_of(block: object, text: str) -> dict[str, Any] | str:
    """Text in place of an image: a block for a block, which keeps its prompt-cache mark."""
    if not isinstance(block, Mapping):
        return text
    kept = {"cache_control": block["cache_control"]} if "cache_control" in block else {}
    # Bedrock's blocks have no type.
    is_bedrock = "type" not in block and isinstance(block.get("image"), Mapping)
    # OpenAI's Responses refuse "text".
    kind = "input_text" if block.get("type") in _OF_RESPONSES else "text"
    return {"text": text, **kept} if is_bedrock else {"type": kind, "text": text, **kept}


def _put(node: Any, path: Path, value: object) -> Any:
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(node, Mapping):
        return {key: _put(item, rest, value) if key == step else item for key, item in node.items()}
    items = [_put(item, rest, value) if index == step else item for index, item in enumerate(node)]
    return tuple(items) if isinstance(node, tuple) else items
