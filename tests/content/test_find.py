"""Everything that stands for media is found, and what cannot be opened is never "no image"."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from block_matrix import READABLE
from PIL import Image

from guardalign_guardrails.content.payload import Remote, is_data_url, read_base64, read_data_url
from guardalign_guardrails.content.rewrite import with_blocks
from guardalign_guardrails.content.walk import find, find_loose
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import painted


def xbm(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "XBM")
    return file.getvalue()


IMAGE = painted("red")
PNG = encode_png(IMAGE)
B64 = base64.b64encode(PNG).decode()
URL = f"data:image/png;base64,{B64}"
V1 = READABLE["v1 base64"](PNG)
OPENAI = READABLE["OpenAI image_url"](PNG)
OTHER = encode_png(painted("green"))
LIMIT = 1_000_000
# Images that are written in letters, which Pillow opens whatever a block says of them.
PPM = base64.b64encode(b"P3\n1 1\n255\n0 0 255\n").decode()
XBM = base64.b64encode(b"/* mine */\n" + xbm(Image.new("1", (8, 8)))).decode()


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def read(content: Any) -> list[Any]:
    return [slot.reading.read(LIMIT) for slot in find(content)]


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
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "REMOTE"),
        ({"type": "image_url", "image_url": "gs://bucket/a.png"}, "REMOTE"),
        ({"type": "image_url", "image_url": "/etc/passwd"}, "REMOTE"),
        ({"type": "image", "url": "https://example.org/a.png"}, "REMOTE"),
        ({"type": "image", "file_id": "file-1"}, "file_reference"),
        ({"type": "image", "mime_type": "image/png"}, "no_locator"),
        ({"type": "image", "base64": B64, "url": "https://example.org/a.png"}, "several_locators"),
        ({"type": "image_url", "image_url": {"url": URL}, "file_id": "f"}, "several_locators"),
        ({"type": "image_url", "image_url": {"url": URL, "file_id": "f"}}, "several_locators"),
        ({"type": "image_url", "image_url": {"url": URL}, "images": [URL]}, "several_locators"),
        ({"type": "image_url", "image_url": {"url": URL}, "video_url": {"url": "https://a.b"}}, "several_locators"),
        ({"type": "image_url", "image_url": {"url": URL}, "image_embeds": "AAAA"}, "several_locators"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64"}}, "malformed"),
        ({"type": "image", "base64": "not base64 at all!"}, "malformed"),
        ({"type": "image", "base64": 5}, "malformed"),
        ({"type": "image", "base64": "A" * 2 * LIMIT}, "too_large"),
        ({"type": "image", "base64": "A" * 20 * LIMIT}, "too_large"),
        ({"type": "image_url", "image_url": {"url": "data:image/svg+xml," + "A" * 4 * LIMIT}}, "too_large"),
    ],
)
def test_an_image_that_cannot_be_opened_is_found_with_a_reason(block, reason):
    (found,) = read([text("look"), block])
    assert ("REMOTE" if isinstance(found, Remote) else found) == reason


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "base64": B64, "extras": {"file_uri": "gs://a"}},
        {"type": "novel", "payload": [{"deep": f"Data:image/png;base64,{B64}"}]},
        {"type": "novel", "payload": PNG},
        {"type": "novel", "payload": [IMAGE]},
    ],
)
def test_what_looks_like_media_and_is_in_no_dialect_is_uninspectable(block):
    assert read([text("look"), block]) == ["unsupported_block"]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ({"type": "image", "source_type": "base64", "data": B64, "url": "https://example.org"}, "several_locators"),
        ({"type": "image", "source_type": "id", "id": "f", "data": B64}, "several_locators"),
        ({"type": "image", "source_type": "base64"}, "no_locator"),
        ({"type": "image", "base64": B64, "source": {"type": "url", "url": "https://a.b"}}, "several_locators"),
        ({"type": "image", "pixels": B64}, "no_locator"),
        ({"type": "image", "source": {"type": "base64", "data": B64, "url": "https://a.b"}}, "several_locators"),
        ({"type": "image", "source": {"type": "url", "url": "https://a.b"}, "file_id": "f"}, "several_locators"),
        ({"type": "image", "source": {"type": "base64"}}, "no_locator"),
        ({"type": "image", "data": B64, "image": IMAGE}, "several_locators"),
        ({"type": "input_image", "image_url": URL, "file_id": "f"}, "several_locators"),
        ({"type": "input_image"}, "no_locator"),
        ({"type": "input_file", "file_data": B64, "file_url": "https://a.b"}, "several_locators"),
        ({"type": "file", "file": {"file_data": B64, "file_id": "f"}}, "several_locators"),
        ({"type": "media", "data": B64, "file_uri": "gs://a"}, "several_locators"),
        ({"inline_data": {"data": B64}, "file_data": {"file_uri": "gs://a"}}, "several_locators"),
        ({"image": {"source": {"bytes": PNG, "s3Location": {"uri": "s3://a"}}}}, "several_locators"),
        ({"image": {"source": {"bytes": PNG}, "url": "https://a.b"}}, "several_locators"),
        ({"type": "resource", "resource": {"blob": B64}, "url": "https://a.b"}, "several_locators"),
        ({"type": "resource_link", "mimeType": "image/png", "uri": "https://a.b", "data": B64}, "several_locators"),
    ],
)
def test_a_block_that_leaves_open_which_image_a_model_would_see_is_not_read(block, reason):
    assert read([block]) == [reason]


SVG = '<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
DRAWN_AS_TEXT = [
    (mime, base64.b64encode(file.encode()).decode())
    for mime, file in (
        ("text/plain", SVG),
        ("application/json", f"\ufeff\n<?xml version='1.0'?><!-- a drawing --><!DOCTYPE svg>{SVG}"),
        ("text/plain", SVG.replace("<", "<s:").replace("<s:/", "</s:")),
        ("text/plain", "%PDF-1.4 one page"),
        ("text/csv", "in front\n%PDF-1.4 one page"),
        ("text/html", f"words and {SVG}"),
        ("text/html", f'<p>words <img src="{URL}"></p>'),
        ("text/markdown", f"words ![]({URL})"),
        ("text/plain", URL),
        ("text/plain", B64),
        ("application/json", f'{{"cells": [{{"image": "{URL}"}}]}}'),
    )
]
WRITTEN_ABOUT = [
    ("text/markdown", base64.b64encode(b"An `<svg>` element holds shapes; `%PDF` begins others.").decode()),
    ("text/html", base64.b64encode(b"<p>A page without an image.</p>").decode()),
]


@pytest.mark.parametrize(
    ("block", "is_media"),
    [
        ({"type": "file", "mime_type": "text/csv", "base64": base64.b64encode(b"a,b").decode()}, False),
        ({"type": "file", "mime_type": "application/json", "base64": base64.b64encode(b"{}").decode()}, False),
        ({"type": "file", "mime_type": "text/plain", "base64": B64}, True),
        ({"type": "file", "mime_type": "text/plain", "base64": base64.b64encode(b"BM\0\0").decode()}, True),
        ({"type": "file", "mime_type": "text/plain", "url": "https://example.org/a"}, True),
        ({"type": "file", "mime_type": "application/pdf", "base64": "JVBE"}, True),
        ({"type": "input_file", "filename": "a.csv", "file_data": "data:text/csv;base64,YSxi"}, False),
        ({"type": "file", "file": {"filename": "a.csv", "file_data": "data:text/csv;base64,YSxi"}}, False),
        ({"type": "input_file", "mime_type": "text/csv", "file_data": "data:image/png;base64,YSxi"}, True),
        ({"type": "document", "source": {"type": "base64", "media_type": "text/csv", "data": "YSxi"}}, True),
        ({"type": "document", "mime_type": "text/csv", "source": {"type": "base64", "data": "YSxi"}}, True),
        ({"type": "file", "mime_type": "text/plain", "base64": PPM}, True),
        ({"type": "file", "mime_type": "text/plain", "base64": XBM}, True),
        *(({"type": "file", "mime_type": mime, "base64": file}, True) for mime, file in DRAWN_AS_TEXT),
        *(({"type": "input_file", "file_data": f"data:{mime};base64,{file}"}, True) for mime, file in DRAWN_AS_TEXT),
        *(({"type": "file", "mime_type": mime, "base64": file}, False) for mime, file in WRITTEN_ABOUT),
        ({"type": "image", "mime_type": "text/plain", "base64": PPM}, True),
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PPM}"}, "mime_type": "text/plain"}, True),
    ],
)
def test_an_attached_file_is_words_only_if_its_bytes_are(block, is_media):
    assert len(find([block])) == is_media


@pytest.mark.parametrize("value", [IMAGE, PNG, URL, {"shot": PNG}, [{"deep": (IMAGE,)}], V1])
def test_bare_images_are_found_in_values_of_an_apps_own_making(value):
    (slot,) = find_loose(value)
    payload = slot.reading.read(LIMIT)
    assert payload is IMAGE or payload == PNG
    new = with_blocks(value, {slot.path: slot.reading.write(OTHER, "image/png")})
    (again,) = find_loose(new)
    written = again.reading.read(LIMIT)
    assert (encode_png(written) if isinstance(written, Image.Image) else written) == OTHER


@pytest.mark.parametrize("value", [None, "words", b"bytes", 5, object(), {"a": [object(), "b", b"c"]}])
def test_values_that_are_no_images_are_left_alone(value):
    assert find_loose(value) == []


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
        ([{"type": "tool_result", "content": [text("a"), V1]}], (0, "content", 1)),
        ([text("a"), {"type": "non_standard", "value": OPENAI}], (1, "value")),
        ([{"type": "document", "source": {"type": "content", "content": [V1]}}], (0, "source", "content", 0)),
        ([{"type": "server_tool_result", "output": ({"shot": V1},)}], (0, "output", 0, "shot")),
    ],
)
def test_nested_images_are_found_where_they_are(content, path):
    (slot,) = find(content)
    assert (slot.path, slot.reading.read(LIMIT)) == (path, PNG)


def test_an_image_inside_something_uninspectable_is_part_of_it():
    block = {"type": "hologram", "file_data": "JVBE", "preview": V1}
    assert read([block]) == ["unsupported_block"]


def test_a_block_without_end_is_too_complex_and_its_neighbours_are_still_read():
    endless: dict[str, Any] = {"type": "novel"}
    endless["again"] = [endless, endless]
    assert read([endless, V1]) == ["too_complex", PNG]


def test_nothing_found_shows_pixels_in_its_repr():
    assert B64[:30] not in repr(find([V1, OPENAI]))


def test_size_is_checked_before_decoding():
    assert read_base64("A" * 1336, 1000) == "too_large"
    assert read_base64("A" * 1332, 1000) == bytes(999)
    assert read_data_url("data:,%41", 1000) == b"A"
    assert not is_data_url("database")


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text-plain", "text": "words", "mime_type": "text/plain", "title": "notes"},
        {"type": "text-plain", "source_type": "text", "text": "words"},
    ],
)
def test_langchains_plain_text_is_text_if_it_holds_it(block):
    assert find([block]) == []
