"""A guarded LLM in the engines and agents that LlamaIndex users build, and what they keep and stream of images."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from llama_images import ask, png, said
from llama_index.core import Settings
from llama_index.core.agent.workflow import AgentWorkflow, CodeActAgent, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.rate_limiter import BaseRateLimiter
from llama_index.core.schema import ImageNode, TextNode
from llama_index.core.tools import FunctionTool
from llama_models import WORDS, RecordingLLM, WordsLLM, texts_of
from llama_nodes import b64, images_in, index_of, smuggled
from llama_seen import Tracer

from guardalign_guardrails.testing.chats import canary, number_of, shows
from guardalign_guardrails.testing.colours import painted
from llama_index_guardalign import GuardedLLM, guard_tool, screen_chat

RED, BLUE, WHITE = canary("red", number=1), canary("blue", number=2), canary("white", number=3)
ANSWER = "".join(WORDS)


@pytest.fixture
def llm():
    return RecordingLLM()


@pytest.fixture
def guarded(llm, guard):
    return GuardedLLM(llm=llm, guard=guard)


@pytest.fixture
def everybodys(monkeypatch):
    """Makes an LLM everybody's, until the end of the test."""
    for name in ("_llm", "_prompt_helper", "_chat_prompt_helper"):
        monkeypatch.setattr(Settings, name, None)

    def set_llm(llm) -> None:
        Settings.llm = llm

    return set_llm


def node(image) -> ImageNode:
    # An index leaves out nodes without words.
    return ImageNode(text="a photo", image=b64(image), image_mimetype="image/png")


def retriever_of(*nodes) -> Any:
    return index_of(*nodes).as_retriever(similarity_top_k=3, image_similarity_top_k=3)


def reached(llm) -> dict[int, bool]:
    """Whether red shows, by the number of each image that reached the LLM."""
    return {number_of(image): shows(image, "red") for image in llm.images}


class TestEngines:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("kind", [RetrieverQueryEngine, CitationQueryEngine])
    async def test_retrieved_images_reach_the_llm_masked(self, guarded, llm, kind, streaming):
        index = index_of(node(RED), node(WHITE), TextNode(text="The wire is black."))
        retriever = index.as_retriever(similarity_top_k=3, image_similarity_top_k=3)
        more = {} if kind is RetrieverQueryEngine else {"index": index}
        engine = kind.from_args(retriever=retriever, llm=guarded, multimodal=True, streaming=streaming, **more)
        assert str(engine.query("birds")) == ANSWER
        assert reached(llm) == {1: False, 3: False}
        if not streaming:
            llm.received.clear()
            assert str(await engine.aquery("birds")) == ANSWER
            assert reached(llm) == {1: False, 3: False}

    @pytest.mark.parametrize(("context", "calls"), [(32000, 1), (3900, 3)])
    def test_the_wrapped_llms_context_says_how_many_images_go_into_one_call(self, guard, everybodys, context, calls):
        llm = RecordingLLM(context=context)
        everybodys(GuardedLLM(llm=llm, guard=guard))
        retriever = retriever_of(*(node(canary("red", number=number)) for number in range(3)))
        RetrieverQueryEngine.from_args(retriever, multimodal=True).query("birds")
        # LlamaIndex takes each image for 2125 tokens.
        assert len(llm.received) == calls
        assert reached(llm) == {0: False, 1: False, 2: False}

    def test_an_image_that_a_text_smuggles_into_the_prompt_is_checked_like_any_other(self, guarded, llm, monkeypatch):
        retriever = retriever_of(TextNode(text=smuggled(monkeypatch, painted("red", shade=9))))
        RetrieverQueryEngine.from_args(retriever, llm=guarded, multimodal=True).query("birds")
        assert reached(llm) == {9: False}

    @pytest.mark.parametrize("mode", ["context", "condense_plus_context"])
    async def test_chat_engines_give_it_what_they_found_masked(self, guarded, llm, mode, caplog):
        with caplog.at_level(logging.WARNING):
            engine = index_of(node(RED), node(WHITE)).as_chat_engine(
                chat_mode=mode, llm=guarded, image_similarity_top_k=3
            )
        assert "multi-modal" not in caplog.text
        assert str(engine.chat("What is this?")) == ANSWER
        assert str(await engine.achat("And now?")) == ANSWER
        assert reached(llm) == {1: False, 3: False}

    def test_it_may_be_everybodys_llm(self, guarded, llm, everybodys):
        everybodys(guarded)
        assert str(RetrieverQueryEngine.from_args(retriever_of(node(RED)), multimodal=True).query("birds")) == ANSWER
        assert reached(llm) == {1: False}


def photo() -> list:
    """Take a photo."""
    return [TextBlock(text="a photo"), ImageBlock(image=png(canary("red", number=8)))]


PHOTO = FunctionTool.from_defaults(photo)
AGENTS = {
    "a function agent": lambda llm: FunctionAgent(tools=[PHOTO], llm=llm),
    "several agents": lambda llm: AgentWorkflow(
        agents=[FunctionAgent(name="a", description="Looks.", tools=[PHOTO], llm=llm)], root_agent="a"
    ),
    "an agent that thinks aloud": lambda llm: ReActAgent(tools=[PHOTO], llm=llm),
    "an agent that writes code": lambda llm: CodeActAgent(code_execute_fn=lambda code: "", tools=[PHOTO], llm=llm),
}


class TestAgents:
    @pytest.mark.parametrize("make", AGENTS.values(), ids=AGENTS)
    async def test_a_users_image_reaches_the_llm_of_any_agent_masked(self, guard, make):
        llm = RecordingLLM(answer="Thought: I can answer.\nAnswer: two birds")
        assert "two birds" in str(await make(GuardedLLM(llm=llm, guard=guard)).run(user_msg=ask(RED)))
        assert reached(llm) == {1: False}

    @pytest.mark.parametrize("name", ["an agent that thinks aloud", "an agent that writes code"])
    async def test_agents_that_need_no_tool_calls_take_an_llm_that_knows_none(self, guard, name):
        class Thinking(WordsLLM):
            """Answers at once."""

            def complete(self, prompt, formatted=False, **kwargs):
                return super().complete(prompt).model_copy(update={"text": "Thought: x\nAnswer: done"})

        agent = AGENTS[name](GuardedLLM(llm=Thinking(), guard=guard))
        agent.streaming = False
        assert "done" in str(await agent.run(user_msg="Look"))

    async def test_checked_at_the_edge_and_behind_tools_nothing_that_is_kept_or_streamed_shows_the_original(
        self, guard
    ):
        async def seen(message, tool) -> list[list[bool]]:
            agent = FunctionAgent(tools=[tool], llm=GuardedLLM(llm=RecordingLLM(call="photo"), guard=guard))
            memory = ChatMemoryBuffer.from_defaults(token_limit=30000)
            handler = agent.run(user_msg=message, memory=memory)
            events = [(event, event.to_dict()) async for event in handler.stream_events()]
            assert str(await handler) == ANSWER
            return [[shows(image, "red") for image in images_in(kept)] for kept in (events, memory.get_all())]

        # LlamaIndex streams and remembers what it was given, before any LLM is asked.
        assert [set(kept) for kept in await seen(ask(RED), PHOTO)] == [{True}, {True}]
        (message,) = screen_chat(guard, [ask(RED)]).messages
        streamed, remembered = await seen(message, guard_tool(PHOTO, guard))
        assert set(streamed) == {False}
        assert remembered == [False, False]


class Turnstile(BaseRateLimiter):
    """Counts."""

    passed: int = 0

    def acquire(self, num_tokens: int = 0) -> None:
        self.passed += 1

    async def async_acquire(self, num_tokens: int = 0) -> None:
        self.passed += 1


class TestSettings:
    def test_a_callback_manager_given_with_it_is_the_wrapped_llms(self, llm, guard):
        tracer = Tracer()
        guarded = GuardedLLM(llm=llm, guard=guard, callback_manager=CallbackManager([tracer.callbacks]))
        guarded.chat([said("Hello")])
        assert "Hello" in tracer.said

    @pytest.mark.parametrize("is_given_later", [False, True])
    async def test_a_rate_limiter_is_asked_before_every_call_of_the_wrapped_llm(self, llm, guard, is_given_later):
        turnstile = Turnstile()
        guarded = GuardedLLM(llm=llm, guard=guard, rate_limiter=None if is_given_later else turnstile)
        if is_given_later:
            guarded.rate_limiter = turnstile
        guarded.chat([said("Hello")])
        await guarded.achat([said("Hello")])
        assert turnstile.passed == 2

    def test_what_is_told_of_a_refusal_holds_nothing_of_the_wrapped_llm_but_its_metadata(self, guard):
        class Keyed(RecordingLLM):
            """Has a secret."""

            api_key: str = "sk-secret"

        with Tracer() as tracer:
            GuardedLLM(llm=Keyed(), guard=guard).chat([ask(BLUE)])
        assert "guarded_multi_modal_llm" in tracer.said
        assert "sk-secret" not in tracer.said

    def test_a_tracer_that_fails_changes_nothing(self, guarded, llm):
        class Failing(BaseEventHandler):
            """Never works."""

            def handle(self, event, **kwargs):
                raise RuntimeError("no tracer")

        root = get_dispatcher()
        root.add_event_handler(Failing())
        try:
            guarded.chat([said("Look", "system"), ask(RED)])
        finally:
            root.event_handlers = [one for one in root.event_handlers if not isinstance(one, Failing)]
        assert reached(llm) == {1: False}
        assert "Be careful." in texts_of(llm.received[0])[0]
