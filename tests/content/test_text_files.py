"""A file that is said to be text and that some model may be shown as an image is never text, in any dialect."""

from __future__ import annotations

from typing import Any

import pytest

from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.content.screen import Turn
from guardalign_guardrails.content.walk import text_of_file
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import painted

PNG = encode_png(painted("blue"))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'

FILES = {
    "SVG": SVG,
    "SVG with a declaration": b'<?xml version="1.0"?>\n<!-- drawn -->\n' + SVG,
    "SVG after a byte order mark": b"\xef\xbb\xbf" + SVG,
    "HTML with an SVG": b"<!doctype html><html><body><p>Look:</p>" + SVG + b"</body></html>",
    "HTML with an image": f'<p>Look: <img src="{to_data_url(PNG, "image/png")}"></p>'.encode(),
    "Markdown with an image": f"Look: ![]({to_data_url(PNG, 'image/png')})".encode(),
    "PDF": b"%PDF-1.4\n1 0 obj << >> endobj\n",
    "PDF after some text": b"Hello\n" * 20 + b"%PDF-1.4\n1 0 obj << >> endobj\n",
    "PPM": b"P3\n1 1\n255\n0 0 255\n",
    "XBM": b"/* mine */\n#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0, 0};\n",
    "XPM": b'/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c #0000ff", "a"};\n',
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "a data URL": to_data_url(PNG, "image/png").encode(),
    "base64": to_base64(PNG).encode(),
    "hex": PNG.hex().encode(),
    "a PDF in base64": to_base64(b"%PDF-1.4\n".ljust(64)).encode(),
    "a data URL with a star": f"{to_data_url(PNG, 'image/png')}*".encode(),
    "an image": PNG,
    "UTF-16": "<svg/>".encode("utf-16"),
}
TEXT = b"name,file\ncat,a.png\ndog,data:image/png;base64,iVBORw0KGgo=\nand <svg> is how a drawing begins.\n"

ATTACHED = {
    "Responses input_file": lambda data: {"type": "input_file", "filename": "a.txt", "file_data": url(data)},
    "OpenAI file": lambda data: {"type": "file", "file": {"filename": "a.txt", "file_data": url(data)}},
    "v1 file": lambda data: {"type": "file", "base64": to_base64(data), "mime_type": "text/plain"},
    "v0 file": lambda data: {
        "type": "file",
        "source_type": "base64",
        "data": to_base64(data),
        "mime_type": "text/plain",
    },
    "Gemini media": lambda data: {"type": "media", "mime_type": "text/plain", "data": to_base64(data)},
}
"""Blocks in which a text file may be attached."""

REFUSED = {
    "Gemini inline_data": lambda data: {"inline_data": {"mime_type": "text/plain", "data": to_base64(data)}},
    "Gemini inlineData": lambda data: {"inlineData": {"mimeType": "text/plain", "data": to_base64(data)}},
    "Bedrock document": lambda data: {"document": {"name": "a", "format": "txt", "source": {"bytes": data}}},
    "Bedrock document with text": lambda data: {
        "document": {"name": "a", "format": "txt", "source": {"text": data.decode("latin-1")}}
    },
    "Anthropic document": lambda data: {
        "type": "document",
        "source": {"type": "base64", "media_type": "text/plain", "data": to_base64(data)},
    },
    "MCP resource": lambda data: {
        "type": "resource",
        "resource": {"uri": "a://b", "mimeType": "text/plain", "blob": to_base64(data)},
    },
}
"""Blocks in which nothing but an image is let through."""


def url(data: bytes) -> str:
    return to_data_url(data, "text/plain")


def found(block: dict[str, Any], role: Any) -> list[Any]:
    return Turn([block], role=role).media


@pytest.mark.parametrize("role", ["user", "tool", "assistant"])
@pytest.mark.parametrize("dialect", [*ATTACHED, *REFUSED])
@pytest.mark.parametrize("file", FILES)
def test_it_is_a_finding(role, dialect, file):
    assert len(found({**ATTACHED, **REFUSED}[dialect](FILES[file]), role)) == 1


@pytest.mark.parametrize("role", ["user", "tool", "assistant"])
def test_a_text_file_is_text_where_one_may_be_attached(role):
    for make in ATTACHED.values():
        assert found(make(TEXT), role) == []
    for make in REFUSED.values():
        assert len(found(make(TEXT), role)) == 1


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("mime", ["text/plain", "text/html", "application/json"])
def test_its_text_is_none(file, mime):
    assert text_of_file(FILES[file], {mime}) is None
    assert text_of_file(TEXT, {"text/plain"}) == TEXT.decode()


@pytest.mark.parametrize(
    "block",
    [
        lambda said: {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": said}},
        lambda said: {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": said}]}},
        lambda said: {"type": "resource", "resource": {"uri": "a://b", "mimeType": "text/plain", "text": said}},
        lambda said: {"type": "text-plain", "text": said, "mime_type": "text/plain"},
    ],
)
@pytest.mark.parametrize("role", ["user", "tool"])
def test_text_in_a_document_is_an_image_where_a_message_that_says_the_same_is_one(block, role):
    for file in ("a data URL", "base64", "hex", "a PDF in base64"):
        (media,) = found(block(FILES[file].decode()), role)
        assert media.reading.read(10**6) in (PNG, FILES["a PDF in base64"], b"%PDF-1.4\n".ljust(64))
    assert found(block(TEXT.decode()), role) == []
    assert found(block(FILES["Markdown with an image"].decode()), role) == []


@pytest.mark.parametrize("mime", ["image/svg+xml", "application/pdf"])
def test_a_media_type_beside_a_text_counts(mime):
    for block in (
        {"type": "resource", "resource": {"uri": "a://b", "mimeType": mime, "text": SVG.decode()}},
        {"type": "document", "source": {"type": "text", "media_type": mime, "data": SVG.decode()}},
        {"type": "text-plain", "text": SVG.decode(), "mime_type": mime},
    ):
        assert [media.reading.read(10**6) for media in found(block, "user")] == ["unsupported_block"]
