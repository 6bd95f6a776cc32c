"""Supervisors and swarms: several agents read one chat, and each of their models needs a guard."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

pytest.importorskip("langgraph_supervisor")
pytest.importorskip("langgraph_swarm")

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph_supervisor import create_supervisor
from langgraph_swarm import create_handoff_tool, create_swarm

from guardalign_guardrails import UnguardedWarning, UnsafeContentError
from guardalign_guardrails.testing.chats import canary, leaks
from guardalign_guardrails.testing.colours import colour_guard
from langchain_guardalign import GuardAlignMiddleware, GuardedChatModel
from langchain_guardalign.testing.messages import call_async, call_sync, question
from with_clients.agent_casts import Cast, calls, camera, holds_original, numbers_seen, unmasked

USERS, TOOLS = canary("red", number=1), canary("red", number=2)
THREAD = {"configurable": {"thread_id": "thread"}}
# LangGraph says so itself; the package under test has no other way to make its agent.
pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request):
    """Calls a method, or its async twin."""
    return request.param


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


def say(app: Any, call: Any, *messages: Any) -> Any:
    return call(app, "invoke", {"messages": list(messages)}, THREAD)


def supervised(above: Any, below: Any, *middleware: Any) -> Any:
    """A supervisor over a photographer with a camera."""
    photographer = create_agent(below, [camera(TOOLS)], name="photographer", middleware=list(middleware))
    workflow = create_supervisor([photographer], model=above, output_mode="full_history")
    return workflow.compile(checkpointer=InMemorySaver())


def swarm(alice: Any, bob: Any, *middleware: Any) -> Any:
    """Alice has a camera and hands over to Bob."""
    tools = [camera(TOOLS), create_handoff_tool(agent_name="bob")]
    agents = [
        create_agent(alice, tools, name="alice", middleware=list(middleware)),
        create_agent(bob, [create_handoff_tool(agent_name="alice")], name="bob", middleware=list(middleware)),
    ]
    return create_swarm(agents, default_active_agent="alice").compile(checkpointer=InMemorySaver())


class TestSupervisors:
    def test_with_the_models_wrapped_all_of_them_get_masked_images_only(self, guard, call):
        above = Cast(script=[calls("transfer_to_photographer")])
        below = Cast(script=[calls("camera")])
        app = supervised(GuardedChatModel(model=above, guard=guard), GuardedChatModel(model=below, guard=guard))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnguardedWarning)
            say(app, call, *question(USERS))
        assert numbers_seen(below) == [[1], [1, 2]]
        assert numbers_seen(above) == [[1], [1, 2]], "the supervisor reads what its agent's tool returned"
        assert (unmasked(above, USERS, TOOLS), unmasked(below, USERS, TOOLS)) == ([], [])

    def test_middleware_in_an_agent_below_does_not_guard_the_supervisor_and_says_so(self, guard, call):
        above, below = Cast(script=[calls("transfer_to_photographer")]), Cast(script=[calls("camera")])
        app = supervised(above, below, GuardAlignMiddleware(guard))
        with pytest.warns(UnguardedWarning, match="supervisor"):
            say(app, call, *question(USERS))
        assert unmasked(below, USERS, TOOLS) == []
        assert unmasked(above, USERS) == [0], "the supervisor had the chat before the guard"
        assert unmasked(above, TOOLS) == [0], "what its agent put into the chat is sanitised"

    @pytest.mark.parametrize("on_violation", ["refuse", "notice", "raise"])
    def test_one_goes_on_after_a_blocked_image(self, guard, call, on_violation):
        image, inner = canary("blue"), Cast()
        guarded = GuardedChatModel(model=inner, guard=guard, on_violation=on_violation)
        app = supervised(guarded, guarded)
        if on_violation == "raise":
            # A chat model keeps no state: the app ends the turn with an answer.
            with pytest.raises(UnsafeContentError):
                say(app, call, *question(image))
            app.update_state(THREAD, {"messages": [AIMessage("I cannot look at this image.")]}, as_node="supervisor")
        else:
            say(app, call, *question(image))
        for words in ("One?", "Two?", "Three?"):
            state = say(app, call, HumanMessage(words))
        assert [message.type for message in state["messages"]] == ["human", "ai"] * 4
        assert leaks(repr(inner.received), image) == []


class TestSwarms:
    def test_with_the_models_wrapped_all_of_them_get_masked_images_only(self, guard, call):
        inner = Cast(script=[calls("camera"), calls("transfer_to_bob")])
        guarded = GuardedChatModel(model=inner, guard=guard)
        app = swarm(guarded, guarded)
        say(app, call, *question(USERS))
        say(app, call, HumanMessage("And now?"))
        assert numbers_seen(inner) == [[1], [1, 2], [1, 2], [1, 2]]
        assert unmasked(inner, USERS, TOOLS) == []

    def test_with_middleware_in_each_agent_the_shared_history_is_clean_as_well(self, guard, call):
        inner = Cast(script=[calls("camera"), calls("transfer_to_bob")])
        app = swarm(inner, inner, GuardAlignMiddleware(guard))
        state = say(app, call, *question(USERS))
        assert numbers_seen(inner) == [[1], [1, 2], [1, 2]]
        assert unmasked(inner, USERS, TOOLS) == []
        assert not holds_original(state, USERS, TOOLS)

    @pytest.mark.parametrize("on_violation", ["refuse", "notice", "raise"])
    def test_one_goes_on_after_a_blocked_image(self, guard, call, on_violation):
        image, inner = canary("blue"), Cast()
        app = swarm(inner, inner, GuardAlignMiddleware(guard, on_violation=on_violation))
        if on_violation == "raise":
            # The error undoes what its agent wrote into the graph around it: the app ends the turn with an answer.
            with pytest.raises(UnsafeContentError):
                say(app, call, *question(image))
            app.update_state(THREAD, {"messages": [AIMessage("I cannot look at this image.")]}, as_node="alice")
        else:
            say(app, call, *question(image))
        for words in ("One?", "Two?", "Three?"):
            state = say(app, call, HumanMessage(words))
        assert leaks(repr([inner.received, state]), image) == []
        assert len(inner.received) == (4 if on_violation == "notice" else 3)
        assert [message.type for message in state["messages"]] == ["human", "ai"] * 4
