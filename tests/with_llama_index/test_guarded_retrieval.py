"""Retrievers and engines with a filter around them, also where no postprocessor runs, and the image of a query."""

from __future__ import annotations

import json

import pytest
from llama_images import saved
from llama_index.core import StorageContext
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import Response
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.embeddings.mock_embed_model import MockMultiModalEmbedding
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.query_engine import CitationQueryEngine, CustomQueryEngine, RetrieverQueryEngine
from llama_index.core.schema import ImageNode, IndexNode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_models import WORDS, RecordingLLM, texts_of
from llama_nodes import b64, images_of

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.content.records import ACTION_KEY
from guardalign_guardrails.testing.chats import canary, leaks, leaks_of, number_of, shows
from guardalign_guardrails.testing.colours import colour_policy
from llama_index_guardalign import GuardedQueryEngine, GuardedRetriever, ImageGuardPostprocessor, ImageGuardTransform
from llama_index_guardalign.nodes.postprocessor import NOTE

RED, BLUE, WHITE = canary("red", number=1), canary("blue", number=2), canary("white", number=3)
ANSWER, REFUSAL = "".join(WORDS), colour_policy().refusal


def node(image) -> ImageNode:
    return ImageNode(text="a photo", image=b64(image), image_mimetype="image/png")


class Embedding(MockMultiModalEmbedding):
    """Keeps the images of queries it is given."""

    def _get_image_embedding(self, img_file_path):
        SEEN.append(img_file_path)
        return super()._get_image_embedding(img_file_path)

    async def _aget_image_embedding(self, img_file_path):
        return self._get_image_embedding(img_file_path)


SEEN: list = []


def index_of(*nodes) -> MultiModalVectorStoreIndex:
    return MultiModalVectorStoreIndex(
        nodes=list(nodes),
        storage_context=StorageContext.from_defaults(vector_store=SimpleVectorStore(), image_store=SimpleVectorStore()),
        embed_model=MockEmbedding(embed_dim=3),
        image_embed_model=Embedding(embed_dim=3),
    )


@pytest.fixture
def index():
    index = index_of(node(RED), node(BLUE), node(WHITE), TextNode(text="The wire is black."))
    SEEN.clear()
    return index


@pytest.fixture
def retriever(index):
    return index.as_retriever(similarity_top_k=4, image_similarity_top_k=3)


@pytest.fixture
def llm():
    return RecordingLLM()


def passing(nodes) -> dict[int, bool]:
    """Whether red shows, by the numbers of the images."""
    found = [image for one in nodes for image in (images_of(one.node) if isinstance(one.node, ImageNode) else [])]
    return {number_of(image): shows(image, "red") for image in found}


class TestRetrievers:
    WAYS = ("retrieve", "text_retrieve", "text_to_image_retrieve", "image_to_image_retrieve")

    @pytest.mark.parametrize("way", WAYS)
    async def test_every_way_of_retrieving_is_guarded(self, guard, retriever, way, tmp_path):
        guarded = GuardedRetriever(retriever, guard)
        query = str(saved(WHITE, tmp_path)) if way == "image_to_image_retrieve" else "birds"
        for nodes in (getattr(guarded, way)(query), await getattr(guarded, f"a{way}")(query)):
            assert passing(nodes) == {1: False, 3: False}
            assert all(isinstance(one.score, float) for one in nodes)

    def test_it_can_stand_for_the_other_in_an_engine_that_runs_no_postprocessor(
        self, guard, index, retriever, llm, tmp_path
    ):
        engine = index.as_query_engine(llm=llm)
        engine._retriever = GuardedRetriever(retriever, guard)
        engine.image_query(str(saved(WHITE, tmp_path)), "What is this?")
        assert {number_of(image): shows(image, "red") for image in llm.images} == {1: False, 3: False}

    async def test_so_is_what_a_node_leads_to_by_way_of_another_retriever(self, guard, retriever):
        class Directory(BaseRetriever):
            """Knows who has the images."""

            def _retrieve(self, query_bundle):
                return [NodeWithScore(node=IndexNode(text="images", index_id="x", obj=retriever), score=0.5)]

        guarded = GuardedRetriever(Directory(), guard)
        for nodes in (guarded.retrieve("birds"), await guarded.aretrieve("birds")):
            assert passing(nodes) == {1: False, 3: False}

    def test_of_masked_nodes_an_index_has_no_original_in_any_of_its_stores(self, guard):
        index = index_of(*ImageGuardTransform(guard=guard)([node(RED), node(BLUE)]))
        retriever = index.as_retriever(similarity_top_k=2, image_similarity_top_k=2)
        # An image node with words is in two stores, one for each kind of search.
        for way in ("text_retrieve", "text_to_image_retrieve"):
            assert passing(getattr(retriever, way)("birds")) == {1: False}
        assert leaks_of(json.dumps(index.storage_context.to_dict()), RED, BLUE) == []

    def test_any_retriever_can_be_guarded_but_only_for_what_it_can_do(self, guard):
        class Shelf(BaseRetriever):
            """Finds the same, in part by way of another object."""

            def _retrieve(self, query_bundle):
                inner = NodeWithScore(node=node(BLUE), score=0.5)
                return [
                    NodeWithScore(node=node(RED), score=None),
                    NodeWithScore(node=IndexNode(text="x", index_id="x", obj=inner), score=0.5),
                ]

        guarded = GuardedRetriever(Shelf(), guard)
        nodes = guarded.retrieve("birds")
        assert passing(nodes) == {1: False}
        assert nodes[0].score is None
        with pytest.raises(NotImplementedError, match="Shelf"):
            guarded.text_to_image_retrieve("birds")

    async def test_the_image_of_a_query_is_checked_before_anybody_opens_it(self, guard, retriever, tmp_path):
        path = str(saved(BLUE, tmp_path))
        guarded = GuardedRetriever(retriever, guard)
        assert guarded.image_to_image_retrieve(path) == []
        assert await guarded.aimage_to_image_retrieve(path) == []
        assert guarded.retrieve(QueryBundle("birds", image_path=path)) != []
        assert SEEN == []
        with pytest.raises(UnsafeContentError):
            GuardedRetriever(retriever, guard, on_violation="raise").image_to_image_retrieve(path)

    def test_a_masked_query_is_asked_with_in_a_file_of_its_own(self, guard, retriever, tmp_path):
        path = str(saved(RED, tmp_path))
        assert GuardedRetriever(retriever, guard).image_to_image_retrieve(path) == []
        query = QueryBundle("", image_path=path)
        GuardedRetriever(retriever, guard, masked_dir=tmp_path / "masked").image_to_image_retrieve(query)
        (asked,) = SEEN
        assert asked != path
        assert not any(shows(image, "red") for image in images_of(ImageNode(image_path=asked)))
        assert query.image_path == path

    def test_a_harmless_query_is_passed_on_as_it_is(self, guard, retriever, tmp_path):
        path = str(saved(WHITE, tmp_path))
        GuardedRetriever(retriever, guard).image_to_image_retrieve(path)
        assert [path] == SEEN


class Sources(CustomQueryEngine):
    """An engine that does all in one step."""

    def custom_query(self, query_str: str) -> Response:
        found = NodeWithScore(node=node(RED), score=0.5)
        return Response("words", [found, NodeWithScore(node=node(BLUE))], {"image_nodes": [found]})


class TestEngines:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("kind", [RetrieverQueryEngine, CitationQueryEngine])
    async def test_nodes_are_checked_between_retrieval_and_answer(self, guard, index, retriever, llm, kind, streaming):
        more = {} if kind is RetrieverQueryEngine else {"index": index}
        engine = kind.from_args(retriever=retriever, llm=llm, multimodal=True, streaming=streaming, **more)
        guarded = GuardedQueryEngine(engine, guard)
        response = guarded.query("birds")
        assert str(response) == ANSWER
        if not streaming:
            assert str(await guarded.aquery("birds")) == ANSWER
        assert {number_of(image): shows(image, "red") for image in llm.images} == {1: False, 3: False}
        assert 2 not in passing(response.source_nodes)

    async def test_the_older_engines_image_query_is_guarded_too(self, guard, index, llm, tmp_path):
        engine = index.as_query_engine(llm=llm, image_similarity_top_k=3)
        guarded = GuardedQueryEngine(engine, guard)
        assert str(guarded.image_query(str(saved(WHITE, tmp_path)), "What?")) == ANSWER
        assert str(guarded.query("birds")) == ANSWER
        assert str(await guarded.aquery("birds")) == ANSWER
        assert {number_of(image): shows(image, "red") for image in llm.images} == {1: False, 3: False}
        assert str(guarded.image_query(str(saved(BLUE, tmp_path)), "What?")) == REFUSAL
        assert len(llm.received) == 3
        assert type(engine._retriever).__name__ == "MultiModalVectorIndexRetriever"

    async def test_a_query_with_a_blocked_image_is_refused_or_raised(self, guard, retriever, llm, tmp_path):
        engine = RetrieverQueryEngine.from_args(retriever, llm=llm, multimodal=True)
        query = QueryBundle("birds", image_path=str(saved(BLUE, tmp_path)))
        for response in (
            GuardedQueryEngine(engine, guard).query(query),
            await GuardedQueryEngine(engine, guard).aquery(query),
        ):
            assert str(response) == REFUSAL
        with pytest.raises(UnsafeContentError):
            GuardedQueryEngine(engine, guard, on_violation="raise").query(query)
        assert llm.received == []

    async def test_of_an_engine_in_one_step_the_sources_are_checked(self, guard):
        guarded = GuardedQueryEngine(Sources(), guard)
        for response in (guarded.query("birds"), await guarded.aquery("birds")):
            assert str(response) == "words"
            assert passing(response.source_nodes) == {1: False}
            assert passing(response.metadata["image_nodes"]) == {1: False}
            assert type(response.source_nodes[1].node) is TextNode

    def test_its_steps_can_be_used_one_by_one(self, guard, retriever, llm):
        engine = RetrieverQueryEngine.from_args(retriever, llm=llm, multimodal=True)
        guarded = GuardedQueryEngine(engine, guard)
        query = QueryBundle("birds")
        assert passing(guarded.retrieve(query)) == {1: False, 3: False}
        guarded.synthesize(query, engine.retrieve(query), [NodeWithScore(node=node(RED))])
        assert {number_of(image): shows(image, "red") for image in llm.images} == {1: False, 3: False}
        assert isinstance(guarded, BaseQueryEngine)
        assert "query_engine" in guarded._get_prompt_modules()

    def test_an_engine_that_is_left_with_nothing_says_so_or_answers_from_a_note(self, guard, llm):
        retriever = index_of(node(BLUE)).as_retriever(image_similarity_top_k=1)

        def asked(on_empty: str) -> str:
            postprocessor = ImageGuardPostprocessor(guard=guard, on_empty=on_empty)
            engine = RetrieverQueryEngine.from_args(
                retriever, llm=llm, multimodal=True, node_postprocessors=[postprocessor]
            )
            return str(engine.query("birds"))

        assert asked("empty") == "Empty Response"
        assert llm.received == []
        assert asked("note") == ANSWER
        assert NOTE in "".join(texts_of(llm.received[0]))

    def test_a_postprocessor_in_an_engine_does_the_same(self, guard, retriever, llm):
        postprocessor = ImageGuardPostprocessor(guard=guard, on_empty="note")
        engine = RetrieverQueryEngine.from_args(
            retriever, llm=llm, multimodal=True, node_postprocessors=[postprocessor]
        )
        response = engine.query("birds")
        assert {number_of(image): shows(image, "red") for image in llm.images} == {1: False, 3: False}
        assert passing(response.source_nodes) == {1: False, 3: False}
        # Callers are shown the metadata of all sources.
        assert leaks(repr(response.metadata), RED, BLUE, WHITE) == []
        assert {metadata.get(ACTION_KEY) for metadata in response.metadata.values()} == {"mask", None}

    @pytest.mark.parametrize("mode", ["context", "condense_plus_context"])
    async def test_so_it_does_in_a_chat_engine(self, guard, index, llm, mode):
        postprocessor = ImageGuardPostprocessor(guard=guard)
        engine = index.as_chat_engine(
            chat_mode=mode, llm=llm, image_similarity_top_k=3, node_postprocessors=[postprocessor]
        )
        assert str(engine.chat("What is this?")) == ANSWER
        assert str(await engine.achat("And now?")) == ANSWER
        assert {number_of(image): shows(image, "red") for image in llm.images} == {1: False, 3: False}
