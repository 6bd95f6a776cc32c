"""Finds the images of a node, and puts other images in their places.

A node may lead to one image in several ways (bytes, a path, a URL, ``metadata["file_path"]``), and LlamaIndex's
readers of nodes do not agree on which they follow. After a mask there is one way left. Knows nothing of guards.
"""

from __future__ import annotations

import base64
import dataclasses
import mimetypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

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

from guardalign_guardrails.content import document_images
from guardalign_guardrails.content.dialect import Reading
from guardalign_guardrails.content.document_images import (
    FoundImage,
    Replacement,
    find_in_text,
    find_in_value,
    unreadable,
)
from guardalign_guardrails.content.payload import Payload, read_base64, read_bytes, read_url, to_base64
from guardalign_guardrails.images import keep_png, read_named_file

FILE_PATH_KEY: Final = "file_path"
"""Metadata field with the file a node was read from. Some of LlamaIndex's parts open it as the node's image."""

_UNSEEN: Final = ("audio_resource", "video_resource")
_PLAIN: Final = ("text", "metadata")
_ANYTHING: Final = "application/octet-stream"


class _NewImage(NamedTuple):
    """An encoded image and its media type, to be put into a node's own field."""

    data: bytes
    mime: str


def find_images(node: BaseNode) -> list[FoundImage]:
    """All images of a node; nothing is decoded yet, and nothing is fetched.

    Paths begin with a field of the node, ``obj`` for the node that an `IndexNode` leads to, or ``text`` for its text,
    wherever the node's class has it.
    """
    found = []
    if isinstance(node, ImageNode):
        found += _of_image_node(node)
    elif isinstance(node, Node):
        found += _of_resources(node)
    if isinstance(node, IndexNode) and (inner := _inner(node)) is not None:
        found += [dataclasses.replace(image, path=("obj", *image.path)) for image in find_images(inner)]
    found += find_in_text(_text_of(node), ("text",))
    for key, value in node.metadata.items():
        found += find_in_value(value, ("metadata", key))
    return found


def with_images(
    node: BaseNode, images: Sequence[FoundImage], replacements: Sequence[Replacement], masked_dir: Path | None
) -> BaseNode:
    """A node with other images in it; the very same object if none changes. The node itself stays as it is.

    Args:
        node: Any node.
        images: All that `find_images` found.
        replacements: Of those that change, in the same order.
        masked_dir: Folder for an image of a media resource; None to keep it in the node, whose bytes LlamaIndex does
            not store.
    """
    if not replacements:
        return node
    own = {each.image.path[0]: each for each in replacements if each.image.path[0] not in (*_PLAIN, "obj")}
    update = _new_inner(node, images, replacements, masked_dir) | _new_text_and_metadata(node, images, replacements)
    if not own.keys().isdisjoint(("image", "image_resource")):
        update["metadata"] = _without_source(node, update.get("metadata", node.metadata))
    if "image" in own and isinstance(node, ImageNode):
        return _new_image_node(node, own["image"], update)
    for name in own:
        update |= _new_resource(node, name, own[name], masked_dir)
    return copied(node, update)


def without_all_images(node: BaseNode, text: str) -> BaseNode:
    """The node as it may be traced: a text in place of every image, file and recording; itself if there is none."""
    images = find_images(node)
    return with_images(node, images, [Replacement(image, text, is_withheld=True) for image in images], None)


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


def _text_of(node: BaseNode) -> str:
    if isinstance(node, TextNode):
        return node.text
    resource = node.text_resource if isinstance(node, Node) else None
    return (resource and resource.text) or ""


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
    return found + [unreadable((name,), "unsupported_block") for name in _UNSEEN if getattr(node, name) is not None]


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


def _image(name: str, read: Callable[[int], Payload]) -> FoundImage:
    return FoundImage((name,), Reading(read, _NewImage))


def _file(path: str | Path) -> Callable[[int], Payload]:
    return lambda most: read_named_file(path, most)


def _without_source(node: BaseNode, metadata: Mapping[str, Any]) -> dict[str, Any]:
    is_source = _source_of(node) is not None
    return {
        key: value for key, value in metadata.items() if key != FILE_PATH_KEY or not (is_source or is_image_file(value))
    }


def _new_inner(
    node: BaseNode, images: Sequence[FoundImage], replacements: Sequence[Replacement], masked_dir: Path | None
) -> dict[str, Any]:
    """The node that an index node leads to, with what takes the places of its images; nothing if none changes."""
    inner = _inner(node) if isinstance(node, IndexNode) else None
    moved = {id(image): dataclasses.replace(image, path=image.path[1:]) for image in images if image.path[0] == "obj"}
    changed = [
        dataclasses.replace(each, image=moved[id(each.image)]) for each in replacements if id(each.image) in moved
    ]
    if inner is None or not changed or not isinstance(node, IndexNode):
        return {}
    new = with_images(inner, list(moved.values()), changed, masked_dir)
    return {"obj": node.obj.model_copy(update={"node": new}) if isinstance(node.obj, NodeWithScore) else new}


def _new_text_and_metadata(
    node: BaseNode, images: Sequence[FoundImage], replacements: Sequence[Replacement]
) -> dict[str, Any]:
    old = {"text": _text_of(node), "metadata": node.metadata}
    plain = [image for image in images if image.path[0] in _PLAIN]
    new = document_images.with_images(old, plain, [each for each in replacements if each.image.path[0] in _PLAIN])
    update = {name: value for name, value in new.items() if value is not old[name]}
    if "text" in update and isinstance(node, Node) and node.text_resource is not None:
        update["text_resource"] = node.text_resource.model_copy(update={"text": update.pop("text")})
    return update


def _new_image_node(node: ImageNode, replacement: Replacement, update: dict[str, Any]) -> BaseNode:
    if isinstance(replacement.value, _NewImage):
        data, mime = replacement.value
        own = {"image": to_base64(data), "image_path": None, "image_url": None, "image_mimetype": mime}
        return copied(node, {**update, **own})
    # Nothing can read an image node without an image.
    kept = {name: getattr(node, name) for name in TextNode.model_fields}
    return copied(TextNode(**kept), {"text": node.text or str(replacement.value), **update})


def _new_resource(node: BaseNode, name: str, replacement: Replacement, masked_dir: Path | None) -> dict[str, Any]:
    if isinstance(replacement.value, _NewImage):
        data, mime = replacement.value
        if masked_dir is not None:
            return {name: MediaResource(mimetype=mime, path=keep_png(data, masked_dir))}
        # Not validated: LlamaIndex would decode the bytes to see whether they are base64.
        return {name: MediaResource(mimetype=mime).model_copy(update={"data": base64.b64encode(data)})}
    text = {} if _text_of(node) else {"text_resource": MediaResource(text=str(replacement.value))}
    return {name: None, **text}
