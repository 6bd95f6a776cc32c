"""AVIF, HEIC, JPEG 2000 and MPO: one image of each, bounded before a pixel is allocated, other readings named."""

import importlib
import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms

from guardalign_guardrails.errors import ImageDecodeError
from guardalign_guardrails.images import ImageLimits, decode
from guardalign_guardrails.images.containers import announces_image, inspect, media_type
from guardalign_guardrails.images.containers.boxed.boxes import boxes, read_items
from guardalign_guardrails.images.pixels import upright

SIZE = (96, 64)


def scene(mode="RGB", size=SIZE):
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.paste("red", (0, 0, size[0] // 3, size[1] // 4))
    return image.convert(mode)


def clear():
    image = scene("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(SIZE))
    return image


def saved(image, name, **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def heic(image=None, more=(), **options):
    pillow_heif = pytest.importorskip("pillow_heif")
    made = pillow_heif.from_pillow(image or scene())
    for each in more:
        made.add_from_pillow(each)
    buffer = io.BytesIO()
    made.save(buffer, **options)
    return buffer.getvalue()


def avif(image=None, **options):
    return saved(image or scene(), "AVIF", **options)


def jp2(image=None, **options):
    return saved(image or scene(), "JPEG2000", **options)


@pytest.fixture
def unopened(monkeypatch):
    """Fails the test when a file reaches a decoder."""
    module = importlib.import_module("guardalign_guardrails.images.decode")
    monkeypatch.setattr(module, "_open", lambda container: pytest.fail("opened"))


def reason(data, limits=None):
    with pytest.raises(ImageDecodeError) as caught:
        decode(data, limits or ImageLimits())
    return caught.value.reason


def off(left, right):
    return float(np.abs(np.asarray(left, float) - np.asarray(right, float)).mean())


def changed(data, old, new):
    assert data.count(old) == 1
    return data.replace(old, new)


def exif(orientation):
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, 3, 1, orientation) + bytes(4)


def srgb():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_primaries():
    """The sRGB profile with red and blue exchanged."""
    return srgb().replace(b"rXYZ", b"tmp.").replace(b"bXYZ", b"rXYZ").replace(b"tmp.", b"bXYZ")


MAKERS = {
    "AVIF": avif,
    "AVIF gray": lambda: avif(scene("L")),
    "AVIF sRGB": lambda: avif(icc_profile=srgb()),
    "AVIF EXIF": lambda: avif(exif=exif(1)),
    "HEIF": heic,
    "HEIF EXIF": lambda: heic(exif=exif(1)),
    "JPEG2000": jp2,
    "JPEG2000 lossy": lambda: jp2(irreversible=True),
    "JPEG2000 bare": lambda: jp2(no_jp2=True),
    "JPEG2000 gray": lambda: jp2(scene("L")),
    "JPEG2000 tiles": lambda: jp2(tile_size=(32, 32), num_resolutions=3),
    "JPEG2000 precincts": lambda: jp2(precinct_size=(64, 64), quality_layers=[9, 3]),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_plain_image_has_one_reading(name):
    result = decode(MAKERS[name]())
    assert (result.format, result.size, result.frame_count) == (name.split()[0], SIZE, 1)
    assert result.departures == ()
    assert len(result.views) == 1
    wanted = scene("L" if "gray" in name else "RGB").convert("RGB")
    assert off(result.flattened, wanted) < 8
    assert result.is_lossy == (name.split()[0] != "JPEG2000" or "lossy" in name)


@pytest.mark.parametrize("maker", [avif, heic, jp2])
def test_transparency_is_a_departure_with_three_backdrops(maker):
    result = decode(maker(clear()))
    assert "alpha" in result.departures
    assert [view.backdrop for view in result.views] == ["plain", "white", "black"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_as_its_boxes_say_and_shown_as_stored_too(orientation):
    result = decode(avif(exif=exif(orientation), quality=90))
    assert off(result.flattened, upright(scene(), orientation)) < 8
    assert ("orientation" in result.departures) == (orientation != 1)
    assert len(result.views) == 1 + (orientation != 1)
    stored = result.views[-1]
    assert off(stored.pixels, scene()) < 8
    assert off(upright(stored.pixels, stored.orientation), result.flattened) < 8


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_heic_is_turned_by_its_boxes_once_and_every_other_turn_is_a_view(orientation):
    result = decode(heic(exif=exif(orientation)))
    assert off(result.flattened, upright(scene(), orientation)) < 8
    assert "orientation" in result.departures
    assert any(off(view.pixels, scene()) < 8 for view in result.views if view.pixels.size == SIZE)
    for view in result.views:
        assert off(upright(view.pixels, view.orientation), result.flattened) < 8


@pytest.mark.parametrize(("maker", "name"), [(avif, "AVIF"), (heic, "HEIF")])
def test_an_orientation_that_only_metadata_state_is_a_view(maker, name):
    # Writers turn what XMP says into a box, so it is changed afterwards.
    data = changed(maker(xmp=b'<rdf:Description tiff:Orientation="1"/>'), b'tation="1"', b'tation="6"')
    result = decode(data)
    assert result.format == name
    assert "orientation" in result.departures
    assert [view.pixels.size for view in result.views] == [SIZE, SIZE[::-1]]


@pytest.mark.parametrize("maker", [avif, heic])
def test_a_profile_is_rendered(maker):
    result = decode(maker(icc_profile=swapped_primaries()))
    assert "colour_profile" in result.departures
    assert [view.reading for view in result.views] == ["", "no profile"]
    assert result.flattened.getpixel((9, 9))[2] > 150 > result.views[1].pixels.getpixel((9, 9))[2]


def test_of_a_sequence_only_the_still_is_shown_and_the_rest_counts_as_unseen():
    frames = [scene(), Image.new("RGB", SIZE, "blue"), Image.new("RGB", SIZE, "green")]
    result = decode(saved(frames[0], "AVIF", save_all=True, append_images=frames[1:]))
    assert (result.frame_count, result.frames_seen) == (3, (0,))
    assert {"animation", "frames_unseen"} <= set(result.departures)
    assert off(result.flattened, scene()) < 8


def test_a_decoder_never_sees_the_tracks_of_a_sequence():
    data = saved(scene(), "AVIF", save_all=True, append_images=[scene("L")])
    kept = inspect(data, ImageLimits()).data
    assert b"moov" in data
    assert b"moov" not in kept
    assert b"avis" not in kept[:40]
    assert len(kept) == len(data)


def test_further_images_of_a_heic_are_a_departure_and_not_shown():
    result = decode(heic(more=[Image.new("RGB", SIZE, "blue")], save_all=True))
    assert result.departures == ("further_images",)
    assert off(result.flattened, scene()) < 8


def test_an_mpo_is_its_first_image():
    data = saved(scene(), "MPO", save_all=True, append_images=[Image.new("RGB", SIZE, "blue")])
    result = decode(data)
    assert (result.format, len(result.views)) == ("JPEG", 1)
    assert {"further_images", "trailing_data"} <= set(result.departures)
    assert off(result.flattened, scene()) < 8
    kept = inspect(data, ImageLimits()).data
    assert b"MPF\0" not in kept
    assert kept.count(b"\xff\xd8\xff") == 1


# Sizes that lie


def ispe(size):
    return b"ispe\0\0\0\0" + struct.pack(">II", *size)


@pytest.mark.parametrize("maker", [avif, heic])
def test_a_size_that_is_too_large_is_refused_before_a_pixel(maker, unopened):
    data = changed(maker(), ispe(SIZE), ispe((60_000, 60_000)))
    assert reason(data) == "too_many_pixels"
    assert reason(changed(maker(), ispe(SIZE), ispe((0, 5)))) == "empty"


@pytest.mark.parametrize("maker", [avif, heic])
def test_a_stream_larger_than_its_boxes_say_is_refused_before_a_pixel(maker, unopened):
    data = changed(maker(), ispe(SIZE), ispe((8, 8)))
    assert reason(data, ImageLimits(max_pixels=SIZE[0] * SIZE[1] - 1)) == "too_many_pixels"


def test_the_frames_of_a_sequence_do_not_hide_a_larger_still():
    frames = [scene()] * 3
    data = saved(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    assert reason(data.replace(ispe(SIZE), ispe((8, 8))), ImageLimits(max_pixels=500)) == "too_many_pixels"


def grid(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    monkeypatch.setattr(pillow_heif.options, "GRID_TILE_SIZE", 128)
    data = heic(scene(size=(300, 200)))
    assert b"grid" in data
    return data


def test_a_grid_of_tiles_is_one_image(monkeypatch):
    result = decode(grid(monkeypatch))
    assert result.size == (300, 200)
    assert result.departures == ()
    assert off(result.flattened, scene(size=(300, 200))) < 8


def test_a_grid_is_no_larger_than_it_says_and_has_as_many_tiles(monkeypatch, unopened):
    data = grid(monkeypatch)
    shape = struct.pack(">HH", 300, 200)
    assert reason(changed(data, b"\0\0\1\2" + shape, b"\0\0\1\2" + struct.pack(">HH", 60_000, 60_000))) == "corrupt"
    assert reason(changed(data, b"\0\0\1\2" + shape, b"\0\0\x09\x09" + shape)) == "corrupt"
    assert reason(data, ImageLimits(max_pixels=300 * 200 - 1)) == "too_many_pixels"


def test_the_tiles_of_a_grid_count_together_and_as_often_as_they_are_shown(monkeypatch, unopened):
    data = grid(monkeypatch)
    assert data.count(ispe((128, 128))) == 1
    assert reason(data.replace(ispe((128, 128)), ispe((240, 240))), ImageLimits(max_pixels=60_000)) == "too_many_pixels"


@pytest.mark.parametrize("kind", [b"iovl", b"iden", b"tmap", b"jpeg", b"abcd"])
def test_what_makes_pixels_in_a_second_way_is_unsupported(kind, monkeypatch):
    assert reason(changed(grid(monkeypatch), b"grid", kind)) == "unsupported_format"
    assert reason(changed(avif(), b"av01", kind)) == "unsupported_format"


def box(kind, body):
    return struct.pack(">I4s", len(body) + 8, kind) + body


def in_mdat(data, body):
    """A file whose only item has other bytes: its location is the last number before them."""
    at = data.index(b"mdat")
    (size,) = struct.unpack_from(">I", data, at - 4)
    # The place as one number, or as a base and an offset of one extent.
    for code, place in ((">II", (at + 4,)), (">IHII", (at + 4, 1, 0))):
        data = data.replace(struct.pack(code, *place, size - 8), struct.pack(code, *place, len(body)))
    return data[: at - 4] + box(b"mdat", body)


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("truncated", lambda: avif()[:-9]),
        ("truncated", lambda: avif()[:30]),
        ("truncated", lambda: changed(avif(), b"mdat", b"mdat")[:200]),
        ("corrupt", lambda: avif() + struct.pack(">I4s", 3, b"free")),
        ("truncated", lambda: avif() + struct.pack(">I4s", 99, b"free")),
        ("corrupt", lambda: avif() + box(b"free", b"") * 20_000),
        ("corrupt", lambda: avif() + box(b"meta", bytes(4))),
        ("corrupt", lambda: changed(avif(), b"pitm", b"abcd")),
        ("corrupt", lambda: changed(avif(), b"pitm\0\0\0\0\0\1", b"pitm\0\0\0\0\0\7")),
        ("corrupt", lambda: changed(avif(), b"av1C", b"abcd")),
        ("corrupt", lambda: changed(avif(), b"ispe", b"abcd")),
        ("corrupt", lambda: box(b"ftyp", b"avif\0\0\0\0mif1")),
        ("unsupported_format", lambda: box(b"ftyp", b"avis\0\0\0\0avis") + box(b"moov", b"")),
        ("unsupported_format", lambda: box(b"ftyp", b"isom\0\0\0\0mp42")),
    ],
)
def test_boxes_that_lie_are_refused(why, data):
    assert reason(data()) == why


@pytest.mark.parametrize(("maker", "unit"), [(avif, b"\x12\0"), (heic, b"\0\0\0\3\x28\1\0")])
def test_a_stream_of_more_units_than_a_still_has_is_corrupt(maker, unit, unopened):
    data = maker()
    stream = data[data.index(b"mdat") + 4 :]
    assert reason(in_mdat(data, stream + unit * 300)) == "corrupt"


def test_a_tile_of_jpeg_2000_has_few_headers(unopened):
    data = jp2(no_jp2=True)
    at, part = data.index(b"\xff\x90"), b"\xff\x64\0\2" * 100
    (length,) = struct.unpack_from(">I", data, at + 6)
    data = data[: at + 6] + struct.pack(">I", length + len(part)) + data[at + 10 : at + 12] + part + data[at + 12 :]
    assert reason(data) == "corrupt"


def test_an_image_has_one_alpha_at_most(unopened):
    data = avif(clear())
    once = box(b"auxl", struct.pack(">HHH", 2, 1, 1))
    twice = bytearray(changed(data, once, box(b"auxl", struct.pack(">HHHH", 2, 2, 1, 1))))
    # All around it grows by two bytes, and what follows moves.
    for kind in (b"iref", b"meta"):
        at = twice.index(kind) - 4
        struct.pack_into(">I", twice, at, struct.unpack_from(">I", twice, at)[0] + 2)
    for item in range(2):
        at = twice.index(b"iloc") + 18 + 14 * item
        struct.pack_into(">I", twice, at, struct.unpack_from(">I", twice, at)[0] + 2)
    assert reason(bytes(twice)) == "corrupt"


def test_items_that_share_their_bytes_do_not_multiply_the_file():
    """A location of an item with 64 extents, each of which is the whole file."""
    data = avif()
    at = data.index(b"iloc")
    size = struct.unpack_from(">I", data, at - 4)[0]
    body = b"\0\0\0\0\x44\0\0\1\0\1\0\0" + struct.pack(">H", 64) + struct.pack(">II", 0, len(data)) * 64
    grown = 8 + len(body) - size
    meta = data.index(b"meta")
    data = data[: at - 4] + box(b"iloc", body) + data[at - 4 + size :]
    data = data[: meta - 4] + struct.pack(">I", struct.unpack_from(">I", data, meta - 4)[0] + grown) + data[meta:]
    (whole,) = (span for span in boxes(data, 0, len(data)) if span.kind == b"meta")
    with pytest.raises(ImageDecodeError) as caught:
        read_items(data, whole)
    assert caught.value.reason == "corrupt"


NCLX = b"colrnclx\0\1\0\r"


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("colour_space", lambda: changed(avif(), NCLX, b"colrnclx\0\x09\0\x10")),
        ("colour_space", lambda: changed(heic(), NCLX, b"colrnclx\0\x0c\0\r")),
        ("colour_space", lambda: changed(avif(), b"colrnclx", b"freenclx")),
        ("unlisted_part", lambda: changed(avif(), b"colrnclx", b"freenclx")),
        ("unlisted_part", lambda: avif() + box(b"uuid", bytes(16))),
        ("bit_depth", lambda: changed(avif(), b"\3\x08\x08\x08", b"\3\x0a\x0a\x0a")),
        ("bit_depth", lambda: changed(avif(), b"av1C\x81\x00\x0c", b"av1C\x81\x00\x4c")),
        ("bit_depth", lambda: changed(heic(), b"\xfc\xfd\xf8\xf8", b"\xfc\xfd\xfa\xfa")),
        ("crop", lambda: heic(scene(size=(90, 60)))),
        ("aspect", lambda: changed(avif(), b"\x10pixi\0\0\0\0\3\x08\x08\x08", b"\x10pasp\0\0\0\1\0\0\0\2")),
        ("repeated_part", lambda: changed(avif(), b"\4\1\2\x83\4", b"\4\1\2\x83\2")),
        ("broken_metadata", lambda: changed(heic(exif=exif(1)), b"II*\0\x08\0\0\0", b"II*\0\xff\0\0\0")),
        ("broken_profile", lambda: avif(icc_profile=b"no profile, but long enough to be taken for one" * 9)),
    ],
)
def test_whatever_is_not_listed_for_media_files_is_a_departure(code, data):
    data = data()
    try:
        assert code in decode(data).departures
    except ImageDecodeError:
        assert code in inspect(data, ImageLimits()).departures


def test_heic_without_its_extra_says_what_to_install(monkeypatch):
    data = heic()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageDecodeError, match=r"pip install 'guardalign-guardrails\[heif\]'") as caught:
        decode(data)
    assert caught.value.reason == "unsupported_format"
    assert decode(avif()).format == "AVIF"


# JPEG 2000


def siz(data, at, code, *values):
    """A JPEG 2000 with numbers written into its size segment, counted from the segment's length."""
    out = bytearray(data)
    struct.pack_into(code, out, data.index(b"\xff\x51") + 2 + at, *values)
    return bytes(out)


def cod(data, at, *values):
    out = bytearray(data)
    place = data.index(b"\xff\x52") + 4 + at
    out[place : place + len(values)] = bytes(values)
    return bytes(out)


COC = b"\xff\x53\0\x09\0\0\5\4\4\0\1"


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("too_many_pixels", lambda data: siz(data, 4, ">II", 60_000, 60_000)),
        ("too_many_pixels", lambda data: siz(siz(data, 4, ">II", 5000, 5000), 20, ">II", 5000, 5000)),
        ("empty", lambda data: siz(data, 4, ">II", 0, 5)),
        ("corrupt", lambda data: siz(data, 4, ">6I", 6_096, 6_064, 6_000, 6_000, 6_096, 6_064)),
        ("corrupt", lambda data: siz(data, 20, ">II", 0, 0)),
        ("corrupt", lambda data: siz(data, 20, ">II", 1, 1)),
        ("corrupt", lambda data: siz(data, 28, ">II", 5, 5)),
        ("unsupported_format", lambda data: siz(data, 36, ">H", 5)),
        ("corrupt", lambda data: cod(data, 5, 33)),
        ("corrupt", lambda data: cod(data, 2, 0xFF, 0xFF)),
        ("corrupt", lambda data: cod(data, 6, 9)),
    ],
)
def test_a_codestream_that_asks_for_too_much_is_refused_before_a_pixel(why, change, bare, unopened):
    assert reason(change(jp2(no_jp2=bare))) == why


@pytest.mark.parametrize(
    ("why", "part"),
    [
        ("unsupported_format", COC),
        ("unsupported_format", b"\xff\x60\0\3\0"),
        ("corrupt", b"\xff\x52\0\x0c\0\0\0\1\0\5\4\4\0\1"),
        ("truncated", b"\xff\x64\0\1"),
    ],
)
def test_a_header_may_not_undo_what_was_counted(why, part, unopened):
    data = jp2(no_jp2=True)
    at = data.index(b"\xff\x5c")
    assert reason(data[:at] + part + data[at:]) == why


def test_a_tile_may_not_change_the_coding(unopened):
    data = jp2(no_jp2=True)
    at = data.index(b"\xff\x90")
    (length,) = struct.unpack_from(">I", data, at + 6)
    data = data[: at + 6] + struct.pack(">I", length + len(COC)) + data[at + 10 : at + 12] + COC + data[at + 12 :]
    assert reason(data) == "unsupported_format"


def test_blocks_and_precincts_are_counted_before_they_are_allocated(unopened):
    large = siz(siz(jp2(no_jp2=True), 4, ">II", 4000, 4000), 20, ">II", 4000, 4000)
    assert reason(cod(large, 6, 0, 0)) == "too_many_pixels"
    precincts = jp2(no_jp2=True, precinct_size=(64, 64))
    large = siz(siz(precincts, 4, ">II", 4000, 4000), 20, ">II", 4000, 4000)
    assert reason(cod(large, 10, *([0x11] * 6))) == "too_many_pixels"


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("trailing_data", lambda: jp2(no_jp2=True) + b"\0"),
        ("unlisted_part", lambda: jp2() + box(b"xml ", b"<a/>")),
        ("bit_depth", lambda: jp2(Image.fromarray(np.arange(6144, dtype=np.uint16).reshape(64, 96)))),
        ("bit_depth", lambda: siz(jp2(), 38, "B", 9)),
        ("sampling", lambda: siz(jp2(), 42, "BB", 2, 2)),
        ("crop", lambda: siz(jp2(), 12, ">II", 8, 8)),
        ("colour_space", lambda: changed(jp2(), b"colr\1\0\0\0\0\0\x10", b"colr\1\0\0\0\0\0\x12")),
        ("broken_profile", lambda: changed(jp2(), b"colr\1\0\0", b"colr\3\0\0")),
        ("colour_space", lambda: changed(jp2(), b"colr", b"abcd")),
        ("colour_space", lambda: jp2(scene("CMYK"))),
        ("alpha", lambda: changed(jp2(), b"\x0fcolr", b"\x0fcdef")),
        ("palette", lambda: changed(jp2(), b"\x0fcolr", b"\x0fpclr")),
    ],
)
def test_whatever_is_not_listed_for_jpeg_2000_is_a_departure(code, data):
    data = data()
    try:
        assert code in decode(data).departures
    except ImageDecodeError:
        assert code in inspect(data, ImageLimits()).departures


@pytest.mark.parametrize("maker", [avif, heic, jp2, lambda: jp2(no_jp2=True)])
def test_a_file_cut_short_is_truncated(maker):
    data = maker()
    for share in (0.3, 0.6, 0.9):
        assert reason(data[: int(len(data) * share)]) == "truncated"


@pytest.mark.parametrize(
    ("maker", "kind"),
    [
        (avif, "image/avif"),
        (heic, "image/heic"),
        (jp2, "image/jp2"),
        (lambda: jp2(no_jp2=True), "image/jp2"),
        (lambda: saved(scene(), "PNG"), "image/png"),
        (lambda: saved(scene(), "MPO"), "image/jpeg"),
        (lambda: b"text", None),
        (lambda: box(b"ftyp", b"isom\0\0\0\0mp42"), None),
        (lambda: box(b"ftyp", b"mif1\0\0\0\0mif1avif"), "image/avif"),
        (lambda: box(b"ftyp", b"mif1\0\0\0\0mif1heic"), "image/heic"),
    ],
)
def test_the_media_type_is_that_of_the_bytes(maker, kind):
    data = maker()
    assert media_type(data) == kind
    assert announces_image(data[:32]) == (data != b"text")
