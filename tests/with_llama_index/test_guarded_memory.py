"""Memories in which a blocked image stands for one turn only: with agents and chat engines, raising or answering."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest
from llama_images import ask, image_of, kinds_of, said
from llama_index.core.agent.workflow import AgentWorkflow, CodeActAgent, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.multi_modal_context import MultiModalContextChatEngine
from llama_index.core.memory import (
    BaseMemory,
    ChatMemoryBuffer,
    ChatSummaryMemoryBuffer,
    Memory,
    SimpleComposableMemory,
)
from llama_index.core.schema import TextNode
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context
from llama_models import RecordingLLM
from llama_nodes import index_of

from guardalign_guardrails import NotPicklable, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.testing.chats import canary, leaks, number_of, shows
from guardalign_guardrails.testing.colours import colour_guard
from llama_index_guardalign import GuardedLLM, GuardedMemory

RED, BLUE, WHITE, YELLOW = (canary(colour, number=n) for n, colour in enumerate(("red", "blue", "white", "yellow"), 1))
ANSWER = "Thought: I can answer.\nAnswer: two birds"
HARMLESS = ("one", "two", "three")

MEMORIES = {
    "a buffer": lambda: ChatMemoryBuffer.from_defaults(token_limit=30000),
    "a database": Memory.from_defaults,
    "a summary": lambda: ChatSummaryMemoryBuffer.from_defaults(token_limit=30000),
    "a composed one": lambda: SimpleComposableMemory.from_defaults(
        ChatMemoryBuffer.from_defaults(token_limit=30000), [ChatMemoryBuffer.from_defaults(token_limit=30000)]
    ),
}
EVERY_MEMORY = pytest.mark.parametrize("inner", MEMORIES.values(), ids=MEMORIES)


def look() -> str:
    """Look."""
    return "seen"


LOOK = FunctionTool.from_defaults(look)
AGENTS = {
    "a function agent": lambda llm: FunctionAgent(tools=[LOOK], llm=llm),
    "one that does not stream": lambda llm: FunctionAgent(tools=[LOOK], llm=llm, streaming=False),
    "several agents": lambda llm: AgentWorkflow(
        agents=[FunctionAgent(name="a", description="Looks.", tools=[LOOK], llm=llm)], root_agent="a"
    ),
    "an agent that thinks aloud": lambda llm: ReActAgent(tools=[LOOK], llm=llm),
    "an agent that writes code": lambda llm: CodeActAgent(code_execute_fn=lambda code: "", tools=[LOOK], llm=llm),
}


class BreakingLLM(RecordingLLM):
    """Fails in the calls that are named, as a network does.

    Attributes:
        breaks: Which calls, counted from 0.
        calls: How many there were.
    """

    breaks: tuple[int, ...] = ()
    calls: int = 0

    def _said(self, messages, options):
        self.calls += 1
        if self.calls - 1 in self.breaks:
            raise ConnectionError("no network")
        return super()._said(messages, options)


def told(messages: list[ChatMessage]) -> list[tuple[str, list[str]]]:
    """Roles and texts, with a notice for every image of blue."""
    return [
        (
            message.role.value,
            [block.text if block.block_type == "text" else _shown(block) for block in message.blocks],
        )
        for message in messages
    ]


def _shown(block: Any) -> str:
    image = image_of(block)
    return NOTICE if shows(image, "blue") else f"image {number_of(image)}"


async def turns(agent: Any, memory: BaseMemory, *messages: str | ChatMessage) -> list[str]:
    """What each turn came to: the answer, or the kind of error."""
    context = Context(agent)

    async def outcome(message: str | ChatMessage) -> str:
        try:
            return str(await agent.run(user_msg=message, memory=memory, ctx=context))
        except (UnsafeContentError, ConnectionError) as error:
            return type(error).__name__

    return [await outcome(message) for message in messages]


@EVERY_MEMORY
@pytest.mark.parametrize("make", AGENTS.values(), ids=AGENTS)
class TestAnAgentWithOneMemory:
    async def test_goes_on_after_a_blocked_image_that_no_model_ever_sees(self, guard, make, inner):
        llm, memory = RecordingLLM(answer=ANSWER), GuardedMemory(memory=inner(), guard=guard)
        agent = make(GuardedLLM(llm=llm, guard=guard, on_violation="raise"))
        first, *rest = await turns(agent, memory, ask(BLUE), *HARMLESS)
        assert first == "UnsafeContentError"
        assert all("two birds" in answer for answer in rest)
        assert len(rest) == len(llm.received) == 3
        assert llm.images == []
        # An agent of which the LLM fails once, without a guard, keeps the same but for the notice; nothing twice.
        plain = inner()
        await turns(make(BreakingLLM(answer=ANSWER, breaks=(0,))), plain, ask(BLUE), *HARMLESS)
        stored = await memory.aget_all()
        assert told(stored) == told(await plain.aget_all())
        assert kinds_of(stored[0].blocks) == ["text", "text"]

    async def test_does_so_if_something_else_fails_too(self, guard, make, inner):
        llm = BreakingLLM(answer=ANSWER, breaks=(0, 2))
        agent = make(GuardedLLM(llm=llm, guard=guard, on_violation="raise"))
        memory = GuardedMemory(memory=inner(), guard=guard)
        outcomes = await turns(agent, memory, ask(BLUE), "one", ask(WHITE), ask(BLUE), "two", "three", "four")
        kinds = ["ok" if "two birds" in outcome else outcome for outcome in outcomes]
        blocked, broken = "UnsafeContentError", "ConnectionError"
        assert kinds == [blocked, broken, "ok", blocked, broken, "ok", "ok"]
        assert {number_of(image) for image in llm.images} == {3}
        assert all(not shows(image, "blue") for image in llm.images)


class TestWithoutAGuardedMemory:
    # Or there would be nothing to do.
    async def test_a_raised_violation_is_raised_in_every_later_turn_and_the_log_says_what_to_do(self, guard, caplog):
        agent = AGENTS["a function agent"](GuardedLLM(llm=RecordingLLM(), guard=guard, on_violation="raise"))
        with caplog.at_level(logging.WARNING, "llama_index_guardalign"):
            assert set(await turns(agent, Memory.from_defaults(), ask(BLUE))) == {"UnsafeContentError"}
            assert caplog.text == ""
            assert set(await turns(agent, Memory.from_defaults(), ask(BLUE), *HARMLESS)) == {"UnsafeContentError"}
        assert "GuardedMemory" in caplog.text
        assert leaks(caplog.text, BLUE) == []

    @pytest.mark.parametrize("is_guarded", [False, True])
    @pytest.mark.parametrize("rule", ["refuse", "notice"])
    @pytest.mark.parametrize("make", AGENTS.values(), ids=AGENTS)
    async def test_what_is_answered_needs_none_and_is_the_same_with_one(self, guard, make, rule, is_guarded):
        llm, inner = RecordingLLM(answer=ANSWER), Memory.from_defaults()
        memory = GuardedMemory(memory=inner, guard=guard) if is_guarded else inner
        agent = make(GuardedLLM(llm=llm, guard=guard, on_violation=rule))
        first, *rest = await turns(agent, memory, ask(BLUE), *HARMLESS)
        assert ("two birds" in first) == (rule == "notice")
        assert all("two birds" in answer for answer in rest)
        assert llm.images == []
        roles = [message.role.value for message in await memory.aget_all()]
        assert roles == ["user", "assistant"] * 4


ENGINES = {
    "a simple engine": lambda llm, memory: SimpleChatEngine.from_defaults(llm=llm, memory=memory),
    "one with context": lambda llm, memory: ContextChatEngine.from_defaults(_retriever(), llm=llm, memory=memory),
    "one with images": lambda llm, memory: MultiModalContextChatEngine.from_defaults(
        _retriever(), multi_modal_llm=llm, memory=memory
    ),
    "one that condenses": lambda llm, memory: CondensePlusContextChatEngine.from_defaults(
        _retriever(), llm=llm, memory=memory
    ),
}


def _retriever() -> Any:
    return index_of(TextNode(text="The wire is black.")).as_retriever()


async def _chat(engine: Any, message: str) -> str:
    return str(engine.chat(message))


async def _achat(engine: Any, message: str) -> str:
    return str(await engine.achat(message))


async def _stream(engine: Any, message: str) -> str:
    response = engine.stream_chat(message)
    text = "".join(response.response_gen)
    if (thread := response.write_response_to_history_thread) is not None:
        thread.join()
    return text


async def _astream(engine: Any, message: str) -> str:
    response = await engine.astream_chat(message)
    text = "".join([part async for part in response.async_response_gen()])
    if (task := response.awrite_response_to_history_task) is not None:
        await task
    return text


# LlamaIndex's engines stream in a thread or task of their own, and hand on what it raises.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("call", [_chat, _achat, _stream, _astream])
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
class TestAChatEngine:
    async def test_goes_on_after_a_blocked_image_that_the_app_put_into_its_memory(self, guard, make, call):
        llm, inner = RecordingLLM(), ChatMemoryBuffer.from_defaults(token_limit=30000)
        memory = GuardedMemory(memory=inner, guard=guard)
        engine = make(GuardedLLM(llm=llm, guard=guard, on_violation="raise"), memory)
        memory.put(ask(BLUE))
        with pytest.raises(UnsafeContentError):
            await call(engine, "What is this?")
        for question in HARMLESS:
            assert "one" in await call(engine, question)
        assert llm.images == []
        stored = memory.get_all()
        assert [message.content for message in stored if message.content in HARMLESS] == list(HARMLESS)
        assert kinds_of(stored[0].blocks) == ["text", "text"]
        assert stored[0].blocks[1].text == NOTICE


class TestWhenATurnIsOver:
    @pytest.fixture
    def memory(self, guard):
        return GuardedMemory(memory=ChatMemoryBuffer.from_defaults(token_limit=30000), guard=guard)

    def test_what_is_put_before_it_is_read_is_one_turn(self, memory):
        memory.put(ask(BLUE))
        memory.put_messages([said("What is this?"), said("And what colour?")])
        first = memory.get()[0]
        assert kinds_of(first.blocks) == ["text", "image"]

    @pytest.mark.parametrize("how", ["said", "read"])
    async def test_the_user_says_something_else_or_it_is_read_again(self, memory, how):
        for is_async in (False, True):
            memory.set([])
            memory.put(ask(BLUE))
            first = await memory.aget() if is_async else memory.get()
            assert kinds_of(first[0].blocks) == ["text", "image"]
            if how == "said":
                await memory.aput(said("Hello")) if is_async else memory.put(said("Hello"))
            again = await memory.aget() if is_async else memory.get()
            assert kinds_of(again[0].blocks) == ["text", "text"]
            assert kinds_of(first[0].blocks) == ["text", "image"]

    def test_an_image_that_is_routed_stays_while_the_turn_goes_on(self, memory):
        # An agent reads it again with every tool call, and another LLM answers.
        memory.put(ask(YELLOW))
        for _ in range(3):
            assert kinds_of(memory.get()[0].blocks) == ["text", "image"]
        memory.put(said("Hello"))
        assert kinds_of(memory.get()[0].blocks) == ["text", "text"]

    @pytest.mark.parametrize("rule", ["refuse", "notice"])
    async def test_the_turn_goes_on_with_the_same_llm_while_tools_are_called(self, guard, memory, rule):
        llm, careful = RecordingLLM(call="look"), RecordingLLM(call="look")
        guarded = GuardedLLM(llm=llm, guard=guard, on_violation=rule, route_to=careful)
        agent = FunctionAgent(tools=[LOOK], llm=guarded)
        await turns(agent, memory, ask(YELLOW))
        assert [len(llm.received), len(careful.received)] == [0, 2]
        await turns(agent, memory, ask(BLUE))
        assert [len(llm.received), len(careful.received)] == ([0, 2] if rule == "refuse" else [2, 2])
        assert llm.images == careful.images == []

    async def test_history_that_an_app_gives_with_every_turn_is_past(self, guard, memory):
        llm = RecordingLLM()
        agent = FunctionAgent(tools=[], llm=GuardedLLM(llm=llm, guard=guard, on_violation="raise"))
        for _ in range(2):
            assert "one" in str(await agent.run("Hello", chat_history=[ask(BLUE)], memory=memory))
        with pytest.raises(UnsafeContentError):
            await agent.run(chat_history=[said("Hello"), ask(BLUE)], memory=memory)
        assert llm.images == []

    def test_what_was_stored_before_this_memory_was_made_is_past(self, guard, memory):
        memory.put(ask(BLUE))
        again = GuardedMemory(memory=memory.memory, guard=guard)
        again.put(said("Hello"))
        assert kinds_of(again.get()[0].blocks) == ["text", "text"]

    def test_only_what_is_blocked_becomes_a_notice(self, memory):
        given = [ask(RED), ask(BLUE), ask(WHITE)]
        memory.put_messages(given)
        memory.get()
        memory.put(said("Hello"))
        masked, blocked, clean, _ = memory.get_all()
        assert (masked, clean) == (given[0], given[2])
        assert blocked.blocks[1].text == NOTICE
        assert kinds_of(given[1].blocks) == ["text", "image"]

    def test_images_with_an_answer_after_them_are_history_to_the_llm_and_stay(self, memory):
        memory.put_messages([ask(BLUE), said("No.", "assistant")])
        memory.get()
        memory.put(said("Hello"))
        assert kinds_of(memory.get_all()[0].blocks) == ["text", "image"]

    async def test_messages_that_a_database_archived_stay_there(self, guard):
        inner = Memory.from_defaults(token_limit=60, token_flush_size=10)
        memory = GuardedMemory(memory=inner, guard=guard)
        await memory.aput_messages([said("word " * 30), said("word " * 30, "assistant")])
        await memory.aput(ask(BLUE))
        archived = await inner.aget_all(status=MessageStatus.ARCHIVED)
        assert archived
        await memory.aget()
        await memory.aput(said("Hello"))
        assert (await inner.aget_all(status=MessageStatus.ARCHIVED))[: len(archived)] == archived
        assert "image" not in [kind for message in await inner.aget_all() for kind in kinds_of(message.blocks)]

    def test_memories_beside_the_first_of_a_composed_one_are_not_told_twice(self, guard):
        inner = MEMORIES["a composed one"]()
        memory = GuardedMemory(memory=inner, guard=guard)
        memory.put(ask(BLUE))
        memory.get()
        memory.put(said("Hello"))
        assert kinds_of(memory.get_all()[0].blocks) == ["text", "text"]
        (beside,) = inner.secondary_memory_sources
        assert [message.content for message in beside.get_all()] == ["What is this?", "Hello"]

    def test_a_policy_that_only_monitors_changes_nothing(self, cache_dir):
        memory = GuardedMemory(memory=MEMORIES["a buffer"](), guard=colour_guard(cache_dir, mode="monitor"))
        memory.put(ask(BLUE))
        memory.get()
        memory.put(said("Hello"))
        assert kinds_of(memory.get()[0].blocks) == ["text", "image"]


class TestTheMemory:
    def test_forgets_as_the_wrapped_one_does(self, guard):
        memory = GuardedMemory.from_defaults(guard=guard, chat_history=[said("Hello")])
        assert [message.content for message in memory.get_all()] == ["Hello"]
        memory.reset()
        assert memory.get_all() == []

    def test_counts_tokens_as_the_wrapped_one_does(self, guard):
        inner = ChatMemoryBuffer.from_defaults(tokenizer_fn=list)
        assert GuardedMemory(memory=inner, guard=guard).tokenizer_fn("ab") == ["a", "b"]

    def test_a_copy_has_its_guard(self, guard):
        memory = GuardedMemory(memory=MEMORIES["a buffer"](), guard=guard)
        memory.put(ask(BLUE))
        again = pickle.loads(pickle.dumps(memory))
        again.put(said("Hello"))
        assert kinds_of(again.get()[0].blocks) == ["text", "text"]

        class Local(ChatMemoryBuffer):
            """Another process cannot find this class."""

        with pytest.raises(NotPicklable) as caught:
            pickle.dumps(GuardedMemory(memory=Local.from_defaults(), guard=guard))
        assert caught.value.member == "memory"
