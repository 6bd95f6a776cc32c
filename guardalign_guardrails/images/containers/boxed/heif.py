"""AVIF and HEIC: one primary item and its alpha, nothing derived but a grid of tiles, sizes checked in every layer.

Sequences and further images are never opened; they are departures. Overlays, identities and tone maps are refused: each
is a second way to make pixels.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from guardalign_guardrails.images.containers.boxed.bitstreams import av1_sizes, hevc_configured, hevc_sizes
from guardalign_guardrails.images.containers.boxed.boxes import Item, Items, Span, boxes, read_items
from guardalign_guardrails.images.containers.common import Container
from guardalign_guardrails.images.containers.metadata import MAX_PROFILE_BYTES, exif_orientation, xmp_orientations
from guardalign_guardrails.images.limits import ImageLimits, check_size, refusal
from guardalign_guardrails.images.pixels import turn_between

_AVIF_BRANDS: Final = {b"avif", b"avis"}
_HEIF_BRANDS: Final = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2"}
_SEQUENCE_BRANDS: Final = {b"avis", b"msf1", b"hevc", b"hevx"}
_TOP: Final = {b"ftyp", b"meta", b"mdat", b"free", b"skip"}
_ALPHA: Final = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
_METADATA: Final = {b"Exif", b"mimeapplication/rdf+xml"}
_PLAIN_PROPERTIES: Final = {b"ispe", b"pixi", b"colr", b"av1C", b"hvcC", b"irot", b"imir", b"pasp", b"auxC"}
# BT.709 or unstated primaries, sRGB's or an unstated curve.
_PLAIN_PRIMARIES, _PLAIN_CURVES = (1, 2), (13, 2)
_MAX_TILES: Final = 512
_MAX_TRACKS: Final = 64
# A decoder's configuration has about a hundred bytes; of other properties only the beginning is looked at.
_MAX_RECORD: Final = 4_096
_HEAD: Final = 64
# Coded pixels as a multiple of max_pixels: tiles overlap the edges, and alpha is a second image.
_MOST_CODED: Final = 4
# EXIF orientations of 0 to 3 quarter turns to the left, and of swapping top and bottom or left and right.
_TURNS: Final = (1, 8, 3, 6)
_MIRRORS: Final = (4, 2)


def heif_format(head: bytes) -> str | None:
    """AVIF or HEIF by the brands in a file's first box, None for other media files."""
    if head[4:8] != b"ftyp":
        return None
    end = min(len(head), int.from_bytes(head[:4], "big"))
    brands = [head[at : at + 4] for at in (8, *range(16, end, 4))]
    if brands[0] in _AVIF_BRANDS or (brands[0] in (b"mif1", b"msf1") and _AVIF_BRANDS.intersection(brands)):
        return "AVIF"
    return "HEIF" if brands[0] in _HEIF_BRANDS else None


def read_avif(data: bytes, limits: ImageLimits) -> Container:
    """Walk an AVIF's boxes; Pillow shows the primary item as stored, so the stated turn is left to the decoder."""
    container, turn = _read(data, limits, b"av01")
    return _with(container, data, orientation=turn)


def read_heif(data: bytes, limits: ImageLimits) -> Container:
    """Walk a HEIC's boxes; libheif turns the primary item itself, so as stored it is the other reading."""
    container, turn = _read(data, limits, b"hvc1")
    return _with(container, data, others=() if turn == 1 else (turn_between(turn, 1),))


def _with(container: Container, data: bytes, *, orientation: int = 1, others: tuple[int, ...] = ()) -> Container:
    has_frames = any(box.kind == b"moov" for box in boxes(data, 0, len(data)))
    return Container(
        container.format,
        _without_sequence(data) if has_frames else data,
        container.size,
        orientations=(orientation,),
        other_orientations=(*container.other_orientations, *others),
        profile=container.profile,
        is_lossy=True,
        departures=container.departures,
        hidden_frames=container.hidden_frames,
    )


def _without_sequence(data: bytes) -> bytes:
    """The file as a still: its tracks are named free space, and its brand is that of a still."""
    patched = bytearray(data)
    for box in boxes(data, 0, len(data)):
        if box.kind in (b"moov", b"moof"):
            at = data.rindex(box.kind, 0, box.start)
            patched[at : at + 4] = b"free"
        elif box.kind == b"ftyp":
            for at in (box.start, *range(box.start + 8, box.end, 4)):
                if bytes(patched[at : at + 4]) in _SEQUENCE_BRANDS:
                    patched[at : at + 4] = b"avif" if heif_format(data) == "AVIF" else b"heic"
    return bytes(patched)


def _read(data: bytes, limits: ImageLimits, codec: bytes) -> tuple[Container, int]:
    """The container without its turn, and the turn that the primary item states."""
    departures: set[str] = set()
    top: Counter[bytes] = Counter()
    meta: Span | None = None
    for box in boxes(data, 0, len(data)):
        top[box.kind] += 1
        if box.kind == b"meta":
            meta = box
        if box.kind not in _TOP:
            departures.add("animation" if box.kind == b"moov" else "unlisted_part")
    if top[b"ftyp"] != 1 or top[b"meta"] != 1 or meta is None:
        raise refusal("unsupported_format" if top[b"moov"] else "corrupt")
    items = read_items(data, meta)
    primary = items.by_number[items.primary]
    for box in items.properties:
        if box.kind == b"ispe":
            width, height = struct.unpack_from(">II", data, box.start + 4)
            check_size(width, height, limits)
    size = _size(data, primary)
    shown = _shown(items, data, codec, size, limits)
    if items.unlisted:
        departures.add("unlisted_part")
    departures |= set(_item_departures(items, shown))
    departures |= set(_property_departures(data, primary))
    profile, colour = _colour(data, [items.by_number[number] for number in (items.primary, *shown)])
    departures |= colour
    others, metadata = _orientations(items)
    departures |= metadata
    container = Container(
        "AVIF" if codec == b"av01" else "HEIF",
        data,
        size,
        other_orientations=others,
        profile=profile,
        departures=tuple(sorted(departures)),
        # The primary item is taken for one of them, and some are always left.
        hidden_frames=max((count - 1 for count in (2, *_sample_counts(data))) if top[b"moov"] else (0,)),
    )
    return container, _turn(data, primary)


def _sample_counts(data: bytes) -> Iterator[int]:
    """Frames of each track of a sequence, as many as it states."""
    for moov in (box for box in boxes(data, 0, len(data)) if box.kind == b"moov"):
        for track in islice(boxes(data, moov.start, moov.end), _MAX_TRACKS):
            inner: Span | None = track if track.kind == b"trak" else None
            for kind in (b"mdia", b"minf", b"stbl", b"stsz"):
                children = () if inner is None else islice(boxes(data, inner.start, inner.end), _MAX_TRACKS)
                inner = next((box for box in children if box.kind == kind), None)
            if inner is not None:
                yield struct.unpack_from(">I", data, inner.start + 8)[0]


def _size(data: bytes, item: Item) -> tuple[int, int]:
    sizes = [box for box in item.properties if box.kind == b"ispe"]
    if len(sizes) != 1:
        raise refusal("corrupt")
    width, height = struct.unpack_from(">II", data, sizes[0].start + 4)
    return width, height


def _shown(items: Items, data: bytes, codec: bytes, size: tuple[int, int], limits: ImageLimits) -> list[int]:
    """Numbers of the items that make the image besides the primary one: tiles and alpha; all sizes are checked."""
    numbers: list[int] = []
    alphas = [source for kind, source, target in items.references if kind == b"auxl" and target == items.primary]
    alphas = [number for number in alphas if number in items.by_number and _is_alpha(data, items.by_number[number])]
    if len(alphas) > 1:
        raise refusal("corrupt")
    for number in (items.primary, *alphas):
        if number != items.primary:
            numbers.append(number)
        item = items.by_number[number]
        if item.kind == b"grid":
            tiles = items.targets(b"dimg", number)
            _check_grid(item, len(tiles), size)
            numbers += tiles
        elif item.kind != codec:
            raise refusal("unsupported_format")
    area = 0
    for number in (items.primary, *numbers):
        part = items.by_number.get(number)
        if part is None or part.kind not in (codec, b"grid"):
            raise refusal("unsupported_format")
        if part.kind == codec:
            width, height = _size(data, part)
            # A tile that is shown twice is decoded twice.
            area += width * height
            if area > _MOST_CODED * limits.max_pixels:
                raise refusal("too_many_pixels")
    for number in {items.primary, *numbers}:
        if items.by_number[number].kind == codec:
            _check_coded(data, items.by_number[number], codec, limits)
    return numbers


def _is_alpha(data: bytes, item: Item) -> bool:
    return any(box.kind == b"auxC" and data.startswith(_ALPHA, box.start + 4, box.end) for box in item.properties)


def _check_grid(item: Item, tiles: int, size: tuple[int, int]) -> None:
    """Check that a grid has the size that its boxes say, and as many tiles as it shows."""
    if item.data is None or len(item.data) < 8 or item.data[0] != 0:
        raise refusal("corrupt")
    rows, columns = item.data[2] + 1, item.data[3] + 1
    width, height = struct.unpack_from(">II" if item.data[1] & 1 else ">HH", item.data, 4)
    if rows * columns != tiles or tiles > _MAX_TILES or (width, height) != size:
        raise refusal("corrupt")


def _check_coded(data: bytes, item: Item, codec: bytes, limits: ImageLimits) -> None:
    """Check the sizes that a coded item's own stream states."""
    if item.data is None:
        raise refusal("corrupt")
    records = [box for box in item.properties if box.kind in (b"av1C", b"hvcC")]
    if len(records) != 1 or records[0].end - records[0].start > _MAX_RECORD:
        raise refusal("corrupt")
    record = data[records[0].start : records[0].end]
    if codec == b"av01":
        sizes = [*av1_sizes(record[4:]), *av1_sizes(item.data)]
    else:
        length_bytes, sizes = hevc_configured(record)
        sizes += hevc_sizes(item.data, length_bytes)
    if not sizes:
        raise refusal("corrupt")
    for width, height in sizes:
        check_size(width, height, limits)


def _item_departures(items: Items, shown: list[int]) -> Iterator[str]:
    for number, item in items.by_number.items():
        if number != items.primary and number not in shown and item.kind not in _METADATA:
            yield "further_images"
    if any(kind not in (b"auxl", b"dimg", b"cdsc", b"thmb") for kind, _, _ in items.references):
        yield "unlisted_part"
    metadata = Counter(item.kind for item in items.by_number.values() if item.kind in _METADATA)
    if any(count > 1 for count in metadata.values()):
        yield "repeated_part"


def _property_departures(data: bytes, item: Item) -> Iterator[str]:
    kinds = Counter(box.kind for box in item.properties)
    if any(count > 1 for kind, count in kinds.items() if kind != b"colr"):
        yield "repeated_part"
    for box in item.properties:
        body = data[box.start : min(box.end, box.start + _HEAD)]
        if box.kind not in _PLAIN_PROPERTIES:
            yield "crop" if box.kind == b"clap" else "unlisted_part"
        elif _is_deep(box.kind, body):
            yield "bit_depth"
        elif box.kind == b"pasp" and body[:4] != body[4:8]:
            yield "aspect"


def _is_deep(kind: bytes, body: bytes) -> bool:
    """Whether a property says that samples have another number of bits than 8."""
    if kind == b"pixi":
        return set(body[5:]) != {8}
    if kind == b"av1C":
        return body[2] & 0x60 != 0
    return kind == b"hvcC" and (body[17] & 7 or body[18] & 7) != 0


def _colour(data: bytes, shown: list[Item]) -> tuple[bytes, set[str]]:
    """The ICC profile, and departures of how the colours are described."""
    departures: set[str] = set()
    # Boxes are told apart by their place, so that one that many items share is copied once.
    spans = {box for item in shown for box in item.properties if box.kind == b"colr"}
    described = {data[box.start : box.end] for box in spans}
    kinds = Counter(body[:4] for body in described)
    profiles = [body[4:] for body in described if body[:4] in (b"prof", b"rICC")]
    if len(profiles) > 1 or kinds[b"nclx"] > 1:
        departures.add("repeated_part")
    if not described or kinds.keys() - {b"nclx", b"prof", b"rICC"}:
        departures.add("colour_space")
    for body in described:
        if body[:4] == b"nclx" and not profiles:
            primaries, curve = struct.unpack_from(">HH", body, 4)
            if primaries not in _PLAIN_PRIMARIES or curve not in _PLAIN_CURVES:
                departures.add("colour_space")
    profile = profiles[0] if profiles else b""
    if len(profile) > MAX_PROFILE_BYTES:
        departures.add("broken_profile")
        profile = b""
    return profile, departures


def _orientations(items: Items) -> tuple[tuple[int, ...], set[str]]:
    """Orientations that EXIF and XMP state; media files turn by properties, but some readers go by these."""
    found: set[int] = set()
    departures: set[str] = set()
    for item in items.by_number.values():
        if item.kind not in _METADATA:
            continue
        if item.data is None:
            departures.add("broken_metadata")
            continue
        if item.kind == b"Exif":
            start = 4 + int.from_bytes(item.data[:4], "big")
            orientation, is_plain = exif_orientation(item.data[start:])
            found.add(orientation)
        else:
            orientations, is_plain = xmp_orientations(item.data)
            found.update(orientations)
        if not is_plain:
            departures.add("broken_metadata")
    return tuple(sorted(found)), departures


def _turn(data: bytes, item: Item) -> int:
    """EXIF orientation that stands for the turns and mirrors stated in an item's properties, in their order."""
    steps: dict[bytes, Callable[[int], int]] = {
        b"irot": lambda value: _TURNS[value & 3],
        b"imir": lambda value: _MIRRORS[value & 1],
    }
    orientation = 1
    for box in item.properties:
        if box.kind in steps:
            step = steps[box.kind](data[box.start])
            # What leads from the opposite of this step to what was before is both, one after the other.
            orientation = turn_between(turn_between(orientation, 1), step)
    return orientation
