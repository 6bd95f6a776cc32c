"""Checked images in a real multi-modal index: what is masked or redrawn is embedded and found as any other image is.

LlamaIndex leaves out image nodes without text and embeddable metadata, of which most have no more than ``file_path``.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from llama_images import png
from llama_index.core import SimpleDirectoryReader, StorageContext
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.embeddings.mock_embed_model import MockMultiModalEmbedding
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_nodes import images_of
from PIL import Image
from pydantic import Field

from content.reread_images import TURNED
from guardalign_guardrails.content.payload import to_data_url
from guardalign_guardrails.testing.chats import canary, number_of, shows
from llama_index_guardalign import GuardedReader, ImageGuardPostprocessor, ImageGuardTransform, check_query_image

RED, BLUE, WHITE = canary("red", number=1), canary("blue", number=2), canary("white", number=3)
FILES = {"masked.png": png(RED), "canonical.jpg": TURNED, "blocked.png": png(BLUE), "clean.png": png(WHITE)}
PASSED = ["canonical.jpg", "clean.png", "masked.png"]


class Eyes(MockMultiModalEmbedding):
    """Keeps the images that it embeds."""

    embedded: list[Image.Image] = Field(default_factory=list)

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        self.embedded.append(Image.open(img_file_path).convert("RGB"))
        return super()._get_image_embedding(img_file_path)


class Images(BaseReader):
    """Reads an image as LlamaIndex's own image reader does."""

    def load_data(self, file: Path, extra_info: dict[str, Any] | None = None, **_: Any) -> list[Document]:
        return [ImageDocument(image_path=str(file), metadata=extra_info or {})]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


def reader_of(folder: Path) -> SimpleDirectoryReader:
    return SimpleDirectoryReader(str(folder), file_extractor={".png": Images(), ".jpg": Images()})


def by_reader(guard, folder, **settings) -> list[BaseNode]:
    documents = GuardedReader(reader=reader_of(folder), guard=guard, **settings).load_data()
    return IngestionPipeline(transformations=[SentenceSplitter()], disable_cache=True).run(documents=documents)


def by_transform(guard, folder, **settings) -> list[BaseNode]:
    check = ImageGuardTransform(guard=guard, **settings)
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(), check], disable_cache=True)
    return list(pipeline.run(documents=reader_of(folder).load_data()))


def by_both(guard, folder, **settings) -> list[BaseNode]:
    return list(ImageGuardTransform(guard=guard, **settings)(by_reader(guard, folder, **settings)))


def index_of(nodes: list[BaseNode]) -> tuple[MultiModalVectorStoreIndex, Eyes]:
    eyes = Eyes(embed_dim=3)
    stores = {"vector_store": SimpleVectorStore(), "image_store": SimpleVectorStore()}
    index = MultiModalVectorStoreIndex(
        nodes=nodes,
        storage_context=StorageContext.from_defaults(**stores),
        embed_model=MockEmbedding(embed_dim=3),
        image_embed_model=eyes,
    )
    return index, eyes


def numbers(images: Iterable[Image.Image]) -> set[int]:
    return {number_of(image) for image in images}


@pytest.mark.parametrize("kept", ["a file", "a file named by text", "the node"])
@pytest.mark.parametrize("guarded", [by_reader, by_transform, by_both])
class TestAnIndexOfAFolder:
    def nodes(self, guard, folder, guarded, kept) -> list[BaseNode]:
        masked = folder.parent / "masked"
        settings = {"a file": {"masked_dir": masked}, "a file named by text": {"masked_dir": str(masked)}}
        return guarded(guard, folder, **settings.get(kept, {}))

    def test_embeds_and_finds_all_that_may_pass(self, guard, folder, guarded, kept, caplog):
        with caplog.at_level(logging.WARNING):
            nodes = self.nodes(guard, folder, guarded, kept)
        assert "withheld 1 of 4 nodes" in caplog.text
        index, eyes = index_of(nodes)
        turned = guard.check(TURNED).pixels
        assert len(eyes.embedded) == 3
        assert numbers(image for image in eyes.embedded if image.size == RED.size) >= {1, 3}
        assert any((image.size, image.tobytes()) == (turned.size, turned.tobytes()) for image in eyes.embedded)
        found = index.as_retriever(image_similarity_top_k=9).retrieve("birds")
        assert len(found) == 3
        for image in [*eyes.embedded, *(image for each in found for image in images_of(each.node))]:
            assert not shows(image, "red")
            assert not shows(image, "blue")
        # And the postprocessor finds nothing to do.
        passed = ImageGuardPostprocessor(guard=guard).postprocess_nodes(found)
        assert [one.node.node_id for one in passed] == [one.node.node_id for one in found]

    def test_is_given_the_very_bytes_of_the_guard(self, guard, folder, guarded, kept):
        nodes = self.nodes(guard, folder, guarded, kept)
        expected = {guard.check(FILES[name]).output for name in PASSED[::2]}
        given = set()
        for node in nodes:
            data = node.resolve_image()
            given.add(Path(data).read_bytes() if isinstance(data, str) else data.read())
        assert given == expected | {FILES["clean.png"]}

    def test_has_a_name_to_embed_and_no_way_to_an_original(self, guard, folder, guarded, kept):
        for node in self.nodes(guard, folder, guarded, kept):
            assert isinstance(node, ImageNode)
            words = node.get_content(metadata_mode=MetadataMode.EMBED)
            path = node.metadata.get("file_path")
            if node.metadata["file_name"] == "clean.png":
                assert path == node.image_path == str(folder / "clean.png")
            elif kept == "the node":
                assert (path, node.image_path) == (None, None)
                assert words == f"file_name: {node.metadata['file_name']}"
            else:
                assert path == node.image_path
                assert Path(path).parent == folder.parent / "masked"
            assert str(folder) not in words or node.metadata["file_name"] == "clean.png"
            assert "guardalign" not in words


def test_without_the_key_an_index_leaves_an_image_out():
    # Or there would be nothing to do.
    _, eyes = index_of([ImageNode(image_path="x.png", metadata={})])
    assert eyes.embedded == []


STORED = {
    "a document": lambda **places: Document(text="words", image_resource=MediaResource(**places)),
    "a node": lambda **places: Node(text_resource=MediaResource(text="words"), image_resource=MediaResource(**places)),
    "an image document": lambda **places: ImageDocument(text="words", image_resource=MediaResource(**places)),
}


@pytest.mark.parametrize("make", STORED.values(), ids=STORED)
@pytest.mark.parametrize("name", PASSED[::2])
class TestAMediaResourceWithoutAFolder:
    def test_keeps_a_new_image_through_a_store(self, guard, folder, make, name):
        (checked,) = ImageGuardTransform(guard=guard)([make(path=folder / name)])
        # The reader and the transform may both have been there.
        (checked,) = ImageGuardTransform(guard=guard)([checked])
        store = SimpleDocumentStore()
        store.add_documents([checked])
        store = SimpleDocumentStore.from_dict(store.to_dict())
        (node,) = store.docs.values()
        expected = guard.check(FILES[name])
        (block,) = [block for block in node.get_content_blocks() if block.block_type == "image"]
        assert block.resolve_image().read() == expected.output
        assert node.get_content() == "words"
        assert node.image_resource.mimetype == expected.mime_type
        (found,) = ImageGuardPostprocessor(guard=guard).postprocess_nodes([NodeWithScore(node=node, score=1.0)])
        (block,) = [block for block in found.node.get_content_blocks() if block.block_type == "image"]
        assert block.resolve_image().read() == expected.output

    def test_holds_it_once_where_nothing_is_stored(self, guard, folder, make, name):
        (found,) = ImageGuardPostprocessor(guard=guard).postprocess_nodes(
            [NodeWithScore(node=make(path=folder / name))]
        )
        assert found.node.image_resource.url is None
        assert found.node.image_resource.data is not None

    def test_is_not_believed_if_its_url_is_another_image(self, guard, folder, make, name):
        (checked,) = ImageGuardTransform(guard=guard)([make(path=folder / name)])
        other = to_data_url(png(BLUE), "image/png")
        forged = checked.model_copy(update={"image_resource": checked.image_resource.model_copy(update={"url": other})})
        (again,) = ImageGuardTransform(guard=guard)([forged])
        assert again.image_resource.url is None


def test_a_folder_may_be_named_by_text_for_the_image_of_a_query_too(guard, folder, tmp_path):
    query = QueryBundle("What is this?", image_path=str(folder / "masked.png"))
    for masked_dir in (tmp_path / "one", str(tmp_path / "two")):
        asked = check_query_image(query, guard, masked_dir=masked_dir)
        data = Path(asked.image_path).read_bytes()
        assert data == guard.check(FILES["masked.png"]).output
        assert not shows(Image.open(io.BytesIO(data)), "red")
