"""Images in LlamaIndex's nodes: in every class and every place that holds or names one, and read back from them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import banks.prompt
import pytest
from llama_images import data_url, image_of, png, saved
from llama_index.core import StorageContext
from llama_index.core.base.llms.generic_utils import image_node_to_image_block
from llama_index.core.base.llms.types import ChatMessage, DocumentBlock, ImageBlock
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.embeddings.mock_embed_model import MockMultiModalEmbedding
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeWithScore,
    TextNode,
)
from llama_index.core.vector_stores import SimpleVectorStore
from PIL import Image

from guardalign_guardrails.content.payload import to_base64


def b64(image: Image.Image) -> str:
    return to_base64(png(image))


def _path(image: Image.Image, folder: Path) -> str:
    return str(saved(image, folder))


NODES: dict[str, Callable[[Image.Image, Path], BaseNode]] = {
    "an image node with base64": lambda image, _: ImageNode(image=b64(image), text="words"),
    "an image node with a path": lambda image, folder: ImageNode(image_path=_path(image, folder), text="words"),
    "an image node with a data URL": lambda image, _: ImageNode(image_url=data_url(image), text="words"),
    "an image node with a file path in its metadata": lambda image, folder: ImageNode(
        text="words", metadata={"file_path": _path(image, folder)}
    ),
    "a node with bytes": lambda image, _: Node(
        image_resource=MediaResource(data=png(image)), text_resource=MediaResource(text="words")
    ),
    "a node with a path": lambda image, folder: Node(
        image_resource=MediaResource(path=_path(image, folder)), text_resource=MediaResource(text="words")
    ),
    "a document with bytes": lambda image, _: Document(text="words", image_resource=MediaResource(data=png(image))),
    "an image document": lambda image, _: ImageDocument(text="words", image=b64(image)),
    "an image document with a path": lambda image, folder: ImageDocument(text="words", image_path=_path(image, folder)),
    "an image document with a file path in its metadata": lambda image, folder: ImageDocument(
        text="words", metadata={"file_path": _path(image, folder)}
    ),
    "an index node that leads to one": lambda image, _: IndexNode(
        text="words", index_id="i", obj=ImageNode(image=b64(image), text="words")
    ),
    "an index node that leads to a scored one": lambda image, _: IndexNode(
        text="words", index_id="i", obj=NodeWithScore(node=ImageNode(image=b64(image), text="words"), score=0.5)
    ),
    "a data URL in metadata": lambda image, _: TextNode(text="words", metadata={"thumbnail": data_url(image)}),
    "bytes in metadata": lambda image, _: TextNode(text="words", metadata={"thumbnail": png(image)}),
}
"""Every way in which a node holds or names an image."""


def images_of(node: BaseNode) -> list[Image.Image]:
    """The images that anything of LlamaIndex could get out of a node, by whatever way."""
    if isinstance(node, IndexNode) and node.obj is not None:
        return images_of(node.obj.node if isinstance(node.obj, NodeWithScore) else node.obj)
    found: list[Any] = []
    if isinstance(node, ImageNode):
        found += [node.resolve_image()] if node.image or node.image_path or node.image_url else []
        if node.image or node.image_path or node.image_url or "file_path" in node.metadata:
            found.append(image_node_to_image_block(node).resolve_image())
    if isinstance(node, ImageNode | Node) and (not isinstance(node, ImageNode) or node.image or node.image_path):
        blocks = node.get_content_blocks()
        found += [block.resolve_image() for block in blocks if block.block_type == "image"]
    if "file_path" in node.metadata:
        found.append(node.metadata["file_path"])
    thumbnail = node.metadata.get("thumbnail")
    if isinstance(thumbnail, bytes):
        found.append(io.BytesIO(thumbnail))
    elif isinstance(thumbnail, str) and thumbnail.startswith("data:"):
        found.append(io.BytesIO(_decoded(thumbnail)))
    return [Image.open(one if isinstance(one, str) else io.BytesIO(one.read())).convert("RGB") for one in found]


def _decoded(url: str) -> bytes:
    from guardalign_guardrails.content.payload import read_data_url

    data = read_data_url(url, len(url))
    assert isinstance(data, bytes)
    return data


def images_in(value: Any) -> list[Image.Image]:
    """Every image in messages, nodes and whatever holds them, found without the package's own walk."""
    found: list[Image.Image] = []

    def walk(value: Any) -> None:
        if isinstance(value, Image.Image):
            found.append(value)
        elif isinstance(value, bytes) and value.startswith(b"\x89PNG"):
            found.append(image_of(ImageBlock(image=value)))
        elif isinstance(value, str) and value.startswith("data:"):
            found.append(image_of(ImageBlock(url=value)))
        elif isinstance(value, ImageBlock | DocumentBlock):
            found.append(image_of(value))
        elif isinstance(value, ChatMessage):
            walk(value.blocks)
        elif isinstance(value, ImageNode):
            found.extend(images_of(value))
        elif isinstance(value, dict):
            walk(list(value.values()))
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        elif hasattr(value, "__dict__"):
            walk(list(vars(value).values()))

    walk(value)
    return found


def index_of(*nodes: BaseNode) -> MultiModalVectorStoreIndex:
    """An index of images and words, with stores in memory and embeddings that are all alike."""
    stores = {"vector_store": SimpleVectorStore(), "image_store": SimpleVectorStore()}
    return MultiModalVectorStoreIndex(
        nodes=list(nodes),
        storage_context=StorageContext.from_defaults(**stores),
        embed_model=MockEmbedding(embed_dim=3),
        image_embed_model=MockMultiModalEmbedding(embed_dim=3),
    )


def smuggled(monkeypatch: pytest.MonkeyPatch, image: Image.Image) -> str:
    """Text of which LlamaIndex's template engine makes an image block.

    Up to banks 2.4 it takes any text in these marks for one. Later its own blocks have a secret in the mark, which is
    known here. The image has to be small: LlamaIndex cuts long texts.
    """
    secret = ""
    if hasattr(banks.prompt, "generate_sentinel"):
        secret = "known"
        monkeypatch.setattr(banks.prompt, "generate_sentinel", lambda: secret)
    block = {"type": "image_url", "image_url": {"url": data_url(image)}}
    return f"<content_block>{secret}{json.dumps(block)}</content_block>"
