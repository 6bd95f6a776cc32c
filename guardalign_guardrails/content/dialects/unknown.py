"""Tells what stands for media although no dialect reads it, so that it is found, from what everyday data looks like.

It goes by the keys and types under which some client, server or chat template looks for an image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from guardalign_guardrails.content.dialect import LOCATORS, MIME_KEYS, Block, Path, located
from guardalign_guardrails.content.media_text import media_of_value
from guardalign_guardrails.content.members import SCALARS
from guardalign_guardrails.content.payload import is_data_url

_MEDIA_KINDS: Final = re.compile("image|video|audio|media|file|document|screenshot|pdf|blob|resource_link")
# LangChain's text files have their text in the block; a client fetches or opens what such a block leads to instead, and
# sends it as the file that it is.
_PLAIN_TEXT: Final = "text-plain"
_MEDIA_MIMES: Final = re.compile("image/|video/|audio/|application/pdf", re.IGNORECASE)
# Some chat templates take a block with one of these keys for an image, whatever its type says.
_MEDIA_KEYS: Final = frozenset(
    {
        "audio_url",
        "file_data",
        "fileData",
        "file_id",
        "file_uri",
        "fileUri",
        "image_bytes",
        "image_embeds",
        "image_pil",
        "image_url",
        "inline_data",
        "inlineData",
        "input_audio",
        "input_image",
        "pixel_values",
        "s3Location",
        "video_url",
    }
)
# Under these, tools' results have names, numbers and lists of them. Of a mapping, a URL, bytes or base64 there, some
# client makes an image.
_EVERYDAY_KEYS: Final = frozenset({"audio", "blob", "image", "images", "media", "screenshot", "video"})
# Bedrock and OpenAI nest a file under these; with a plain value they are everyday keys of a tool's JSON.
_MEDIA_KEYS_OF_MAPPINGS: Final = frozenset({"document", "file"})
# Their inner values are a model's text or a caller's schema, not content blocks.
OPAQUE_KINDS: Final = frozenset(
    {
        "additional_tools",
        "apply_patch_call",
        "computer_call",
        "custom_tool_call",
        "file_search_call",
        "function_call",
        "input_text",
        "invalid_tool_call",
        "mcp_call",
        "mcp_list_tools",
        "mcp_tool_use",
        "output_text",
        "reasoning",
        "reasoning_content",
        "redacted_thinking",
        "refusal",
        "server_tool_call",
        "server_tool_call_chunk",
        "server_tool_use",
        "shell_call",
        "text",
        "thinking",
        "tool_call",
        "tool_call_chunk",
        "tool_search_output",
        "tool_use",
        "web_search_call",
    }
)
# A content block with no other keys is a block, and nothing that only resembles one.
_BLOCK_KEYS: Final = LOCATORS.union(
    MIME_KEYS,
    ("_meta", "annotations", "cache_control", "detail", "extras", "filename", "id", "index", "meta", "resource"),
    ("type",),
)
_LOCATING_KEYS: Final = LOCATORS | {"resource"}
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_=%\s-]*")
# Base64 that is shorter is no image.
_SHORT: Final = 64
_URL_HEAD: Final = 64
_SAYS_IMAGE: Final = re.compile(
    r"image|img|photo|screenshot|(^|_)mask|video|\Amedia(s?\Z|_?(data|file|path|ur[il]))|pixel|multi_?modal"
    "|(first|last|start|end)_?frame",
    re.IGNORECASE,
)
_URL: Final = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//\S+\s*", re.IGNORECASE)
_FILE_NAME: Final = re.compile(
    r"\s*[^\s?]+\.(?:png|jpe?g|gif|webp|bmp|tiff?|heic|heif|avif|jp2|jxl|svg|pdf|mp4|mov|webm|mkv|avi)(?:\?\S*)?\s*",
    re.IGNORECASE,
)
# Of these, as texts to be embedded, LiteLLM makes images and videos for models that know them.
_STORED: Final = re.compile(r"\s*(?:(?:gs|s3)://|https?://generativelanguage\.googleapis\.com/)\S+\s*", re.IGNORECASE)
_EMBEDDED: Final = "input"
# More than any digest or id has.
_MUCH_BASE64: Final = re.compile(r"\s*[A-Za-z0-9+/_%=-]{256,}\s*")


def is_of_image(path: Path) -> bool:
    """Whether a key on the way to a value says that the value, or what it is a setting of, is an image or a video."""
    return any(isinstance(step, str) and _SAYS_IMAGE.search(step) for step in path)


def is_stored_file(value: str, path: Path) -> bool:
    """Whether a value names a file in a provider's storage, where texts to be embedded stand."""
    return _EMBEDDED in path and _STORED.fullmatch(value) is not None


def leads_to_image(value: str) -> bool:
    """Whether a value is what locates an image, rather than a name or a text: a URL, a file's name, much base64."""
    return any(pattern.fullmatch(value) for pattern in (_URL, _FILE_NAME, _MUCH_BASE64))


def kind_of(block: Block) -> str:
    """The type that a block states, in lower case; empty if it states none."""
    kind = block.get("type")
    return kind.lower() if isinstance(kind, str) else ""


def looks_like_media(block: Block, *, is_strict: bool = False) -> bool:
    """Whether a block that no dialect reads stands for media.

    Args:
        block: Any mapping.
        is_strict: Whether a name under a key of media counts too, as it does in what no provider's documents describe.
    """
    if any(block[key] is not None for key in _MEDIA_KEYS.intersection(block)):
        return True
    everyday = [block[key] for key in _EVERYDAY_KEYS.intersection(block) if block[key] is not None]
    if any(is_strict or not _is_everyday(value) for value in everyday):
        return True
    if any(isinstance(block[key], Mapping) for key in _MEDIA_KEYS_OF_MAPPINGS.intersection(block)):
        return True
    if not is_strict and _is_listed_file(block):
        return False
    mimes = (block.get(key) for key in MIME_KEYS)
    if any(isinstance(mime, str) and _MEDIA_MIMES.match(mime.strip()) for mime in mimes):
        return True
    kind = kind_of(block)
    if kind == _PLAIN_TEXT:
        return bool(located(block) - {"source_type"})
    if kind in OPAQUE_KINDS or not _MEDIA_KINDS.search(kind):
        return False
    source = block.get("source")
    # Anthropic's documents may be plain text, or a list of blocks that are walked like any others.
    is_text = isinstance(source, Mapping) and source.get("type") in ("text", "content")
    return not (kind == "document" and is_text)


def is_only_block(block: Block) -> bool:
    """Whether a mapping is a content block and nothing that only resembles one.

    Its type says so, no other keys are in it, and what locates its file is more than a name or a number.
    """
    kind = kind_of(block)
    if not kind or not (kind == "resource_link" or block.keys() <= _BLOCK_KEYS):
        return False
    return not all(_is_everyday(block[key]) for key in _LOCATING_KEYS.intersection(block))


def _is_listed_file(block: Block) -> bool:
    """Whether a mapping names a file, as a tool that lists files does, and holds nothing of it."""
    is_named = kind_of(block) in ("", "file") and located(block) <= {"path"}
    return is_named and all(map(_is_everyday, block.values()))


def _is_everyday(value: object) -> bool:
    """Whether a value is a name, a number or a list of these, which no client takes for media."""
    return all(map(_is_name, value)) if isinstance(value, list | tuple) else _is_name(value)


def _is_name(value: object) -> bool:
    if not isinstance(value, str):
        return isinstance(value, SCALARS)
    is_located = "://" in value[:_URL_HEAD] or is_data_url(value) or media_of_value(value) is not None
    return not is_located and (len(value) < _SHORT or _BASE64.fullmatch(value) is None)
