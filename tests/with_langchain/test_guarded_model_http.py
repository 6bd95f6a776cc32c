"""What really goes over the wire: ChatOpenAI behind the guard, talking to a server on the loopback."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from chat_images import MASKED, Listener, ask, openai, picture_of, text, v1
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai_server import USAGE, WORDS, OpenAIServer, call_tool, digest, say, serving
from pydantic import BaseModel

from guardalign_guardrails.testing.colours import colour_guard, colour_policy, painted
from langchain_guardalign import GuardedChatModel, ImageGuard

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PREFIX = "Be careful."
AT_ONCE = 50


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def plain(server: OpenAIServer) -> ChatOpenAI:
    return ChatOpenAI(model="gpt-4o", base_url=server.base_url, api_key="test", max_retries=0)


@pytest.fixture
def guarded(plain: ChatOpenAI, guard: ImageGuard) -> GuardedChatModel:
    return GuardedChatModel(model=plain, guard=guard)


@pytest.mark.parametrize("block", [v1, openai])
def test_an_unsafe_image_never_arrives_and_its_masked_picture_does(server, guarded, call, block):
    answer = call(guarded, "invoke", [HumanMessage([text("What is this?"), block(painted("red"))])])
    assert answer.content == "".join(WORDS)
    (picture,) = server.last.pictures
    assert picture.tobytes() == MASKED.tobytes()
    assert server.last.texts == [PREFIX, "What is this?"]


def test_an_unsafe_image_never_arrives_by_the_responses_api(server, guard, call):
    model = ChatOpenAI(model="gpt-4o", base_url=server.base_url, api_key="test", use_responses_api=True)
    call(GuardedChatModel(model=model, guard=guard), "invoke", ask(painted("red")))
    assert server.last.path.endswith("/responses")
    (picture,) = server.last.pictures
    assert picture.tobytes() == MASKED.tobytes()


def test_images_of_tool_results_and_history_arrive_masked_too(server, guarded, call):
    called = AIMessage("", tool_calls=[{"name": "shoot", "args": {}, "id": "t"}])
    chat = [*ask(painted("red")), called, ToolMessage([openai(painted("red", shade=1))], tool_call_id="t")]
    call(guarded, "invoke", [*chat, HumanMessage("And now?")])
    assert len(server.last.pictures) == 2
    for picture in server.last.pictures:
        assert picture.getpixel((4, 4)) == (0, 0, 0)


def test_a_blocked_image_makes_no_request_at_all(server, guarded, call):
    answer = call(guarded, "invoke", ask(painted("blue")))
    assert answer.content == colour_policy().refusal
    assert server.requests == []


@pytest.mark.parametrize("carry", ["the client's own history", "what the guard made of it"])
def test_the_prefix_arrives_exactly_once_in_each_of_five_turns(server, guarded, guard, call, carry):
    chat: list[Any] = [SystemMessage("Be brief.")]
    for turn in range(5):
        chat = [*chat, *ask(painted("red", shade=turn))]
        if carry == "what the guard made of it":
            chat = guard.invoke(chat)
        chat = [*chat, call(guarded, "invoke", chat)]
        assert json.dumps(server.last.body).count(PREFIX) == 1
        assert server.last.turns[0]["role"] == "system"
        assert len(server.last.pictures) == turn + 1


def test_no_prefix_arrives_where_none_is_due(server, guarded, call):
    call(guarded, "invoke", ask(painted()))
    assert PREFIX not in json.dumps(server.last.body)


def test_a_request_of_words_alone_is_the_same_to_the_byte_with_and_without_the_guard(server, plain, guarded, call):
    chat = [SystemMessage("Be brief."), HumanMessage("Hello"), AIMessage("Hi"), HumanMessage([text("And?")])]
    call(plain, "invoke", chat, temperature=0.3, stop=["x"])
    call(guarded, "invoke", chat, temperature=0.3, stop=["x"])
    first, second = server.requests
    assert second.raw == first.raw


def test_the_configured_prefix_is_all_that_words_alone_may_gain(server, plain, cache_dir, call):
    guard = ImageGuard.from_guard(colour_guard(cache_dir, prefix_when="always"))
    call(GuardedChatModel(model=plain, guard=guard), "invoke", "Hello")
    assert server.last.texts in ([PREFIX, "Hello"], [f"{PREFIX}\n\nHello"])


def test_the_first_token_is_here_before_the_last_is_made(server, guarded):
    server.gate = threading.Semaphore(0)
    stream = guarded.stream(ask(painted("red")))
    heard = [next(chunk.content for chunk in stream if chunk.content)]
    assert heard == [WORDS[0]], "nothing else can have been sent: the gate is shut"
    for _ in WORDS:
        server.gate.release()
    heard += [chunk.content for chunk in stream if chunk.content]
    assert tuple(heard) == WORDS
    assert server.last.pictures[0].tobytes() == MASKED.tobytes()


def test_the_first_token_is_here_before_the_last_is_made_when_async(server, guarded):
    async def run() -> list[Any]:
        server.gate = threading.Semaphore(0)
        heard = []
        async for chunk in guarded.astream(ask(painted("red"))):
            if chunk.content:
                heard.append(chunk.content)
                server.gate.release()
        return heard

    assert tuple(asyncio.run(run())) == WORDS


def test_fifty_concurrent_calls_keep_their_own_images(server, guarded):
    server.answer = lambda request: say(digest(request.pictures[0]))(request)
    pictures = [painted(*(["red"] if turn % 3 == 0 else []), shade=turn) for turn in range(AT_ONCE)]

    async def run() -> list[Any]:
        return await asyncio.gather(*(guarded.ainvoke(ask(picture)) for picture in pictures))

    answers = asyncio.run(run())
    expected = [guarded.guard.inspect(ask(picture)).output for picture in pictures]
    assert [answer.content for answer in answers] == [digest(picture_of(out[-1].content[1])) for out in expected]
    assert len({answer.content for answer in answers}) == AT_ONCE
    assert len(server.requests) == AT_ONCE


def test_usage_metadata_and_callbacks_pass_through(server, guarded, call):
    listener = Listener()
    answer = call(guarded, "invoke", ask(painted("red")), {"callbacks": [listener]})
    assert answer.usage_metadata["total_tokens"] == USAGE["total_tokens"]
    assert answer.response_metadata["model_name"] == "gpt-4o"
    assert answer.response_metadata["finish_reason"] == "stop"
    assert [name for name, _ in listener.events] == ["guardalign.verdict"]


@tool
def look_up(word: str) -> str:
    """Look a word up."""
    return word


class Colour(BaseModel):
    """A colour."""

    shade: str


def test_tools_and_their_calls_pass_through(server, guarded, call):
    server.answer = call_tool("look_up", word="red")
    answer = call(guarded.bind_tools([look_up]), "invoke", ask(painted("red")))
    assert [(c["name"], c["args"]) for c in answer.tool_calls] == [("look_up", {"word": "red"})]
    assert server.last.body["tools"][0]["function"]["name"] == "look_up"
    assert server.last.pictures[0].tobytes() == MASKED.tobytes()


def test_structured_output_is_asked_for_with_the_masked_picture(server, guarded, call):
    server.answer = call_tool("Colour", shade="red")
    structured = guarded.with_structured_output(Colour, method="function_calling")
    assert call(structured, "invoke", ask(painted("red"))) == Colour(shade="red")
    assert server.last.pictures[0].tobytes() == MASKED.tobytes()
