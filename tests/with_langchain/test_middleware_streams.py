"""What an agent with a guard streams, and what is told of the verdicts: once, and without pixels."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from agent_chats import Chat, camera
from chat_images import MASKED, ask, b64, image_of, v1
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langgraph.config import get_config
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import ExecutionInfo, Runtime

from guardalign_guardrails.testing.chats import leaks
from guardalign_guardrails.testing.colours import colour_guard, colour_policy, painted
from langchain_guardalign.agents.middleware import GuardAlignMiddleware
from langchain_guardalign.events import write_to_stream
from langchain_guardalign.testing.messages import agents_know_their_run, call_async, call_sync
from langchain_guardalign.testing.recording import Listener, RecordingModel

MODES = ["values", "updates", "messages", "custom"]
EVENT = "guardalign.verdict"
BOTH_WAYS = pytest.mark.parametrize("persist", [True, False])


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request):
    """Calls a method, or its async twin; what streams comes back as a list."""
    return request.param


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


def streamed(chat: Chat, *messages: Any) -> list[dict[str, Any]]:
    """What a turn writes to the stream ``custom``, which is what it tells callbacks in events."""
    listener = Listener()
    parts = chat.stream(*messages, mode="custom", config={"callbacks": [listener]})
    events = [{"type": name, **data} for name, data in listener.events]
    assert events == (parts if agents_know_their_run(chat.call) else [])
    assert [part["type"] for part in parts] == [EVENT] * len(parts)
    assert json.dumps(parts)
    assert leaks(repr(parts), painted("red"), painted("blue")) == []
    return parts


def told(chat: Chat, *messages: Any) -> list[list[tuple[str, str]]]:
    """Source and action of each verdict of each event of a turn."""
    return [[(each["source"], each["action"]) for each in part["verdicts"]] for part in streamed(chat, *messages)]


class TestEvents:
    @BOTH_WAYS
    def test_each_image_is_told_of_once_in_however_many_loops_and_turns(self, guard, call, persist):
        tool = camera(painted("red", shade=1), painted(shade=2))
        chat = Chat(GuardAlignMiddleware(guard, persist=persist), call=call, tool=tool)
        assert told(chat, *ask(painted("red"), painted(shade=3))) == [
            [("user", "mask"), ("user", "allow")],
            [("tool", "mask"), ("tool", "allow")],
        ]
        assert told(chat, *ask(painted("red"))) == [[("user", "mask")], [("tool", "mask"), ("tool", "allow")]]
        assert len(chat.model.received) == 4

    def test_words_are_not_told_of(self, guard, call):
        assert told(Chat(GuardAlignMiddleware(guard), call=call), HumanMessage("hello")) == []

    @BOTH_WAYS
    def test_a_refused_turn_is_told_of(self, guard, call, persist):
        chat = Chat(GuardAlignMiddleware(guard, persist=persist), call=call)
        assert told(chat, *ask(painted("blue"))) == [[("user", "block")]]
        assert told(chat, HumanMessage("Answer the above.")) == []

    @BOTH_WAYS
    def test_monitor_mode_tells_what_it_would_have_done(self, cache_dir, call, persist):
        guard = colour_guard(cache_dir, mode="monitor")
        chat = Chat(GuardAlignMiddleware(guard, persist=persist), call=call, tool=camera(painted("red")))
        verdicts = [verdict for part in streamed(chat, *ask(painted("blue"))) for verdict in part["verdicts"]]
        assert [(each["action"], each["proposed"]) for each in verdicts] == [("allow", "block"), ("allow", "mask")]

    def test_an_old_history_is_told_of_when_it_is_first_looked_at(self, guard, call):
        history = [HumanMessage([v1(painted())]), AIMessage("white"), HumanMessage("And now?")]
        assert told(Chat(GuardAlignMiddleware(guard), call=call), *history) == [[("history", "allow")]]

    def test_what_other_middleware_slipped_in_is_told_of(self, guard, call):
        class Illustrator(AgentMiddleware):
            def wrap_model_call(self, request, handler):
                return handler(request.override(messages=[*request.messages, *ask(painted("red"))]))

            async def awrap_model_call(self, request, handler):
                return await handler(request.override(messages=[*request.messages, *ask(painted("red"))]))

        chat = Chat(Illustrator(), GuardAlignMiddleware(guard), call=call)
        for words in ("hello", "hello again"):
            assert told(chat, HumanMessage(words)) == [[("user", "mask")]]

    def test_hooks_outside_of_a_run_tell_nobody(self, guard):
        update = GuardAlignMiddleware(guard).before_model({"messages": ask(painted("blue"))}, None)
        assert update["jump_to"] == "end"

    def test_a_guard_within_another_graph_writes_to_the_stream_of_its_own_graph(self, guard, call):
        agent = Chat(GuardAlignMiddleware(guard), call=call, tool=camera(painted("red", shade=1))).agent
        graph: Any = StateGraph(MessagesState).add_node("agent", agent).add_edge(START, "agent").compile()
        given = {"messages": ask(painted("red"))}
        parts = call(graph, "stream", given, stream_mode=["custom", "updates"], subgraphs=True)
        graphs = {mode: [path for path, each, _ in parts if each == mode] for mode in ("custom", "updates")}
        (its_own,) = {path for path in graphs["updates"] if path}
        assert its_own[0].startswith("agent:")
        assert graphs["custom"] == [its_own, its_own]

    def test_the_writer_gets_the_name_of_its_graph_where_the_context_has_none(self, guard):
        written = []
        node = ExecutionInfo(checkpoint_id="1", checkpoint_ns="agent:2|model:3", task_id="3")
        runtime = Runtime(
            execution_info=node,
            stream_writer=lambda data: written.append((get_config()["configurable"]["checkpoint_ns"], data["type"])),
        )
        verdict = guard.check(painted("red")).verdict
        write_to_stream([verdict], runtime)
        assert written == [("agent:2|model:3", EVENT)]
        with pytest.raises(RuntimeError, match="outside of a runnable context"):
            get_config()


class TestStreams:
    def test_the_refusal_is_streamed_once_under_the_id_it_has_in_the_state(self, guard, call):
        for persist in (True, False):
            chat = Chat(GuardAlignMiddleware(guard, persist=persist), call=call)
            parts = chat.stream(*ask(painted("blue")), mode="messages")
            assert [(message.text, message.id) for message, _ in parts] == [
                (colour_policy().refusal, chat.state[-1].id)
            ]

    def test_a_masked_message_is_not_streamed_as_if_it_were_an_answer(self, guard, call):
        parts = Chat(GuardAlignMiddleware(guard), call=call).stream(*ask(painted("red")), mode="messages")
        assert {type(message) for message, _ in parts} == {AIMessageChunk if agents_know_their_run(call) else AIMessage}
        assert "".join(message.text for message, _ in parts) == "one two three"

    def test_all_modes_at_once_show_the_masked_image_and_never_the_original(self, guard, call):
        chat = Chat(GuardAlignMiddleware(guard), call=call, tool=camera(painted("blue")))
        (mode, first), *parts = chat.stream(*ask(painted("red")), mode=MODES)
        # What comes first is what the caller gave, before any hook has run.
        assert (mode, b64(painted("red")) in repr(first)) == ("values", True)
        assert {mode for mode, _ in parts} == set(MODES)
        assert b64(painted("red")) not in repr(parts)
        assert b64(painted("blue")) not in repr(parts)
        last = [state for mode, state in parts if mode == "values"][-1]["messages"]
        assert image_of(last[0].content[1]).tobytes() == MASKED.tobytes()

    @pytest.mark.parametrize("colour", ["red", "green", "white"])
    def test_the_models_first_token_does_not_wait_for_its_second(self, guard, call, colour):
        has_come = threading.Event()

        class PatientModel(RecordingModel):
            def _stream(self, *args: Any, **kwargs: Any) -> Any:
                for number, chunk in enumerate(super()._stream(*args, **kwargs)):
                    assert number == 0 or has_come.wait(timeout=10), "the first token was held back"
                    yield chunk

        agent = Chat(GuardAlignMiddleware(guard), model=PatientModel()).agent
        given = {"messages": ask(painted(colour))}, {"configurable": {"thread_id": "thread"}}
        words = []

        def read(message: Any) -> None:
            words.append(message.text)
            has_come.set()

        async def read_all() -> None:
            async for message, _ in agent.astream(*given, stream_mode="messages"):
                read(message)

        if call is call_sync:
            for message, _ in agent.stream(*given, stream_mode="messages"):
                read(message)
        else:
            asyncio.run(read_all())
        expected = ["one ", "two ", "three"] if agents_know_their_run(call) else ["one two three"]
        assert [each for each in words if each] == expected
