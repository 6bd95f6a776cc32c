"""What LangChain's OpenAI client makes of the text of tools, read where it arrives."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from chat_images import MASKED, data_url
from langchain_core.messages import AIMessage, FunctionMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai_server import OpenAIServer, opened, serving

from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.testing.colours import colour_guard, painted
from langchain_guardalign import GuardedChatModel, ImageGuard

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

CALL = {"name": "look", "args": {}, "id": "call_1"}
SCREENSHOT = {"type": "computer_call_output"}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


MESSAGES = {
    "a screenshot": lambda said: ToolMessage(said, tool_call_id="call_1", additional_kwargs=SCREENSHOT),
    "a tool's text": lambda said: ToolMessage(said, tool_call_id="call_1"),
    "a tool's block": lambda said: ToolMessage([text("It says:"), text(said)], tool_call_id="call_1"),
    "a custom tool's output": lambda said: ToolMessage(
        [{"type": "custom_tool_call_output", "output": said}], tool_call_id="call_1"
    ),
    "a function's text": lambda said: FunctionMessage(said, name="look"),
}
FORMS = {
    "a data URL": data_url,
    "one with a long header": lambda image: data_url(image).replace(";", f";a={'x' * 2000};"),
    "base64": lambda image: data_url(image).partition(",")[2],
}


@pytest.fixture
def server() -> OpenAIServer:
    with serving() as server:
        yield server


def sent(server: OpenAIServer, cache_dir: Any, message: Any, *, is_async: bool = False) -> str:
    """What arrives of a chat that ends with a message."""
    is_chat = isinstance(message, FunctionMessage)
    model = ChatOpenAI(
        model="gpt-4o", base_url=server.base_url, api_key="test", max_retries=0, use_responses_api=not is_chat
    )
    guarded = GuardedChatModel(model=model, guard=colour_guard(cache_dir))
    call = {"tool_calls": [CALL]}
    if is_chat:
        call = {"additional_kwargs": {"function_call": {"name": "look", "arguments": "{}"}}}
    chat = [HumanMessage("Look."), AIMessage("", **call), message]
    _ = asyncio.run(guarded.ainvoke(chat)) if is_async else guarded.invoke(chat)
    return server.last.raw.decode()


def is_replaced(arrived: str, kind: str, notice: str) -> bool:
    """Whether a notice stands in an image's place, and a black image in that of a screenshot, which takes no text."""
    first, *images = arrived.split("data:image/png;base64,")
    if kind != "a screenshot":
        return not images and "iVBORw0KGgo" not in first and notice in first
    (black,) = [opened("," + image.split('"')[0]) for image in images]
    return black.getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MESSAGES)
class TestAnImage:
    def test_is_masked_where_it_is(self, server, cache_dir, kind, form, is_async):
        write = FORMS[form]
        arrived = sent(server, cache_dir, MESSAGES[kind](write(painted("red"))), is_async=is_async)
        assert data_url(painted("red")).partition(",")[2] not in arrived
        (found,) = [part.split('"')[0] for part in arrived.split("iVBORw0KGgo")[1:]]
        image = opened(f",iVBORw0KGgo{found}")
        assert image.tobytes() == MASKED.tobytes()

    def test_is_a_notice_if_it_is_blocked(self, server, cache_dir, kind, form, is_async):
        arrived = sent(server, cache_dir, MESSAGES[kind](FORMS[form](painted("blue"))), is_async=is_async)
        assert is_replaced(arrived, kind, NOTICE)

    def test_stays_if_it_is_harmless(self, server, cache_dir, kind, form, is_async):
        before = FORMS[form](painted("magenta"))
        assert json.dumps(before) in sent(server, cache_dir, MESSAGES[kind](before), is_async=is_async)


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("end", ["#x", "*", data_url(painted("white"))])
def test_what_begins_like_an_image_and_cannot_be_read_is_a_notice(server, cache_dir, kind, end):
    arrived = sent(server, cache_dir, MESSAGES[kind](data_url(painted("white")) + end))
    assert is_replaced(arrived, kind, UNCHECKED_NOTICE)


@pytest.mark.parametrize("url", ["https://images.example/a.png", "//images.example/a", "gs://bucket/a"])
def test_the_url_of_a_screenshot_is_one_of_an_image_and_other_urls_are_words(server, cache_dir, url):
    assert url not in sent(server, cache_dir, MESSAGES["a screenshot"](url))
    for kind in ("a tool's text", "a tool's block", "a function's text"):
        assert url in sent(server, cache_dir, MESSAGES[kind](url))


def test_what_a_tool_says_without_an_image_is_the_very_same_message(cache_dir):
    for message in (
        ToolMessage("Clicked.", tool_call_id="call_1", additional_kwargs=SCREENSHOT),
        ToolMessage("data:image/png;base64, eh?", tool_call_id="call_1"),
        FunctionMessage(f"It is ![this]({data_url(painted('blue'))}).", name="look"),
    ):
        chat = [HumanMessage("Look."), message]
        assert ImageGuard(colour_guard(cache_dir)).invoke(chat) is chat
