"""Which artifacts of tool messages are checked, and MCP's own objects as plain data and back.

Models are given no artifacts, but apps show them, store them and put them back into chats. An MCP tool's artifact holds
what the server sent once more: its structured content, or its content blocks. MCP's package is not needed here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel

Artifacts: TypeAlias = bool | Literal["mcp"]
"""Which artifacts are checked: all, none, or those of MCP tools."""

_STRUCTURED: Final = ("structured_content", "structuredContent")
_OF_MCP: Final = ("mcp", "mcp_types")
# What may stand in the place of another block: a notice, and an image that was fetched.
_CLASSES: Final = {"text": "TextContent", "image": "ImageContent"}


def is_checked(artifact: object, artifacts: Artifacts) -> bool:
    """Whether the images in an artifact are checked and replaced."""
    if artifact is None:
        return False
    return _is_of_mcp(artifact) if artifacts == "mcp" else bool(artifacts)


def plain_of(artifact: Any) -> Any:
    """An artifact with mappings in place of MCP's own objects; itself if there are none."""
    if _is_object(artifact):
        return artifact.model_dump()
    if isinstance(artifact, list | tuple) and any(map(_is_object, artifact)):
        return [plain_of(item) for item in artifact]
    return artifact


def restored(artifact: Any, plain: Any, new: Any) -> Any:
    """A sanitised artifact, with MCP's own objects where they were.

    Args:
        artifact: The artifact as it came.
        plain: Its `plain_of`.
        new: What became of that; shares what did not change.
    """
    if new is plain:
        return artifact
    if isinstance(artifact, BaseModel) and isinstance(new, Mapping):
        kind = new.get("type")
        if kind in _CLASSES and kind != plain.get("type"):
            return getattr(sys.modules[type(artifact).__module__], _CLASSES[kind])(**new)
        changed = {key: item for key, item in new.items() if item is not plain[key]}
        return artifact.model_copy(
            update={key: restored(getattr(artifact, key), plain[key], item) for key, item in changed.items()}
        )
    if isinstance(artifact, list | tuple) and isinstance(new, list | tuple) and len(new) == len(artifact):
        items = [restored(*each) for each in zip(artifact, plain, new, strict=True)]
        return tuple(items) if isinstance(artifact, tuple) else items
    return new


def _is_of_mcp(artifact: object) -> bool:
    if isinstance(artifact, list | tuple):
        return any(_is_object(item) or _is_block(item) for item in artifact)
    return _is_object(artifact) or (isinstance(artifact, Mapping) and any(key in artifact for key in _STRUCTURED))


def _is_object(value: object) -> bool:
    return isinstance(value, BaseModel) and type(value).__module__.partition(".")[0] in _OF_MCP


def _is_block(value: object) -> bool:
    """Whether a mapping is an MCP content block as its JSON is."""
    if not isinstance(value, Mapping):
        return False
    kind = value.get("type")
    return kind in ("resource", "resource_link") or (kind in ("image", "audio") and "mimeType" in value)
