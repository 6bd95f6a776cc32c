"""Images that an agent's tools return, in whatever shape, before they are in its state."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any

import pytest
from agent_chats import Chat, camera, tool_messages
from chat_images import MASKED, b64, blocks, image_of, text, v1
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, StructuredTool
from langgraph.types import Command, Send

from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import colour_guard, painted
from langchain_guardalign.agents.middleware import GuardAlignMiddleware
from langchain_guardalign.agents.tool_results import chats_of, with_chats
from langchain_guardalign.screening import ModelInput, read_input
from langchain_guardalign.testing.messages import call_async, call_sync

RED, BLUE = painted("red"), painted("blue")


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request):
    """Calls a method, or its async twin; what streams comes back as a list."""
    return request.param


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


def tool_returning(make: Any) -> StructuredTool:
    """A tool that returns what ``make`` makes of its call's id."""

    def camera(call_id: Annotated[str, InjectedToolCallId]) -> Any:
        """Take images."""
        return make(call_id)

    return StructuredTool.from_function(camera)


def shot(call_id: str, *images: Any, **extra: Any) -> ToolMessage:
    return ToolMessage([text("Click."), *map(v1, images)], tool_call_id=call_id, **extra)


def returned(middleware: GuardAlignMiddleware, result: Any, call: Any) -> Any:
    """What the hook makes of a tool's result."""

    class Request:
        runtime = None

    if call is call_sync:
        return middleware.wrap_tool_call(Request(), lambda _: result)

    async def handler(_: Any) -> Any:
        return result

    return asyncio.run(middleware.awrap_tool_call(Request(), handler))


class TestInAnAgent:
    @pytest.mark.parametrize(
        "tool",
        [
            camera(RED, BLUE),
            tool_returning(lambda call_id: shot(call_id, RED, BLUE)),
            tool_returning(lambda call_id: Command(update={"messages": [shot(call_id, RED, BLUE)]})),
            tool_returning(lambda call_id: [shot(call_id, RED, BLUE), Command(update={})]),
            camera(RED, BLUE, return_direct=True),
        ],
        ids=["content", "message", "command", "list", "return_direct"],
    )
    @pytest.mark.parametrize("persist", [True, False])
    def test_a_tools_images_are_sanitised_before_they_are_in_the_state(self, guard, call, tool, persist):
        chat = Chat(GuardAlignMiddleware(guard, persist=persist), call=call, tool=tool)
        chat.say("Take an image.")
        words, mask, notice = tool_messages(chat.state)[0].content
        assert (words, notice) == (text("Click."), text(NOTICE))
        assert image_of(mask).tobytes() == MASKED.tobytes()
        everything = repr([chat.saver.blobs, chat.saver.storage, chat.saver.writes])
        assert not any(b64(image)[60:120] in everything for image in (RED, BLUE))
        assert len(chat.model.received) == (1 if tool.return_direct else 2)

    def test_a_safe_result_is_the_very_same_object(self, guard, call):
        for result in (shot("t", painted()), Command(update={"messages": [shot("t", painted())]}), [shot("t")]):
            assert returned(GuardAlignMiddleware(guard), result, call) is result

    def test_an_artifact_is_replaced_if_asked_for(self, guard, call):
        def camera() -> Any:
            """Take images."""
            return "Click.", {"shot": encode_png(BLUE), "of": "the sky"}

        tool = StructuredTool.from_function(camera, response_format="content_and_artifact")
        artifacts = []
        for asked in (True, False):
            chat = Chat(GuardAlignMiddleware(guard, artifacts=asked), call=call, tool=tool)
            chat.say("Take an image.")
            artifacts.append(tool_messages(chat.state)[0].artifact)
        assert artifacts[0] == {"shot": NOTICE, "of": "the sky"}
        assert artifacts[1]["shot"] == encode_png(BLUE)

    def test_the_error_of_a_tool_is_the_tools(self, guard, call):
        def camera() -> Any:
            """Take images."""
            raise OSError("no camera")

        chat = Chat(GuardAlignMiddleware(guard), call=call, tool=StructuredTool.from_function(camera))
        with pytest.raises(OSError, match="no camera"):
            chat.say("Take an image.")

    def test_an_image_that_the_tool_of_another_graph_hands_over_is_sanitised(self, guard, call):
        send = Send("writer", {"topic": "sky"})
        command = Command(graph=Command.PARENT, goto=[send], update={"messages": [shot("t", BLUE)], "topic": "sky"})
        out = returned(GuardAlignMiddleware(guard), command, call)
        assert (out.graph, out.goto, out.update["topic"]) == (Command.PARENT, [send], "sky")
        assert out.update["messages"][0].content == [text("Click."), text(NOTICE)]


def read_all(result: Any) -> list[ModelInput]:
    return [read_input(chat) for chat in chats_of(result)]


class TestShapes:
    MESSAGE = shot("t")

    @pytest.mark.parametrize(
        "result",
        [
            MESSAGE,
            Command(update={"messages": [MESSAGE], "count": 1}),
            Command(update={"messages": MESSAGE}),
            Command(update=[("messages", [MESSAGE]), ("count", 1)]),
            Command(update=(("count", 1), ("messages", MESSAGE))),
            Command(update={"messages": [{"role": "user", "content": "hi"}, MESSAGE]}, goto="writer"),
            [MESSAGE, Command(update={"messages": [AIMessage("x")]})],
        ],
    )
    def test_every_message_in_a_result_is_found_and_can_be_replaced(self, result):
        read = read_all(result)
        assert self.MESSAGE in [message for one in read for message in one.messages]
        assert with_chats(result, read) is result
        changed = [[HumanMessage(f"new {i}") for i, _ in enumerate(one.messages)] for one in read]
        out = with_chats(result, [replace(one, messages=new) for one, new in zip(read, changed, strict=True)])
        assert [[m.text for m in one.messages] for one in read_all(out)] == [[m.text for m in new] for new in changed]
        assert type(out) is type(result) or isinstance(out, HumanMessage)
        if isinstance(result, Command):
            assert (out.goto, type(out.update)) == (result.goto, type(result.update))
            assert dict(out.update).get("count") == dict(result.update).get("count")
        assert self.MESSAGE in [m for one in read_all(result) for m in one.messages], "it was changed in place"

    @pytest.mark.parametrize(
        "result",
        [
            Command(goto="writer"),
            Command(update={"shots": [v1(RED)]}),
            Command(update={"messages": [{"rolle": "user"}]}),
            Command(update=["a", "b"]),
            Command(resume={"x": 1}),
            "words",
            None,
        ],
    )
    def test_what_holds_no_readable_messages_is_left_alone(self, result):
        read = read_all(result)
        assert [one.messages for one in read if one.error is None] == []
        assert with_chats(result, read) is result

    def test_message_likes_that_need_no_change_stay_as_they_were_written(self):
        like = {"role": "user", "content": "hi"}
        result = Command(update={"messages": [like, self.MESSAGE]})
        (read,) = read_all(result)
        out = with_chats(result, [replace(read, messages=[read.messages[0], ToolMessage("new", tool_call_id="t")])])
        assert out.update["messages"][0] is like
        assert blocks(read_all(out)[0].messages) == ["hi", "new"]
