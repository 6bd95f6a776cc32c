"""LlamaIndex's LLM classes behind a guard: what reaches their servers, read from the recorded bytes alone.

Each LLM is given an image in each kind of block and place, once bare and once guarded. The bare call tells whether the
LLM sends the image at all, so that nothing here can pass because it would not have been sent anyway.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

from content.block_matrix import b64, mime, url
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.testing.colours import painted
from with_clients.matrix_images import BLOCK, FORBIDDEN, MASK, NEIGHBOUR, SAFE, encoded, is_masked, pixels
from with_clients.sent import Sent, arrives, fails_alike, shows_nothing_of
from with_clients.wire_images import carries, images_in, said, without_images
from with_llama_clients.llama_clients import LLAMA_CLIENTS
from with_llama_clients.llama_image_chats import BLOCKS, PLACES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

PREFIX = ChatMessage(role=MessageRole.SYSTEM, content="Be careful.")
STREAM = "a stream"
"""Most LLM classes cannot read one, or do not know its type; a guard gives them its bytes with their type."""
_MASKED = encoded(painted("black", "magenta"), "PNG")

every_llm = pytest.mark.parametrize("wire", LLAMA_CLIENTS, indirect=True)


@pytest.fixture
def chat(place, block, tmp_path):
    """A chat with images in the place and the kind of block that a test is parametrized with."""

    def make(*images: bytes) -> list[ChatMessage]:
        folders = [tmp_path / str(number) for number in range(len(images))]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        return PLACES[place]([BLOCKS[block](*pair) for pair in zip(images, folders, strict=True)])

    return make


def fails_as_without_the_guard(guarded: Sent, plain: Sent, block: str) -> bool:
    return fails_alike(guarded, plain) or (block == STREAM and guarded.error is None)


def is_refusal(sent: Sent) -> bool:
    return sent.body is None and sent.answer is not None and "guardalign" in sent.answer.additional_kwargs


@every_llm
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("block", BLOCKS)
class TestAnImage:
    def test_that_is_harmless_arrives_as_without_the_guard(self, wire, place, block, chat):
        plain, guarded = wire.send(wire.bare, chat(SAFE)), wire.send(wire.guarded, chat(SAFE))
        if plain.error is not None:
            assert fails_as_without_the_guard(guarded, plain, block)
            return
        assert arrives(guarded, SAFE) == arrives(plain, SAFE)
        if block != STREAM:
            assert without_images(guarded.body) == without_images(plain.body)

    def test_that_is_masked_arrives_masked_where_the_original_would(self, wire, place, block, chat):
        plain, guarded = wire.send(wire.bare, chat(MASK)), wire.send(wire.guarded, chat(MASK))
        assert shows_nothing_of(guarded, MASK, FORBIDDEN["mask"])
        if plain.error is not None:
            assert fails_as_without_the_guard(guarded, plain, block)
            return
        assert any(map(is_masked, images_in(guarded.body))) == arrives(plain, MASK)
        if block == STREAM:
            return
        # As if the app had sent a masked PNG itself, and the prefix.
        like = wire.send(wire.bare, [PREFIX, *chat(_MASKED)])
        assert without_images(guarded.body) == without_images(like.body)

    def test_that_is_blocked_never_arrives_and_its_neighbour_does(self, wire, place, block, chat):
        plain = wire.send(wire.bare, chat(BLOCK, NEIGHBOUR))
        guarded = wire.send(wire.guarded, chat(BLOCK, NEIGHBOUR))
        assert shows_nothing_of(guarded, BLOCK, FORBIDDEN["block"])
        if place == "user":
            assert is_refusal(guarded)
        elif plain.error is not None:
            assert fails_as_without_the_guard(guarded, plain, block)
        elif arrives(plain, BLOCK):
            assert arrives(guarded, NEIGHBOUR)
            assert NOTICE in said(guarded.body)


@every_llm
@pytest.mark.parametrize("place", ["user", "history"])
@pytest.mark.parametrize("block", ["bytes", "a path"])
def test_every_llm_sends_the_common_blocks_and_the_reader_sees_what_is_forbidden(wire, chat):
    sent = wire.send(wire.bare, chat(MASK))
    assert arrives(sent, MASK)
    assert not shows_nothing_of(sent, MASK, FORBIDDEN["mask"])


TEXTS = {
    "a data URL": url,
    "base64": b64,
    "hex": lambda data: data.hex(),
    "a data URL with parameters": lambda data: f"data:{mime(data)};a={'x' * 2000};base64,{b64(data)}",
}


@every_llm
@pytest.mark.parametrize("text", TEXTS)
class TestTextOfATool:
    """Some clients and proxies make an image of it."""

    def test_is_not_sent_if_it_is_a_blocked_image(self, wire, text):
        messages = self.told(TEXTS[text](BLOCK))
        assert arrives(wire.send(wire.bare, messages), BLOCK)
        guarded = wire.send(wire.guarded, messages)
        assert shows_nothing_of(guarded, BLOCK, FORBIDDEN["block"])
        assert {NOTICE, UNCHECKED_NOTICE} & set(said(guarded.body).splitlines())

    def test_is_masked_if_it_can_be(self, wire, text):
        guarded = wire.send(wire.guarded, self.told(TEXTS[text](MASK)))
        assert shows_nothing_of(guarded, MASK, FORBIDDEN["mask"])
        assert any(map(is_masked, images_in(guarded.body))) or UNCHECKED_NOTICE in said(guarded.body)

    def told(self, text: str) -> list[ChatMessage]:
        asked, call, result = PLACES["tool"]([])
        return [asked, call, result.model_copy(update={"blocks": [TextBlock(text=text)]})]


def called(llm: Any, method: str, messages: list[ChatMessage]) -> Any:
    """The whole answer of an LLM, asked by one of its methods."""

    async def ask() -> Any:
        if method == "achat":
            return await llm.achat(messages)
        return [part async for part in await llm.astream_chat(messages)][-1]

    if method.startswith("a"):
        return asyncio.run(ask())
    return list(llm.stream_chat(messages))[-1]


@pytest.mark.parametrize("fresh", LLAMA_CLIENTS, indirect=True)
@pytest.mark.parametrize("block", ["bytes"])
@pytest.mark.parametrize("place", ["user", "history"])
@pytest.mark.parametrize("method", ["stream_chat", "achat", "astream_chat"])
class TestEveryWayOfCalling:
    def test_sends_a_masked_image_only_and_answers(self, fresh, method, place, chat):
        answer = called(fresh.guarded, method, chat(MASK, NEIGHBOUR))
        (request,) = fresh.server.requests
        masked, neighbour = images_in(request.raw)
        assert is_masked(masked)
        assert neighbour.tobytes() == pixels(NEIGHBOUR)
        assert not carries(request.raw, MASK)
        assert PREFIX.content in said(request.raw)
        assert answer.message.content.startswith("one two three")

    def test_sends_nothing_of_a_blocked_image(self, fresh, method, place, chat):
        answer = called(fresh.guarded, method, chat(BLOCK, NEIGHBOUR))
        bodies = [request.raw for request in fresh.server.requests]
        if place == "user":
            assert bodies == []
            assert "guardalign" in answer.additional_kwargs
        else:
            (body,) = bodies
            assert NOTICE in said(body)
            assert not carries(body, BLOCK)
            assert [image.tobytes() for image in images_in(body)] == [pixels(NEIGHBOUR)]
