"""The payload of an image block: bytes, a URL or a reason; and how text that carries an image becomes bytes.

Size is capped before anything is decoded. Decoding is lenient where providers are (case, white space, percent-encoding,
missing padding), because what a provider would open must be opened here too. Nothing is fetched, and no text is ever
taken for a local path.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias
from urllib.parse import unquote, unquote_to_bytes

from PIL import Image

Reason = Literal[
    "file_reference",
    "malformed",
    "no_locator",
    "remote_reference",
    "several_locators",
    "too_complex",
    "too_large",
    "unsupported_block",
]
"""Why media cannot be opened here.

``file_reference`` and ``remote_reference`` point to bytes that are elsewhere; ``no_locator`` and ``several_locators``
leave open which image a model would see; ``unsupported_block`` is a dialect or medium this package does not read.
"""


@dataclass(frozen=True)
class Remote:
    """An image that is elsewhere.

    Attributes:
        url: Its URL as the sender wrote it, of any scheme.
    """

    url: str = field(repr=False)


class Ambiguous(bytes):
    """Bytes of ambiguous base64: a server may decode other bytes, knowing no percent-encoding or skipping ``-``."""


Payload: TypeAlias = bytes | Image.Image | Remote | Reason
"""An encoded image, a decoded one, its URL, or why there is none."""

_HEAD: Final = re.compile(r"\s*data:([^,]*),", re.IGNORECASE)
_PERCENT_GROWTH: Final = 3
_SLACK: Final = 1024
_AMBIGUOUS: Final = re.compile("[%_-]")


def is_data_url(text: str) -> bool:
    """Whether a text is, or tries to be, a data URL."""
    return text[:64].lstrip()[:5].lower() == "data:"


def mime_of_data_url(url: str) -> str:
    """The media type a data URL states, in lower case; empty if it states none."""
    head = _HEAD.match(url)
    return "" if head is None else head[1].partition(";")[0].strip().lower()


def read_url(url: str, max_bytes: int) -> Payload:
    """Read a URL: the bytes of a data URL, else the URL."""
    return read_data_url(url, max_bytes) if is_data_url(url) else Remote(url)


def read_data_url(url: str, max_bytes: int) -> bytes | Reason:
    """The bytes of a data URL (RFC 2397), or why there are none.

    Args:
        url: A text for which `is_data_url` holds.
        max_bytes: Size of the decoded bytes above which nothing is decoded.
    """
    head = _HEAD.match(url)
    if head is None:
        return "malformed"
    if "base64" in (parameter.strip().lower() for parameter in head[1].split(";")):
        return read_base64(url[head.end() :], max_bytes)
    if len(url) > _PERCENT_GROWTH * max_bytes + _SLACK:
        return "too_large"
    return Ambiguous(unquote_to_bytes(url[head.end() :]))


def read_base64(text: str, max_bytes: int) -> bytes | Reason:
    """The bytes of base64 text, or why there are none.

    Args:
        text: Standard or URL-safe alphabet, with or without padding, white space and percent-encoding.
        max_bytes: Size of the decoded bytes above which nothing is decoded.
    """
    if len(text) > 2 * _PERCENT_GROWTH * max_bytes + _SLACK:
        return "too_large"
    compact = "".join((unquote(text) if "%" in text else text).split()).rstrip("=")
    if len(compact) * 3 // 4 > max_bytes:
        return "too_large"
    standard = compact.replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, ValueError):
        return "malformed"
    return Ambiguous(data) if _AMBIGUOUS.search(text) else data


def read_bytes(value: object, max_bytes: int) -> bytes | Reason:
    """The bytes of a value that holds them: bytes, base64 text or a data URL."""
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return data if len(data) <= max_bytes else "too_large"
    if not isinstance(value, str):
        return "malformed"
    return read_data_url(value, max_bytes) if is_data_url(value) else read_base64(value, max_bytes)


def to_base64(data: bytes) -> str:
    """Bytes as standard base64 text."""
    return base64.b64encode(data).decode("ascii")


def to_data_url(data: bytes, mime: str) -> str:
    """Bytes as a base64 data URL."""
    return f"data:{mime};base64,{to_base64(data)}"
