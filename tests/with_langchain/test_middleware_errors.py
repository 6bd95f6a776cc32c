"""A blocked turn is no failure: it is not retried, no other model is asked, and no user reads its error."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from agent_chats import Chat, camera, kinds, tool_messages
from chat_images import ask, b64, text
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    ToolErrorMiddleware,
    ToolRetryMiddleware,
)
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import StructuredTool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import RetryPolicy

from guardalign_guardrails import EncoderUnavailable, GuardSettings, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.testing.colours import colour_guard, colour_policy, painted
from langchain_guardalign.agents.middleware import GuardAlignMiddleware
from langchain_guardalign.chat.guarded_model import GuardedChatModel
from langchain_guardalign.errors.turn_error import UnsafeTurnError
from langchain_guardalign.testing.messages import call_async, call_sync, images_of
from langchain_guardalign.testing.recording import RecordingModel

BLUE, RED = painted("blue"), painted("red")
REFUSAL = colour_policy().refusal
EITHER_ORDER = pytest.mark.parametrize("is_last", [True, False], ids=["guard last", "guard first"])
BOTH_WAYS = pytest.mark.parametrize("persist", [True, False])


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request):
    """Calls a method, or its async twin; what streams comes back as a list."""
    return request.param


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


def chat_with(own: GuardAlignMiddleware, other: AgentMiddleware, call: Any, *, is_last: bool, **settings: Any) -> Chat:
    return Chat(*([other, own] if is_last else [own, other]), call=call, **settings)


class Fails(RecordingModel):
    """Keeps what it is given, and is down."""

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        super()._generate(messages, *args, **kwargs)
        raise ConnectionError("down")

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        yield from ()
        self._generate(messages)


class Illustrator(AgentMiddleware):
    """Adds a user's image to every request, which no hook before the model call sees."""

    calls = 0

    def wrap_model_call(self, request, handler):
        return handler(self.illustrated(request))

    async def awrap_model_call(self, request, handler):
        return await handler(self.illustrated(request))

    def illustrated(self, request):
        self.calls += 1
        return request.override(messages=[*request.messages, *ask(BLUE)])


class TestABlockedTurn:
    @EITHER_ORDER
    @BOTH_WAYS
    @pytest.mark.parametrize("retry_on", [None, (Exception,), lambda _: True], ids=["default", "all", "any"])
    def test_is_not_retried_and_its_error_is_shown_to_nobody(self, guard, call, persist, is_last, retry_on):
        settings = {} if retry_on is None else {"retry_on": retry_on}
        retry = ModelRetryMiddleware(max_retries=2, initial_delay=0, on_failure="continue", **settings)
        chat = chat_with(
            GuardAlignMiddleware(guard, on_violation="raise", persist=persist), retry, call, is_last=is_last
        )
        with pytest.raises(UnsafeContentError) as caught:
            chat.say(*ask(BLUE))
        assert caught.value.verdict.category == "blue_things"
        assert chat.model.received == []
        assert [message.text for message in chat.state][1:] == [REFUSAL]

    @EITHER_ORDER
    @BOTH_WAYS
    @pytest.mark.parametrize("on_violation", ["raise", "refuse", "notice"])
    def test_is_never_sent_to_a_fallback(self, guard, call, persist, is_last, on_violation):
        other = RecordingModel()
        own = GuardAlignMiddleware(guard, on_violation=on_violation, persist=persist)
        chat = chat_with(own, ModelFallbackMiddleware(other), call, is_last=is_last)
        if on_violation == "raise":
            with pytest.raises(UnsafeContentError):
                chat.say(*ask(BLUE))
        else:
            chat.say(*ask(BLUE))
        assert len(chat.model.received) == (on_violation == "notice")
        assert images_of([each for received in chat.model.received for each in received]) == []
        assert other.received == []

    @EITHER_ORDER
    @BOTH_WAYS
    def test_a_fallback_gets_the_same_sanitised_messages_as_a_model_that_is_down(self, guard, call, persist, is_last):
        other = RecordingModel()
        own = GuardAlignMiddleware(guard, persist=persist)
        chat = chat_with(own, ModelFallbackMiddleware(other), call, is_last=is_last, model=Fails())
        chat.say(*ask(RED))
        assert [message.content for message in other.received[0]] == [
            message.content for message in chat.model.received[0]
        ]
        assert len(images_of(other.received[0])) == 1
        assert b64(RED)[60:120] not in repr(other.received)

    @pytest.mark.parametrize("other", [ModelRetryMiddleware, ModelFallbackMiddleware])
    def test_that_is_found_only_right_before_the_model_ends_all_the_same(self, guard, call, other):
        asked = RecordingModel()
        around = (
            ModelFallbackMiddleware(asked)
            if other is ModelFallbackMiddleware
            else ModelRetryMiddleware(initial_delay=0, retry_on=(Exception,), on_failure="continue")
        )
        illustrator = Illustrator()
        chat = Chat(around, illustrator, GuardAlignMiddleware(guard, on_violation="raise"), call=call)
        with pytest.raises(UnsafeContentError):
            chat.say("hello")
        assert (illustrator.calls, chat.model.received, asked.received) == (1, [], [])

    def test_in_a_subgraph_is_an_error_of_the_whole_graph_and_not_retried(self, guard, call):
        agent = Chat(GuardAlignMiddleware(guard, on_violation="raise"), call=call).agent
        runs: list[Any] = []

        def before(state: Any) -> Any:
            runs.append(state)
            return {}

        graph: Any = (
            StateGraph(MessagesState)
            .add_node("before", before)
            .add_node("agent", agent, retry_policy=RetryPolicy(initial_interval=0, retry_on=Exception))
            .add_edge(START, "before")
            .add_edge("before", "agent")
            .compile()
        )
        with pytest.raises(UnsafeContentError):
            call(graph, "invoke", {"messages": ask(BLUE)})
        assert len(runs) == 1

    @pytest.mark.parametrize("method", ["stream", "invoke"])
    def test_is_an_error_of_every_call(self, guard, call, method):
        chat = Chat(GuardAlignMiddleware(guard, on_violation="raise"), call=call)
        with pytest.raises(UnsafeContentError):
            call(chat.agent, method, {"messages": ask(BLUE)}, {"configurable": {"thread_id": "t"}})

    def test_error_says_what_the_others_say_and_can_be_sent_to_another_process(self, guard):
        verdict = guard.check(BLUE).verdict
        error = UnsafeTurnError(verdict)
        assert str(error) == str(UnsafeContentError(verdict))
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.verdict, str(again)) == (UnsafeTurnError, verdict, str(error))


def agent_as_tool(chat: Chat, image: Any) -> StructuredTool:
    """A tool that asks another agent about an image."""

    def helper() -> str:
        """Ask the other agent."""
        return chat.say(*ask(image))[-1].text

    return StructuredTool.from_function(helper)


class TestABlockedTurnOfAnAgentInATool:
    @pytest.mark.parametrize(
        "other",
        [
            ToolRetryMiddleware(initial_delay=0, max_retries=2),
            ToolRetryMiddleware(initial_delay=0, retry_on=(Exception,), on_failure="continue"),
            ToolErrorMiddleware(lambda error, request: f"It failed: {error}"),
        ],
        ids=["retry", "retry all", "error"],
    )
    def test_is_not_retried_nor_shown_to_the_model(self, guard, other):
        inner = Chat(GuardAlignMiddleware(guard, on_violation="raise"))
        tool = agent_as_tool(inner, BLUE)
        outer = Chat(other, GuardAlignMiddleware(guard), tool=tool)
        with pytest.raises(UnsafeContentError):
            outer.say("Ask them.")
        assert inner.model.received == []
        assert len(outer.model.received) == 1
        assert kinds(inner.state) == ["human", "ai"]

    def test_passes_a_tool_node_that_makes_texts_of_errors(self, guard, call):
        inner = Chat(GuardAlignMiddleware(guard, on_violation="raise"))
        node = ToolNode([agent_as_tool(inner, BLUE)], handle_tool_errors=True)
        graph: Any = StateGraph(MessagesState).add_node("tools", node).add_edge(START, "tools").compile()
        with pytest.raises(UnsafeContentError):
            call(graph, "invoke", {"messages": [calls("helper")]})


class TestAWrappedModelWithoutTheMiddleware:
    @pytest.mark.parametrize("on_violation", ["raise", "refuse", "notice"])
    def test_never_has_a_blocked_image_sent_to_a_fallback(self, guard, call, on_violation):
        inner, other = RecordingModel(), RecordingModel()
        guarded: Any = GuardedChatModel(model=inner, guard=guard, on_violation=on_violation)
        chat = Chat(ModelFallbackMiddleware(other), call=call, model=guarded)
        if on_violation == "raise":
            with pytest.raises(UnsafeContentError):
                chat.say(*ask(BLUE))
        else:
            chat.say(*ask(BLUE))
        assert (len(inner.received), other.received) == (on_violation == "notice", [])

    def test_needs_its_fallbacks_wrapped_or_behind_it(self, guard, call):
        plain, wrapped, behind = RecordingModel(), RecordingModel(), RecordingModel()
        first: Any = GuardedChatModel(model=Fails(), guard=guard)
        Chat(ModelFallbackMiddleware(plain), call=call, model=first).say(*ask(RED))
        other = GuardedChatModel(model=wrapped, guard=guard)
        Chat(ModelFallbackMiddleware(other), call=call, model=first).say(*ask(RED))
        both: Any = GuardedChatModel(model=Fails().with_fallbacks([behind]), guard=guard)
        Chat(call=call, model=both).say(*ask(RED))
        shown = [b64(RED)[60:120] in repr(model.received) for model in (plain, wrapped, behind)]
        assert shown == [True, False, False]
        assert [len(images_of(model.received[0])) for model in (plain, wrapped, behind)] == [1, 1, 1]


class TestToolNodes:
    def test_a_tools_images_never_leave_a_node_that_is_wrapped(self, guard, call):
        own = GuardAlignMiddleware(guard)
        node = ToolNode([camera(RED, BLUE)], wrap_tool_call=own.wrap_tool_call, awrap_tool_call=own.awrap_tool_call)
        (message,) = tool_messages(run(node, call))
        assert len(images_of([message])) == 1
        assert message.content[0] == text("Click.")
        assert message.content[2] == text(NOTICE)
        assert b64(RED)[60:120] not in repr(message)

    @pytest.mark.parametrize("handle_tool_errors", [True, False])
    def test_a_guard_that_cannot_work_lets_no_image_out_of_one(self, cache_dir, call, handle_tool_errors):
        own = GuardAlignMiddleware(GuardSettings(encoder="transformers:/nowhere", cache_dir=cache_dir))
        node = ToolNode(
            [camera(painted())],
            wrap_tool_call=own.wrap_tool_call,
            awrap_tool_call=own.awrap_tool_call,
            handle_tool_errors=handle_tool_errors,
        )
        if not handle_tool_errors:
            with pytest.raises(EncoderUnavailable):
                run(node, call)
            return
        (message,) = tool_messages(run(node, call))
        assert message.status == "error"
        assert images_of([message]) == []
        assert b64(painted())[60:120] not in repr(message)


def calls(name: str) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": {}, "id": "call"}])


def run(node: ToolNode, call: Any) -> list[Any]:
    """The messages after a graph of one node of tools."""
    graph: Any = StateGraph(MessagesState).add_node("tools", node).add_edge(START, "tools").compile()
    return call(graph, "invoke", {"messages": [HumanMessage("Take images."), calls("camera")]})["messages"]
