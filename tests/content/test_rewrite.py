"""Blocks put into content: what is around them stays as it is, and what stands in an image's place keeps its marks."""

from __future__ import annotations

import base64
import copy

import pytest

from guardalign_guardrails.content.rewrite import block_at, text_in_place_of, with_blocks
from guardalign_guardrails.content.screen import NOTICE, Turn, screen
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import colour_guard, painted

MARK = {"type": "ephemeral"}
SAFE = encode_png(painted("magenta"))
URL_SAFE = base64.urlsafe_b64encode(SAFE).decode()
STANDARD = base64.b64encode(SAFE).decode()


def image(data: str, **more):
    return {"type": "image", "base64": data, "mime_type": "image/png", **more}


def words(text: str):
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"type": "image", "url": "u", "cache_control": MARK}, {"type": "text", "text": "t", "cache_control": MARK}),
        ({"type": "image", "url": "u", "id": "a"}, {"type": "text", "text": "t"}),
        ({"type": "input_image", "image_url": "u"}, {"type": "input_text", "text": "t"}),
        ({"type": "input_file", "file_url": "u"}, {"type": "input_text", "text": "t"}),
        ({"image": {"format": "png"}}, {"text": "t"}),
        ({"image": {"format": "png"}, "cache_control": MARK}, {"text": "t", "cache_control": MARK}),
        ({"image": "u"}, {"type": "text", "text": "t"}),
        ({"type": "image", "image": {"format": "png"}}, {"type": "text", "text": "t"}),
        ({"inline_data": {"data": "d"}}, {"type": "text", "text": "t"}),
        ("u", "t"),
        (b"bytes", "t"),
    ],
)
def test_text_in_place_of_an_image_is_what_its_api_takes_there_and_keeps_a_prompt_cache_mark(block, expected):
    before = copy.deepcopy(block)
    assert text_in_place_of(block, "t") == expected
    assert block == before


def test_a_blocked_image_leaves_its_prompt_cache_mark_in_the_chat(cache_dir):
    blocked = base64.b64encode(encode_png(painted("blue"))).decode()
    (result,) = screen(colour_guard(cache_dir), [Turn([words("look"), image(blocked, cache_control=MARK)])])
    assert result.content == [words("look"), {"type": "text", "text": NOTICE, "cache_control": MARK}]


CONTENT = [words("a"), {"type": "tool_result", "content": (words("b"), {"deep": [words("c"), words("d")]})}, words("e")]


def test_a_block_is_found_by_its_path():
    assert block_at(CONTENT, (1, "content", 1, "deep", 0)) == words("c")
    assert block_at(CONTENT, ()) is CONTENT


def test_a_replaced_block_stands_where_the_old_one_stood_and_the_old_content_stays_as_it_was():
    before = copy.deepcopy(CONTENT)
    new = with_blocks(CONTENT, {(1, "content", 1, "deep", 1): "new", (2,): "last"})
    deep = {"deep": [words("c"), "new"]}
    assert new == [words("a"), {"type": "tool_result", "content": (words("b"), deep)}, "last"]
    assert before == CONTENT


def test_of_several_keys_and_places_only_the_one_on_the_path_is_replaced():
    assert with_blocks({"a": 1, "b": 2, "c": 3}, {("b",): "new"}) == {"a": 1, "b": "new", "c": 3}
    assert with_blocks([1, 2, 3], {(1,): "new"}) == [1, "new", 3]


def test_a_tuple_stays_a_tuple_and_a_list_a_list():
    new = with_blocks(CONTENT, {(1, "content", 1, "deep", 0): "new"})
    assert type(new) is list
    assert type(new[1]["content"]) is tuple
    assert type(new[1]["content"][1]["deep"]) is list
    assert with_blocks((1, 2), {(1,): 3}) == (1, 3)


def test_what_is_beside_a_replaced_block_is_shared_and_not_copied():
    new = with_blocks(CONTENT, {(1, "content", 1, "deep", 0): "new"})
    assert new[0] is CONTENT[0]
    assert new[1]["content"][0] is CONTENT[1]["content"][0]
    assert new[1]["content"][1]["deep"][1] is CONTENT[1]["content"][1]["deep"][1]
    assert with_blocks(CONTENT, {}) is CONTENT
    assert with_blocks(CONTENT, {(): "all"}) == "all"


def test_ambiguous_base64_is_re_encoded_where_the_guard_acts(cache_dir):
    assert URL_SAFE != STANDARD
    (result,) = screen(colour_guard(cache_dir), [Turn([words("look"), image(URL_SAFE)])])
    assert [verdict.action for verdict in result.verdicts] == ["flag"]
    assert result.content == [words("look"), image(STANDARD)]


def test_ambiguous_base64_stays_as_it_is_where_the_guard_only_monitors(cache_dir):
    content = [words("look"), image(URL_SAFE)]
    (result,) = screen(colour_guard(cache_dir, mode="monitor"), [Turn(content)])
    assert [verdict.proposed for verdict in result.verdicts] == ["flag"]
    assert result.content is content
