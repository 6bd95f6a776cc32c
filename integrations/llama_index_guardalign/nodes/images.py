"""Where in a node images are, and nodes with other ones in their place.

A node may lead to one image in several ways (bytes, a path, a URL, ``metadata["file_path"]``), and LlamaIndex's
readers of nodes do not agree on which they follow. After a mask there is one way left. Knows nothing of guards.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llama_index.core.schema import (
    BaseNode,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeWithScore,
    TextNode,
)
from PIL import Image

from guardalign_guardrails.content.dialect import Reading
from guardalign_guardrails.content.payload import Payload, Reason, read_base64, read_bytes, read_url, to_base64
from guardalign_guardrails.content.walk import find_loose
from guardalign_guardrails.images import keep_png
from llama_index_guardalign.nodes.files import bytes_of

FILE_PATH_KEY: Final = "file_path"
"""Metadata field with the file a node was read from. Some of LlamaIndex's parts open it as the node's image."""

_UNSEEN: Final = ("audio_resource", "video_resource")
_ANYTHING: Final = "application/octet-stream"


@dataclass(frozen=True)
class Drawn:
    """An image that takes another one's place.

    Attributes:
        data: Encoded.
        mime: Its media type.
    """

    data: bytes = field(repr=False)
    mime: str


@dataclass(frozen=True)
class FoundImage:
    """One place in a node that stands for an image or other media.

    Attributes:
        place: A field of the node, and a key within it; ``("obj", ...)`` for a place in the node that it leads to.
        reading: How to read it; what it writes is for `with_images`.
    """

    place: tuple[str, ...]
    reading: Reading = field(repr=False)


def find_images(node: BaseNode) -> list[FoundImage]:
    """All images of a node; nothing is decoded yet, and nothing is fetched."""
    found = []
    if isinstance(node, ImageNode):
        found += _of_image_node(node)
    elif isinstance(node, Node):
        found += _of_resources(node)
    if isinstance(node, IndexNode) and (inner := _inner(node)) is not None:
        found += [FoundImage(("obj", *image.place), image.reading) for image in find_images(inner)]
    for key, value in node.metadata.items():
        # Bare images only: a mapping in there may be anything.
        if isinstance(value, str | bytes | Image.Image):
            found += [FoundImage(("metadata", key), slot.reading) for slot in find_loose(value)]
    return found


def with_images(
    node: BaseNode, images: Sequence[FoundImage], values: Sequence[object], masked_dir: Path | None
) -> BaseNode:
    """A node with other images in it; the very same object if none changes. The node itself stays as it is.

    Args:
        node: Any node.
        images: All that `find_images` found.
        values: For each what takes its place: a `Drawn`, words, what its reading wrote; None if it stays.
        masked_dir: Where an image of a media resource is kept; None to keep it in the node, whose bytes LlamaIndex
            does not store.
    """
    changes = {image.place: value for image, value in zip(images, values, strict=True) if value is not None}
    update: dict[str, Any] = {}
    inner = {place[1:]: value for place, value in changes.items() if place[0] == "obj"}
    if inner and isinstance(node, IndexNode) and (old := _inner(node)) is not None:
        own = [image for image in images if image.place[0] == "obj"]
        moved = [FoundImage(image.place[1:], image.reading) for image in own]
        new = with_images(old, moved, [inner.get(image.place) for image in moved], masked_dir)
        update["obj"] = node.obj.model_copy(update={"node": new}) if isinstance(node.obj, NodeWithScore) else new
    metadata = {place[1]: value for place, value in changes.items() if place[0] == "metadata"}
    is_image_changed = any(place in changes for place in (("image",), ("image_resource",)))
    if metadata or is_image_changed:
        kept = _without_source(node) if is_image_changed else node.metadata
        update["metadata"] = {**kept, **metadata}
    if ("image",) in changes and isinstance(node, ImageNode):
        return _redrawn_image_node(node, changes[("image",)], update)
    for name in ("image_resource", *_UNSEEN):
        if (name,) in changes:
            update |= _redrawn_resource(node, name, changes[(name,)], masked_dir)
    return copied(node, update) if update else node


def copied(node: BaseNode, update: Mapping[str, Any]) -> BaseNode:
    """A copy of a node that shares nothing with it that is likely to be changed in place."""
    own: dict[str, Any] = {
        "metadata": dict(node.metadata),
        "relationships": dict(node.relationships),
        "excluded_llm_metadata_keys": list(node.excluded_llm_metadata_keys),
        "excluded_embed_metadata_keys": list(node.excluded_embed_metadata_keys),
    }
    return node.model_copy(update={**own, **update})


def without_second_url(node: BaseNode) -> BaseNode:
    """The node without a URL beside its bytes or path; itself if there is none.

    Where both are given, the bytes were looked at, but some models are sent the URL.
    """
    has_file = _source_of(node) is not None
    if isinstance(node, ImageNode) and node.image_url:
        is_second = has_file or node.image is not None or node.image_path is not None
        return copied(node, {"image_url": None}) if is_second else node
    resource = node.image_resource if isinstance(node, Node) else None
    if resource is None or resource.url is None:
        return node
    if has_file or resource.data is not None or resource.path is not None:
        return copied(node, {"image_resource": resource.model_copy(update={"url": None})})
    return node


def is_image_file(path: object) -> bool:
    """Whether a path may be that of an image: its suffix is that of one, or says nothing."""
    if not isinstance(path, str | Path):
        return False
    kind = mimetypes.guess_type(str(path), strict=False)[0] or _ANYTHING
    return kind == _ANYTHING or kind.startswith("image/")


def _inner(node: IndexNode) -> BaseNode | None:
    inner = node.obj.node if isinstance(node.obj, NodeWithScore) else node.obj
    return inner if isinstance(inner, BaseNode) else None


def _of_image_node(node: ImageNode) -> list[FoundImage]:
    path = node.image_path or _source_of(node)
    if node.image is not None:
        image = node.image
        return [_image("image", lambda most: read_bytes(image, most))]
    if path is not None:
        return [_image("image", _file(path))]
    if node.image_url:
        url = str(node.image_url)
        return [_image("image", lambda most: read_url(url, most))]
    return []


def _source_of(node: BaseNode) -> str | None:
    """The file that LlamaIndex opens for an image that a node does not hold, whatever its name."""
    if not isinstance(node, ImageNode | ImageDocument) or node.image is not None or node.image_path:
        return None
    path = node.metadata.get(FILE_PATH_KEY)
    return str(path) if isinstance(path, str | Path) and str(path) else None


def _of_resources(node: Node) -> list[FoundImage]:
    found = []
    resource = node.image_resource
    source = _source_of(node)
    read = _file(source) if source is not None else None if resource is None else _of_resource(resource)
    if read is not None:
        found.append(_image("image_resource", read))
    found += [FoundImage((name,), Reading(_unsupported)) for name in _UNSEEN if getattr(node, name) is not None]
    return found


def _of_resource(resource: MediaResource) -> Callable[[int], Payload] | None:
    if resource.data is not None:
        data = resource.data
        return lambda most: read_base64(data.decode("ascii", "replace"), most)
    if resource.path is not None:
        return _file(resource.path)
    if resource.url is not None:
        url = str(resource.url)
        return lambda most: read_url(url, most)
    return None


def _image(place: str, read: Callable[[int], Payload]) -> FoundImage:
    return FoundImage((place,), Reading(read, Drawn))


def _file(path: str | Path) -> Callable[[int], Payload]:
    def read(max_bytes: int) -> Payload:
        data = bytes_of(path, max_bytes)
        return "file_reference" if data is None else data

    return read


def _unsupported(_: int) -> Reason:
    return "unsupported_block"


def _without_source(node: BaseNode) -> dict[str, Any]:
    is_source = _source_of(node) is not None
    return {
        key: value
        for key, value in node.metadata.items()
        if key != FILE_PATH_KEY or not (is_source or is_image_file(value))
    }


def _redrawn_image_node(node: ImageNode, value: object, update: dict[str, Any]) -> BaseNode:
    if isinstance(value, Drawn):
        own = {"image": to_base64(value.data), "image_path": None, "image_url": None, "image_mimetype": value.mime}
        return copied(node, {**update, **own})
    # An image node without an image cannot be read by anybody.
    kept = {name: getattr(node, name) for name in TextNode.model_fields}
    return copied(TextNode(**kept), {**update, "text": node.text or str(value)})


def _redrawn_resource(node: BaseNode, name: str, value: object, masked_dir: Path | None) -> dict[str, Any]:
    if isinstance(value, Drawn):
        where: Any = {"data": value.data} if masked_dir is None else {"path": keep_png(value.data, masked_dir)}
        return {name: MediaResource(mimetype=value.mime, **where)}
    words = node.text_resource if isinstance(node, Node) else None
    is_silent = words is None or not words.text
    return {name: None, **({"text_resource": MediaResource(text=str(value))} if is_silent else {})}


def without_all_images(node: BaseNode, text: str) -> BaseNode:
    """The node as it may be traced: words in place of every image, file and recording; itself if there is none."""
    images = find_images(node)
    return with_images(node, images, [text] * len(images), None)
