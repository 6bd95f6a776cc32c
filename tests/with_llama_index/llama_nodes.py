"""Pictures in LlamaIndex's nodes: in every class and every place that holds or names one, and read back from them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.generic_utils import image_node_to_image_block
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
from llama_pictures import data_url, png, saved
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
    "an index node that leads to one": lambda image, _: IndexNode(
        text="words", index_id="i", obj=ImageNode(image=b64(image), text="words")
    ),
    "an index node that leads to a scored one": lambda image, _: IndexNode(
        text="words", index_id="i", obj=NodeWithScore(node=ImageNode(image=b64(image), text="words"), score=0.5)
    ),
    "a data URL in metadata": lambda image, _: TextNode(text="words", metadata={"thumbnail": data_url(image)}),
    "bytes in metadata": lambda image, _: TextNode(text="words", metadata={"thumbnail": png(image)}),
}
"""Every way in which a node holds or names a picture."""


def pictures_of(node: BaseNode) -> list[Image.Image]:
    """The pictures that anything of LlamaIndex could get out of a node, by whatever way."""
    if isinstance(node, IndexNode) and node.obj is not None:
        return pictures_of(node.obj.node if isinstance(node.obj, NodeWithScore) else node.obj)
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
