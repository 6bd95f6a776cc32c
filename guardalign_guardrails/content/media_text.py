"""Tells media from text: whether a string is an image, a PDF, an SVG or a video, by its beginning alone.

Clients, proxies and servers make images of strings: of data URLs, and of files in base64 or hex. They differ in what
they forgive, so what begins like media *is* media here: where it cannot be read, the reading gives the reason. Nothing
but a file's first bytes is decoded before it is read, and every step takes time linear in the length of the string.
"""

from __future__ import annotations

import base64
import binascii
import re
import string
from collections.abc import Callable
from functools import partial
from itertools import chain, islice, product
from typing import Final, Literal, TypeAlias
from urllib.parse import unquote, unquote_to_bytes

from guardalign_guardrails.content.dialect import Reading
from guardalign_guardrails.content.payload import Reason, read_base64, read_data_url, to_base64, to_data_url
from guardalign_guardrails.images.containers import announces_image

_Form: TypeAlias = Literal["data_url", "base64", "hex"]

# Characters, without white space, below which a string is text: no file that small shows anything.
_SMALLEST: Final = 64
# No natural language has a word that long, and lines of wrapped base64 are longer.
_LINE: Final = 60
# Letters of a file: as many as tell text from what needs a closer look, as hold a signature, and the head of an SVG.
_FIRST: Final = 3
_PEEK: Final = 16
_SIGNATURE: Final = 64
_HEAD: Final = 4096
# What `announces_image` looks for.
_IMAGES: Final = (b"\x89P", b"\xff\xd8", b"GI", b"RI", b"BM", b"II", b"MM", b"\0\0", b"\xff\x4f")
_OTHERS: Final = (
    b"%PDF",
    b"%!PS",
    b"RIFF",  # AVI
    b"\x1a\x45\xdf\xa3",  # WebM, Matroska
    b"FLV\x01",
    b"OggS",
    b"\x30\x26\xb2\x75",  # WMV
    b"\0\0\1\xba",  # MPEG
    b"\0\0\1\xb3",
    b"\xff\x0a",  # JPEG XL
    b"II\xbc\x01",  # JPEG XR
    b"IIRO",  # raw formats of cameras
    b"IIU\0",
    b"FUJIFILM",  # words: allow
    b"8BPS",
    b"gimp xcf",
    b"v/1\x01",  # OpenEXR
    b"#?RA",
    b"#?RG",
    b"DDS ",
    b"icns",
    b"qoif",
    b"\0\0\2\0",  # a cursor
    b"\n\5\1",  # PCX
    b"\1\xda\0\1",  # SGI
    b"\1\xda\1\1",
    b"\x59\xa6\x6a\x95",  # Sun
    b"\xd7\xcd\xc6\x9a",  # WMF
    b"BPG\xfb",
    b"BLP",
    b"FTEX",
    b"DanM",
    b"LinS",
    b"\x80\xe8\0\0",  # Pixar
    b"\xb1\x68\xde\x3a",  # DCX
    b"(\0\0\0",  # a bitmap without its file's header
    b"Image type",
    b"AT&TFORM",  # DjVu
    b"\x97JB2",
    b"SIMPLE  =",  # FITS
    b"/* XPM",
    b"#define ",  # XBM
    *(
        b"P" + kind + gap
        for kind, gap in product((b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"f", b"F"), (b"\n", b" "))
    ),
)
# A QuickTime video may begin with any of these.
_BOXES: Final = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_MARKUP: Final = (
    *(b"<" + bytes([letter]) for letter in b"!/?" + string.ascii_letters.encode()),
    *map(bytes, product(b" \n\r\t", b" \n\r\t<")),
    b"\xef\xbb",
    b"\xff\xfe",
    b"\xfe\xff",
)
_MARKED_UP: Final = re.compile(rb"(?:\xef\xbb\xbf|\xff\xfe|\xfe\xff)?[\s\0]*(?:<|\Z)")
_SVG: Final = re.compile(rb"<(?:[a-z_][\w.-]{0,40}:)?svg[\s>/]", re.IGNORECASE)

# A browser skips tabs and line breaks anywhere in a URL, and control characters before it.
_DATA_URL: Final = re.compile(r"[\x00-\x20\s\ufeff]*" + r"[\t\r\n]*".join("data:"), re.IGNORECASE)
# Stricter than a URL field: a sentence may begin with "Data:", and so does a stream of events, whose JSON may hold a
# data URL. Some servers read no more than what follows the comma.
_MEDIA_URL: Final = re.compile(
    r"(?:image|video|audio|application)/"
    r"|[^,\s\"{]*;\s*base64\s*,"
    r"|\s*(?:image|video|audio|application)/[^,]*;\s*base64\s*,"
    r"|[^,]*,[a-z0-9+/_=-]{64,}\s*(?:,|\Z)",
    re.IGNORECASE,
)
_HEADER: Final = re.compile(r"[^,\s\"{]*,")
# Some of what decoders skip. No media begins with "+", which is "-" in the other alphabet; "%" and "_" may be letters.
_SIGNS: Final = "".join(sorted({*string.punctuation, *string.whitespace} - {*"+/%_"}))
_NOISE: Final = re.compile(r"[^A-Za-z0-9+/_-]+")
_LETTERS: Final = re.compile(r"[A-Za-z0-9+/_-]+")
_STANDARD_LETTERS: Final = re.compile(r"[A-Za-z0-9+/]+")
_HEX: Final = re.compile(r"[\s:-]*(?:0[xX])?(?:[0-9A-Fa-f][\s:-]*){48,4096}")
_HEX_NOISE: Final = re.compile(r"\A[\s:-]*0[xX]|[\s:-]+")
_UNBROKEN: Final = re.compile(rf"\s*\S{{{_LINE}}}")
_NOTHING_ELSE: Final = re.compile(r"[A-Za-z0-9+/_=%\s-]*")
_PERCENT_GROWTH: Final = 3
# Two digits, and a separator of each byte.
_HEX_GROWTH: Final = 3
_SLACK: Final = 1024


def _first_letters() -> frozenset[str]:
    """The first letters of all media in base64 or hex."""
    starts = (*_IMAGES, *_OTHERS, *_MARKUP)
    base64s = {to_base64((start + bytes([rest]))[:3])[:_FIRST] for start in starts for rest in (0, 64, 128, 192)}
    hexes = {start.hex()[:_FIRST] for start in starts}
    either_case = {"".join(each) for digits in hexes for each in product(*({d, d.upper()} for d in digits))}
    prefixed = {f"0{x}{digit}" for x in "xX" for digit in string.hexdigits}
    return frozenset(base64s | either_case | prefixed)


_FIRST_LETTERS: Final = _first_letters()
_TEXT_PAIRS: Final = frozenset(map("".join, product(string.ascii_letters + string.digits, repeat=2))).difference(
    ("da", "dA", "Da", "DA"), (letters[:2] for letters in _FIRST_LETTERS)
)


def begins_like_text(text: str) -> bool:
    """Whether a string begins with letters with which no media begins, as most texts do; a quick answer."""
    if text[:2] in _TEXT_PAIRS:
        return True
    peek = text[:_PEEK].lstrip(_SIGNS)
    if peek[:2] in _TEXT_PAIRS:
        return True
    rest = peek[1:].lstrip(_SIGNS)
    if (pair := peek[:1] + rest[:1]) in _TEXT_PAIRS:
        return True
    first = pair + rest[1:].lstrip(_SIGNS)[:1]
    is_known = first in _FIRST_LETTERS or first.lower() == "dat" or "-" in text[:_PEEK]
    return len(first) == _FIRST and first.isascii() and first.isalnum() and not is_known


def media_of_value(value: str) -> Reading | None:
    """How to read and write a value of JSON that begins like media; None for any other.

    White space, padding and whatever else a lenient decoder skips make no difference.
    """
    form = _form(value)
    return None if form is None else _reading(value, form)


def media_of_promoted_text(text: str) -> Reading | None:
    """How to read and write text that begins like media, in a place whose text some client makes an image of.

    A sentence about base64 may begin with the first letters of an image, so that there has to be a line of it.
    """
    form = _form(text)
    is_text = form is None or (form != "data_url" and not _UNBROKEN.match(text))
    return None if is_text or form is None else _reading(text, form)


def media_of_text(text: str) -> Reading | None:
    """How to read and write text that is media and nothing else; None for text that only begins like it."""
    form = _form(text)
    if form is None or any(len(line) < _LINE for line in text.split()[:-1]):
        return None
    body = text.partition(",")[2] if form == "data_url" else text
    return _reading(text, form) if _NOTHING_ELSE.fullmatch(body) else None


def first_bytes(encoded: str, most: int = _SIGNATURE, *, is_url_safe: bool = True) -> bytes:
    """The first bytes of a file in base64, whatever stands between the letters; none if there are too few.

    Args:
        encoded: Base64, whole or its beginning.
        most: Letters to decode at most.
        is_url_safe: Whether ``-`` and ``_`` are letters, or skipped as decoders of the standard alphabet do.
    """
    letters = _letters(encoded, _LETTERS if is_url_safe else _STANDARD_LETTERS, most)
    standard = letters.replace("-", "+").replace("_", "/")
    return base64.b64decode(standard[: len(standard) // 4 * 4])


def _form(text: str) -> _Form | None:
    """The form of a string that begins like media."""
    if begins_like_text(text) or len(text) < _SMALLEST:
        return None
    form = _likely_form(text)
    return form if form is not None and sum(map(len, text.split())) >= _SMALLEST else None


def _likely_form(text: str) -> _Form | None:
    if (scheme := _DATA_URL.match(text)) is not None:
        return "data_url" if _is_media_url(text, scheme.end()) else None
    if not _may_be_media(text):
        return None
    plain = unquote(text) if "%" in text else text
    if _is_base64(plain):
        return "base64"
    return "hex" if _announces_media(partial(_first_bytes_of_hex, plain)) else None


def _may_be_media(text: str) -> bool:
    """Whether the first letters of a text may be those of media in base64 or hex."""
    peek = text[:_PEEK]
    letters = _NOISE.sub("", peek)
    standard = letters.replace("-", "").replace("_", "")
    if "%" in peek or len(standard) < _FIRST:
        return True
    url_safe = letters.replace("-", "+").replace("_", "/")
    return standard[:_FIRST] in _FIRST_LETTERS or url_safe[:_FIRST] in _FIRST_LETTERS


def _is_media_url(text: str, start: int) -> bool:
    """Whether what follows ``data:`` makes a data URL of media, rather than a sentence or a stream of events."""
    if _MEDIA_URL.match(text, start) is not None:
        return True
    header = _HEADER.match(text, start)
    body = "" if header is None else text[header.end() :]
    return _is_base64(body) or _announces_media(lambda most: unquote_to_bytes(body[: _PERCENT_GROWTH * most]))


def _is_base64(text: str) -> bool:
    is_ambiguous = "-" in text or "_" in text
    alphabets = (True, False) if is_ambiguous else (True,)
    return any(_announces_media(partial(first_bytes, text, is_url_safe=is_url_safe)) for is_url_safe in alphabets)


def _announces_media(first: Callable[[int], bytes]) -> bool:
    """Whether a file announces media.

    Args:
        first: Decodes its first letters, at most so many.
    """
    head = first(_SIGNATURE)
    if announces_image(head) or head.startswith(_OTHERS) or head[4:8] in _BOXES:
        return True
    return _MARKED_UP.match(head) is not None and _SVG.search(first(_HEAD).replace(b"\0", b"")) is not None


def _letters(text: str, kind: re.Pattern[str], most: int) -> str:
    """The first letters of a text."""
    found = "".join(kind.findall(text[: most + _PEEK]))
    if len(found) < most:
        # Something stands between them; most texts end before that.
        found = "".join(islice(chain.from_iterable(run[0] for run in kind.finditer(text)), most))
    return found[:most]


def _first_bytes_of_hex(text: str, most: int) -> bytes:
    found = _HEX.match(text)
    digits = "" if found is None else _HEX_NOISE.sub("", found[0])[:most]
    return bytes.fromhex(digits[: len(digits) // 2 * 2])


def _reading(text: str, form: _Form) -> Reading:
    if form == "data_url":
        return Reading(lambda most: read_data_url(text, most), to_data_url)
    if form == "hex":
        return Reading(lambda most: _read_hex(text, most), lambda data, _: data.hex())
    return Reading(lambda most: read_base64(text, most), lambda data, _: to_base64(data))


def _read_hex(text: str, max_bytes: int) -> bytes | Reason:
    """The bytes of hex text, or why there are none."""
    if len(text) > 2 * _HEX_GROWTH * max_bytes + _SLACK:
        return "too_large"
    try:
        data = binascii.unhexlify(_HEX_NOISE.sub("", unquote(text) if "%" in text else text))
    except (binascii.Error, ValueError):
        return "malformed"
    return data if len(data) <= max_bytes else "too_large"
