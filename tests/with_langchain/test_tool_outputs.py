"""What LangChain's OpenAI client sends back of a model's own tools, read where it arrives."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from chat_images import MASKED, Listener, b64, data_url, v1
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI
from openai_server import OpenAIServer, serving
from PIL import Image

from guardalign_guardrails import Guard
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.testing.colours import colour_guard, painted
from langchain_guardalign import GuardedChatModel, ImageGuard

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

TEXT = {"type": "text", "text": "Here."}


def generated(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": b64(image)}


def executed(image: Image.Image) -> dict[str, Any]:
    outputs = [{"type": "logs", "logs": "drawn"}, {"type": "image", "url": data_url(image)}]
    return {"type": "code_interpreter_call", "id": "ci_1", "code": "draw()", "container_id": "c", "outputs": outputs}


def beside(item: dict[str, Any]) -> AIMessage:
    return AIMessage([TEXT], additional_kwargs={"tool_outputs": [item]})


def within(item: dict[str, Any]) -> AIMessage:
    return AIMessage([TEXT, item])


ITEMS = {"an image that the API made": generated, "an output of code": executed}
PLACES = {"beside the content": beside, "within the content": within}


@pytest.fixture
def guard(cache_dir) -> Guard:
    return colour_guard(cache_dir)


@pytest.fixture
def server() -> OpenAIServer:
    with serving() as server:
        yield server


def sent(server: OpenAIServer, guard: Guard | None, message: AIMessage, *, is_async: bool = False, **settings: Any):
    """What arrives of a chat with a message of the model in it."""
    model: Any = ChatOpenAI(
        model="gpt-4o", base_url=server.base_url, api_key="test", max_retries=0, use_responses_api=True, **settings
    )
    if guard is not None:
        model = GuardedChatModel(model=model, guard=guard)
    chat = [HumanMessage("Draw."), message, HumanMessage("Again.")]
    _ = asyncio.run(model.ainvoke(chat)) if is_async else model.invoke(chat)
    return server.last.body["input"]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("store", [None, False])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("item", ITEMS)
class TestWhatAToolMade:
    def test_is_sent_back_as_without_the_guard_if_it_is_harmless(self, server, guard, item, place, store, is_async):
        message = PLACES[place](ITEMS[item](painted("magenta")))
        arrived = [sent(server, each, message, is_async=is_async, store=store) for each in (None, guard)]
        assert arrived[0] == arrived[1]

    @pytest.mark.parametrize("colour", ["red", "blue"])
    def test_is_not_sent_back_if_it_is_unsafe(self, server, guard, item, place, store, is_async, colour):
        message = PLACES[place](ITEMS[item](painted(colour)))
        arrived = json.dumps(sent(server, guard, message, is_async=is_async, store=store))
        assert b64(painted(colour)) not in arrived
        assert "ig_1" not in arrived, "the id stands for the image as it was made"
        assert "Here." in arrived


@pytest.mark.parametrize("place", PLACES)
class TestAnOutputOfCode:
    def test_is_masked_where_it_is(self, server, guard, place):
        (call,) = [each for each in sent(server, guard, PLACES[place](executed(painted("red")))) if "outputs" in each]
        assert call == executed(MASKED) | {"outputs": call["outputs"]}
        assert call["outputs"][0] == {"type": "logs", "logs": "drawn"}
        assert call["outputs"][1].keys() == {"type", "url"}

    def test_is_a_log_if_it_is_blocked_since_the_api_takes_no_text_there(self, server, guard, place):
        (call,) = [each for each in sent(server, guard, PLACES[place](executed(painted("blue")))) if "outputs" in each]
        assert call["outputs"] == [{"type": "logs", "logs": "drawn"}, {"type": "logs", "logs": NOTICE}]


@pytest.mark.parametrize("place", PLACES)
def test_a_masked_image_that_the_api_made_stays_in_the_history_without_its_id(guard, place):
    chat = [HumanMessage("Draw."), PLACES[place](generated(painted("red"))), HumanMessage("Again.")]
    (message,) = [each for each in ImageGuard(guard).invoke(chat) if isinstance(each, AIMessage)]
    (image,) = [*message.additional_kwargs.get("tool_outputs", ()), *message.content[1:]]
    assert image == {"type": "image", "base64": image["base64"], "mime_type": "image/png"}
    assert image["base64"] != b64(painted("red"))


def test_nor_has_one_of_langchains_own_blocks_the_id(server, guard):
    metadata = {"output_version": "v1", "model_provider": "openai"}
    for colour, is_named in (("magenta", True), ("red", False)):
        message = AIMessage([TEXT, v1(painted(colour), id="ig_1")], response_metadata=metadata)
        assert ("ig_1" in json.dumps(sent(server, guard, message))) is is_named


@pytest.mark.parametrize("colour", ["magenta", "red", "blue"])
@pytest.mark.parametrize("item", ITEMS)
def test_no_trace_shows_it(guard, item, colour):
    listener = Listener()
    chat = [HumanMessage("Draw."), beside(ITEMS[item](painted(colour))), HumanMessage("Again.")]
    ImageGuard(guard).invoke(chat, {"callbacks": [listener]})
    assert "Again." in "".join(listener.heard)
    assert "iVBORw0KGgo" not in "".join(listener.heard)


def test_items_without_images_leave_the_very_same_messages(guard):
    call = {"type": "mcp_call", "id": "m", "name": "look", "arguments": "{}", "output": "a cat", "server_label": "s"}
    chat = [HumanMessage("Draw."), beside(call), HumanMessage("Again.")]
    assert ImageGuard(guard).invoke(chat) is chat
