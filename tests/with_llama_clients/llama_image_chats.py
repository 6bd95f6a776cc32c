"""LlamaIndex's messages with an image in one of several places, in each kind of block that holds one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)

from content.block_matrix import kind, mime, named, url


def _saved(data: bytes, folder: Path) -> Path:
    path = folder / named(data)
    path.write_bytes(data)
    return path


BLOCKS: dict[str, Callable[[bytes, Path], Any]] = {
    "bytes": lambda data, _: ImageBlock(image=data),
    "bytes of a stated type": lambda data, _: ImageBlock(image=data, image_mimetype=mime(data), detail="low"),
    "a stream": lambda data, _: ImageBlock(image=io.BytesIO(data)),
    "a path": lambda data, folder: ImageBlock(path=_saved(data, folder)),
    "a data URL": lambda data, _: ImageBlock(url=url(data)),
    "a citable source": lambda data, _: CitableBlock(title="t", source="s", content=[ImageBlock(image=data)]),
    "a citation": lambda data, _: CitationBlock(
        cited_content=ImageBlock(image=data), source="s", title="t", additional_location_info={}
    ),
    "a document": lambda data, _: DocumentBlock(data=data, document_mimetype=mime(data), title=f"t.{kind(data)}"),
    "a document on disk": lambda data, folder: DocumentBlock(path=_saved(data, folder)),
    "a document at a data URL": lambda data, _: DocumentBlock(url=url(data), document_mimetype=mime(data)),
}
"""Every way in which a block holds an image, given the encoded image and a folder for files."""


def _said(text: str, *blocks: Any, role: str = "user", **kwargs: Any) -> ChatMessage:
    return ChatMessage(role=MessageRole(role), blocks=[TextBlock(text=text), *blocks], additional_kwargs=kwargs)


PLACES: dict[str, Callable[[list[Any]], list[ChatMessage]]] = {
    "user": lambda blocks: [_said("What is this?", *blocks)],
    "history": lambda blocks: [
        _said("What is this?", *blocks),
        _said("A square.", role="assistant"),
        _said("And now?"),
    ],
    "model": lambda blocks: [_said("Draw it."), _said("There.", *blocks, role="assistant"), _said("And now?")],
    "tool": lambda blocks: [
        _said("Look up."),
        ChatMessage(
            role=MessageRole.ASSISTANT,
            blocks=[ToolCallBlock(tool_call_id="call00001", tool_name="look", tool_kwargs={"where": "up"})],
        ),
        _said("A shot.", *blocks, role="tool", tool_call_id="call00001", name="look"),
    ],
}
"""Messages with some blocks in the user's turn, an earlier turn, an earlier answer of the model, a tool's result."""
