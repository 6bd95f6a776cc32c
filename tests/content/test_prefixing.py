"""The prefix stands at the head once, whatever the content is."""

from __future__ import annotations

import pytest

from guardalign_guardrails.content.chat import headed, prefixed

PREFIX = "Be careful."


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", PREFIX),
        (None, PREFIX),
        ("Hello.", f"{PREFIX}\n\nHello."),
        (f"{PREFIX} Hello.", f"{PREFIX}\n\n{PREFIX} Hello."),
        ([], [{"type": "text", "text": PREFIX}]),
        ([{"type": "image"}], [{"type": "text", "text": PREFIX}, {"type": "image"}]),
        (["Hello."], [{"type": "text", "text": PREFIX}, "Hello."]),
        ({"type": "image"}, [{"type": "text", "text": PREFIX}, {"type": "image"}]),
    ],
)
def test_it_is_put_in_front(content, expected):
    assert headed(content, PREFIX) == expected


@pytest.mark.parametrize("content", ["", "Hello.", [], ["Hello."], [{"type": "image"}]])
def test_it_is_put_once_and_what_has_it_is_the_same_object(content):
    once = headed(content, PREFIX)
    assert headed(once, PREFIX) is once


def test_a_block_is_called_as_the_provider_calls_it():
    assert headed([], PREFIX, text_type="input_text") == [{"type": "input_text", "text": PREFIX}]


def test_text_that_only_begins_alike_gets_it():
    assert prefixed(f"{PREFIX}\nHello.", PREFIX) == f"{PREFIX}\n\n{PREFIX}\nHello."
