"""Real clients of hosted models behind a guard: what reaches their servers, read from the recorded bytes alone.

Each client is given an image in each dialect and place, once bare and once guarded. The bare call tells whether the
client sends the image at all, so that nothing here can pass because a client would not have sent it anyway.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from PIL import Image

from content.block_matrix import ELSEWHERE, HTTP, UNREADABLE, b64
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.testing.colours import painted
from with_clients.hosted_clients import CLIENTS
from with_clients.image_chats import DIALECTS, PLACES, chat
from with_clients.matrix_images import BLOCK, FORBIDDEN, MASK, NEIGHBOUR, SAFE, encoded, is_masked, pixels
from with_clients.provider_servers import ToolCall
from with_clients.sent import Sent, arrives, fails_alike, shows_nothing_of
from with_clients.wire_images import carries, images_in, said, without_images
from with_clients.wires import Wire, look

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

PREFIX = "Be careful."

_MASKED = encoded(painted("black", "magenta"), "PNG")
_BLACK = encoded(Image.new("RGB", (64, 64)), "PNG")
# An image of the API's own making stands for itself by its id; masked, it is one of LangChain's own blocks.
_GENERATED = "Responses image_generation_call"
_SCREENSHOT = "Responses computer screenshot"

every_client = pytest.mark.parametrize("wire", CLIENTS, indirect=True)
each_place = pytest.mark.parametrize("place", PLACES)
each_dialect = pytest.mark.parametrize("dialect", DIALECTS)


@cache
def bare(wire: Wire, place: str, dialect: str) -> Sent:
    """What a client without a guard sends of the image to be masked."""
    return wire.send(wire.bare, chat(place, dialect, MASK))


def is_refusal(sent: Sent) -> bool:
    return sent.body is None and sent.answer is not None and "guardalign" in sent.answer.response_metadata


@every_client
@each_place
@each_dialect
class TestAnImage:
    def test_that_is_harmless_arrives_as_without_the_guard(self, wire, place, dialect):
        messages = chat(place, dialect, SAFE)
        plain, guarded = wire.send(wire.bare, messages), wire.send(wire.guarded, messages)
        if plain.error is not None:
            assert fails_alike(guarded, plain)
            return
        assert arrives(guarded, SAFE) == arrives(plain, SAFE)
        again = wire.send(wire.bare, messages)
        if again.body == plain.body:
            assert guarded.body == plain.body
        else:
            # LangChain gives some blocks an id of their own at each call.
            assert without_images(guarded.body) == without_images(plain.body)

    def test_that_is_masked_arrives_masked_where_the_original_would(self, wire, place, dialect):
        plain = bare(wire, place, dialect)
        guarded = wire.send(wire.guarded, chat(place, dialect, MASK))
        assert shows_nothing_of(guarded, MASK, FORBIDDEN["mask"])
        if place == "model" and dialect.startswith(_GENERATED):
            block = {"type": "image", "base64": b64(_MASKED), "mime_type": "image/png"}
            like = wire.send(wire.bare, [SystemMessage(PREFIX), *PLACES[place]([block])])
            assert type(guarded.error) is type(like.error)
            assert like.error is not None or without_images(guarded.body) == without_images(like.body)
            return
        if plain.error is not None:
            assert fails_alike(guarded, plain)
            return
        assert any(map(is_masked, images_in(guarded.body))) == arrives(plain, MASK)
        # As if the app had sent a masked PNG itself, and the prefix.
        like = wire.send(wire.bare, [SystemMessage(PREFIX), *chat(place, dialect, _MASKED)])
        assert without_images(guarded.body) == without_images(like.body)

    def test_that_is_blocked_never_arrives_and_its_neighbour_does(self, wire, place, dialect):
        plain = wire.send(wire.bare, chat(place, dialect, BLOCK, NEIGHBOUR))
        guarded = wire.send(wire.guarded, chat(place, dialect, BLOCK, NEIGHBOUR))
        assert shows_nothing_of(guarded, BLOCK, FORBIDDEN["block"])
        if place == "user":
            assert is_refusal(guarded)
        elif plain.error is not None:
            # It may take the notice where it does not take the image, but not the image beside it.
            assert fails_alike(guarded, plain)
        elif arrives(plain, BLOCK):
            assert arrives(guarded, NEIGHBOUR)
            # Where only an image may stand, a black one does.
            assert arrives(guarded, _BLACK) if dialect == _SCREENSHOT else NOTICE in said(guarded.body)


@every_client
@pytest.mark.parametrize("place", ["user", "history", "tool"])
@pytest.mark.parametrize("dialect", ["OpenAI image_url", "v1 base64"])
def test_every_client_sends_the_common_dialects_and_the_reader_sees_what_is_forbidden(wire, place, dialect):
    sent = bare(wire, place, dialect)
    assert arrives(sent, MASK)
    assert not shows_nothing_of(sent, MASK, FORBIDDEN["mask"])


@every_client
@pytest.mark.parametrize("place", ["user", "history", "tool"])
class TestWhatIsElsewhereOrUnreadable:
    """Images that are somewhere else, and media of no known dialect: no client is given them."""

    @pytest.mark.parametrize("name", ELSEWHERE)
    def test_an_image_elsewhere_is_not_asked_for(self, wire, place, name):
        block, located, _ = ELSEWHERE[name]
        told = self.told(wire, place, block)
        assert not any(where in told for where in (HTTP, located, "file-1", "gs://", "s3://", "/etc/passwd"))

    @pytest.mark.parametrize("name", UNREADABLE)
    def test_what_no_dialect_reads_is_not_sent(self, wire, place, name):
        told = self.told(wire, place, UNREADABLE[name])
        assert not any(sent in told for sent in ("AAAA", "%PDF", "PNG", "hologram", "pixel_values", ".mp4"))

    def told(self, wire: Wire, place: str, block: dict[str, Any]) -> str:
        """What a guarded client's server is told."""
        messages = PLACES[place]([block])
        plain, guarded = wire.send(wire.bare, messages), wire.send(wire.guarded, messages)
        if place == "user":
            assert is_refusal(guarded)
        elif guarded.body is None:
            # A block of text in a dialect that the client does not take.
            assert plain.error is not None
        else:
            assert UNCHECKED_NOTICE in said(guarded.body)
        return "" if guarded.body is None else said(guarded.body)


METHODS = ("stream", "ainvoke", "astream", "batch", "abatch")


def called(model: Any, method: str, messages: list[BaseMessage]) -> AIMessage:
    """The whole answer of a model, asked by one of its methods."""

    async def ask() -> Any:
        if method == "ainvoke":
            return await model.ainvoke(messages)
        if method == "abatch":
            return (await model.abatch([messages]))[0]
        return _whole([chunk async for chunk in model.astream(messages)])

    if method.startswith("a"):
        return asyncio.run(ask())
    return model.batch([messages])[0] if method == "batch" else _whole(list(model.stream(messages)))


def _whole(chunks: list[Any]) -> Any:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


@pytest.mark.parametrize("fresh", CLIENTS, indirect=True)
@pytest.mark.parametrize("method", METHODS)
class TestEveryWayOfCalling:
    @pytest.mark.parametrize("place", ["user", "history", "tool"])
    def test_sends_a_masked_image_only_and_answers(self, fresh, method, place):
        answer = called(fresh.guarded.bind_tools([look]), method, chat(place, "v1 base64", MASK, NEIGHBOUR))
        (request,) = fresh.server.requests
        masked, neighbour = images_in(request.raw)
        assert is_masked(masked)
        assert neighbour.tobytes() == pixels(NEIGHBOUR)
        assert not carries(request.raw, MASK)
        assert PREFIX in said(request.raw)
        assert answer.text == "one two three"

    def test_sends_nothing_of_a_blocked_image(self, fresh, method):
        answer = called(fresh.guarded, method, chat("user", "v1 base64", BLOCK, NEIGHBOUR))
        assert fresh.server.requests == []
        assert [verdict["action"] for verdict in answer.response_metadata["guardalign"]] == ["block", "flag"]
        for place in ("history", "tool"):
            called(fresh.guarded.bind_tools([look]), method, chat(place, "v1 base64", BLOCK, NEIGHBOUR))
            body = fresh.server.requests.pop().raw
            assert NOTICE in said(body)
            assert not carries(body, BLOCK)
            assert [image.tobytes() for image in images_in(body)] == [pixels(NEIGHBOUR)]


@pytest.mark.parametrize("fresh", CLIENTS, indirect=True)
class TestAnAgentOfARealClient:
    """The model calls a tool that returns an image, and is given what came of it."""

    def given(self, wire: Wire, model: Any, image: bytes) -> bytes:
        """The request by which the agent's model gets the tool's result."""

        @tool
        def shoot(where: str) -> list[dict[str, Any]]:
            """Take a screenshot."""
            return [{"type": "text", "text": f"Looking {where}."}, DIALECTS["v1 base64"](image)]

        wire.server.requests.clear()
        wire.server.answers[:] = [ToolCall("shoot", {"where": "up"})]
        state = create_agent(model, [shoot]).invoke({"messages": [HumanMessage("What is up there?")]})
        assert state["messages"][-1].text == "one two three"
        call, result = (request.raw for request in wire.server.requests)
        assert images_in(call) == []
        assert "Looking up." in said(result)
        return result

    def test_without_a_guard_the_image_reaches_the_model(self, fresh):
        result = self.given(fresh, fresh.bare, BLOCK)
        assert carries(result, BLOCK)
        assert [image.tobytes() for image in images_in(result)] == [pixels(BLOCK)]

    def test_with_it_a_harmless_one_does(self, fresh):
        result = self.given(fresh, fresh.guarded, SAFE)
        assert [image.tobytes() for image in images_in(result)] == [pixels(SAFE)]

    def test_and_a_masked_one_with_the_prefix(self, fresh):
        result = self.given(fresh, fresh.guarded, MASK)
        (image,) = images_in(result)
        assert is_masked(image)
        assert not carries(result, MASK)
        assert PREFIX in said(result)

    def test_and_a_notice_in_place_of_a_blocked_one(self, fresh):
        result = self.given(fresh, fresh.guarded, BLOCK)
        assert images_in(result) == []
        assert not carries(result, BLOCK)
        assert NOTICE in said(result)
