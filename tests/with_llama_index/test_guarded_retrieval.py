"""Retrievers and engines with the postprocessor behind them, and the image of a query."""

from __future__ import annotations

import asyncio
import json

import pytest
from llama_images import saved
from llama_index.core import StorageContext
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
from llama_seen import Tracer

from guardalign_guardrails import GuardSettings, SettingsError, UnsafeContentError
from guardalign_guardrails.content.documents.records import ACTION_KEY
from guardalign_guardrails.testing.chats import canary, leaks, leaks_of, number_of, shows
from guardalign_guardrails.testing.colours import colour_guard, colour_policy
from llama_index_guardalign import (
    GuardVerdictEvent,
    ImageGuardPostprocessor,
    ImageGuardTransform,
    acheck_query_image,
    check_query_image,
)
from llama_index_guardalign.nodes.postprocessor import NOTE

RED, BLUE, WHITE = canary("red", number=1), canary("blue", number=2), canary("white", number=3)
ANSWER = "".join(WORDS)


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


@pytest.fixture
def postprocessor(guard):
    return ImageGuardPostprocessor(guard=guard)


class TestFoundNodes:
    WAYS = ("retrieve", "text_retrieve", "text_to_image_retrieve", "image_to_image_retrieve")

    @pytest.mark.parametrize("way", WAYS)
    async def test_are_checked_behind_every_way_of_retrieving(self, guard, retriever, postprocessor, way, tmp_path):
        query = QueryBundle("birds")
        if way == "image_to_image_retrieve":
            query = check_query_image(QueryBundle("", image_path=str(saved(WHITE, tmp_path))), guard)
        found = postprocessor.postprocess_nodes(getattr(retriever, way)(query))
        for nodes in (found, await postprocessor.apostprocess_nodes(await getattr(retriever, f"a{way}")(query))):
            assert passing(nodes) == {1: False, 3: False}
            assert all(isinstance(one.score, float) for one in nodes)

    async def test_are_checked_where_a_node_leads_to_them_by_way_of_another_retriever(self, retriever, postprocessor):
        class Directory(BaseRetriever):
            """Knows who has the images."""

            def _retrieve(self, query_bundle):
                return [NodeWithScore(node=IndexNode(text="images", index_id="x", obj=retriever), score=0.5)]

        assert passing(postprocessor.postprocess_nodes(Directory().retrieve("birds"))) == {1: False, 3: False}
        assert passing(postprocessor.postprocess_nodes(await Directory().aretrieve("birds"))) == {1: False, 3: False}

    def test_are_checked_of_any_retriever(self, postprocessor):
        class Shelf(BaseRetriever):
            """Finds the same, in part by way of another object."""

            def _retrieve(self, query_bundle):
                inner = NodeWithScore(node=node(BLUE), score=0.5)
                return [
                    NodeWithScore(node=node(RED), score=None),
                    NodeWithScore(node=IndexNode(text="x", index_id="x", obj=inner), score=0.5),
                ]

        nodes = postprocessor.postprocess_nodes(Shelf().retrieve("birds"))
        assert passing(nodes) == {1: False}
        assert nodes[0].score is None

    def test_of_masked_nodes_an_index_has_no_original_in_any_of_its_stores(self, guard):
        index = index_of(*ImageGuardTransform(guard=guard)([node(RED), node(BLUE)]))
        retriever = index.as_retriever(similarity_top_k=2, image_similarity_top_k=2)
        # An image node with words is in two stores, one for each kind of search.
        for way in ("text_retrieve", "text_to_image_retrieve"):
            assert passing(getattr(retriever, way)("birds")) == {1: False}
        assert leaks_of(json.dumps(index.storage_context.to_dict()), RED, BLUE) == []


class TestTheImageOfAQuery:
    @pytest.fixture(params=["sync", "async"])
    def checked(self, request, guard):
        """Checks a query, sync or async."""

        def check(query, guard=guard, **settings):
            if request.param == "sync":
                return check_query_image(query, guard, **settings)
            return asyncio.run(acheck_query_image(query, guard, **settings))

        return check

    def test_is_raised_for_if_it_is_blocked_before_anybody_opens_it(self, checked, retriever, tmp_path):
        query = QueryBundle("birds", image_path=str(saved(BLUE, tmp_path)))
        with Tracer() as tracer, pytest.raises(UnsafeContentError) as caught:
            retriever.image_to_image_retrieve(checked(query))
        assert (caught.value.verdict.action, caught.value.verdict.source) == ("block", "user")
        assert SEEN == []
        (event,) = tracer.of(GuardVerdictEvent)
        assert (event.component, event.action) == ("check_query_image", "block")
        assert query.image_path not in tracer.said

    def test_is_left_out_of_the_query_where_that_is_asked_for(self, checked, retriever, tmp_path):
        query = QueryBundle("birds", image_path=str(saved(BLUE, tmp_path)), embedding=[0.5])
        asked = checked(query, on_violation="notice")
        assert (asked.query_str, asked.image_path, asked.embedding) == ("birds", None, None)
        assert query.image_path is not None
        assert retriever.retrieve(asked) != []
        assert SEEN == []

    def test_is_asked_with_in_a_file_of_its_own_if_it_is_masked(self, checked, retriever, tmp_path):
        query = QueryBundle("", image_path=str(saved(RED, tmp_path)), embedding=[0.5])
        with pytest.raises(UnsafeContentError, match=r"Cannot write the masked image.*red_things.*masked_dir"):
            checked(query)
        asked = checked(query, masked_dir=tmp_path / "masked")
        assert (asked.image_path == query.image_path, asked.embedding) == (False, None)
        retriever.image_to_image_retrieve(asked)
        assert [asked.image_path] == SEEN
        assert not any(shows(image, "red") for image in images_of(ImageNode(image_path=asked.image_path)))

    def test_is_passed_on_as_it_is_if_it_is_harmless_or_missing(self, checked, tmp_path):
        for query in (QueryBundle("birds"), QueryBundle("", image_path=str(saved(WHITE, tmp_path)))):
            assert checked(query) is query

    @pytest.mark.parametrize("path", ["/nowhere/x.png", "//host/share/x.png", "https://example.org/x.png"])
    def test_that_cannot_be_checked_is_a_finding_and_the_policy_decides(self, checked, cache_dir, path):
        query = QueryBundle("", image_path=path)
        with pytest.raises(UnsafeContentError) as caught:
            checked(query)
        assert caught.value.verdict.finding == "unchecked"
        assert checked(query, colour_guard(cache_dir, failure={"uninspectable": "allow"})) is query

    def test_is_checked_by_a_guard_given_in_any_of_the_usual_ways(self, checked, cache_dir, tmp_path):
        path = tmp_path / "policy.yaml"
        path.write_text(colour_policy(failure={"uninspectable": "allow"}).to_yaml())
        query = QueryBundle("", image_path="/nowhere/x.png")
        for given in (path, str(path), GuardSettings(policy=path), colour_guard(cache_dir, mode="monitor")):
            assert checked(query, given) is query

    def test_has_no_answer_to_refuse(self, checked):
        with pytest.raises(SettingsError, match="refuse"):
            checked(QueryBundle("birds"), on_violation="refuse")


class Sources(CustomQueryEngine):
    """An engine that does all in one step."""

    def custom_query(self, query_str: str) -> Response:
        found = NodeWithScore(node=node(RED), score=0.5)
        return Response("words", [found, NodeWithScore(node=node(BLUE))], {"image_nodes": [found]})


class TestEngines:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("kind", [RetrieverQueryEngine, CitationQueryEngine])
    async def test_nodes_are_checked_between_retrieval_and_answer(
        self, index, retriever, llm, postprocessor, kind, streaming
    ):
        more = {} if kind is RetrieverQueryEngine else {"index": index}
        engine = kind.from_args(
            retriever=retriever,
            llm=llm,
            multimodal=True,
            streaming=streaming,
            node_postprocessors=[postprocessor],
            **more,
        )
        response = engine.query("birds")
        assert str(response) == ANSWER
        if not streaming:
            assert str(await engine.aquery("birds")) == ANSWER
        assert {number_of(image): shows(image, "red") for image in llm.images} == {1: False, 3: False}
        assert 2 not in passing(response.source_nodes)

    async def test_the_older_engine_checks_them_too(self, index, llm, postprocessor):
        engine = index.as_query_engine(llm=llm, image_similarity_top_k=3, node_postprocessors=[postprocessor])
        assert str(engine.query("birds")) == ANSWER
        assert str(await engine.aquery("birds")) == ANSWER
        assert {number_of(image): shows(image, "red") for image in llm.images} == {1: False, 3: False}

    def test_an_image_is_asked_with_step_by_step_since_image_query_runs_no_postprocessor(
        self, guard, index, retriever, llm, postprocessor, tmp_path
    ):
        engine = index.as_query_engine(llm=llm)

        def image_query(image, prompt):
            query = check_query_image(QueryBundle(prompt, image_path=str(saved(image, tmp_path))), guard)
            nodes = postprocessor.postprocess_nodes(retriever.image_to_image_retrieve(query))
            return engine.synthesize(query, nodes)

        assert str(image_query(WHITE, "What is this?")) == ANSWER
        assert {number_of(image): shows(image, "red") for image in llm.images} == {1: False, 3: False}
        assert "What is this?" in "".join(texts_of(llm.received[0]))
        with pytest.raises(UnsafeContentError):
            image_query(BLUE, "What is this?")
        assert len(llm.received) == len(SEEN) == 1

    def test_a_query_with_a_blocked_image_is_refused_by_the_app(self, guard, retriever, llm, postprocessor, tmp_path):
        engine = RetrieverQueryEngine.from_args(
            retriever, llm=llm, multimodal=True, node_postprocessors=[postprocessor]
        )

        def asked(path):
            try:
                return str(engine.query(check_query_image(QueryBundle("birds", image_path=path), guard)))
            except UnsafeContentError as error:
                return guard.policy.refusal_for(error.verdict)

        assert asked(str(saved(BLUE, tmp_path))) == guard.policy.refusal
        assert asked("/nowhere/x.png") == guard.policy.refusal_unchecked != guard.policy.refusal
        assert llm.received == []
        assert asked(str(saved(WHITE, tmp_path))) == ANSWER

    def test_of_an_engine_in_one_step_the_sources_can_be_checked(self, guard):
        response = Sources().query("birds")
        postprocessor = ImageGuardPostprocessor(guard=guard, withhold="image")
        sources = postprocessor.postprocess_nodes(response.source_nodes)
        assert passing(sources) == {1: False}
        assert type(sources[1].node) is TextNode

    def test_its_steps_can_be_used_one_by_one(self, retriever, llm, postprocessor):
        engine = RetrieverQueryEngine.from_args(
            retriever, llm=llm, multimodal=True, node_postprocessors=[postprocessor]
        )
        query = QueryBundle("birds")
        nodes = engine.retrieve(query)
        assert passing(nodes) == {1: False, 3: False}
        engine.synthesize(query, nodes)
        assert {number_of(image): shows(image, "red") for image in llm.images} == {1: False, 3: False}

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
