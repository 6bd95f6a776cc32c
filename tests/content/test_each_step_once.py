"""A body's images take each step once: counted around the real functions, so that a second search or encoding shows.

Before results had an output, a new masked image of a body was decoded twice and masked twice.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pkgutil import resolve_name
from typing import Any

import pytest

from guardalign_guardrails.content.bodies import ascreen_body, screen_body
from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import colour_guard, painted

STEPS = {
    "find": [("content.screen.Turn", "find")],
    "read": [("content.payload", "read_base64")],
    "decode": [("guarding.guard", "decode")],
    "mask": [("guarding.assess", "mask_regions")],
    "encode": [("guarding.result", "encode_png"), ("content.screen", "encode_png")],
    "write": [("content.payload", "to_base64"), ("content.dialects.anthropic", "to_base64")],
}
CLEAN = {"find": 1, "read": 1, "decode": 1}
EXPECTED = {
    "white": CLEAN,
    "magenta": CLEAN,
    "red": {**CLEAN, "mask": 1, "encode": 1, "write": 1},
    "blue": CLEAN,
}
KNOWN = {"find": 1, "read": 1}
"""Bytes that were seen before are not decoded again, unless a mask must be drawn."""


@pytest.fixture
def counts(monkeypatch) -> Counter[str]:
    counts: Counter[str] = Counter()

    def counted(step, plain):
        return lambda *args, **options: counts.update([step]) or plain(*args, **options)

    for step, functions in STEPS.items():
        for module, name in functions:
            path = f"guardalign_guardrails.{module}.{name}"
            monkeypatch.setattr(path, counted(step, resolve_name(path)))
    return counts


@pytest.fixture(params=["sync", "async"])
def screened(request, tmp_path):
    guard = colour_guard(tmp_path)
    if request.param == "sync":
        return lambda body, form: screen_body(guard, body, form)
    return lambda body, form: asyncio.run(ascreen_body(guard, body, form))


def body_with(form: str, *colours: str) -> dict[str, Any]:
    data = [encode_png(painted(*(colour for colour in [each] if colour != "white"))) for each in colours]
    blocks: list[Any] = []
    for each in data:
        if form == "chat":
            blocks.append({"type": "image_url", "image_url": {"url": to_data_url(each, "image/png")}})
        elif form == "responses":
            blocks.append({"type": "input_image", "image_url": to_data_url(each, "image/png")})
        else:
            source = {"type": "base64", "media_type": "image/png", "data": to_base64(each)}
            blocks.append({"type": "image", "source": source})
    message = {"role": "user", "content": blocks}
    return {"input": [message]} if form == "responses" else {"messages": [message]}


@pytest.mark.parametrize("form", ["chat", "responses", "messages"])
@pytest.mark.parametrize("colour", EXPECTED)
def test_an_image_takes_each_step_once(screened, counts, form, colour):
    body = body_with(form, colour)
    counts.clear()
    result = screened(body, form)
    # Anthropic's bodies have a part for the app's instructions.
    parts = 2 if form == "messages" else 1
    assert [verdict.action for verdict in result.verdicts] == [
        {"white": "allow", "magenta": "flag", "red": "mask", "blue": "block"}[colour]
    ]
    assert counts == {**EXPECTED[colour], "find": parts}


@pytest.mark.parametrize("colour", EXPECTED)
def test_a_known_image_is_found_and_read_and_no_more_unless_it_is_masked(screened, counts, colour):
    body = body_with("chat", colour)
    screened(body, "chat")
    counts.clear()
    screened(json.loads(json.dumps(body)), "chat")
    assert counts == (EXPECTED["red"] if colour == "red" else KNOWN)


def test_images_of_one_message_are_found_by_one_search(screened, counts):
    body = body_with("chat", "white", "red", "green", "blue")
    counts.clear()
    screened(body, "chat")
    assert counts == {"find": 1, "read": 4, "decode": 4, "mask": 1, "encode": 1, "write": 1}


def test_a_body_of_text_is_searched_and_that_is_all(screened, counts):
    screened({"messages": [{"role": "user", "content": "Hi"}]}, "chat")
    assert counts == {"find": 1}
