"""Images that only some clients read, or that are written as text: none reaches a server unseen, wherever it stands.

What no dialect knows is refused or replaced by a notice. The bare call tells which client sends it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, FunctionMessage, HumanMessage, ToolMessage
from langchain_core.messages import SystemMessage as System

from content.block_matrix import b64, kind, mime, url
from with_clients.hosted_clients import CLIENTS
from with_clients.image_chats import PLACES, chat
from with_clients.matrix_images import BLOCK, FORBIDDEN, MASK, SAFE, is_masked, shows
from with_clients.sent import Sent, arrives, shows_nothing_of
from with_clients.wire_images import images_in
from with_clients.wires import Wire

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CALL = AIMessage("", tool_calls=[{"name": "look", "args": {"where": "up"}, "id": "call00001"}])

SPELLINGS: dict[str, Callable[[bytes], Any]] = {
    "bare base64 for Ollama": lambda data: {"type": "image_url", "image_url": b64(data)},
    "bare base64 for Ollama in a mapping": lambda data: {"type": "image_url", "image_url": {"url": b64(data)}},
    "what stands after a comma for Ollama": lambda data: {"type": "image_url", "image_url": f"x,{b64(data)}"},
    "what stands between commas for Ollama": lambda data: {
        "type": "image_url",
        "image_url": f"data:image/png;base64,{b64(data)},x",
    },
    "a URL with a comma for Ollama": lambda data: {
        "type": "image_url",
        "image_url": {"url": f"https://images.example/,{b64(data)}"},
    },
    "camel case for Bedrock": lambda data: {"type": "image_url", "imageUrl": {"url": url(data)}},
    "v0 in camel case for Bedrock": lambda data: {
        "type": "image",
        "sourceType": "base64",
        "data": b64(data),
        "mimeType": mime(data),
    },
    "Anthropic's in camel case for Bedrock": lambda data: {
        "type": "image",
        "source": {"mediaType": mime(data), "data": b64(data)},
    },
    "content for a guardrail of Bedrock's": lambda data: {
        "guardContent": {"image": {"format": kind(data), "source": {"bytes": data}}}
    },
    "the same in snake case": lambda data: {
        "guard_content": {"image": {"format": kind(data), "source": {"bytes": data}}}
    },
    "a document for Bedrock": lambda data: {"document": {"format": "txt", "name": "a", "source": {"bytes": data}}},
    "a document's text for Bedrock": lambda data: {
        "document": {"format": "txt", "name": "a", "source": {"text": url(data)}}
    },
    "a video for Bedrock": lambda data: {
        "type": "video",
        "source": {"type": "base64", "media_type": "video/mp4", "data": b64(data)},
    },
    "a result in camel case for Bedrock": lambda data: {
        "type": "tool_result",
        "toolUseId": "t",
        "content": [{"type": "image_url", "image_url": {"url": url(data)}}],
    },
    "another provider's block for Bedrock": lambda data: {
        "type": "non_standard",
        "value": {"image": {"format": kind(data), "source": {"bytes": data}}},
    },
    "text in another provider's block": lambda data: {
        "type": "non_standard",
        "value": {"type": "text", "text": url(data)},
    },
    "output of code for Gemini": lambda data: {"type": "code_execution_result", "code_execution_result": url(data)},
    "output of a tool of the server for Gemini": lambda data: {
        "type": "server_tool_result",
        "tool_call_id": "t",
        "output": url(data),
    },
    "a recording for Gemini": lambda data: {"type": "media", "data": b64(data), "mime_type": "audio/wav"},
    "a document's URL for Mistral": lambda data: {"type": "document_url", "document_url": url(data)},
    "a recording for OpenAI": lambda data: {
        "type": "input_audio",
        "input_audio": {"data": b64(data), "format": "wav"},
    },
    "a text file": lambda data: {"type": "file", "base64": b64(data), "mime_type": "text/plain"},
    "plain text of LangChain's": lambda data: {"type": "text-plain", "base64": b64(data), "mime_type": "text/plain"},
    "a data URL as text": lambda data: {"type": "text", "text": url(data)},
    "base64 as text": lambda data: {"type": "text", "text": b64(data)},
    "a data URL for a block": url,
    "base64 for a block": b64,
    "a mapping without a type": lambda data: {"any": {"key": b64(data)}},
    "bytes in a mapping without a type": lambda data: {"any": {"key": data}},
    "JSON of a tool for Bedrock": lambda data: {"json": {"key": url(data)}},
}

WHERE: dict[str, Callable[[list[Any]], list[BaseMessage]]] = {
    **PLACES,
    "system": lambda blocks: [System([{"type": "text", "text": "Be brief."}, *blocks]), HumanMessage("hello")],
    "any role": lambda blocks: [ChatMessage(role="user", content=[{"type": "text", "text": "hello"}, *blocks])],
    "function": lambda blocks: [HumanMessage("Look up."), CALL, FunctionMessage(name="look", content=blocks)],
}

every_client = pytest.mark.parametrize("wire", CLIENTS, indirect=True)


def sends_nothing_of_what_it_may_not(wire: Wire, messages: list[BaseMessage]) -> bool:
    return shows_nothing_of(wire.send(wire.guarded, messages), BLOCK, FORBIDDEN["block"])


@every_client
@pytest.mark.parametrize("place", WHERE)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_blocked_image_gets_through(wire, place, spelling):
    assert sends_nothing_of_what_it_may_not(wire, WHERE[place]([SPELLINGS[spelling](BLOCK)]))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_some_client_would_send_each_spelling(wire_of, spelling):
    def is_sent(name: str) -> bool:
        wire = wire_of(name)
        return any(arrives(wire.send(wire.bare, make([SPELLINGS[spelling](BLOCK)])), BLOCK) for make in WHERE.values())

    assert any(map(is_sent, CLIENTS))


TEXTS: dict[str, Callable[[bytes], str]] = {
    "a data URL": url,
    "base64": b64,
    "hex": lambda data: data.hex(),
    "a data URL with parameters": lambda data: f"data:{mime(data)};a={'x' * 2000};base64,{b64(data)}",
}


def told_by_a_tool(text: str, **kwargs: Any) -> list[BaseMessage]:
    return [HumanMessage("Look up."), CALL, ToolMessage(text, tool_call_id="call00001", name="look", **kwargs)]


@every_client
@pytest.mark.parametrize("text", TEXTS)
class TestTextOfATool:
    """Some clients and proxies make an image of it."""

    def test_is_not_sent_if_it_is_a_blocked_image(self, wire, text):
        messages = told_by_a_tool(TEXTS[text](BLOCK))
        assert arrives(wire.send(wire.bare, messages), BLOCK)
        assert sends_nothing_of_what_it_may_not(wire, messages)

    def test_is_masked_if_it_can_be(self, wire, text):
        sent: Sent = wire.send(wire.guarded, told_by_a_tool(TEXTS[text](MASK)))
        assert shows_nothing_of(sent, MASK, FORBIDDEN["mask"])
        if text != "a data URL with parameters":
            assert any(map(is_masked, images_in(sent.body)))


@pytest.mark.parametrize("wire", ["openai Responses"], indirect=True)
@pytest.mark.parametrize(
    "write",
    [url, lambda data: [{"type": "text", "text": "Clicked."}, {"type": "input_image", "image_url": url(data)}]],
    ids=["text", "a block"],
)
class TestAScreenshotForOpenAI:
    """A computer call is answered by an image and nothing else: the next request would be refused."""

    def output(self, wire: Wire, model: Any, content: Any) -> tuple[Sent, Any]:
        sent = wire.send(model, told_by_a_tool(content, additional_kwargs={"type": "computer_call_output"}))
        (item,) = [item for item in json.loads(sent.body)["input"] if item["type"] == "computer_call_output"]
        assert item["output"]["type"] == "input_image"
        assert item["output"]["image_url"].startswith("data:image/")
        return sent, item["output"]["image_url"]

    def test_is_masked(self, wire, write):
        assert self.output(wire, wire.bare, write(MASK))[1] == url(MASK)
        sent, _ = self.output(wire, wire.guarded, write(MASK))
        assert shows_nothing_of(sent, MASK, FORBIDDEN["mask"])
        assert [is_masked(image) for image in images_in(sent.body)] == [True]

    def test_is_black_if_it_is_blocked_or_cannot_be_read(self, wire, write):
        for data, colour in ((BLOCK, FORBIDDEN["block"]), (MASK[:200], FORBIDDEN["mask"])):
            sent, _ = self.output(wire, wire.guarded, write(data))
            (image,) = images_in(sent.body)
            assert image.getextrema() == ((0, 0),) * 3
            assert not shows(image, colour)

    def test_stays_if_it_is_harmless(self, wire, write):
        assert self.output(wire, wire.guarded, write(SAFE))[1] == url(SAFE)


@every_client
def test_what_passes_the_guard_is_what_a_bare_client_sends_of_it(wire):
    messages = chat("user", "v1 base64", MASK)
    assert arrives(wire.send(wire.bare, messages), MASK)
    assert not arrives(wire.send(wire.guarded, messages), MASK)
