"""deepagents: what its sub-agents and its summariser get, with the model wrapped and with middleware alone."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

pytest.importorskip("deepagents")

from deepagents import create_deep_agent
from deepagents.backends import FilesystemBackend
from deepagents.middleware.filesystem import FilesystemMiddleware
from deepagents.middleware.subagents import GENERAL_PURPOSE_SUBAGENT
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from guardalign_guardrails import UnguardedWarning, UnsafeContentError
from guardalign_guardrails.testing.chats import canary, leaks
from guardalign_guardrails.testing.colours import colour_guard
from langchain_guardalign import GuardAlignMiddleware, GuardedChatModel
from langchain_guardalign.testing.messages import call_async, call_sync, question
from with_clients.agent_casts import Cast, calls, camera, numbers_seen, unmasked

USERS, TOOLS = canary("red", number=1), canary("red", number=2)
THREAD = {"configurable": {"thread_id": "thread"}}


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request):
    """Calls a method, or its async twin."""
    return request.param


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


def cast(*more: Any, kind: str = "general-purpose") -> Cast:
    """The agent gives a task to a sub-agent, which takes an image."""
    return Cast(script=[calls("task", description="Take an image.", subagent_type=kind), calls("camera"), *more])


def say(agent: Any, call: Any, *messages: Any) -> Any:
    return call(agent, "invoke", {"messages": list(messages)}, THREAD)


@pytest.mark.parametrize(
    "subagents",
    [
        [],
        [{"name": "helper", "description": "Helps.", "system_prompt": "Help."}],
        [{"name": "helper", "description": "Helps.", "system_prompt": "Help.", "mode": "fork"}],
    ],
    ids=["general-purpose", "declared", "forked"],
)
def test_with_the_model_wrapped_every_agent_gets_masked_images_only(guard, call, subagents):
    inner = cast(kind="helper" if subagents else "general-purpose")
    guarded = GuardedChatModel(model=inner, guard=guard)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnguardedWarning)
        agent = create_deep_agent(
            model=guarded, tools=[camera(TOOLS)], subagents=subagents, checkpointer=InMemorySaver()
        )
        say(agent, call, *question(USERS))
        say(agent, call, HumanMessage("And now?"))
    assert len(inner.received) == 5
    assert [2] in [seen[-1:] for seen in numbers_seen(inner)], "the sub-agent was not given the image of its tool"
    assert numbers_seen(inner)[0] == numbers_seen(inner)[-1] == [1]
    assert unmasked(inner, USERS, TOOLS) == []


def test_the_wrapped_model_writes_the_summary_too(guard, call):
    inner = Cast(profile={"max_input_tokens": 20_000})
    agent = create_deep_agent(model=GuardedChatModel(model=inner, guard=guard), checkpointer=InMemorySaver())
    for number in range(8):
        say(agent, call, HumanMessage("A long story. " * 1_000), *question(canary("red", number=number)))
    summaries = [received for received in inner.received if received[-1].text.startswith("<role>")]
    assert summaries, "the history was to be summarised"
    assert unmasked(inner, *(canary("red", number=number) for number in range(8))) == []


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_images_that_the_backend_keeps_are_checked_when_they_come_back(guard, call, tmp_path, is_wrapped):
    backend, inner = FilesystemBackend(root_dir=tmp_path, virtual_mode=True), Cast()
    own = [] if is_wrapped else [GuardAlignMiddleware(guard, persist=False)]
    agent = create_deep_agent(
        model=GuardedChatModel(model=inner, guard=guard) if is_wrapped else inner,
        middleware=[FilesystemMiddleware(backend=backend, offload_binary_content=True), *own],
        backend=backend,
        checkpointer=InMemorySaver(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnguardedWarning)
        say(agent, call, *question(USERS))
        state = say(agent, call, HumanMessage("And now?"))
    assert "deepagents_blob" in repr(state["messages"][0]), "the backend was to keep the image"
    assert numbers_seen(inner) == [[1], [1]]
    assert unmasked(inner, USERS) == []


def test_middleware_alone_leaves_the_built_in_sub_agent_unguarded_and_says_so(guard, call):
    inner = cast()
    agent = create_deep_agent(model=inner, tools=[camera(TOOLS)], middleware=[GuardAlignMiddleware(guard)])
    with pytest.warns(UnguardedWarning, match="sub-agents"):
        say(agent, call, *question(USERS))
    assert unmasked(inner, USERS, TOOLS) == [2]


def test_a_guard_in_every_sub_agent_guards_them(guard, call):
    inner = cast()
    own = GuardAlignMiddleware(guard)
    agent = create_deep_agent(
        model=inner,
        tools=[camera(TOOLS)],
        middleware=[own],
        subagents=[{**GENERAL_PURPOSE_SUBAGENT, "middleware": [own]}],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnguardedWarning)
        say(agent, call, *question(USERS))
    assert len(inner.received) == 4
    assert [2] in numbers_seen(inner)
    assert unmasked(inner, USERS, TOOLS) == []


def test_without_sub_agents_there_is_nothing_to_warn_of(guard, call):
    from langchain.agents import create_agent

    agent = create_agent(Cast(), [camera(TOOLS)], middleware=[GuardAlignMiddleware(guard)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnguardedWarning)
        say(agent, call, *question(USERS))


@pytest.mark.parametrize("persist", [True, False])
@pytest.mark.parametrize("on_violation", ["refuse", "notice", "raise"])
def test_a_deep_agent_goes_on_after_a_blocked_image(guard, call, on_violation, persist):
    image, inner = canary("blue"), Cast()
    own = GuardAlignMiddleware(guard, on_violation=on_violation, persist=persist)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnguardedWarning)
        agent = create_deep_agent(model=inner, middleware=[own], checkpointer=InMemorySaver())
        if on_violation == "raise":
            with pytest.raises(UnsafeContentError):
                say(agent, call, *question(image))
        else:
            say(agent, call, *question(image))
        for words in ("One?", "Two?", "Three?"):
            state = say(agent, call, HumanMessage(words))
    assert [message.type for message in state["messages"]] == ["human", "ai"] * 4
    assert len(inner.received) == (4 if on_violation == "notice" else 3)
    assert leaks(repr(inner.received), image) == []
