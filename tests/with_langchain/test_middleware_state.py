"""What of an image stays behind: in checkpoints and in what tracers are told of the guard's own hooks."""

from __future__ import annotations

from typing import Any

import pytest
from agent_chats import THREAD, Chat, camera
from chat_images import ask, b64
from langchain_core.tracers.base import BaseTracer

from guardalign_guardrails.testing.chats import leaks
from guardalign_guardrails.testing.colours import colour_guard, painted
from langchain_guardalign.agents.middleware import GuardAlignMiddleware
from langchain_guardalign.testing.messages import call_async, call_sync

RED = painted("red")


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request):
    """Calls a method, or its async twin; what streams comes back as a list."""
    return request.param


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


def holds_original(said: Any, image: Any = RED) -> bool:
    return b64(image)[40:120] in repr(said)


class TestCheckpoints:
    @pytest.mark.parametrize("durability", ["sync", "async"])
    def test_only_what_langgraph_writes_before_any_hook_runs_holds_the_original(self, guard, call, durability):
        chat = Chat(GuardAlignMiddleware(guard), call=call, tool=camera(painted("blue")))
        for shade in (0, 1):
            image = painted("red", shade=shade)
            before = {each.config["configurable"]["checkpoint_id"] for each in chat.saver.list(THREAD)}
            chat.say(*ask(image), durability=durability)
            new = [
                each
                for each in reversed(list(chat.saver.list(THREAD)))
                if each.config["configurable"]["checkpoint_id"] not in before
            ]
            written = [(holds_original(c.checkpoint, image), holds_original(c.pending_writes, image)) for c in new]
            # The input as it came, then the state it makes, in which the guard's node runs first.
            assert written[:2] == [(True, True), (True, False)]
            assert set(written[2:]) == {(False, False)}
        everything = [chat.saver.blobs, chat.saver.storage, chat.saver.writes]
        assert not holds_original(everything, painted("blue"))
        assert not holds_original(chat.state)

    @pytest.mark.parametrize("colour", ["red", "blue"])
    def test_no_original_is_ever_written_if_only_the_end_of_a_turn_is(self, guard, call, colour):
        chat = Chat(GuardAlignMiddleware(guard), call=call, tool=camera(painted("blue", shade=1)))
        chat.say(*ask(painted(colour)), durability="exit")
        everything = [chat.saver.blobs, chat.saver.storage, chat.saver.writes]
        assert not holds_original(everything, painted(colour))
        assert not holds_original(everything, painted("blue", shade=1))
        assert list(chat.saver.list(THREAD))

    def test_without_persistence_the_original_stays_and_is_checked_again(self, guard, call):
        chat = Chat(GuardAlignMiddleware(guard, persist=False), call=call)
        chat.say(*ask(RED))
        chat.say("Sure?")
        assert holds_original(chat.state)
        assert not holds_original(chat.model.received)


class TestTraces:
    def test_a_tracer_is_told_nothing_of_what_the_guards_hooks_get_and_return(self, guard, call):
        runs: list[Any] = []

        class Tracer(BaseTracer):
            def _persist_run(self, run: Any) -> None:
                waiting = [run]
                while waiting:
                    runs.append(waiting.pop())
                    waiting += runs[-1].child_runs

        middleware = GuardAlignMiddleware(guard)
        chat = Chat(middleware, call=call, tool=camera(painted("blue")))
        chat.stream(*ask(RED), mode="updates", config={"callbacks": [Tracer()]})
        own = [run for run in runs if run.name.startswith(middleware.name)]
        hooks = ["before_agent", "before_model", "before_model"]
        assert sorted(run.name for run in own) == [f"{middleware.name}.{hook}" for hook in hooks]
        assert [(run.inputs, run.outputs) for run in own] == [({}, {})] * 3
        assert leaks(repr(own), RED) == []
        # LangGraph's own runs are its own affair: the whole agent's holds what it was given.
        (whole,) = [run for run in runs if run.parent_run_id is None]
        assert holds_original(whole.inputs)
        assert not holds_original(whole.outputs)
