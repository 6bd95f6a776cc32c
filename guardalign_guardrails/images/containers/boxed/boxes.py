"""Boxes of ISO media files, and the items in their ``meta`` box: what each is, where its bytes lie, what describes it.

Nothing is believed about lengths: a box that leaves its parent is refused, and so is a file with more boxes, items or
extents than any camera writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from guardalign_guardrails.images.limits import refusal

_MAX_BOXES: Final = 20_000
_MAX_ITEMS: Final = 4_096
_MAX_EXTENTS: Final = 64


@dataclass(frozen=True)
class Span:
    """A box: its kind, and where its content begins and ends in the file."""

    kind: bytes
    start: int
    end: int


@dataclass(frozen=True)
class Item:
    """One item of a media file.

    Attributes:
        kind: Four letters, such as ``av01``; for ``mime`` items the content type follows.
        data: Its bytes; None if they lie outside of the file or in another item.
        properties: The boxes that describe it, in order.
    """

    kind: bytes
    data: bytes | None = field(repr=False)
    properties: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Items:
    """The items of a ``meta`` box by number, the number of the one to show, and references: kind, from, to."""

    primary: int
    by_number: dict[int, Item]
    references: tuple[tuple[bytes, int, int], ...]
    properties: tuple[Span, ...]
    unlisted: frozenset[bytes]

    def targets(self, kind: bytes, number: int) -> list[int]:
        """What an item refers to in one way."""
        return [target for each, source, target in self.references if each == kind and source == number]


def boxes(data: bytes, start: int, end: int) -> Iterator[Span]:
    """The boxes between two offsets.

    Raises:
        ImageDecodeError: ``corrupt`` for a box that ends before its header does, ``truncated`` for one that ends later
            than its parent.
    """
    count = 0
    while start < end:
        if start + 8 > end:
            raise refusal("truncated")
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        elif size == 0:
            size = end - start
        count += 1
        if size < head or count > _MAX_BOXES:
            raise refusal("corrupt")
        if start + size > end:
            raise refusal("truncated")
        yield Span(kind, start + head, start + size)
        start += size


def read_items(data: bytes, meta: Span) -> Items:
    """Read a ``meta`` box.

    Raises:
        ImageDecodeError: ``corrupt`` if a part is missing, doubled or out of bounds.
    """
    parts: dict[bytes, Span] = {}
    for box in boxes(data, meta.start + 4, meta.end):
        if box.kind in parts:
            raise refusal("corrupt")
        parts[box.kind] = box
    if not {b"pitm", b"iinf", b"iloc", b"iprp"} <= parts.keys():
        raise refusal("corrupt")
    at = parts[b"pitm"].start
    primary = _number(data, at + 4, 4 if data[at] else 2)
    kinds = dict(_kinds(data, parts[b"iinf"]))
    places = dict(_places(data, parts[b"iloc"], parts.get(b"idat")))
    inner = {box.kind: box for box in boxes(data, parts[b"iprp"].start, parts[b"iprp"].end)}
    if not {b"ipco", b"ipma"} <= inner.keys():
        raise refusal("corrupt")
    properties = tuple(boxes(data, inner[b"ipco"].start, inner[b"ipco"].end))
    owned = dict(_owned(data, inner[b"ipma"], properties))
    items = {number: Item(kind, places.get(number), owned.get(number, ())) for number, kind in kinds.items()}
    if primary not in items:
        raise refusal("corrupt")
    references = tuple(_references(data, parts[b"iref"])) if b"iref" in parts else ()
    listed = {b"hdlr", b"pitm", b"iinf", b"iloc", b"iprp", b"iref", b"idat", b"dinf"}
    return Items(primary, items, references, properties, frozenset(parts.keys() - listed))


def _number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise refusal("truncated")
    return int.from_bytes(data[at : at + size], "big")


def _kinds(data: bytes, iinf: Span) -> Iterator[tuple[int, bytes]]:
    wide = data[iinf.start] > 0
    for count, box in enumerate(boxes(data, iinf.start + (8 if wide else 6), iinf.end)):
        version = data[box.start]
        if box.kind != b"infe" or version not in (2, 3) or count >= _MAX_ITEMS:
            raise refusal("corrupt")
        at = box.start + (6 if version == 2 else 8)
        kind = data[at + 2 : at + 6]
        if kind == b"mime":
            # A name, then the content type.
            kind += data[at + 6 : box.end].partition(b"\0")[2].partition(b"\0")[0]
        yield _number(data, box.start + 4, at - box.start - 4), kind


def _places(data: bytes, iloc: Span, idat: Span | None) -> Iterator[tuple[int, bytes | None]]:
    version = data[iloc.start]
    if version > 2:
        raise refusal("corrupt")
    sizes = data[iloc.start + 4], data[iloc.start + 5]
    offset_size, length_size, base_size = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
    index_size = sizes[1] & 15 if version else 0
    wide = 4 if version == 2 else 2
    count = _number(data, iloc.start + 6, wide)
    at = iloc.start + 6 + wide
    if count > _MAX_ITEMS:
        raise refusal("corrupt")
    total = 0
    for _ in range(count):
        number = _number(data, at, wide)
        at += wide
        method = 0
        if version:
            method = _number(data, at, 2) & 15
            at += 2
        is_here = _number(data, at, 2) == 0
        base = _number(data, at + 2, base_size)
        extents = _number(data, at + 2 + base_size, 2)
        at += 4 + base_size
        if extents > _MAX_EXTENTS or at > iloc.end:
            raise refusal("corrupt")
        start, end = (0, len(data)) if method == 0 else (idat.start, idat.end) if idat and method == 1 else (0, -1)
        pieces: list[bytes] | None = [] if is_here else None
        for _ in range(extents):
            at += index_size
            offset = start + base + _number(data, at, offset_size)
            length = _number(data, at + offset_size, length_size)
            at += offset_size + length_size
            length = length or end - offset
            # Items that overlap would multiply the file.
            total += length
            if total > 2 * len(data):
                raise refusal("corrupt")
            if offset + length > end or length < 0:
                pieces = None
            elif pieces is not None:
                pieces.append(data[offset : offset + length])
        yield number, None if pieces is None else b"".join(pieces)


def _owned(data: bytes, ipma: Span, properties: tuple[Span, ...]) -> Iterator[tuple[int, tuple[Span, ...]]]:
    version, flags = data[ipma.start], data[ipma.start + 3]
    wide = 4 if version else 2
    count = _number(data, ipma.start + 4, 4)
    at = ipma.start + 8
    if count > _MAX_ITEMS:
        raise refusal("corrupt")
    seen: set[int] = set()
    for _ in range(count):
        number, size = _number(data, at, wide), _number(data, at + wide, 1)
        at += wide + 1
        step = 2 if flags & 1 else 1
        places = [_number(data, at + step * index, step) & (0x7FFF if step == 2 else 0x7F) for index in range(size)]
        at += step * size
        if number in seen or any(place > len(properties) for place in places) or at > ipma.end:
            raise refusal("corrupt")
        seen.add(number)
        # Place 0 stands for no property.
        yield number, tuple(properties[place - 1] for place in places if place)


def _references(data: bytes, iref: Span) -> Iterator[tuple[bytes, int, int]]:
    wide = 4 if data[iref.start] else 2
    total = 0
    for box in boxes(data, iref.start + 4, iref.end):
        source, count = _number(data, box.start, wide), _number(data, box.start + wide, 2)
        total += count
        if total > _MAX_ITEMS or box.start + wide + 2 + wide * count > box.end:
            raise refusal("corrupt")
        for index in range(count):
            yield box.kind, source, _number(data, box.start + wide + 2 + wide * index, wide)
