"""Everything that stands for media is found, and what cannot be opened is never "no image"."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from chat_images import data_url, openai, text, v1
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import painted
from langchain_guardalign._data_url import is_data_url, read_base64, read_data_url
from langchain_guardalign._media import find_media

PICTURE = painted("red")
PNG = encode_png(PICTURE)
B64 = base64.b64encode(PNG).decode()
URL = data_url(PICTURE)
OTHER = encode_png(painted("green"))
LIMIT = 1_000_000


def read(content: Any) -> list[bytes | str]:
    return [found.read(LIMIT) for found in find_media([HumanMessage(content)])]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "image_url", "image_url": {"url": URL, "detail": "high"}},
        {"type": "image_url", "image_url": URL},
        {"type": "image_url", "image_url": {"url": URL}, "cache_control": {"type": "ephemeral"}, "id": "a"},
        {"type": "image_url", "image_url": {"url": f"  DATA:IMAGE/PNG;BASE64,{B64}"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;name=a.png;charset=utf-8;base64,{B64}"}},
        {"type": "image_url", "image_url": {"url": f"data:;base64,{B64[:40]}\n {B64[40:]}"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + B64.replace("+", "%2B")}},
        {"type": "image_url", "image_url": {"url": "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG)}},
        {"type": "image", "base64": B64, "mime_type": "image/png"},
        {"type": "image", "base64": B64.rstrip("="), "mime_type": "image/jpeg", "id": "b", "extras": {"detail": "low"}},
        {"type": "image", "base64": B64.replace("+", "-").replace("/", "_")},
        {"type": "image", "base64": URL},
        {"type": "image", "url": URL, "index": 3},
        {"type": "image", "url": None, "file_id": None, "base64": B64},
    ],
)
def test_an_image_in_a_dialect_that_is_read_gives_its_exact_bytes(block):
    assert read([text("look"), block]) == [PNG]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "remote_reference"),
        ({"type": "image_url", "image_url": "gs://bucket/a.png"}, "remote_reference"),
        ({"type": "image_url", "image_url": "/etc/passwd"}, "remote_reference"),
        ({"type": "image", "url": "https://example.org/a.png"}, "remote_reference"),
        ({"type": "image", "file_id": "file-1"}, "file_reference"),
        ({"type": "image", "mime_type": "image/png"}, "no_locator"),
        ({"type": "image", "base64": B64, "url": "https://example.org/a.png"}, "several_locators"),
        ({"type": "image_url", "image_url": {"url": URL}, "file_id": "f"}, "several_locators"),
        ({"type": "image_url", "image_url": {"url": URL, "file_id": "f"}}, "several_locators"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64"}}, "malformed"),
        ({"type": "image", "base64": "not base64 at all!"}, "malformed"),
        ({"type": "image", "base64": 5}, "malformed"),
        ({"type": "image", "base64": "A" * 2 * LIMIT}, "too_large"),
        ({"type": "image", "base64": "A" * 20 * LIMIT}, "too_large"),
        ({"type": "image_url", "image_url": {"url": "data:image/svg+xml," + "A" * 4 * LIMIT}}, "too_large"),
    ],
)
def test_an_image_that_cannot_be_opened_is_found_with_a_reason(block, reason):
    assert read([text("look"), block]) == [reason]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": None},
        {"type": "image_url", "image_url": {"url": 7}},
        {"type": "IMAGE_URL", "image_url": {"url": URL}},
        {"image_url": {"url": URL}},
        {"type": "text", "text": "hi", "image_url": {"url": URL}},
        {"type": "image", "source_type": "base64", "data": B64},
        {"type": "image", "base64": B64, "source": {"type": "url", "url": "https://example.org"}},
        {"type": "image", "base64": B64, "extras": {"file_uri": "gs://a"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
        {"type": "image", "source": {"type": "file", "file_id": "f"}},
        {"type": "image", "data": B64, "mimeType": "image/png"},
        {"type": "image", "image": PICTURE},
        {"type": "input_image", "image_url": URL},
        {"type": "input_file", "file_id": "f"},
        {"type": "media", "mime_type": "image/png", "data": PNG},
        {"inline_data": {"mime_type": "image/png", "data": B64}},
        {"file_data": {"mime_type": "image/png", "file_uri": "gs://a"}},
        {"image": {"format": "png", "source": {"bytes": PNG}}},
        {"image": {"format": "png", "source": {"s3Location": {"uri": "s3://a"}}}},
        {"document": {"format": "pdf", "source": {"bytes": b"%PDF"}}},
        {"type": "file", "mime_type": "image/png", "base64": B64},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}},
        {"type": "resource", "resource": {"uri": "a://b", "mimeType": "image/png", "blob": B64}},
        {"type": "resource_link", "uri": "https://example.org/a"},
        {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}},
        {"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "image_generation_call", "result": B64},
        {"url": URL, "detail": "low"},
        {"type": "novel", "payload": [{"deep": f"Data:image/png;base64,{B64}"}]},
        {"type": "novel", "payload": PNG},
        {"type": "novel", "payload": [PICTURE]},
    ],
)
def test_what_looks_like_media_and_is_in_no_dialect_is_uninspectable(block):
    assert read([text("look"), block]) == ["unsupported_block"]


@pytest.mark.parametrize(
    "content",
    [
        "plain words",
        f"words with a link ![]({URL})",
        ["bare words", URL],
        [text("hello")],
        [{"type": "text", "text": URL, "annotations": [{"type": "file_citation", "file_id": "f"}]}],
        [{"type": "tool_use", "id": "t", "name": "paint", "input": {"image": "cat.png", "mime_type": "image/png"}}],
        [{"type": "tool_call", "name": "paint", "args": {"image_url": "x"}, "id": "t"}],
        [{"type": "reasoning", "reasoning": "the image shows"}],
        [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}}],
        [{"type": "text-plain", "text": "words", "mime_type": "text/plain"}],
        [{"type": "search_result", "title": "Data: the new oil", "content": [text("words")]}],
        [{"type": "json", "json": {"file": "a.py", "count": 3, "ok": True, "ratio": 0.5, "none": None}}],
    ],
)
def test_words_are_no_media(content):
    assert read(content) == []


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ([{"type": "tool_result", "content": [text("a"), v1(PICTURE)]}], (0, "content", 1)),
        ([text("a"), {"type": "non_standard", "value": openai(PICTURE)}], (1, "value")),
        ([{"type": "document", "source": {"type": "content", "content": [v1(PICTURE)]}}], (0, "source", "content", 0)),
        ([{"type": "server_tool_result", "output": ({"shot": v1(PICTURE)},)}], (0, "output", 0, "shot")),
    ],
)
def test_nested_images_are_found_where_they_are(content, path):
    (found,) = find_media([HumanMessage(content)])
    assert (found.path, found.read(LIMIT)) == (path, PNG)


def test_an_image_inside_something_uninspectable_is_part_of_it():
    block = {"type": "file", "file_data": "JVBE", "preview": v1(PICTURE)}
    assert read([block]) == ["unsupported_block"]


def test_a_block_without_end_is_too_complex_and_its_neighbours_are_still_read():
    endless: dict[str, Any] = {"type": "novel"}
    endless["again"] = [endless, endless]
    message = HumanMessage("")
    message.content = [endless, v1(PICTURE)]
    assert [found.read(LIMIT) for found in find_media([message])] == ["too_complex", PNG]


def test_sources_follow_from_the_type_and_place_of_a_message():
    image = [v1(PICTURE)]
    messages = [
        SystemMessage(image),
        HumanMessage(image),
        AIMessage(image),
        ToolMessage(image, tool_call_id="t"),
        HumanMessage(image),
        HumanMessage("and that one"),
        AIMessage(""),
        ToolMessage(image, tool_call_id="u"),
    ]
    found = find_media(messages)
    assert [f.message for f in found] == [0, 1, 2, 3, 4, 7]
    assert [f.source for f in found] == ["user", "history", "generated", "tool", "user", "tool"]


@pytest.mark.parametrize(
    "block",
    [
        openai(PICTURE, cache_control={"type": "ephemeral"}),
        {"type": "image_url", "image_url": data_url(PICTURE), "id": "x"},
        {
            "type": "image_url",
            "image_url": {"url": "https://example.org/a.png", "detail": "high", "format": "image/webp"},
        },
        v1(PICTURE, id="x", extras={"detail": "low"}),
        {"type": "image", "id": "x", "url": URL, "extras": {"a": 1}},
        {"id": "x", "type": "image", "mime_type": "image/jpeg", "url": "https://example.org/a.jpg", "index": 0},
        {"type": "image", "base64": B64, "url": "https://example.org/a.png", "file_id": "f"},
        {"type": "image", "file_id": "f", "index": 1},
    ],
)
def test_writing_keeps_everything_but_the_picture_and_leaves_no_other_locator(block):
    before = repr(block)
    (found,) = find_media([HumanMessage([block])])
    written = found.write(OTHER)
    assert repr(block) == before
    (again,) = find_media([HumanMessage([written])])
    assert again.read(LIMIT) == OTHER
    assert "example.org" not in repr(written)
    assert "webp" not in repr(written)
    assert "jpeg" not in repr(written)
    assert written.get("file_id") is None
    for key in ("type", "id", "index", "extras", "cache_control"):
        assert written.get(key) == block.get(key)
    if isinstance(block.get("image_url"), dict):
        assert written["image_url"]["detail"] == block["image_url"]["detail"]


def test_nothing_found_shows_pixels_in_its_repr():
    assert B64[:30] not in repr(find_media([HumanMessage([v1(PICTURE), openai(PICTURE)])]))


def test_size_is_checked_before_decoding():
    assert read_base64("A" * 1336, 1000) == "too_large"
    assert read_base64("A" * 1332, 1000) == bytes(999)
    assert read_data_url("data:,%41", 1000) == b"A"
    assert not is_data_url("database")
