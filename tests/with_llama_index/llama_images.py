"""Images in LlamaIndex's clothes: as blocks of every kind, and read back from them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
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
)
from PIL import Image

from guardalign_guardrails.content.payload import to_data_url
from guardalign_guardrails.images import encode_png

QUESTION = "What is this?"


def png(image: Image.Image) -> bytes:
    return encode_png(image)


def data_url(image: Image.Image) -> str:
    return to_data_url(encode_png(image), "image/png")


def saved(image: Image.Image, folder: Path, name: str = "image.png") -> Path:
    path = folder / name
    path.write_bytes(encode_png(image))
    return path


KINDS: dict[str, Callable[[Image.Image, Path], Any]] = {
    "bytes": lambda image, _: ImageBlock(image=png(image)),
    "base64": lambda image, _: ImageBlock(image=base64.b64encode(png(image))),
    "a stream": lambda image, _: ImageBlock(image=io.BytesIO(png(image))),
    "a path": lambda image, folder: ImageBlock(path=saved(image, folder)),
    "a data URL": lambda image, _: ImageBlock(url=data_url(image)),
    "raw bytes put in later": lambda image, _: ImageBlock().model_copy(update={"image": png(image)}),
    "a citable source": lambda image, _: CitableBlock(title="t", source="s", content=[ImageBlock(image=png(image))]),
    "a citation": lambda image, _: CitationBlock(
        cited_content=ImageBlock(image=png(image)), source="s", title="t", additional_location_info={}
    ),
    "a document": lambda image, _: DocumentBlock(data=png(image)),
    "a document on disk": lambda image, folder: DocumentBlock(path=saved(image, folder, "page.png")),
}
"""Every way in which a block holds an image."""


def ask(*images: Image.Image, words: str = QUESTION, role: MessageRole = MessageRole.USER) -> ChatMessage:
    """A message with words and images."""
    return ChatMessage(role=role, blocks=[TextBlock(text=words), *(ImageBlock(image=png(image)) for image in images)])


def said(words: str, role: str = "user") -> ChatMessage:
    return ChatMessage(role=MessageRole(role), content=words)


def image_of(block: Any) -> Image.Image:
    """The image in a block, as a provider's LLM class would resolve it."""
    if isinstance(block, CitableBlock | CitationBlock):
        return image_of(block.nested_blocks[0])
    data = block.resolve_image() if isinstance(block, ImageBlock) else block.resolve_document()
    return Image.open(io.BytesIO(data.read())).convert("RGB")


def kinds_of(blocks: Sequence[Any]) -> list[str]:
    return [block.block_type for block in blocks]
