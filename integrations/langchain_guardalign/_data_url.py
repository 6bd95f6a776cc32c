"""Text that carries a picture to its bytes, with a cap on size before anything is decoded.

Lenient where providers are lenient (case, white space, percent-encoding, missing padding), because what a provider
would open must be opened here too. Nothing is fetched, and no text is ever taken for a local path.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final, Literal
from urllib.parse import unquote, unquote_to_bytes

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
"""Why a block that stands for media cannot be opened here.

``file_reference`` and ``remote_reference`` point to bytes that are elsewhere; ``no_locator`` and ``several_locators``
leave open which picture a model would see; ``unsupported_block`` is a dialect or medium this package does not read.
"""

_HEAD: Final = re.compile(r"\s*data:([^,]{0,1024}),", re.IGNORECASE)
_PERCENT_GROWTH: Final = 3
_SLACK: Final = 1024


def is_data_url(text: str) -> bool:
    """Whether a text is, or tries to be, a data URL."""
    return text[:64].lstrip()[:5].lower() == "data:"


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
    return unquote_to_bytes(url[head.end() :])


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
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, ValueError):
        return "malformed"


def png_data_url(png: bytes) -> str:
    """PNG bytes as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
