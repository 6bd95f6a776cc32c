"""Threads that last: paused ones and a new policy, a blocked image and later turns, other models that read them."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
from agent_chats import THREAD, Chat, camera, kinds
from chat_images import ask, b64, blocks, text, v1
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware, LLMToolSelectorMiddleware, SummarizationMiddleware
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.types import Command, interrupt

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.testing.colours import colour_guard, colour_policy, painted
from langchain_guardalign.agents.middleware import GuardAlignMiddleware
from langchain_guardalign.chat.guarded_model import GuardedChatModel
from langchain_guardalign.testing.messages import call_async, call_sync, images_of
from langchain_guardalign.testing.recording import RecordingModel

REFUSAL = colour_policy().refusal
BLUE, RED = painted("blue"), painted("red")


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request):
    """Calls a method, or its async twin; what streams comes back as a list."""
    return request.param


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


def holds(said: Any, image: Any) -> bool:
    return b64(image)[60:120] in repr(said)


class TestPausedThreads:
    """An app is stopped, its policy is edited, and it starts again on the same checkpoints."""

    @pytest.mark.parametrize("where", ["interrupt_before", "interrupt_after"])
    def test_a_thread_that_waits_for_the_guard_goes_on_when_a_word_of_the_policy_is_edited(
        self, cache_dir, call, where
    ):
        def agent(prefix: str, model: RecordingModel, saver: Any) -> Any:
            guard = colour_guard(cache_dir, prefix=prefix)
            nodes = ["GuardAlignMiddleware.before_model"] if where == "interrupt_before" else ["tools"]
            return create_agent(
                model,
                [camera(RED)],
                middleware=[GuardAlignMiddleware(guard)],
                checkpointer=saver,
                **{where: nodes},
            )

        chat = Chat()
        first, second = RecordingModel(tool="camera"), RecordingModel(tool="camera")
        old, new = agent("Be careful.", first, chat.saver), agent("Be very careful.", second, chat.saver)
        call(old, "invoke", {"messages": ask(painted("green"))}, THREAD)
        if where == "interrupt_before":
            assert first.received == []
        assert new.get_state(THREAD).next == ("GuardAlignMiddleware.before_model",)
        call(new, "invoke", None, THREAD)
        (received,) = second.received
        assert received[0].content == "Be very careful."

    def test_a_call_that_waits_for_a_human_goes_on_when_a_word_of_the_policy_is_edited(self, cache_dir, in_context):
        chat = Chat()

        def agent(prefix: str) -> tuple[RecordingModel, Any]:
            model, guard = RecordingModel(tool="camera"), colour_guard(cache_dir, prefix=prefix)
            middleware = [HumanInTheLoopMiddleware({"camera": True}), GuardAlignMiddleware(guard)]
            return model, create_agent(model, [camera(RED)], middleware=middleware, checkpointer=chat.saver)

        _, old = agent("Be careful.")
        model, new = agent("Be very careful.")
        in_context(old, "invoke", {"messages": [HumanMessage("Take an image.")]}, THREAD)
        assert new.get_state(THREAD).next != ()
        state = in_context(new, "invoke", Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
        (received,) = model.received
        assert received[0].content == "Be very careful."
        assert not holds([received, state], RED)

    def test_an_interrupt_within_a_tool_is_taken_up_by_an_agent_with_another_policy(self, cache_dir, call):
        @tool
        def ask_human() -> str:
            """Ask."""
            return interrupt("Which?")

        chat = Chat()
        model = RecordingModel(tool="ask_human")
        for prefix, given in (("One.", {"messages": ask(painted("green"))}), ("Two.", Command(resume="That one."))):
            middleware = [GuardAlignMiddleware(colour_guard(cache_dir, prefix=prefix))]
            agent = create_agent(model, [ask_human], middleware=middleware, checkpointer=chat.saver)
            state = call(agent, "invoke", given, THREAD)
        assert [received[0].content for received in model.received] == ["One.", "Two."]
        assert kinds(state["messages"]) == ["human", "ai", "tool", "ai"]

    def test_a_turn_that_was_refused_is_an_error_under_another_policy_too(self, cache_dir, call):
        chat = Chat()
        for prefix, given in (("One.", {"messages": ask(BLUE)}), ("Two.", None)):
            model = RecordingModel()
            middleware = [GuardAlignMiddleware(colour_guard(cache_dir, prefix=prefix), on_violation="raise")]
            agent = create_agent(model, [], middleware=middleware, checkpointer=chat.saver)
            with pytest.raises(UnsafeContentError):
                call(agent, "invoke", given, THREAD)
            assert model.received == []


class TestAfterABlockedImage:
    @pytest.mark.parametrize("persist", [True, False])
    @pytest.mark.parametrize("on_violation", ["refuse", "notice", "raise"])
    def test_three_harmless_turns_work_and_the_history_is_the_one_without_a_guard(
        self, guard, call, on_violation, persist
    ):
        guarded = Chat(GuardAlignMiddleware(guard, on_violation=on_violation, persist=persist), call=call)
        plain = Chat(call=call)
        turns = [ask(BLUE), [HumanMessage("Answer the above.")], ask(painted()), [HumanMessage("Thanks.")]]
        for number, turn in enumerate(turns):
            plain.say(*turn)
            if (number, on_violation) == (0, "raise"):
                with pytest.raises(UnsafeContentError):
                    guarded.say(*turn)
            else:
                guarded.say(*turn)
        assert len(guarded.model.received) == (4 if on_violation == "notice" else 3)
        assert not holds(guarded.model.received, BLUE)
        assert [images_of(received) != [] for received in guarded.model.received[-3:]] == [False, True, True]
        expected = [message.content for message in plain.state]
        if persist:
            expected[0] = [text("What is this?"), text(NOTICE)]
        if on_violation != "notice":
            expected[1] = REFUSAL
        assert kinds(guarded.state) == ["human", "ai"] * 4
        assert [message.content for message in guarded.state] == expected

    @pytest.mark.parametrize("persist", [True, False])
    def test_a_blocked_image_that_comes_in_amid_a_turn_is_an_error_once(self, guard, call, persist):
        """A human adds it while the agent waits; then the turn has begun, and the next one must work."""
        chat = Chat(
            GuardAlignMiddleware(guard, on_violation="raise", persist=persist),
            call=call,
            tool=camera(painted()),
        )
        chat.agent.interrupt_after_nodes = ["tools"]
        chat.say("Take an image.")
        chat.agent.update_state(THREAD, {"messages": ask(BLUE)}, as_node="tools")
        with pytest.raises(UnsafeContentError):
            call(chat.agent, "invoke", None, THREAD)
        chat.agent.interrupt_after_nodes = []
        chat.model.tool = None
        chat.say("Answer the above.")
        assert len(chat.model.received) == 2
        assert REFUSAL in blocks(chat.model.received[-1])
        assert not holds(chat.model.received, BLUE)


TAKES_A_SUMMARISER = pytest.mark.skipif(
    "summarizer" not in signature(SummarizationMiddleware).parameters, reason="LangChain's summary is made of text"
)


class TestModelsOfOtherMiddleware:
    """All of them read the state, and `before_agent` has cleaned it by then."""

    @TAKES_A_SUMMARISER
    @pytest.mark.parametrize("is_first", [True, False])
    def test_a_summariser_never_gets_the_original_wherever_it_is_listed(self, guard, call, is_first):
        given: list[BaseMessage] = []
        summariser = SummarizationMiddleware(
            RecordingModel(),
            trigger=("messages", 3),
            keep=("messages", 1),
            summarizer=RunnableLambda(lambda messages: given.extend(messages) or "A summary."),
        )
        own = GuardAlignMiddleware(guard)
        chat = Chat(*([own, summariser] if is_first else [summariser, own]), call=call)
        history = [HumanMessage([v1(RED)]), AIMessage("red"), HumanMessage([v1(RED), v1(BLUE)]), AIMessage("blue")]
        chat.say(*history, HumanMessage("And now?"))
        assert kinds(given) == ["human", "ai", "human", "ai"]
        assert len(images_of(given)) == 2
        assert not holds([given, chat.model.received, chat.state], RED)
        assert not holds(given, BLUE)

    @pytest.mark.parametrize("is_first", [True, False])
    def test_a_model_that_chooses_tools_never_gets_the_original(self, guard, call, is_first):
        class Chooser(RecordingModel):
            def with_structured_output(self, schema: Any, **kwargs: Any) -> Any:
                return self | RunnableLambda(lambda _: {"tools": ["camera"]})

        chooser, own = Chooser(), GuardAlignMiddleware(guard)
        middleware = [own, LLMToolSelectorMiddleware(model=chooser)]
        chat = Chat(*(middleware if is_first else middleware[::-1]), call=call, tool=camera(painted()))
        chat.say(*ask(RED))
        assert all(len(images_of(received)) == 1 for received in chooser.received)
        assert chooser.received
        assert not holds(chooser.received, RED)

    @TAKES_A_SUMMARISER
    def test_a_guarded_summariser_gets_masked_images_where_the_state_keeps_the_originals(self, guard, call):
        inner = RecordingModel(words=("A summary.",))
        summariser = SummarizationMiddleware(
            RecordingModel(),
            trigger=("messages", 3),
            keep=("messages", 1),
            summarizer=GuardedChatModel(model=inner, guard=guard) | RunnableLambda(lambda message: message.text),
        )
        chat = Chat(summariser, GuardAlignMiddleware(guard, persist=False), call=call)
        chat.say(HumanMessage([v1(RED)]), AIMessage("red"), HumanMessage("And now?"))
        (received,) = inner.received
        assert len(images_of(received)) == 1
        assert not holds(inner.received, RED)
