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
        (f"{PREFIX}Hello.", f"{PREFIX}\n\n{PREFIX}Hello."),
        (f"Hello. {PREFIX}", f"{PREFIX}\n\nHello. {PREFIX}"),
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


@pytest.mark.parametrize("gap", ["", " ", "\n", "\r\n", "\n\n", "\n\n\n", "\t", "\u00a0"])
@pytest.mark.parametrize("lead", ["", "\n"])
@pytest.mark.parametrize(
    "write", [lambda said: said, lambda said: [{"type": "text", "text": said}], lambda said: [said]]
)
def test_what_begins_with_it_is_the_same_object_whatever_gap_follows(write, lead, gap):
    content = write(f"{lead}{PREFIX}{gap}{'Hello.' if gap else ''}")
    assert headed(content, PREFIX) is content


def test_text_that_only_begins_alike_gets_it():
    assert prefixed("Be careful", "Be care") == "Be care\n\nBe careful"
    assert headed([{"type": "text", "text": "Be careful"}, "b"], "Be care")[0]["text"] == "Be care"


@pytest.mark.parametrize("kind", ["image_url", "thinking", "input_image"])
def test_what_no_model_is_given_as_text_does_not_count(kind):
    # Clients leave it out, so that a sender of blocks could keep the prefix away by it.
    content = [{"type": kind, "text": PREFIX}, {"type": "text", "text": "Hello."}]
    assert headed(content, PREFIX) == [{"type": "text", "text": PREFIX}, *content]


@pytest.mark.parametrize("kind", [{"type": "text"}, {"type": "input_text"}, {}])
def test_text_blocks_of_all_providers_count(kind):
    content = [{**kind, "text": PREFIX}, {**kind, "text": "Hello."}]
    assert headed(content, PREFIX) is content
