"""Finds encoded images in text: data URLs alone or within Markdown, HTML or JSON; text that is an image in base64.

Each image is a span, so that the text around it stays. An example of a data URL with a few characters, or base64 that
announces no image, is text like any other. Nothing is decoded here beyond a file's first bytes, no HTML entity is
resolved, and no link is followed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from guardalign_guardrails.content.dialect import Reading
from guardalign_guardrails.content.media_text import first_bytes
from guardalign_guardrails.content.payload import read_base64, read_data_url, to_base64, to_data_url
from guardalign_guardrails.images.containers import announces_image

# 66 bytes: no file that small shows anything, while texts about data URLs are full of examples that small.
_SMALLEST: Final = 88
# Lines of wrapped base64 have 64 or 76 characters; a natural language has hardly a word that long.
_LINE: Final = 60
_PEEK: Final = 256
_SNIFFED: Final = 24
_MEDIA: Final = re.compile(r"(image|video|audio)/|application/pdf$")
# Every part is bounded, so that a text full of beginnings costs no more than its length.
_HEAD: Final = re.compile(
    r"data:[ \t]{0,4}(?P<mime>[^\s;,\"'<>()]{0,100})"
    r"(?P<parameters>(?:[ \t]{0,4};[ \t]{0,4}[a-z0-9_-]{1,40}(?:=(?:\"[^\",\s]{0,100}\"|[^;,\s\"'<>()]{0,100}))?){0,8})"
    r"[ \t]{0,4},",
    re.IGNORECASE,
)
_CHARS: Final = r"[A-Za-z0-9+/_%\\-]"
_SPACED: Final = re.compile(rf"\s*{_CHARS}+(?:\s+{_CHARS}+)*={{0,2}}")
_TO_THE_END: Final = re.compile(_SPACED.pattern + r"\s*\Z")
_UNSPACED: Final = re.compile(rf"\s*{_CHARS}+(?:\r?\n{_CHARS}{{{_LINE},}})*(?:\r?\n{_CHARS}+(?==))?={{0,2}}")
_LONG_WORD: Final = re.compile(rf"\s*\S{{{_LINE}}}")
# By the character before a data URL: how far it may reach. A colon ends base64, and keeps the search linear.
_REACH: Final = {
    '"': r'[^"]*',
    "'": r"[^']*",
    "(": r"[^)\s]*",
    "<": r"[^>\s]*",
    "`": r"[^`]*",
    "": r"[^\s\"'<>)]*",
}
_REACH_OF_BASE64: Final = {before: re.compile(reach.replace("[^", "[^:")) for before, reach in _REACH.items()}
_REACH_OF_PLAIN: Final = {before: re.compile(reach) for before, reach in _REACH.items()}
# JSON may write a slash as "\/" and a line break as "\n".
_ESCAPE: Final = re.compile(r"\\[nrt]?")


@dataclass(frozen=True)
class EncodedImage:
    """An image in a text.

    Attributes:
        span: Start and end of the characters that are the image.
        reading: How to read it, and to write another one for the span.
        is_labelled: Whether it says itself what kind of file it is, as a data URL does.
    """

    span: tuple[int, int]
    reading: Reading = field(repr=False)
    is_labelled: bool


def find_encoded(text: str) -> list[EncodedImage]:
    """All images in a text, in reading order."""
    if (bare := _bare(text)) is not None:
        return [bare]
    if "data:" not in text.lower():
        return []
    found = []
    end = 0
    first = len(text) - len(text.lstrip())
    while (head := _HEAD.search(text, end)) is not None:
        stop = _end(text, head, is_first=head.start() == first)
        end = stop or head.end()
        if stop is not None:
            found.append(_data_url(text, head.start(), stop))
    return found


def without_escapes(text: str) -> str:
    """Base64 as it was before JSON wrote it into a text."""
    return _ESCAPE.sub("", text)


def _bare(text: str) -> EncodedImage | None:
    """The text as one image in base64."""
    if not announces_image(_first_bytes(text)):
        return None
    start = len(text) - len(text.lstrip())
    end = len(text.rstrip())
    if end - start < _SMALLEST:
        return None
    return EncodedImage(
        (start, end),
        Reading(lambda most: read_base64(text[start:end], most), lambda data, _: to_base64(data)),
        is_labelled=False,
    )


def _end(text: str, head: re.Match[str], *, is_first: bool) -> int | None:
    """Where a data URL ends; None if it is an example in a text about data URLs, or stands for no media."""
    is_media = _MEDIA.match(head["mime"].replace("\\", "").lower()) is not None
    is_base64 = any(part.strip().lower() == "base64" for part in head["parameters"].split(";"))
    before = text[head.start() - 1 : head.start()]
    if is_base64:
        body = _body(text, head.end(), before)
        is_meant = (is_media and _LONG_WORD.match(body)) or announces_image(_first_bytes(body))
        if len(body) >= _SMALLEST and is_meant:
            return head.end() + len(body)
    elif not is_media:
        return None
    # Some decoders skip what is no base64, so it may be an image all the same.
    reach = text[head.end() :].rstrip() if is_first else _reach(text, head.end(), before, is_base64=is_base64)
    is_meant = announces_image(_first_bytes(reach)) if is_base64 else True
    return head.end() + len(reach) if len(reach) >= _SMALLEST and is_meant else None


def _body(text: str, start: int, before: str) -> str:
    """The base64 at ``start``, without text behind it that is no base64."""
    if before and before in _REACH:
        found = _SPACED.match(text, start)
    else:
        found = _TO_THE_END.match(text, start) or _UNSPACED.match(text, start)
    # A backslash at the end belongs to a quote of JSON.
    return found[0].rstrip().rstrip("\\") if found else ""


def _reach(text: str, start: int, before: str, *, is_base64: bool) -> str:
    """Everything that may belong to the data URL whose data begins at ``start``."""
    reaches = _REACH_OF_BASE64 if is_base64 else _REACH_OF_PLAIN
    found = reaches.get(before, reaches[""]).match(text, start)
    return found[0].rstrip().rstrip("\\") if found else ""


def _first_bytes(encoded: str) -> bytes:
    """The bytes that the first characters of base64 encode, whatever stands between them; none if there are too few."""
    peek = encoded[:_PEEK] if encoded[:1].strip() else encoded.lstrip()[:_PEEK]
    return first_bytes(without_escapes(unquote(peek) if "%" in peek else peek), _SNIFFED)


def _data_url(text: str, start: int, end: int) -> EncodedImage:
    return EncodedImage(
        (start, end),
        Reading(lambda most: read_data_url(without_escapes(text[start:end]), most), to_data_url),
        is_labelled=True,
    )
