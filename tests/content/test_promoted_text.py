"""Text in places of which some client or server makes an image: masked, withheld or left alone as an image is."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from guardalign_guardrails.content.bodies import ascreen_body, screen_body
from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.content.promoted import find_shown
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE, Turn, screen
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.mask import with_mark
from guardalign_guardrails.testing.colours import CELL, colour_guard, painted

Form = Callable[[bytes], str]


def masked() -> bytes:
    """What is left of a red square."""
    image = painted()
    image.paste("black", (0, 0, CELL, CELL))
    return with_mark(encode_png(image))


def png(colour: str) -> bytes:
    return encode_png(painted(colour))


def url(data: bytes) -> str:
    return to_data_url(data, "image/png")


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def chat(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": [user(text("Look.")), *messages]}


def responses(*items: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "input": [user({"type": "input_text", "text": "Look."}), *items]}


FORMS: dict[str, tuple[Form, Form]] = {
    "data URL": (url, url),
    "data URL in capitals": (lambda data: url(data).replace("data:image/png", "DATA:IMAGE/PNG"), url),
    "data URL with a long header": (lambda data: url(data).replace(";", f";a={'x' * 2000};"), url),
    "base64": (to_base64, to_base64),
    "hex": (bytes.hex, bytes.hex),
}
"""How an image is written, and how the one in its place is."""

BROKEN: dict[str, Form] = {
    "two data URLs": lambda data: url(data) * 2,
    "a data URL with a fragment": lambda data: url(data) + "#x",
    "a data URL with a star": lambda data: f"{url(data)[:60]}*{url(data)[60:]}",
    "a data URL with words behind it": lambda data: f"{url(data)} is what I drew.",
    "base64 with a star": lambda data: f"{to_base64(data)[:60]}*{to_base64(data)[60:]}",
    "a data URL of an SVG": lambda _: (
        "data:image/svg+xml;base64," + to_base64(b'<svg xmlns="http://a.b/svg"></svg>' * 3)
    ),
    "a PDF in base64": lambda _: to_base64(b"%PDF-1.7\n".ljust(64)),
    "a video in hex": lambda _: b"\0\0\0\x20ftypisom".ljust(64, b"\0").hex(),
}

PLACES: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "chat, tool message": ("chat", lambda said: chat({"role": "tool", "tool_call_id": "1", "content": said})),
    "chat, tool message with a block": (
        "chat",
        lambda said: chat({"role": "tool", "tool_call_id": "1", "content": [text("It says:"), text(said)]}),
    ),
    "chat, function message": ("chat", lambda said: chat({"role": "function", "name": "f", "content": said})),
    "chat, Anthropic's tool_result": ("chat", lambda said: chat(user({"type": "tool_result", "content": said}))),
    "chat, Bedrock's toolResult": (
        "chat",
        lambda said: chat(user({"toolResult": {"toolUseId": "1", "content": [{"text": "It says:"}, {"text": said}]}})),
    ),
    "Responses, function_call_output": (
        "responses",
        lambda said: responses({"type": "function_call_output", "call_id": "1", "output": said}),
    ),
    "Responses, function_call_output with a list": (
        "responses",
        lambda said: responses(
            {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": said}]}
        ),
    ),
    "Responses, custom_tool_call_output": (
        "responses",
        lambda said: responses({"type": "custom_tool_call_output", "call_id": "1", "output": said}),
    ),
    "Responses, computer_call_output": (
        "responses",
        lambda said: responses({"type": "computer_call_output", "call_id": "1", "output": said}),
    ),
    "Responses, shell_call_output": (
        "responses",
        lambda said: responses({"type": "shell_call_output", "output": [{"stdout": said, "stderr": ""}]}),
    ),
    "Responses, mcp_call": ("responses", lambda said: responses({"type": "mcp_call", "name": "f", "output": said})),
    "Messages, tool_result": (
        "messages",
        lambda said: chat(user({"type": "tool_result", "tool_use_id": "1", "content": said})),
    ),
    "Messages, tool_result with a block": (
        "messages",
        lambda said: chat(user({"type": "tool_result", "tool_use_id": "1", "content": [text(said)]}, text("And?"))),
    ),
    "Messages, tool_result with a document": (
        "messages",
        lambda said: chat(
            user(
                {
                    "type": "tool_result",
                    "tool_use_id": "1",
                    "content": [{"type": "document", "source": {"type": "text", "data": said}}],
                }
            )
        ),
    ),
    "Messages, mcp_tool_result": (
        "messages",
        lambda said: chat({"role": "assistant", "content": [{"type": "mcp_tool_result", "content": [text(said)]}]}),
    ),
}
"""Places whose text clients make images of: the form of the body, and a body that has a text there."""

TEXTS = [
    "It is sunny.",
    "Data: 5 of 10 and more, as the table in the appendix to the report shows in some detail.",
    "data:image/png;base64, eh?",
    "![a dot](data:image/png;base64,iVBORw0KGgo=) and a lot of words that make it a text about images.",
    json.dumps({"image": "data:image/png;base64,iVBORw0KGgo=", "file": "a.png", "words": "one two three four five"}),
    f"The image is {url(png('blue'))}, as you see.",
    'data: {"choices": [{"delta": {"content": "a, b"}}]}\n\n' * 5,
    "iVBORw0KGgo is what every PNG begins with in base64, as everybody knows who has ever looked at one.",
]
"""What a tool may well say."""


@pytest.fixture(params=["sync", "async"])
def screened(request, cache_dir):
    guard = colour_guard(cache_dir)
    if request.param == "sync":
        return lambda *args: screen_body(guard, *args)
    return lambda *args: asyncio.run(ascreen_body(guard, *args))


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
class TestAnImageInATextOfATool:
    def test_stays_if_it_is_harmless(self, guard, place, form):
        (api, body), (write, _) = PLACES[place], FORMS[form]
        before = body(write(png("magenta")))
        result = screen_body(guard, before, api)
        assert result.body is before
        assert [(verdict.action, verdict.source) for verdict in result.verdicts] == [
            ("flag", "generated" if "mcp" in place else "tool")
            if "chat, Anthropic" not in place and "Bedrock" not in place
            else ("flag", "user")
        ]

    def test_is_masked_in_its_own_form_and_nothing_else_changes(self, guard, place, form):
        (api, body), (write, written) = PLACES[place], FORMS[form]
        before = body(write(png("red")))
        kept = copy.deepcopy(before)
        result = screen_body(guard, before, api)
        key = "input" if api == "responses" else "messages"
        assert result.body[key][-1] == body(written(masked()))[key][-1]
        assert before == kept

    def test_is_a_notice_if_it_is_blocked(self, guard, place, form):
        (api, body), (write, _) = PLACES[place], FORMS[form]
        result = screen_body(guard, body(write(png("blue"))), api)
        assert result.body == body(NOTICE)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", BROKEN)
def test_a_text_of_a_tool_that_begins_like_media_and_cannot_be_read_is_a_notice(guard, place, form):
    api, body = PLACES[place]
    assert screen_body(guard, body(BROKEN[form](png("white"))), api).body == body(UNCHECKED_NOTICE)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("said", TEXTS)
def test_what_a_tool_says_about_images_is_text(guard, place, said):
    api, body = PLACES[place]
    before = body(said)
    result = screen_body(guard, before, api)
    assert result.body is before
    assert result.verdicts == ()


class TestJoinedTexts:
    """For some models proxies join the texts of a list, and make an image of what comes of it."""

    @pytest.mark.parametrize("size", [2, 5, 22, 60])
    @pytest.mark.parametrize("colour", ["white", "blue"])
    def test_an_image_in_parts_is_never_passed_on(self, screened, size, colour):
        whole = url(png(colour))
        parts = [text(whole[:size]), text(whole[size:])]
        for place, api in (("chat, tool message", "chat"), ("Messages, tool_result", "messages")):
            result = screened(PLACES[place][1](parts), api)
            assert whole[size:] not in json.dumps(result.body)
            assert {verdict.finding for verdict in result.verdicts} <= {"unchecked", "unsafe", "none"}

    def test_strings_and_blanks_between_the_parts_make_no_difference(self, guard):
        whole = url(png("blue"))
        content = ["\n", whole[:4], text(" "), text(whole[4:100]), text(whole[100:])]
        result = screen_body(guard, PLACES["chat, tool message"][1](content), "chat")
        assert [message["content"] for message in result.body["messages"][1:]] == [
            ["\n", UNCHECKED_NOTICE, text(" "), text(UNCHECKED_NOTICE), text(UNCHECKED_NOTICE)]
        ]

    def test_an_image_between_them_is_still_checked(self, guard):
        whole = url(png("white"))
        image = {"type": "image_url", "image_url": {"url": url(png("red"))}}
        result = screen_body(guard, PLACES["chat, tool message"][1]([text(whole[:9]), image, text(whole[9:])]), "chat")
        assert result.body["messages"][-1]["content"] == [
            text(UNCHECKED_NOTICE),
            {"type": "image_url", "image_url": {"url": url(masked())}},
            text(UNCHECKED_NOTICE),
        ]

    def test_texts_that_are_no_image_together_stay(self, guard):
        before = PLACES["chat, tool message"][1]([text("data"), text("is the new oil, " * 9)])
        assert screen_body(guard, before, "chat").body is before


class TestOtherRoles:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(
        "place",
        [
            lambda said: ("chat", chat(user(text(said)))),
            lambda said: ("chat", chat({"role": "user", "content": said})),
            lambda said: ("responses", {"input": said}),
            lambda said: ("chat", {"prompt": said}),
            lambda said: ("chat", {"prompt": ["Look.", said]}),
            lambda said: ("other", {"text": said}),
            lambda said: ("messages", {"messages": [], "system": said}),
        ],
    )
    def test_a_text_that_is_an_image_and_nothing_else_is_one(self, screened, place, form):
        write, written = FORMS[form]
        api, before = place(write(png("red")))
        after = json.dumps(screened(before, api).body)
        assert written(masked()) in after
        assert write(png("red")) not in after

    @pytest.mark.parametrize("said", [*TEXTS, f"{url(png('blue'))} What is it?", f"Look: {to_base64(png('blue'))}"])
    def test_a_text_with_something_else_is_text(self, screened, said):
        for api, before in (
            ("chat", chat(user(text(said)))),
            ("chat", chat({"role": "assistant", "content": said})),
            ("responses", {"input": said}),
            ("chat", {"prompt": said}),
        ):
            result = screened(before, api)
            assert result.body is before
            assert result.verdicts == ()


class TestTurns:
    """The rule is the core's, so that adapters which read no bodies have it as well."""

    @pytest.mark.parametrize(
        "turn",
        [
            lambda said: Turn(said, role="tool"),
            lambda said: Turn(said, "tool"),
            lambda said: Turn([text(said)], role="tool"),
            lambda said: Turn([{"type": "nested", "content": [text(said)]}], role="tool"),
            lambda said: Turn({"type": "function_call_output", "call_id": "1", "output": said}),
        ],
    )
    @pytest.mark.parametrize("form", FORMS)
    def test_a_tools_turn_is_read_as_clients_read_it(self, guard, turn, form):
        write, written = FORMS[form]
        safe, red, blue, broken = screen(
            guard,
            [turn(write(png(colour))) for colour in ("white", "red", "blue")] + [turn(write(png("white")) + "#x")],
        )
        assert not safe.is_changed
        assert safe.verdicts
        assert red.content == turn(written(masked())).content
        assert blue.content == turn(NOTICE).content
        assert broken.content == turn(UNCHECKED_NOTICE).content

    def test_a_model_in_this_process_is_given_text_as_text(self):
        assert Turn(url(png("blue")), role="tool", keep_results=True).media == []

    def test_what_is_in_a_block_that_is_found_is_found_once(self):
        block = {"type": "hologram_output", "image_bytes": "AAAA", "output": url(png("blue"))}
        assert [found.path for found in find_shown([block], is_of_tool=True)] == [(0,)]

    def test_they_are_found_in_reading_order(self):
        image = {"type": "image_url", "image_url": {"url": url(png("red"))}}
        found = find_shown([text(url(png("blue"))), image, text(to_base64(png("red")))], is_of_tool=True)
        assert [block.path for block in found] == [(0, "text"), (1,), (2, "text")]

    def test_content_without_end_is_searched_no_further_than_blocks_are(self):
        endless: dict[str, Any] = {"type": "tool_result", "content": []}
        endless["content"] += [endless, endless]
        assert [found.reading.read(1) for found in find_shown([endless], is_of_tool=True)] == ["too_complex"]


def test_text_in_a_wrapped_block_is_looked_at_and_written_back_where_it_is(guard):
    red, blue = (to_data_url(encode_png(painted(colour)), "image/png") for colour in ("red", "blue"))
    content = [{"type": "non_standard", "value": {"type": "text", "text": text}} for text in (red, "hello", blue)]
    (result,) = screen(guard, [Turn(content)])
    assert [verdict.action for verdict in result.verdicts] == ["mask", "block"]
    masked, plain, notice = (block["value"]["text"] for block in result.content)
    assert masked.startswith("data:image/png;base64,")
    assert masked != red
    assert (plain, notice) == ("hello", NOTICE)


@pytest.mark.parametrize("kind", [[], {}, None, 7])
@pytest.mark.parametrize("is_of_tool", [True, False])
def test_a_block_of_any_type_is_looked_at(kind, is_of_tool):
    image = to_data_url(encode_png(painted("blue")), "image/png")
    assert find_shown([{"type": kind, "text": "hello"}], is_of_tool=is_of_tool) == []
    assert len(find_shown([{"type": kind, "text": image}], is_of_tool=is_of_tool)) == 1
