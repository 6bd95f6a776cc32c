"""Every way of writing an image into a chat that is known to be in use, as data for tests of every layer.

Each row of `READABLE` makes a block around an encoded image, so that a round trip can be compared as a whole: what is
written over one image must equal the block made around the other.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

Make = Callable[[bytes], Any]

_MIMES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes) -> str:
    return f"data:{mime(data)};base64,{b64(data)}"


def mime(data: bytes) -> str:
    return next(mime for magic, mime in _MIMES.items() if data.startswith(magic))


def kind(data: bytes) -> str:
    return mime(data).removeprefix("image/")


def named(data: bytes) -> str:
    return f"a.{kind(data).replace('jpeg', 'jpg')}"


def pil(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


READABLE: dict[str, Make] = {
    "OpenAI image_url": lambda p: {"type": "image_url", "image_url": {"url": url(p)}},
    "OpenAI image_url with detail": lambda p: {"type": "image_url", "image_url": {"url": url(p), "detail": "high"}},
    "OpenAI image_url as a bare string": lambda p: {"type": "image_url", "image_url": url(p)},
    "OpenAI image_url with extra keys": lambda p: {
        "id": "a",
        "type": "image_url",
        "image_url": {"url": url(p), "extra": 1},
        "cache_control": {"type": "ephemeral"},
    },
    "OpenAI file": lambda p: {"type": "file", "file": {"filename": named(p), "file_data": url(p)}},
    "ImagePromptValue's": lambda p: {"url": url(p), "detail": "low"},
    "ImagePromptValue's without detail": lambda p: {"url": url(p)},
    "Responses input_image": lambda p: {"type": "input_image", "image_url": url(p), "detail": "auto"},
    "Responses input_file": lambda p: {"type": "input_file", "filename": named(p), "file_data": url(p)},
    "Responses image_generation_call": lambda p: {"type": "image_generation_call", "id": "ig", "result": b64(p)},
    "Responses image_generation_call with a format": lambda p: {
        "type": "image_generation_call",
        "id": "ig",
        "output_format": kind(p),
        "result": b64(p),
    },
    "Responses computer screenshot": lambda p: {
        "type": "computer_call_output",
        "call_id": "c",
        "output": {"type": "computer_screenshot", "image_url": url(p)},
    },
    "v0 base64": lambda p: {
        "type": "image",
        "source_type": "base64",
        "data": b64(p),
        "mime_type": mime(p),
        "cache_control": {"type": "ephemeral"},
    },
    "v0 url": lambda p: {"type": "image", "source_type": "url", "url": url(p)},
    "v0 file": lambda p: {"type": "file", "source_type": "base64", "data": b64(p), "mime_type": mime(p)},
    "v1 base64": lambda p: {
        "type": "image",
        "id": "b",
        "base64": b64(p),
        "mime_type": mime(p),
        "extras": {"detail": "low"},
        "index": 0,
    },
    "v1 url": lambda p: {"type": "image", "url": url(p), "index": 3},
    "v1 file": lambda p: {"type": "file", "base64": b64(p), "mime_type": mime(p)},
    "v1 file with a name": lambda p: {
        "type": "file",
        "base64": b64(p),
        "mime_type": mime(p),
        "filename": named(p),
    },
    "v1 file without a media type": lambda p: {"type": "file", "url": url(p)},
    "Anthropic base64": lambda p: {
        "type": "image",
        "source": {"type": "base64", "media_type": mime(p), "data": b64(p)},
        "cache_control": {"type": "ephemeral"},
    },
    "Anthropic document with a list": lambda p: {
        "type": "document",
        "title": "t",
        "source": {"type": "content", "content": [{"type": "text", "text": "a"}, READABLE["Anthropic base64"](p)]},
    },
    "Anthropic tool_result": lambda p: {
        "type": "tool_result",
        "tool_use_id": "t",
        "content": [{"type": "text", "text": "shot"}, READABLE["Anthropic base64"](p)],
        "is_error": False,
    },
    "Gemini media as text": lambda p: {"type": "media", "mime_type": mime(p), "data": b64(p)},
    "Gemini media as bytes": lambda p: {"type": "media", "mime_type": mime(p), "data": p},
    "Gemini inline_data": lambda p: {"inline_data": {"mime_type": mime(p), "data": b64(p)}},
    "Gemini inlineData": lambda p: {"inlineData": {"mimeType": mime(p), "data": b64(p)}, "thought": False},
    "Gemini inline_data as bytes": lambda p: {"inline_data": {"mime_type": mime(p), "data": p}},
    "Bedrock bytes": lambda p: {"image": {"format": kind(p), "source": {"bytes": p}}},
    "Bedrock base64": lambda p: {"image": {"format": kind(p), "source": {"bytes": b64(p)}}},
    "Bedrock toolResult": lambda p: {
        "toolResult": {"toolUseId": "t", "content": [{"text": "a"}, READABLE["Bedrock bytes"](p)], "status": "success"}
    },
    "MCP image": lambda p: {"type": "image", "data": b64(p), "mimeType": mime(p), "annotations": {"priority": 1}},
    "MCP resource": lambda p: {
        "type": "resource",
        "resource": {"uri": "shots://1", "mimeType": mime(p), "blob": b64(p)},
    },
    "MCP resource in snake case": lambda p: {
        "type": "resource",
        "resource": {"uri": "shots://1", "mime_type": mime(p), "blob": b64(p)},
    },
    "Hugging Face image": lambda p: {"type": "image", "image": pil(p)},
    "Hugging Face data URL": lambda p: {"type": "image", "image": url(p)},
    "Hugging Face base64": lambda p: {"type": "image", "image": b64(p)},
    "wrapped non_standard": lambda p: {
        "type": "non_standard",
        "value": READABLE["OpenAI image_url as a bare string"](p),
    },
    "server_tool_result": lambda p: {
        "type": "server_tool_result",
        "tool_call_id": "s",
        "output": [{"log": "ok"}, READABLE["v1 base64"](p)],
    },
    "Responses function_call_output": lambda p: {
        "type": "function_call_output",
        "call_id": "f",
        "output": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": url(p)}],
    },
}
"""Blocks whose image can be opened here."""

HTTP = "https://images.example/a.png"

ELSEWHERE: dict[str, tuple[dict[str, Any], str, Make]] = {
    "OpenAI image_url": (
        {"type": "image_url", "image_url": {"url": HTTP, "detail": "low"}},
        HTTP,
        lambda p: {"type": "image_url", "image_url": {"url": url(p), "detail": "low"}},
    ),
    "OpenAI image_url as a bare string": (
        {"type": "image_url", "image_url": HTTP},
        HTTP,
        lambda p: {"type": "image_url", "image_url": url(p)},
    ),
    "OpenAI image_url with LiteLLM's format": (
        {"type": "image_url", "image_url": {"url": HTTP, "format": "image/webp"}},
        HTTP,
        lambda p: {"type": "image_url", "image_url": {"url": url(p), "format": mime(p)}},
    ),
    "OpenAI file id": (
        {"type": "file", "file": {"file_id": "file-1"}},
        "file_reference",
        lambda p: {"type": "file", "file": {"file_data": url(p)}},
    ),
    "ImagePromptValue's": ({"url": HTTP, "detail": "low"}, HTTP, lambda p: {"url": url(p), "detail": "low"}),
    "Responses input_image URL": (
        {"type": "input_image", "image_url": HTTP, "detail": "auto"},
        HTTP,
        lambda p: {"type": "input_image", "image_url": url(p), "detail": "auto"},
    ),
    "Responses input_image file id": (
        {"type": "input_image", "file_id": "file-1", "detail": "auto"},
        "file_reference",
        lambda p: {"type": "input_image", "image_url": url(p), "detail": "auto"},
    ),
    "Responses input_file URL": (
        {"type": "input_file", "file_url": HTTP},
        HTTP,
        lambda p: {"type": "input_file", "file_data": url(p)},
    ),
    "Responses input_file id": (
        {"type": "input_file", "file_id": "file-1"},
        "file_reference",
        lambda p: {"type": "input_file", "file_data": url(p)},
    ),
    "v0 url": (
        {"type": "image", "source_type": "url", "url": HTTP, "metadata": {"a": 1}},
        HTTP,
        lambda p: {
            "type": "image",
            "source_type": "base64",
            "data": b64(p),
            "metadata": {"a": 1},
            "mime_type": mime(p),
        },
    ),
    "v0 id": (
        {"type": "image", "source_type": "id", "id": "file-1"},
        "file_reference",
        lambda p: {"type": "image", "source_type": "base64", "data": b64(p), "mime_type": mime(p)},
    ),
    "v1 url": (
        {"type": "image", "id": "b", "url": HTTP, "extras": {"detail": "low"}},
        HTTP,
        lambda p: {"type": "image", "id": "b", "base64": b64(p), "extras": {"detail": "low"}, "mime_type": mime(p)},
    ),
    "v1 url of another medium type": (
        {"type": "image", "url": "https://images.example/a.jpg", "mime_type": "image/jpeg"},
        "https://images.example/a.jpg",
        lambda p: {"type": "image", "base64": b64(p), "mime_type": mime(p)},
    ),
    "v1 file_id": (
        {"type": "image", "file_id": "file-1", "index": 1},
        "file_reference",
        lambda p: {"type": "image", "base64": b64(p), "index": 1, "mime_type": mime(p)},
    ),
    "Anthropic url": (
        {"type": "image", "source": {"type": "url", "url": HTTP}},
        HTTP,
        lambda p: {"type": "image", "source": {"type": "base64", "data": b64(p), "media_type": mime(p)}},
    ),
    "Anthropic file": (
        {"type": "image", "source": {"type": "file", "file_id": "file-1"}},
        "file_reference",
        lambda p: {"type": "image", "source": {"type": "base64", "data": b64(p), "media_type": mime(p)}},
    ),
    "Anthropic document URL": (
        {"type": "document", "source": {"type": "url", "url": HTTP}, "title": "t"},
        HTTP,
        lambda p: {
            "type": "image",
            "source": {"type": "base64", "data": b64(p), "media_type": mime(p)},
            "title": "t",
        },
    ),
    "Gemini media file_uri": (
        {"type": "media", "mime_type": "image/png", "file_uri": "gs://bucket/a.png"},
        "gs://bucket/a.png",
        lambda p: {"type": "media", "mime_type": mime(p), "data": b64(p)},
    ),
    "Gemini file_data": (
        {"file_data": {"mime_type": "image/png", "file_uri": HTTP}},
        HTTP,
        lambda p: {"inline_data": {"mime_type": mime(p), "data": b64(p)}},
    ),
    "Gemini fileData": (
        {"fileData": {"mimeType": "image/jpeg", "fileUri": HTTP}},
        HTTP,
        lambda p: {"inlineData": {"mimeType": mime(p), "data": b64(p)}},
    ),
    "Bedrock s3Location": (
        {"image": {"format": "jpeg", "source": {"s3Location": {"uri": "s3://bucket/a"}}}},
        "file_reference",
        lambda p: {"image": {"format": kind(p), "source": {"bytes": p}}},
    ),
    "MCP resource_link": (
        {"type": "resource_link", "name": "a", "uri": HTTP, "mimeType": "image/png"},
        HTTP,
        lambda p: {"type": "image", "data": b64(p), "mimeType": mime(p)},
    ),
    "Hugging Face URL": ({"type": "image", "image": HTTP}, HTTP, lambda p: {"type": "image", "image": url(p)}),
    "Hugging Face path": (
        {"type": "image", "path": "/etc/passwd"},
        "file_reference",
        lambda p: {"type": "image", "image": b64(p)},
    ),
    "a local path where a URL belongs": (
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        "/etc/passwd",
        lambda p: {"type": "image_url", "image_url": {"url": url(p)}},
    ),
}
"""Blocks whose image is elsewhere: the block, its URL or the reason, and the block with an image in its place."""

UNREADABLE: dict[str, dict[str, Any]] = {
    "v1 plain text behind a URL": {"type": "text-plain", "url": HTTP, "mime_type": "text/plain"},
    "v1 plain text with base64": {"type": "text-plain", "base64": b64(b"text"), "mime_type": "text/plain"},
    "v0 plain text behind a URL": {"type": "text-plain", "source_type": "url", "url": HTTP},
    "v1 audio": {"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"},
    "v1 video": {"type": "video", "url": "https://images.example/a.mp4"},
    "OpenAI input_audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    "OpenAI video_url": {"type": "video_url", "video_url": {"url": "https://images.example/a.mp4"}},
    "Gemini media, a video": {"type": "media", "mime_type": "video/mp4", "data": "AAAA"},
    "Gemini file_data, a video": {"file_data": {"mime_type": "video/mp4", "file_uri": "gs://bucket/a"}},
    "Bedrock document": {"document": {"format": "pdf", "source": {"bytes": b"%PDF"}}},
    "Bedrock video": {"video": {"format": "mp4", "source": {"bytes": b"AAAA"}}},
    "MCP resource_link without a media type": {"type": "resource_link", "uri": "https://images.example/a"},
    "MCP audio": {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
    "pixel_values": {"pixel_values": [[0.0]]},
    "vLLM image_embeds": {"image_embeds": "AAAA"},
    "text with a PIL image of vLLM beside it": {"type": "text", "text": "hi", "uuid": "u", "image_pil": "AAAA"},
    "an image of a novel type": {"type": "hologram_image", "matter": "AAAA"},
    "bytes in a novel block": {"type": "novel", "payload": b"\x89PNG"},
    "an image block in capitals": {"type": "IMAGE_URL", "image_url": {"url": "data:image/png;base64,AAAA"}},
    "an image_url without a type": {"image_url": {"url": "data:image/png;base64,AAAA"}},
    "an image_url that is no text": {"type": "image_url", "image_url": {"url": 7}},
    "an image_url that is nothing": {"type": "image_url", "image_url": None},
    "text with an image beside it": {"type": "text", "text": "hi", "image_url": {"url": "data:image/png;base64,AAAA"}},
}
"""Blocks that stand for media and are read by no dialect."""

JSON_PLACES: dict[str, Callable[[Any], Any]] = {
    "Bedrock json": lambda data: {"json": data},
    "Bedrock json with LangChain's type": lambda data: {"type": "json", "json": data},
    "Bedrock json in a toolResult": lambda data: {
        "toolResult": {"toolUseId": "t", "content": [{"text": "a"}, {"json": data}], "status": "success"}
    },
    "Bedrock json in a tool_result": lambda data: {
        "type": "tool_result",
        "tool_use_id": "t",
        "content": [{"type": "json", "json": data}],
    },
    "Bedrock toolUse": lambda data: {"toolUse": {"toolUseId": "t", "name": "paint", "input": data}},
    "Gemini function_response": lambda data: {"function_response": {"name": "look", "response": data}},
    "Gemini functionResponse": lambda data: {"functionResponse": {"name": "look", "response": data}},
    "Gemini functionCall": lambda data: {"functionCall": {"name": "paint", "args": data}},
    "MCP result": lambda data: {"content": [{"type": "text", "text": "a"}], "structuredContent": data},
    "MCP result of LangChain": lambda data: {"content": [], "structured_content": data, "isError": False},
    "MCP result in a tool_result": lambda data: {
        "type": "tool_result",
        "tool_use_id": "t",
        "content": [{"type": "text", "text": "a"}],
        "structuredContent": data,
    },
    "LangChain server_tool_result": lambda data: {
        "type": "server_tool_result",
        "tool_call_id": "s",
        "output": {"x": data},
    },
}
"""Content blocks with a tool's JSON in them, which no provider and no client searches for content blocks."""

EVERYDAY: list[dict[str, Any]] = [
    {"image": "cat.png", "name": "cat", "n": 3},
    {"images": ["a.png", "b.png"], "count": 2},
    {"image": {"source": "camera 1", "format": "png", "width": 64}, "rows": [1, 2]},
    {"image": {"format": "png", "source": {"url": HTTP}}},
    {"image": {"source": {"bytes": 2048}}},
    {"image": HTTP, "image_url": {"url": HTTP}, "images": [HTTP]},
    {"file": {"name": "a.py", "path": "src/a.py"}, "document": {"title": "t", "source": {"type": "url", "url": HTTP}}},
    {"files": [{"type": "file", "name": "a.py", "size": 3}, {"type": "image", "name": "a.png", "path": "img/a.png"}]},
    {"type": "image", "url": HTTP, "alt": "a cat"},
    {"type": "image_url", "image_url": {"url": HTTP}},
    {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
    {"type": "video", "video": "clip.mp4", "duration": 3.5},
    {"mimeType": "image/png", "uri": HTTP, "size": 17},
    {"inline_data": {"mime_type": "image/png", "data": None}, "file_data": {"file_uri": "gs://bucket/a"}},
    {"media": {"kind": "photo"}, "screenshot": True, "blob": "9fceb02d0ae598e95dc970b74767f19372d61af8"},
    {"file_id": "file-1", "audio": 7, "pixel_values": [[0.0]], "s3Location": {"uri": "s3://bucket/a"}},
    {"url": HTTP},
    {"url": HTTP, "detail": "low"},
    {"text": "data: the new oil", "data": "data:text/plain,hello", "example": "data:image/png;base64,AAAA"},
]
"""A tool's JSON that resembles content blocks and holds no media."""
