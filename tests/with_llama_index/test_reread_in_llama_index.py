"""Images with several readings in LlamaIndex: what goes on is the guard's own reading, never the file as it came."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_images import image_of
from llama_index.core.base.llms.types import ChatMessage, DocumentBlock, ImageBlock, TextBlock
from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from llama_index.core.tools import FunctionTool
from llama_index.core.tools.calling import call_tool
from llama_models import RecordingLLM
from llama_nodes import images_in, images_of
from llama_seen import same_pixels

from content.reread_images import CHANGING_TYPE, LARGE, REREAD, SEE_THROUGH, SLOW_IF_LARGE, TURNED, see_through_image
from guardalign_guardrails import Guard, UnsafeContentError
from guardalign_guardrails.content.documents.records import RECORD_KEY
from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.testing.colours import colour_guard
from llama_index_guardalign import (
    GuardAlignLVLM,
    GuardedLLM,
    GuardedReader,
    ImageGuardPostprocessor,
    ImageGuardTransform,
    check_query_image,
    guard_tool,
)


def saved(data: bytes, folder: Path) -> Path:
    path = folder / "photo.webp"
    path.write_bytes(data)
    return path


BLOCKS: dict[str, Callable[[bytes, Path], Any]] = {
    "bytes": lambda data, _: ImageBlock(image=data),
    "a stream": lambda data, _: ImageBlock(image=io.BytesIO(data)),
    "a path": lambda data, folder: ImageBlock(path=saved(data, folder)),
    "a data URL": lambda data, _: ImageBlock(url=to_data_url(data, "image/webp")),
    "a document": lambda data, _: DocumentBlock(data=data, document_mimetype="image/webp"),
}
NODES: dict[str, Callable[[bytes, Path], BaseNode]] = {
    "an image node": lambda data, _: ImageNode(image=to_base64(data), image_mimetype="image/webp", text="words"),
    "an image node with a path": lambda data, folder: ImageNode(image_path=str(saved(data, folder)), text="words"),
    "an image node with a file path in its metadata": lambda data, folder: ImageNode(
        text="words", metadata={"file_path": str(saved(data, folder))}
    ),
    "a node with a path": lambda data, folder: Node(
        image_resource=MediaResource(path=saved(data, folder)), text_resource=MediaResource(text="words")
    ),
    "an image document": lambda data, _: ImageDocument(text="words", image=to_base64(data)),
    "a data URL in metadata": lambda data, _: TextNode(
        text="words", metadata={"thumbnail": to_data_url(data, "image/webp")}
    ),
    "bytes in metadata": lambda data, _: TextNode(text="words", metadata={"thumbnail": data}),
}


def shows_the_guards_reading(guard: Guard, data: bytes, node: BaseNode) -> bool:
    found, expected = images_of(node), guard.check(data).pixels
    return bool(found) and all(same_pixels(image, expected) for image in found)


def record(node: BaseNode) -> dict[str, Any]:
    (only,) = json.loads(node.metadata[RECORD_KEY])
    return only


class TestChats:
    @pytest.mark.parametrize("kind", BLOCKS.values(), ids=BLOCKS)
    @pytest.mark.parametrize("mime", CHANGING_TYPE)
    def test_an_llm_is_given_the_guards_reading_with_its_media_type(self, guard, kind, mime, tmp_path):
        data = CHANGING_TYPE[mime]
        llm = RecordingLLM()
        GuardedLLM(llm=llm, guard=guard).chat([ChatMessage(blocks=[TextBlock(text="x"), kind(data, tmp_path)])])
        ((message,),) = llm.received
        text, block = message.blocks
        assert text.text == "x"
        assert same_pixels(image_of(block), guard.check(data).pixels)
        written = block.image if isinstance(block, ImageBlock) else block.data
        stated = block.image_mimetype if isinstance(block, ImageBlock) else block.document_mimetype
        assert (base64.b64decode(written), stated) == (guard.check(data).output, mime)
        assert (block.path, block.url) == (None, None)

    def test_what_a_tool_returns_is_replaced_in_blocks_nodes_and_raw_output(self, guard):
        def photo() -> Any:
            """Take photos."""
            return {"block": ImageBlock(image=TURNED), "node": ImageNode(image=to_base64(TURNED)), "raw": TURNED}

        output = call_tool(guard_tool(FunctionTool.from_defaults(photo), guard), {})
        upright = guard.check(TURNED)
        assert output.raw_output["raw"] == upright.output
        found = images_in(output)
        assert len(found) >= 2
        assert all(same_pixels(image, upright.pixels) for image in found)
        assert to_base64(TURNED) not in repr(output)

    def test_a_pil_image_of_a_tool_comes_back_opaque(self, guard):
        tool = guard_tool(FunctionTool.from_defaults(see_through_image), guard)
        (found,) = images_in(call_tool(tool, {}).raw_output)
        assert found.mode == "RGB"
        assert same_pixels(found, guard.check(see_through_image()).pixels)

    @pytest.mark.parametrize("data", [TURNED, SEE_THROUGH], ids=["turned", "see-through"])
    def test_a_local_model_sees_the_pixels_that_were_scored(self, guard, small_vlm, data):
        response = GuardAlignLVLM.from_lvlm(small_vlm(guard=guard)).chat([ChatMessage(blocks=[ImageBlock(image=data)])])
        (shown,) = small_vlm.seen
        assert same_pixels(shown, guard.check(data).pixels)
        assert [verdict["delivery"] for verdict in response.raw["verdicts"]] == ["canonical"]


class TestNodes:
    @pytest.mark.parametrize("kind", NODES.values(), ids=NODES)
    @pytest.mark.parametrize("name", SLOW_IF_LARGE)
    def test_nothing_in_a_node_leads_to_the_original(self, guard, kind, name, tmp_path):
        data = REREAD[name]
        node = kind(data, tmp_path)
        for component in (ImageGuardPostprocessor(guard=guard), ImageGuardTransform(guard=guard)):
            if isinstance(component, ImageGuardPostprocessor):
                (after,) = [one.node for one in component.postprocess_nodes([NodeWithScore(node=node)])]
            else:
                (after,) = component([node])
            assert shows_the_guards_reading(guard, data, after)
            assert str(tmp_path) not in repr(after)
        assert record(after)["delivery"] == "canonical"

    @pytest.mark.parametrize("mime", CHANGING_TYPE)
    def test_has_the_media_type_of_what_it_holds(self, guard, mime, tmp_path):
        transform = ImageGuardTransform(guard=guard, masked_dir=tmp_path / "copies")
        data = CHANGING_TYPE[mime]
        image_node, node = transform(
            [NODES["an image node"](data, tmp_path), NODES["a node with a path"](data, tmp_path)]
        )
        assert image_node.image_mimetype == mime
        assert base64.b64decode(image_node.image) == guard.check(data).output
        kept = Path(node.image_resource.path)
        assert (node.image_resource.mimetype, kept.parent) == (mime, tmp_path / "copies")
        assert kept.suffix == {"image/jpeg": ".jpg", "image/png": ".png"}[mime]
        assert kept.read_bytes() == guard.check(data).output

    def test_loses_the_embedding_of_the_original_before_it_is_stored(self, guard):
        def node(data: bytes) -> ImageNode:
            return ImageNode(image=to_base64(data), embedding=[1.0], text_embedding=[2.0])

        upright = guard.check(TURNED).output
        after, clean = ImageGuardTransform(guard=guard)([node(TURNED), node(upright)])
        assert (after.embedding, after.text_embedding) == (None, None)
        assert (clean.embedding, clean.text_embedding) == ([1.0], [2.0])

    def test_is_the_same_object_when_it_is_retrieved_again(self, guard, tmp_path):
        (stored,) = ImageGuardTransform(guard=guard)([NODES["an image node"](LARGE, tmp_path)])
        retrieved = NodeWithScore(node=stored, score=0.5)
        assert ImageGuardPostprocessor(guard=guard).postprocess_nodes([retrieved])[0] is retrieved

    def test_comes_out_of_a_guarded_reader_with_the_guards_reading(self, guard):
        class Reader(BaseReader):
            def load_data(self) -> list[Document]:
                return [Document(image_resource=MediaResource(data=TURNED))]

        (document,) = GuardedReader(reader=Reader(), guard=guard).load_data()
        assert shows_the_guards_reading(guard, TURNED, document)
        assert document.image_resource.mimetype == "image/jpeg"


class TestAQuery:
    def test_asks_with_a_copy_where_there_is_a_folder_for_copies(self, guard, tmp_path):
        query = QueryBundle("x", image_path=str(saved(TURNED, tmp_path)), embedding=[1.0])
        after = check_query_image(query, guard, masked_dir=tmp_path / "copies")
        assert Path(after.image_path).read_bytes() == guard.check(TURNED).output
        assert (Path(after.image_path).suffix, after.embedding) == (".jpg", None)

    def test_is_refused_with_the_remedy_where_there_is_none(self, guard, tmp_path):
        query = QueryBundle("x", image_path=str(saved(TURNED, tmp_path)))
        with pytest.raises(UnsafeContentError, match="masked_dir"):
            check_query_image(query, guard)
        assert check_query_image(query, guard, on_violation="notice").image_path is None

    def test_asks_with_the_original_where_the_policy_delivers_those(self, cache_dir, tmp_path):
        query = QueryBundle("x", image_path=str(saved(TURNED, tmp_path)))
        assert check_query_image(query, colour_guard(cache_dir, delivery="original")) is query
