"""Warnings of models beside an agent's own; tests/with_clients shows them with the packages that are meant."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from agent_chats import Chat
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool

from guardalign_guardrails import UnguardedWarning
from guardalign_guardrails.testing.colours import colour_guard
from langchain_guardalign.agents.middleware import GuardAlignMiddleware
from langchain_guardalign.chat.guarded_model import GuardedChatModel
from langchain_guardalign.testing.messages import call_async, call_sync
from langchain_guardalign.testing.recording import RecordingModel


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request):
    """Calls a method, or its async twin."""
    return request.param


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


def task_tool(module: str, *, is_async: bool) -> StructuredTool:
    """A tool as a module would make it."""

    def task() -> str:
        """Ask a sub-agent."""
        return "done"

    async def atask() -> str:
        """Ask a sub-agent."""
        return "done"

    task.__module__ = atask.__module__ = module
    return StructuredTool.from_function(coroutine=atask) if is_async else StructuredTool.from_function(task)


def handed_over(**metadata: Any) -> list[Any]:
    call = AIMessage("", tool_calls=[{"name": "transfer_to_helper", "args": {}, "id": "t"}])
    return [HumanMessage("Hi."), call, ToolMessage("Over.", tool_call_id="t", response_metadata=metadata)]


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("module", ["deepagents.middleware.subagents", "deepagents.middleware.async_subagents"])
def test_sub_agents_of_deepagents_are_warned_of_unless_the_model_is_wrapped(guard, call, module, is_async):
    tool = task_tool(module, is_async=is_async)
    chat = Chat(GuardAlignMiddleware(guard), call=call, tool=tool, model=RecordingModel())
    with pytest.warns(UnguardedWarning, match=r"sub-agents.*GuardedChatModel"):
        chat.say("Hi.")
    wrapped: Any = GuardedChatModel(model=RecordingModel(), guard=guard)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnguardedWarning)
        Chat(GuardAlignMiddleware(guard), call=call, tool=tool, model=wrapped).say("Hi.")


def test_a_supervisor_above_is_warned_of(guard, call):
    chat = Chat(GuardAlignMiddleware(guard), call=call)
    with pytest.warns(UnguardedWarning, match=r"supervisor.*GuardedChatModel"):
        chat.say(*handed_over(__handoff_destination="helper"))


def test_an_agent_on_its_own_is_not_warned_of_others(guard, call):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnguardedWarning)
        tool = task_tool("my.tools", is_async=False)
        Chat(GuardAlignMiddleware(guard), call=call, tool=tool, model=RecordingModel()).say("Hi.")
        Chat(GuardAlignMiddleware(guard), call=call).say(*handed_over())
