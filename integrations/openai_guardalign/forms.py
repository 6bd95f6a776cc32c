"""Reads and writes ``multipart/form-data``, the form in which the SDK uploads files.

A server may read a form in another way than it is read here. So what was read is written again, in the one way in which
the SDK's HTTP clients write it; a form that is not the same to the byte is not read at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

_TYPE: Final = b"multipart/form-data"
# Of headers, which are bytes: every byte is a character.
_HEADERS: Final = "latin-1"


@dataclass(frozen=True)
class FormField:
    """A field of a form.

    Attributes:
        name: As it is written in its header.
        data: Its value.
        filename: The name of an uploaded file; None for a value that is no file.
        media_type: What its header states; None if it states nothing.
    """

    name: str
    data: bytes = field(repr=False)
    filename: str | None = None
    media_type: str | None = None


def read_form(content: bytes, content_type: str) -> tuple[FormField, ...] | None:
    """The fields of a form in order; None if it is none, or can be read in two ways.

    Args:
        content: The body of a request.
        content_type: Its header of that name.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != _TYPE or not boundary or content_type.encode(_HEADERS, "replace") != _TYPE + b"; boundary=" + boundary:
        return None
    collected = _Collector()
    try:
        parser = MultipartParser(boundary, collected.callbacks())
        parser.write(content)
        parser.finalize()
    except FormParserError:
        return None
    fields = [_field(headers, bytes(data)) for headers, data in collected.parts]
    read = tuple(each for each in fields if each is not None)
    # Some servers find a boundary where others find a value that begins like one.
    is_plain = len(read) == len(fields) and content.count(b"--" + boundary) == len(read) + 1
    return read if is_plain and write_form(read, content_type) == content else None


def write_form(fields: Sequence[FormField], content_type: str) -> bytes:
    """The fields as the SDK's HTTP clients write them.

    Args:
        fields: In order.
        content_type: The header of the request, which names the boundary.
    """
    boundary = content_type.encode(_HEADERS, "replace").partition(b"boundary=")[2]
    parts = [b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary, _headers(each), each.data) for each in fields]
    return b"".join([*parts, b"--%s--\r\n" % boundary])


class _Collector:
    """The parts of a form, each with its headers, as a parser finds them."""

    def __init__(self) -> None:
        self.parts: list[tuple[list[tuple[bytes, bytes]], bytearray]] = []
        self._name, self._value = b"", b""

    def callbacks(self) -> Any:
        names = ("part_begin", "header_field", "header_value", "header_end", "part_data")
        return {f"on_{name}": getattr(self, name) for name in names}

    def part_begin(self) -> None:
        self.parts.append(([], bytearray()))

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self.parts[-1][0].append((self._name, self._value))
        self._name, self._value = b"", b""

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1][1].extend(data[start:end])


def _field(headers: Sequence[tuple[bytes, bytes]], data: bytes) -> FormField | None:
    """The field of a part; None if its headers are not those of a field."""
    stated = {name.lower(): value for name, value in headers}
    _, options = parse_options_header(stated.get(b"content-disposition"))
    name, filename, media_type = options.get(b"name"), options.get(b"filename"), stated.get(b"content-type")
    if name is None:
        return None
    return FormField(
        name.decode(_HEADERS),
        data,
        None if filename is None else filename.decode(_HEADERS),
        None if media_type is None else media_type.decode(_HEADERS),
    )


def _headers(each: FormField) -> bytes:
    options = [("name", each.name), *([] if each.filename is None else [("filename", each.filename)])]
    written = [f'; {key}="{value}"'.replace("\\", "\\\\") for key, value in options]
    lines = [f"Content-Disposition: form-data{''.join(written)}"]
    if each.media_type is not None:
        lines.append(f"Content-Type: {each.media_type}")
    return "\r\n".join(lines).encode(_HEADERS)
