"""LLMs that are asked past the guard: found where LlamaIndex's components hold them, and warned of."""

from __future__ import annotations

import functools
import warnings

import pytest
from llama_images import ask
from llama_index.core import Settings, get_response_synthesizer
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.chat_engine import CondensePlusContextChatEngine, SimpleChatEngine
from llama_index.core.memory import ChatMemoryBuffer, ChatSummaryMemoryBuffer, FactExtractionMemoryBlock, Memory
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_models import RecordingLLM
from llama_nodes import index_of
from pydantic import BaseModel

from guardalign_guardrails import UnguardedWarning
from guardalign_guardrails.testing.chats import canary, shows
from llama_index_guardalign import GuardAlignLVLM, GuardedLLM, GuardedMemory, guard_tool, warn_unguarded

RED = canary("red", number=1)


class Answer(BaseModel):
    word: str


def retriever():
    return index_of(TextNode(text="The wire is black.")).as_retriever()


def engine(llm, **more):
    return RetrieverQueryEngine.from_args(retriever(), llm=llm, **more)


def tool_of(llm) -> FunctionTool:
    """A tool whose function asks another agent, as LlamaIndex's documents show sub-agents."""
    agent = FunctionAgent(name="b", description="Writes.", tools=[], llm=llm)

    async def write(prompt: str) -> str:
        """Write."""
        return str(await agent.run(user_msg=prompt))

    return FunctionTool.from_defaults(async_fn=write)


def partial_tool_of(llm) -> FunctionTool:
    def write(llm, prompt: str) -> str:
        return str(llm.complete(prompt))

    return FunctionTool.from_defaults(functools.partial(write, llm), name="write", description="Writes.")


def later_tool_of(llm) -> FunctionTool:
    """A tool whose function uses what is named after it."""

    def write(prompt: str) -> str:
        """Write."""
        return " ".join([str(writer.complete(word)) for word in (prompt, missing)])

    # Neither may be a stumbling block: one has its value now, the other has none yet.
    tool = FunctionTool.from_defaults(write)
    writer = llm
    if tool is None:
        missing = ""
    return tool


def global_tool_of(llm) -> FunctionTool:
    globals()["WRITER"] = llm

    def write(prompt: str) -> list[str]:
        """Write."""
        return [str(WRITER.complete(word)) for word in prompt.split()]  # noqa: F821

    return FunctionTool.from_defaults(write)


HOLDERS = {
    "a name given after a tool": lambda llm, guarded: later_tool_of(llm),
    "a global name in a tool": lambda llm, guarded: global_tool_of(llm),
    "an agent": lambda llm, guarded: FunctionAgent(tools=[], llm=llm),
    "one of several agents": lambda llm, guarded: AgentWorkflow(
        agents=[
            FunctionAgent(name="a", description="Looks.", tools=[], llm=guarded),
            FunctionAgent(name="b", description="Writes.", tools=[], llm=llm),
        ],
        root_agent="a",
    ),
    "an agent behind an agent's tool": lambda llm, guarded: FunctionAgent(tools=[tool_of(llm)], llm=guarded),
    "a part of a tool's function": lambda llm, guarded: FunctionAgent(tools=[partial_tool_of(llm)], llm=guarded),
    "an engine": lambda llm, guarded: engine(llm),
    "an engine behind a tool": lambda llm, guarded: QueryEngineTool.from_defaults(
        engine(llm), name="q", description="d"
    ),
    "a synthesizer beside the engine's llm": lambda llm, guarded: RetrieverQueryEngine.from_args(
        retriever(), llm=guarded, response_synthesizer=get_response_synthesizer(llm=llm)
    ),
    "a reranker": lambda llm, guarded: engine(guarded, node_postprocessors=[LLMRerank(llm=llm)]),
    "a retriever": lambda llm, guarded: QueryFusionRetriever([retriever()], llm=llm),
    "a chat engine": lambda llm, guarded: SimpleChatEngine.from_defaults(llm=llm),
    "a memory behind a chat engine": lambda llm, guarded: CondensePlusContextChatEngine.from_defaults(
        retriever(), llm=guarded, memory=ChatSummaryMemoryBuffer.from_defaults(llm=llm)
    ),
    "a memory block": lambda llm, guarded: Memory.from_defaults(memory_blocks=[FactExtractionMemoryBlock(llm=llm)]),
    "an llm of objects": lambda llm, guarded: engine(llm.as_structured_llm(Answer)),
    "a list": lambda llm, guarded: [llm],
}


@pytest.fixture(autouse=True)
def no_llm_of_everybodys(monkeypatch):
    monkeypatch.setattr(Settings, "_llm", None)


@pytest.fixture
def llm():
    return RecordingLLM()


@pytest.fixture
def guarded(llm, guard):
    return GuardedLLM(llm=llm, guard=guard, route_to=RecordingLLM())


@pytest.mark.parametrize("make", HOLDERS.values(), ids=HOLDERS)
class TestAnLLMIn:
    def test_is_warned_of_once_if_it_is_not_guarded(self, make, llm, guarded):
        component = make(llm, guarded)
        with pytest.warns(UnguardedWarning, match="RecordingLLM") as caught:
            warn_unguarded(component)
        # Others may come from what is cleaned up meanwhile.
        assert [warning.filename for warning in caught if warning.category is UnguardedWarning] == [__file__]

    def test_is_nothing_to_warn_of_if_it_is(self, make, guarded):
        component = make(guarded, guarded)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnguardedWarning)
            warn_unguarded(component)


class TestWarnings:
    def test_say_where(self, llm, guarded):
        workflow = HOLDERS["one of several agents"](llm, guarded)
        with pytest.warns(UnguardedWarning, match=r"AgentWorkflow\.agents\['b'\]\.llm \(RecordingLLM\) is asked"):
            warn_unguarded(workflow)

    def test_are_given_of_everybodys_llm(self, llm, guarded):
        Settings.llm = llm
        with pytest.warns(UnguardedWarning, match=r"Settings\.llm"):
            warn_unguarded()
        Settings.llm = guarded
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnguardedWarning)
            warn_unguarded()

    def test_are_given_of_a_local_model_without_a_guard(self, guard):
        with pytest.warns(UnguardedWarning, match="GuardAlignLVLM"):
            warn_unguarded(GuardAlignLVLM(model_name="nowhere/model"))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnguardedWarning)
            warn_unguarded(GuardAlignLVLM(model_name="nowhere/model", guard=guard))

    def test_say_so_if_there_is_too_much_to_look_through(self):
        with pytest.warns(UnguardedWarning, match="too much"):
            warn_unguarded([[] for _ in range(60_000)])

    def test_are_given_when_a_tool_is_guarded_whose_engine_is_not(self, guard, llm, guarded):
        with pytest.warns(UnguardedWarning, match="QueryEngineTool"):
            guard_tool(HOLDERS["an engine behind a tool"](llm, guarded), guard)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnguardedWarning)
            guard_tool(HOLDERS["an engine behind a tool"](guarded, guarded), guard)

    async def test_are_given_when_a_memory_is_guarded_that_asks_an_llm(self, guard, llm, guarded):
        def memory(llm) -> Memory:
            return Memory.from_defaults(
                token_limit=60, token_flush_size=10, memory_blocks=[FactExtractionMemoryBlock(llm=llm)]
            )

        with pytest.warns(UnguardedWarning, match="FactExtractionMemoryBlock|memory_blocks"):
            wrapped = GuardedMemory(memory=memory(llm), guard=guard)
        # It is no idle one: LlamaIndex gives the block all that it forgets.
        for message in (ask(RED, words="word " * 30), ask(words="word " * 30)):
            await wrapped.aput(message)
        assert [shows(image, "red") for image in llm.images] == [True]
        llm.received.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnguardedWarning)
            wrapped = GuardedMemory(memory=memory(guarded), guard=guard)
            GuardedMemory(memory=ChatMemoryBuffer.from_defaults(), guard=guard)
        for message in (ask(RED, words="word " * 30), ask(words="word " * 30)):
            await wrapped.aput(message)
        assert [shows(image, "red") for image in llm.images] == [False]
