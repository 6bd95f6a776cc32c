"""Finds the images of a node, and puts other images in their places.

A node may lead to one image in several ways (bytes, a path, a URL, ``metadata["file_path"]``), and LlamaIndex's
readers of nodes do not agree on which they follow. After a replacement there is one way left. Knows nothing of guards.
"""

from __future__ import annotations

import dataclasses
import mimetypes
from collections.abc import Mapping, Sequence
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
from pydantic import AnyUrl

from guardalign_guardrails.content.dialect import Reading
from guardalign_guardrails.content.documents import images as document_images
from guardalign_guardrails.content.documents.images import (
    FoundImage,
    Replacement,
    find_in_text,
    find_in_value,
    unreadable,
)
from guardalign_guardrails.content.payload import Payload, read_bytes, read_url, to_base64
from guardalign_guardrails.images import keep_image, read_named_file

# Metadata field with the file a node was read from. Some of LlamaIndex's parts open it as the node's image.
_FILE_PATH_KEY: Final = "file_path"
# And with its name, which nothing opens. Readers keep it out of embeddings.
_FILE_NAME_KEY: Final = "file_name"
_PLAIN: Final = ("text", "metadata")


class _NewImage(NamedTuple):
    """An encoded image and its media type, to be put into a node's own field."""

    data: bytes
    mime: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where a new image of a node is kept.

    Attributes:
        masked_dir: Folder for its file; None to keep it in the node.
        is_lasting: Whether an image that is kept in the node must survive a store, which the bytes of LlamaIndex's
            media resources do not.
    """

    masked_dir: Path | None = None
    is_lasting: bool = False


def find_images(node: BaseNode) -> list[FoundImage]:
    """All images of a node; nothing is decoded yet, and nothing is fetched.

    Paths begin with a field of the node, ``obj`` for the node that an `IndexNode` leads to, or ``text`` for its text,
    wherever the node's class has it.
    """
    found = [*_own_image(node), *_unseen(node)]
    if (inner := _inner(node)) is not None:
        found += [dataclasses.replace(image, path=("obj", *image.path)) for image in find_images(inner)]
    found += find_in_text(_text_of(node), ("text",))
    for key, value in node.metadata.items():
        found += find_in_value(value, ("metadata", key))
    return found


def with_images(
    node: BaseNode, images: Sequence[FoundImage], replacements: Sequence[Replacement], storage: Storage
) -> BaseNode:
    """A node with other images in it; the very same object if none changes. The node itself stays as it is.

    Args:
        node: Any node.
        images: All that `find_images` found.
        replacements: Of those that change, in the same order.
        storage: Where new images of the node's own are kept.
    """
    if not replacements:
        return node
    own = {each.image.path[0]: each for each in replacements if each.image.path[0] not in (*_PLAIN, "obj")}
    update = _new_inner(node, images, replacements, storage) | _new_text_and_metadata(node, images, replacements)
    if (new := own.get("image") or own.get("image_resource")) is not None:
        file = _kept(new, storage)
        update |= _with_other_source(node, update.get("metadata", node.metadata), new, file)
        if isinstance(node, ImageNode):
            return _new_image_node(node, new, file, update)
        update |= _new_resource(node, "image_resource", new, file, is_lasting=storage.is_lasting)
    for name in own.keys() - {"image", "image_resource"}:
        update |= _new_resource(node, name, own[name], None, is_lasting=False)
    return copied(node, update)


def without_all_images(node: BaseNode, text: str) -> BaseNode:
    """The node as it may be traced: a text in place of every image, file and recording; itself if there is none."""
    images = find_images(node)
    return with_images(node, images, [Replacement(image, text, is_withheld=True) for image in images], Storage())


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

    Where both are given, the bytes were looked at, but some models are sent the URL. A media resource may have its
    bytes in a data URL as well: the bytes alone are not stored.
    """
    ways = _ways_of(node)
    if not ways.url or (ways.data is None and ways.path is None):
        return node
    if isinstance(node, Node) and node.image_resource is not None:
        if ways.path is None and _is_data_url_of(ways.url, ways.data):
            return node
        return copied(node, {"image_resource": node.image_resource.model_copy(update={"url": None})})
    return copied(node, {"image_url": None})


def _inner(node: BaseNode) -> BaseNode | None:
    """The node that an index node leads to."""
    inner = node.obj if isinstance(node, IndexNode) else None
    inner = inner.node if isinstance(inner, NodeWithScore) else inner
    return inner if isinstance(inner, BaseNode) else None


def _text_of(node: BaseNode) -> str:
    if isinstance(node, TextNode):
        return node.text
    resource = node.text_resource if isinstance(node, Node) else None
    return (resource and resource.text) or ""


class _Ways(NamedTuple):
    """The ways to a node's own image, in the order in which LlamaIndex goes them."""

    data: str | bytes | None = None
    path: str | Path | None = None
    url: str | None = None


def _ways_of(node: BaseNode) -> _Ways:
    if isinstance(node, ImageNode):
        return _Ways(node.image, node.image_path or _source_of(node), node.image_url)
    resource = node.image_resource if isinstance(node, Node) else None
    if resource is None:
        return _Ways(path=_source_of(node))
    url = None if resource.url is None else str(resource.url)
    return _Ways(resource.data, resource.path or _source_of(node), url)


def _source_of(node: BaseNode) -> str | None:
    """The file that LlamaIndex opens for an image that a node does not hold, whatever its name."""
    if not isinstance(node, ImageNode | ImageDocument) or node.image is not None or node.image_path:
        return None
    path = node.metadata.get(_FILE_PATH_KEY)
    return str(path) if isinstance(path, str | Path) and str(path) else None


def _own_image(node: BaseNode) -> list[FoundImage]:
    data, path, url = _ways_of(node)

    def read(most: int) -> Payload:
        if data is not None:
            return read_bytes(data.decode("ascii", "replace") if isinstance(data, bytes) else data, most)
        return read_url(str(url), most) if path is None else read_named_file(path, most)

    if data is None and path is None and not url:
        return []
    return [FoundImage(("image" if isinstance(node, ImageNode) else "image_resource",), Reading(read, _NewImage))]


def _unseen(node: BaseNode) -> list[FoundImage]:
    """Audio and video, which are findings: they are not inspected."""
    names = [name for name in ("audio_resource", "video_resource") if getattr(node, name, None) is not None]
    return [unreadable((name,), "unsupported_block") for name in names]


def _is_data_url_of(url: str, data: str | bytes | None) -> bool:
    head, _, body = url.partition(",")
    is_base64 = head[:5].lower() == "data:" and head[-7:].lower() == ";base64"
    return is_base64 and body.encode() == (data.encode() if isinstance(data, str) else data)


def _kept(replacement: Replacement, storage: Storage) -> Path | None:
    """The file with a new image, if there is one."""
    if storage.masked_dir is None or not isinstance(replacement.value, _NewImage):
        return None
    return keep_image(replacement.value.data, storage.masked_dir)


def _with_other_source(
    node: BaseNode, metadata: Mapping[str, Any], replacement: Replacement, file: Path | None
) -> dict[str, Any]:
    """Metadata that does not lead to a file from which the node's image may have been read.

    The new image's file stands there, or the name of the old one: an index leaves out nodes without text and metadata
    to embed, and most readers give nothing but the path for that.
    """
    path = metadata.get(_FILE_PATH_KEY)
    if not isinstance(path, str | Path) or not (_source_of(node) is not None or _may_be_image(path)):
        return {"metadata": dict(metadata)}
    if file is not None:
        return {"metadata": {**metadata, _FILE_PATH_KEY: str(file)}}
    kept = {key: value for key, value in metadata.items() if key != _FILE_PATH_KEY}
    excluded = node.excluded_embed_metadata_keys
    if replacement.is_withheld or _FILE_PATH_KEY in excluded or not kept.keys() <= set(excluded):
        return {"metadata": kept}
    name = str(path).replace("\\", "/").rpartition("/")[2]
    return {
        "metadata": {_FILE_NAME_KEY: name, **kept},
        "excluded_embed_metadata_keys": [key for key in excluded if key != _FILE_NAME_KEY],
    }


def _may_be_image(path: str | Path) -> bool:
    # A suffix that says nothing may be an image's.
    kind = mimetypes.guess_type(str(path), strict=False)[0] or "image/"
    return kind.startswith(("image/", "application/octet-stream"))


def _new_inner(
    node: BaseNode, images: Sequence[FoundImage], replacements: Sequence[Replacement], storage: Storage
) -> dict[str, Any]:
    """The node that an index node leads to, with what takes the places of its images; nothing if none changes."""
    inner = _inner(node)
    moved = {id(image): dataclasses.replace(image, path=image.path[1:]) for image in images if image.path[0] == "obj"}
    changed = [
        dataclasses.replace(each, image=moved[id(each.image)]) for each in replacements if id(each.image) in moved
    ]
    if inner is None or not changed or not isinstance(node, IndexNode):
        return {}
    new = with_images(inner, list(moved.values()), changed, storage)
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


def _new_image_node(node: ImageNode, replacement: Replacement, file: Path | None, update: dict[str, Any]) -> BaseNode:
    if isinstance(replacement.value, _NewImage):
        data, mime = replacement.value
        own: dict[str, Any] = {"image": to_base64(data), "image_path": None, "image_url": None, "image_mimetype": mime}
        if file is not None:
            own |= {"image": None if node.image is None else own["image"], "image_path": str(file)}
        return copied(node, {**update, **own})
    # Nothing can read an image node without an image.
    kept = {name: getattr(node, name) for name in TextNode.model_fields}
    return copied(TextNode(**kept), {"text": node.text or str(replacement.value), **update})


def _new_resource(
    node: BaseNode, name: str, replacement: Replacement, file: Path | None, *, is_lasting: bool
) -> dict[str, Any]:
    if isinstance(replacement.value, _NewImage):
        data, mime = replacement.value
        if file is not None:
            return {name: MediaResource(mimetype=mime, path=file)}
        encoded = to_base64(data)
        url = AnyUrl(f"data:{mime};base64,{encoded}") if is_lasting else None
        # Not validated: LlamaIndex would decode the bytes to see whether they are base64.
        return {name: MediaResource(mimetype=mime).model_copy(update={"data": encoded.encode(), "url": url})}
    text = {} if _text_of(node) else {"text_resource": MediaResource(text=str(replacement.value))}
    return {name: None, **text}
