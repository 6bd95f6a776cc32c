"""A local model behind a guard in the engines that LlamaIndex users build: retrieved images reach it masked."""

from __future__ import annotations

import logging

import pytest
from llama_images import ask, png, saved
from llama_index.core import Settings
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.schema import ImageNode, TextNode
from llama_index.core.tools import FunctionTool
from llama_nodes import index_of, smuggled

from guardalign_guardrails.content.payload import to_base64
from guardalign_guardrails.testing.chats import canary, leaks, number_of, shows
from guardalign_guardrails.testing.colours import painted
from llama_index_guardalign import GuardAlignLVLM

QUESTION = "What is on the wire?"


@pytest.fixture
def llm(small_vlm, guard):
    return GuardAlignLVLM.from_lvlm(small_vlm(guard=guard))


def image_node(image) -> ImageNode:
    # An index leaves out nodes without words.
    return ImageNode(text="a photo", image=to_base64(png(image)), image_mimetype="image/png")


@pytest.fixture
def index(tmp_path):
    path = saved(canary("white", number=2), tmp_path)
    return index_of(
        image_node(canary("red", number=1)),
        ImageNode(text="a photo", image_path=str(path)),
        TextNode(text="The wire is black."),
    )


def seen(small_vlm) -> dict[int, bool]:
    """Whether red shows, by the number of each image that reached the processor."""
    return {number_of(image): shows(image, "red") for image in small_vlm.seen}


class TestQueryEngines:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("engine", [RetrieverQueryEngine, CitationQueryEngine])
    async def test_retrieved_images_reach_the_model_masked(self, llm, small_vlm, index, engine, streaming):
        retriever = index.as_retriever(similarity_top_k=3, image_similarity_top_k=3)
        more = {} if engine is RetrieverQueryEngine else {"index": index}
        made = engine.from_args(retriever=retriever, llm=llm, multimodal=True, streaming=streaming, **more)
        response = made.query(QUESTION)
        if streaming:
            assert "".join(response.response_gen)
        assert seen(small_vlm) == {1: False, 2: False}
        assert len(response.source_nodes) > 1
        small_vlm.seen.clear()
        if not streaming:
            assert str(await made.aquery(QUESTION))
            assert seen(small_vlm) == {1: False, 2: False}

    def test_its_true_context_lets_several_images_into_one_call(self, llm, small_vlm):
        index = index_of(*(image_node(canary("white", number=number)) for number in range(3)))
        retriever = index.as_retriever(similarity_top_k=3, image_similarity_top_k=3)
        RetrieverQueryEngine.from_args(retriever, llm=llm, multimodal=True).query(QUESTION)
        assert len(small_vlm.seen) == 3

    def test_the_older_multi_modal_engine_takes_it_for_a_multi_modal_model(self, llm, small_vlm, index, caplog):
        with caplog.at_level(logging.WARNING):
            engine = index.as_query_engine(llm=llm, image_similarity_top_k=3)
        assert "multi-modal" not in caplog.text
        assert str(engine.query(QUESTION))
        assert seen(small_vlm) == {1: False, 2: False}

    def test_a_blocked_image_in_the_context_is_refused(self, llm, small_vlm, guard):
        index = index_of(image_node(canary("blue", number=3)))
        retriever = index.as_retriever(image_similarity_top_k=1)
        response = RetrieverQueryEngine.from_args(retriever, llm=llm, multimodal=True).query(QUESTION)
        # LlamaIndex puts what it retrieved into the user's turn, so the user asked with it.
        assert str(response) == guard.policy.refusal
        assert small_vlm.seen == []

    def test_an_image_that_a_text_smuggles_into_the_prompt_is_checked_like_any_other(self, llm, small_vlm, monkeypatch):
        index = index_of(TextNode(text=smuggled(monkeypatch, painted("red", shade=9))))
        retriever = index.as_retriever(similarity_top_k=1)
        RetrieverQueryEngine.from_args(retriever, llm=llm, multimodal=True).query(QUESTION)
        assert seen(small_vlm) == {9: False}


class TestChatEngines:
    def test_images_of_the_context_reach_the_model_masked(self, llm, small_vlm, index):
        engine = index.as_chat_engine(chat_mode="context", llm=llm, image_similarity_top_k=3)
        assert str(engine.chat(QUESTION))
        assert seen(small_vlm) == {1: False, 2: False}


class TestAgents:
    @pytest.mark.parametrize("streaming", [False, True])
    async def test_a_users_and_a_tools_images_reach_the_model_masked(self, small_vlm, guard, streaming):
        def look() -> list:
            """Look at the wire."""
            return [TextBlock(text="a photo"), ImageBlock(image=png(canary("red", number=2)))]

        call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
        llm = GuardAlignLVLM.from_lvlm(small_vlm.writing(call, "Two birds.", guard=guard))
        agent = FunctionAgent(tools=[FunctionTool.from_defaults(look)], llm=llm, streaming=streaming)
        assert str(await agent.run(user_msg=ask(canary("red", number=1)))) == "Two birds."
        assert [number_of(image) for image in small_vlm.seen] == [1, 1, 2]
        assert not any(shows(image, "red") for image in small_vlm.seen)

    async def test_a_blocked_image_of_a_tool_does_not_stop_it(self, small_vlm, guard):
        def look() -> ImageBlock:
            """Look at the wire."""
            return ImageBlock(image=png(canary("blue", number=2)))

        call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
        llm = GuardAlignLVLM.from_lvlm(small_vlm.writing(call, "I may not see it.", guard=guard))
        agent = FunctionAgent(tools=[FunctionTool.from_defaults(look)], llm=llm)
        assert str(await agent.run(user_msg=QUESTION)) == "I may not see it."
        assert small_vlm.seen == []


class TestSettings:
    def test_it_may_be_everybodys_llm(self, llm, small_vlm, index, monkeypatch):
        monkeypatch.setattr(Settings, "_llm", llm)
        retriever = index.as_retriever(image_similarity_top_k=3)
        response = RetrieverQueryEngine.from_args(retriever, multimodal=True).query(QUESTION)
        assert leaks(str(response)) == []
        assert seen(small_vlm) == {1: False, 2: False}
