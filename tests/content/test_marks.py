"""A masked image says so wherever it goes: it brings the safety prefix, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image

from guardalign_guardrails import CheckResult
from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.content.screen import Turn, screen
from guardalign_guardrails.content.screened_chat import ascreen_chats, screen_chats
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.mask import is_marked, with_mark
from guardalign_guardrails.testing.chats import image_block
from guardalign_guardrails.testing.colours import ACTION_COLOURS, colour_guard, painted

BLOCKS = {
    "LangChain": lambda data: {"type": "image", "base64": to_base64(data), "mime_type": "image/png"},
    "OpenAI": lambda data: {"type": "image_url", "image_url": {"url": to_data_url(data, "image/png")}},
    "Anthropic": lambda data: {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": to_base64(data)},
    },
    "Gemini": lambda data: {"inline_data": {"mime_type": "image/png", "data": to_base64(data)}},
    "Bedrock": lambda data: {"image": {"format": "png", "source": {"bytes": data}}},
    "PIL": lambda data: {"type": "image", "image": Image.open(io.BytesIO(data))},
}


def forged(colour: str) -> bytes:
    """An image whose sender says that a guard masked it."""
    return with_mark(encode_png(painted(colour)))


def decision(guard, data, role="user", block=BLOCKS["LangChain"], **settings):
    chat = [Turn([block(data)], role=role), Turn("What is it?")]
    (screened,) = screen_chats(guard, [chat], **settings)
    (again,) = asyncio.run(ascreen_chats(guard, [chat], **settings))
    assert screened.decision.is_prefix_due == again.decision.is_prefix_due
    return screened


def _told(verdicts):
    return [verdict and verdict.model_dump(exclude={"timings", "is_cached"}) for verdict in verdicts]


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("role", ["user", "tool", "assistant"])
def test_an_image_that_one_guard_masked_brings_the_prefix_at_the_next(guard, cache_dir, block, role):
    (first,) = screen(guard, [Turn([BLOCKS[block](encode_png(painted("red")))], "tool")])
    assert [verdict.action for verdict in first.verdicts] == ["mask"]
    chat = [Turn(first.content, role=role), Turn("And?")]
    (second,) = screen_chats(colour_guard(cache_dir), [chat])
    assert [verdict.action for verdict in second.verdicts] == ["allow"]
    assert second.decision.is_prefix_due


def test_an_image_without_the_mark_brings_no_prefix(guard):
    assert not decision(guard, encode_png(painted("white"))).decision.is_prefix_due


@pytest.mark.parametrize(("action", "colour"), ACTION_COLOURS.items())
@pytest.mark.parametrize("role", ["user", "tool"])
def test_a_forged_mark_skips_no_check_and_changes_no_verdict(cache_dir, action, colour, role):
    plain = decision(colour_guard(cache_dir), encode_png(painted(colour)), role)
    marked = decision(colour_guard(cache_dir), forged(colour), role)
    assert [verdict.action for verdict in marked.verdicts] == [action]
    assert _told(marked.verdicts) == _told(plain.verdicts)
    assert marked.decision.handled_by == plain.decision.handled_by
    assert _told([marked.decision.violation]) == _told([plain.decision.violation])


def test_a_forged_mark_on_something_that_cannot_be_opened_is_a_finding_all_the_same(guard):
    (verdict,) = decision(guard, forged("white")[:120]).verdicts
    assert verdict.finding == "unchecked"
    assert verdict.is_blocked


@pytest.mark.parametrize("settings", [{"mode": "monitor"}, {"prefix": ""}])
def test_a_mark_brings_no_prefix_where_the_policy_gives_none(cache_dir, settings):
    assert not decision(colour_guard(cache_dir, **settings), forged("white")).decision.is_prefix_due


def test_a_marked_image_passes_on_as_it_came(guard):
    data = forged("white")
    assert guard.check(data).output == data


def test_the_mark_is_in_every_form_of_a_masked_image_but_an_array(guard):
    red = painted("red")
    checked: dict[str, CheckResult] = {
        "bytes": guard.check(encode_png(red)),
        "PIL": guard.check(red),
        "array": guard.check(np.asarray(red)),
    }
    assert is_marked(checked["bytes"].output)
    assert is_marked(checked["PIL"].output)
    assert isinstance(checked["array"].output, np.ndarray)
    with Image.open(io.BytesIO(checked["bytes"].output)) as file:
        file.load()
        assert is_marked(file)
        assert file.tobytes() == checked["PIL"].output.tobytes()


@pytest.mark.parametrize("colour", ["white", "green", "magenta"])
def test_an_image_that_no_guard_masked_has_no_mark(guard, colour):
    assert not is_marked(guard.check(encode_png(painted(colour))).output)
    assert not is_marked(guard.check(painted(colour)).output)


def test_a_mark_stays_on_a_masked_image_of_which_the_guards_own_reading_goes_on(cache_dir):
    guard = colour_guard(cache_dir, delivery="canonical")
    result = guard.check(forged("white"))
    assert result.verdict.delivery == "canonical"
    assert is_marked(result.output)


def test_a_jpeg_gets_no_mark_that_would_break_it():
    buffer = io.BytesIO()
    painted("white").save(buffer, "JPEG")
    assert with_mark(buffer.getvalue()) == buffer.getvalue()


def test_the_content_block_of_a_chat_keeps_its_mark(guard):
    (screened,) = screen(guard, [Turn([image_block(painted("red"))])])
    block = screened.content[0]
    assert screened.is_changed
    assert is_marked(base64.b64decode(block["base64"]))
