"""Which images are in the body of a request, read without any code of the package.

Nothing here knows a provider. Every string of the body, whatever it stands under, is searched for text that decodes to
an image: base64 of both alphabets, hex, percent-encoding and Python's ``b"..."``, alone or within other text, and again
within what was decoded.
"""

from __future__ import annotations

import ast
import base64
import binascii
import io
import json
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

from PIL import Image

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{64,}")
_HEX = re.compile(r"[0-9A-Fa-f]{64,}")
_PRINTED = re.compile(r"""b'(?:\\.|[^'\\])*'|b"(?:\\.|[^"\\])*\"""")
_PADDED = re.compile(_BASE64.pattern + "=*")
# LangChain's ids of blocks, where an object is in memory, and what Bedrock's client calls a document without a name.
_RANDOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9A-F]{6,}|\b[0-9a-f]{12}\b")
_DEPTH = 3
# Bytes of an original that no masked image has; long enough to occur nowhere by chance.
_SHARE = 24


def images_in(body: bytes) -> list[Image.Image]:
    """The distinct images of a body, decoded, in the order of their first appearance."""
    found: dict[tuple[tuple[int, int], bytes], Image.Image] = {}
    for text in _texts(body):
        for data in _decoded(text, _DEPTH):
            for image in _opened(data):
                found.setdefault((image.size, image.tobytes()), image)
    return list(found.values())


def carries(body: bytes, original: bytes) -> bool:
    """Whether any part of an encoded image's pixel data is in a body, in any encoding."""
    parts = [original[place : place + _SHARE] for place in _pixel_data(original)]
    encoded = {code for part in parts for code in _encodings(part)}
    return any(code in text for text in _compact_texts(body) for code in encoded)


def without_images(body: bytes) -> Any:
    """A body's JSON with ``<image>`` for each run of letters, or printed bytes, that may be one, and no random ids."""
    text = body.decode()
    return _replaced(json.loads(text))


def said(body: bytes) -> str:
    """All strings of a body, as its reader sees them."""
    return "\n".join(_texts(body))


def _texts(body: bytes) -> Iterator[str]:
    text = body.decode("utf-8", "surrogateescape")
    try:
        yield from _strings(json.loads(text))
    except ValueError:
        yield text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        known = _RANDOM.sub("<id>", value)
        return _PADDED.sub("<image>", _PRINTED.sub("<image>", known))
    if isinstance(value, dict):
        return {key: _replaced(item) for key, item in value.items()}
    return [_replaced(item) for item in value] if isinstance(value, list) else value


def _decoded(text: str, depth: int) -> Iterator[bytes]:
    """What the encoded runs of a text stand for, and those of what they stand for."""
    yield text.encode("utf-8", "surrogateescape")
    if "%" in text:
        yield urllib.parse.unquote_to_bytes(text)
    plain = "".join(urllib.parse.unquote(text).split()) if "%" in text else "".join(text.split())
    datas = [ast.literal_eval(printed) for printed in _PRINTED.findall(text)]
    for run in _BASE64.findall(plain):
        standard = run.replace("-", "+").replace("_", "/")
        # An image may begin in the middle of a run: at any of the four places of a base64 group.
        for start in range(4):
            whole = standard[start : start + (len(standard) - start) // 4 * 4]
            tail = standard[start + len(whole) :]
            datas.append(base64.b64decode(whole + (tail + "=" * (4 - len(tail)) if len(tail) > 1 else "")))
    for run in _HEX.findall(plain):
        datas += [binascii.unhexlify(run[start : start + (len(run) - start) // 2 * 2]) for start in range(2)]
    yield from datas
    if depth > 1:
        for data in datas:
            yield from _decoded(data.decode("latin-1"), depth - 1)


def _opened(data: bytes) -> Iterator[Image.Image]:
    for signature in _SIGNATURES:
        place = data.find(signature)
        while place >= 0:
            try:
                with Image.open(io.BytesIO(data[place:])) as image:
                    yield image.convert("RGB")
            except (OSError, SyntaxError, ValueError):
                pass
            place = data.find(signature, place + 1)


def _compact_texts(body: bytes) -> Iterator[str]:
    yield body.decode("latin-1")
    for text in _texts(body):
        yield from (text, "".join(text.split()))
        for data in _decoded(text, _DEPTH):
            yield data.decode("latin-1")


def _pixel_data(original: bytes) -> range:
    """Where in a file samples of its pixel data begin."""
    start = original.find(b"IDAT") + 4 if original.startswith(b"\x89PNG") else original.find(b"\xff\xda") + 14
    end = len(original) - 16
    assert 3 < start < end - 2 * _SHARE, "the image is too small to be recognised"
    return range(start + _SHARE // 2, end - _SHARE, _SHARE)


def _encodings(part: bytes) -> Iterator[str]:
    yield part.decode("latin-1")
    yield repr(part)[2:-1]
    yield part.hex()
    yield part.hex().upper()
    yield urllib.parse.quote(part, safe="")
    for shift in range(3):
        # Whole groups of three bytes only: what stands beside them changes the rest.
        inner = part[shift : shift + (len(part) - shift) // 3 * 3]
        yield base64.b64encode(inner).decode()
        yield base64.urlsafe_b64encode(inner).decode()
