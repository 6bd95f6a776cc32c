"""One reading is an allow-list: what common writers make has no departure, and whatever is not listed has one."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from guardalign_guardrails.errors import ImageDecodeError
from guardalign_guardrails.images import ImageLimits, decode
from guardalign_guardrails.images.containers import inspect

SIZE = (40, 24)


def scene(mode="RGB", size=SIZE):
    values = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def saved(image, name, **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def why(data):
    """Departures, also of what Pillow cannot open, which is no reading at all: the walk has to see them even so."""
    try:
        return decode(data).departures
    except ImageDecodeError:
        return inspect(data, ImageLimits()).departures


def reason(data):
    with pytest.raises(ImageDecodeError) as caught:
        decode(data)
    return caught.value.reason


def srgb():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def edited(profile, kind, change):
    """A profile whose table of tags has the named tag's entry changed."""
    data = bytearray(profile)
    at = next(at for at in range(132, len(data), 12) if data[at : at + 4] == kind)
    data[at : at + 12] = change(bytes(data[at : at + 12]))
    return bytes(data)


def curve_profile(curve):
    """The sRGB profile with another tone curve: 256 levels in [0, 65535] for all three channels."""
    body = b"curv" + bytes(4) + struct.pack(">I", len(curve)) + struct.pack(f">{len(curve)}H", *curve)
    data = srgb() + bytes(-len(srgb()) % 4)
    for kind in (b"rTRC", b"gTRC", b"bTRC"):
        data = edited(
            data, kind, lambda entry: entry[:4] + struct.pack(">II", len(srgb()) + -len(srgb()) % 4, len(body))
        )
    data += body
    return struct.pack(">I", len(data)) + data[4:]


def exif(orientation, kind=3, times=1):
    entry = struct.pack("<HHII", 0x0112, kind, 1, orientation)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", times) + entry * times + bytes(4)


def xmp(orientation):
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


# JPEG


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(*segments, image=None, **options):
    """A JPEG with segments put behind its first one."""
    data = saved(image or scene(), "JPEG", **options)
    at = 4 + struct.unpack_from(">H", data, 4)[0] if data[3] == 0xE0 else 2
    return data[:at] + b"".join(segments) + data[at:]


def without_jfif(**options):
    data = saved(scene(), "JPEG", **options)
    return data[:2] + data[4 + struct.unpack_from(">H", data, 4)[0] :]


ADOBE = b"Adobe\0\x64\0\0\0\0"
XMP = b"http://ns.adobe.com/xap/1.0/\0"


@pytest.mark.parametrize(
    "data",
    [
        jpeg(),
        jpeg(image=scene("L")),
        jpeg(progressive=True),
        jpeg(progressive=True, image=scene("L")),
        jpeg(subsampling=0, quality=100),
        jpeg(subsampling="4:2:2"),
        jpeg(optimize=True, restart_marker_blocks=1),
        jpeg(restart_marker_blocks=2, subsampling=0),
        jpeg(progressive=True, restart_marker_rows=1),
        jpeg(image=scene("RGB", (333, 77)), restart_marker_blocks=7),
        jpeg(segment(0xE1, b"Exif\0\0" + exif(1)), segment(0xE1, XMP + xmp(1))),
        jpeg(segment(0xE1, XMP + b"<x:xmpmeta/>"), segment(0xFE, b"a comment")),
        jpeg(icc_profile=srgb()),
        jpeg(segment(0xE2, b"ICC_PROFILE\0\2\2" + srgb()[300:]), segment(0xE2, b"ICC_PROFILE\0\1\2" + srgb()[:300])),
        jpeg(segment(0xEE, ADOBE + b"\1")),
        without_jfif(),
        jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM"), segment(0xEC, b"Ducky\0")),
        jpeg(segment(0xEB, b"JP\0\1\0\0\0\1\0\0\0\x10jumb")),
    ],
)
def test_a_jpeg_as_cameras_phones_and_browsers_write_it_has_one_reading(data):
    result = decode(data)
    assert result.departures == ()
    assert result.is_lossy
    assert len(result.views) == 1


def changed(data, old, new):
    assert data.count(old) == 1
    return data.replace(old, new)


def with_restarts(new):
    return changed(jpeg(restart_marker_blocks=2), b"\xff\xd1", new)


def between_scans(part):
    data = jpeg(progressive=True)
    at = data.index(b"\xff\xda") + 12
    at = re.compile(rb"\xff[^\x00]").search(data, at).start()
    return data[:at] + part + data[at:]


def three_scans():
    """A gray image three times: a sequential JPEG whose only component is drawn twice."""
    data = jpeg(image=scene("L"))
    start = data.index(b"\xff\xda")
    return data[:-2] + data[start:]


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("trailing_data", jpeg() + b"\0"),
        ("trailing_data", jpeg() + jpeg()),
        ("no_end", jpeg(restart_marker_blocks=1)[:-2] + bytes(2)),
        ("unlisted_part", jpeg(segment(0xE5, b"whatever"))),
        ("unlisted_part", jpeg(segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0"))),
        ("unlisted_part", jpeg(segment(0xEB, b"JP\0\1\0\0\0\1\0\0\0\x10SPEC"))),
        ("further_images", jpeg(segment(0xE2, b"MPF\0II*\0"))),
        ("stray_bytes", jpeg(b"\xff")),
        ("stray_bytes", jpeg(b"abc")),
        ("orientation", jpeg(segment(0xE1, b"Exif\0\0" + exif(6)))),
        ("orientation", jpeg(segment(0xE1, XMP + xmp(6)))),
        ("broken_metadata", jpeg(segment(0xE1, b"Exif\0\0" + exif(9)))),
        ("broken_metadata", jpeg(segment(0xE1, b"Exif\0\0" + exif(1, kind=4)))),
        ("broken_metadata", jpeg(segment(0xE1, b"Exif\0\0" + exif(1, times=2)))),
        ("broken_metadata", jpeg(segment(0xE1, b"Exif\0\0" + exif(1)[:12]))),
        ("broken_metadata", jpeg(segment(0xE1, XMP + xmp("&#54;")))),
        ("broken_metadata", jpeg(segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + xmp(6)))),
        ("broken_metadata", jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\x24\0\0\0\0" + xmp(6)))),
        ("broken_metadata", jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\x22\0\0\0\0" + exif(6)))),
        ("repeated_part", jpeg(segment(0xE1, b"Exif\0\0" + exif(1)), segment(0xE1, b"Exif\0\0" + exif(1)))),
        ("repeated_part", jpeg(segment(0xE1, XMP + xmp(1)), segment(0xE1, XMP + xmp(1)))),
        ("broken_profile", jpeg(segment(0xE2, b"ICC_PROFILE\0\1\2" + srgb()))),
        ("broken_profile", jpeg(segment(0xE2, b"ICC_PROFILE\0\0\1" + srgb()))),
        ("colour_profile", jpeg(icc_profile=curve_profile([257 * level for level in range(256)]))),
        ("colour_transform", jpeg(segment(0xEE, ADOBE + b"\0"))),
        ("colour_transform", jpeg(segment(0xEE, ADOBE + b"\2"))),
        ("colour_transform", without_jfif().replace(b"\3\1\x22\0\2\x11\1\3\x11\1", b"\3R\x22\0G\x11\1B\x11\1")),
        ("cmyk", saved(scene("CMYK"), "JPEG")),
        ("sampling", changed(jpeg(), b"\3\1\x22\0\2\x11\1\3\x11\1", b"\3\1\x22\0\2\x11\1\3\x21\1")),
        ("coding", changed(jpeg(), b"\xff\xc0\0\x11", b"\xff\xc9\0\x11")),
        ("coding", three_scans()),
        ("bit_depth", changed(jpeg(), b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c")),
        ("restarts", with_restarts(b"\xff\xd2")),
        ("restarts", with_restarts(b"")),
        ("restarts", changed(jpeg(restart_marker_blocks=2), b"\xff\xdd\0\4\0\2", b"")),
        ("restarts", changed(jpeg(restart_marker_blocks=2), b"\xff\xdd\0\4\0\2", b"\xff\xdd\0\4\0\3")),
        ("part_order", between_scans(segment(0xE1, XMP))),
        ("part_order", between_scans(segment(0xDB, b"\0" + bytes([9] * 64)))),
        ("stray_bytes", jpeg(restart_marker_blocks=2).replace(b"\xff\xd1", b"\xff\xff\xd1")),
    ],
)
def test_whatever_is_not_listed_for_jpeg_is_a_departure(code, data):
    assert code in why(data)


def test_what_follows_a_jpeg_never_reaches_the_decoder():
    data = jpeg()
    assert inspect(data + jpeg(image=scene(size=(8, 8))), ImageLimits()).data == data


# PNG


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks, image=None, late=(), **options):
    """A PNG with chunks behind IHDR and behind the pixels."""
    data = saved(image or scene(), "PNG", **options)
    return data[:33] + b"".join(chunks) + data[33:-12] + b"".join(late) + data[-12:]


def palette_png(*chunks, late=()):
    return png(*chunks, image=scene().quantize(16), late=late)


def with_palette(part):
    """A PNG whose pixels use 16 colours, with another palette."""
    data = palette_png()
    at = data.index(b"PLTE") - 4
    return data[:at] + part + data[at + 12 + struct.unpack_from(">I", data, at)[0] :]


def packed(text):
    return zlib.compress(text)


CHRM = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
XMP_KEY = b"XML:com.adobe.xmp\0"


@pytest.mark.parametrize(
    "data",
    [
        png(),
        png(image=scene("L")),
        palette_png(),
        png(image=scene().quantize(2)),
        png(image=Image.merge("RGBA", (*scene().split(), Image.new("L", SIZE, 255)))),
        png(chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"cHRM", CHRM), chunk(b"sRGB", b"\0")),
        png(chunk(b"sBIT", b"\x08\x08\x08"), chunk(b"bKGD", bytes(6)), chunk(b"pHYs", bytes(9))),
        png(chunk(b"tEXt", b"Title\0a"), chunk(b"zTXt", b"Title\0\0" + packed(b"a")), chunk(b"tIME", bytes(7))),
        png(chunk(b"iTXt", XMP_KEY + b"\0\0\0\0" + xmp(1)), late=[chunk(b"tEXt", b"Title\0b")]),
        png(chunk(b"iTXt", XMP_KEY + b"\1\0\0\0" + packed(xmp(1)))),
        png(chunk(b"eXIf", exif(1))),
        png(late=[chunk(b"eXIf", exif(1))]),
        png(icc_profile=srgb()),
    ],
)
def test_a_png_as_common_writers_make_it_has_one_reading(data):
    result = decode(data)
    assert result.departures == ()
    assert not result.is_lossy
    assert len(result.views) == 1


def broken_sum(data, kind):
    at = data.index(kind)
    end = at + 4 + struct.unpack_from(">I", data, at - 4)[0]
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("trailing_data", png() + b"\0"),
        ("unlisted_part", png(chunk(b"cICP", b"\x09\x10\0\1"))),
        ("unlisted_part", png(chunk(b"fdAT", bytes(4)))),
        ("unlisted_part", png(chunk(b"sPLT", b"x\0\x08"))),
        ("unlisted_part", png(chunk(b"quIT", b""))),
        ("animation", png(late=[chunk(b"acTL", struct.pack(">II", 1, 0))])),
        ("repeated_part", png(chunk(b"gAMA", struct.pack(">I", 45455)) * 2)),
        ("part_order", png(late=[chunk(b"sRGB", b"\0")])),
        ("part_order", png(late=[chunk(b"gAMA", struct.pack(">I", 45455))])),
        ("gamma", png(chunk(b"gAMA", struct.pack(">I", 100_000)))),
        ("gamma", png(chunk(b"gAMA", struct.pack(">I", 0)))),
        ("gamma", png(chunk(b"gAMA", struct.pack(">I", 100_000)), chunk(b"sRGB", b"\0"))),
        ("colour_space", png(chunk(b"cHRM", CHRM[:-4] + struct.pack(">I", 7000)))),
        ("colour_space", png(chunk(b"cHRM", CHRM[:-4]))),
        ("colour_space", png(chunk(b"sRGB", b"\0"), icc_profile=srgb())),
        ("colour_profile", png(icc_profile=curve_profile([257 * level for level in range(256)]))),
        ("broken_profile", png(chunk(b"iCCP", b"x\0\0" + packed(srgb())[:-3]))),
        ("broken_profile", png(chunk(b"iCCP", b"x\0\1" + packed(srgb())))),
        ("broken_profile", png(chunk(b"iCCP", b"x\0\0" + packed(bytes(5_000_000))))),
        ("bit_depth", png(chunk(b"sBIT", b"\x05\x06\x05"))),
        ("bit_depth", png(image=scene("1"))),
        ("bit_depth", png(image=Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40)))),
        ("palette", png(chunk(b"PLTE", bytes(6)))),
        ("palette", with_palette(chunk(b"PLTE", bytes(3 * 15)))),
        ("palette", with_palette(chunk(b"PLTE", bytes(3 * 17)))),
        ("palette", with_palette(chunk(b"PLTE", bytes(3 * 16)) + chunk(b"tRNS", bytes(17)))),
        ("raw_profile", png(chunk(b"zTXt", b"Raw profile type exif\0\0" + packed(b"\nexif\n")))),
        ("raw_profile", png(chunk(b"tEXt", b"exif\0" + exif(6)))),
        ("raw_profile", png(chunk(b"tEXt", b"transparency\0" + b"1"))),
        ("orientation", png(chunk(b"eXIf", exif(3)))),
        ("orientation", png(chunk(b"iTXt", XMP_KEY + b"\0\0\0\0" + xmp(6)))),
        ("orientation", png(chunk(b"iTXt", XMP_KEY + b"\1\0\0\0" + packed(xmp(6))))),
        ("orientation", png(chunk(b"tEXt", XMP_KEY + xmp(6)))),
        ("orientation", png(chunk(b"zTXt", XMP_KEY + b"\0" + packed(xmp(6))))),
        ("broken_metadata", png(chunk(b"iTXt", XMP_KEY + b"\1\0\0\0" + packed(xmp(6))[:-5]))),
        ("broken_metadata", png(chunk(b"eXIf", b"nothing"))),
        ("repeated_part", png(chunk(b"iTXt", XMP_KEY + b"\0\0\0\0" + xmp(1)) * 2)),
        ("checksum", broken_sum(png(chunk(b"sRGB", b"\0")), b"sRGB")),
        ("checksum", broken_sum(png(), b"IDAT")),
        ("alpha", png(image=scene("RGBA").rotate(20))),
        ("alpha", png(chunk(b"tRNS", struct.pack(">3H", *scene().getpixel((0, 0)))))),
    ],
)
def test_whatever_is_not_listed_for_png_is_a_departure(code, data):
    assert code in why(data)


TRNS = chunk(b"tRNS", b"\x80")


@pytest.mark.parametrize(
    "data",
    [
        palette_png(chunk(b"PLTE", bytes(48))),
        palette_png(late=[chunk(b"PLTE", bytes(48))]),
        palette_png(late=[TRNS]),
        png(late=[chunk(b"PLTE", bytes(48))]),
        png(chunk(b"tRNS", bytes(6)) * 2),
        png(chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))),
        png(late=[chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", b"")]),
        png().replace(*(chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 8, kind, 0, 0, 0)) for kind in (2, 3))),
        png().replace(*(chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, way, 0)) for way in (0, 1))),
    ],
)
def test_a_png_on_whose_palette_or_data_decoders_disagree_is_corrupt(data):
    assert reason(data) == "corrupt"


# GIF, WebP, BMP, TIFF


def gif(*blocks, at=None, **options):
    data = saved(scene("P"), "GIF", **options)
    place = data.index(b",\0\0\0\0") if at is None else at
    return data[:place] + b"".join(blocks) + data[place:]


CONTROL = b"!\xf9\x04\0\0\0\0\0"


@pytest.mark.parametrize("data", [gif(), gif(CONTROL), gif(b"!\xfe\x03abc\0"), gif(b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0")])
def test_a_gif_of_one_frame_has_one_reading(data):
    assert why(data) == ()


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("trailing_data", gif() + b"\0"),
        ("no_end", gif()[:-1]),
        ("stray_bytes", gif(b"\0")),
        ("repeated_part", gif(CONTROL, CONTROL)),
        ("unlisted_part", gif(b"!\xff\x0bICCRGBG1012\3abc\0")),
        ("unlisted_part", gif(b"!\x01\x0c" + bytes(12) + b"\1a\0")),
        ("broken_metadata", gif(b"!\xff\x0bXMP DataXMP" + bytes([len(xmp(6))]) + xmp(6) + b"\0")),
        ("partial_frame", gif()[:6] + struct.pack("<HH", 80, 24) + gif()[10:]),
        ("palette", gif()[:10] + b"\0" + gif()[11:13] + gif()[gif().index(b",\0\0\0\0") :]),
        (
            "palette",
            gif()[:10] + bytes([gif()[10] & 0xF8 | 2]) + gif()[11 : 13 + 24] + gif()[gif().index(b",\0\0\0\0") :],
        ),
        ("animation", saved(scene(), "GIF", save_all=True, append_images=[scene("L")])),
        ("alpha", saved(scene("P"), "GIF", transparency=scene("P").getpixel((0, 0)))),
    ],
)
def test_whatever_is_not_listed_for_gif_is_a_departure(code, data):
    assert code in why(data)


def webp(*chunks, flags=0, order=None, **options):
    """A WebP in the extended layout; ``order`` names the place of the pixels among the chunks."""
    pixels = saved(scene(), "WEBP", **options)[12:]
    parts = list(chunks)
    parts.insert(len(parts) if order is None else order, pixels)
    head = struct.pack("<4sIB3x", b"VP8X", 10, flags) + b"".join(struct.pack("<I", side - 1)[:3] for side in SIZE)
    body = b"WEBP" + head + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff(kind, body):
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) & 1)


@pytest.mark.parametrize(
    "data",
    [
        saved(scene(), "WEBP"),
        saved(scene(), "WEBP", lossless=True),
        saved(scene(), "WEBP", exif=exif(1), icc_profile=srgb(), xmp=xmp(1)),
        webp(riff(b"ICCP", srgb()), flags=0x20),
        webp(riff(b"EXIF", exif(1)), riff(b"XMP ", xmp(1)), order=0, flags=0x0C),
    ],
)
def test_a_webp_still_has_one_reading(data):
    result = decode(data)
    assert result.departures == ()
    assert result.is_lossy == (b"VP8L" not in data)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("trailing_data", saved(scene(), "WEBP") + b"\0\0"),
        ("unlisted_part", webp(riff(b"what", b"ever"))),
        ("repeated_part", webp(riff(b"ICCP", srgb()), riff(b"ICCP", srgb()), flags=0x20)),
        ("part_order", webp(riff(b"EXIF", exif(1)), flags=0x08)),
        ("orientation", webp(riff(b"EXIF", exif(8)), order=0, flags=0x08)),
        ("orientation", webp(riff(b"XMP ", xmp(8)), order=0, flags=0x04)),
        ("broken_metadata", webp(riff(b"EXIF", b"abcd"), order=0, flags=0x08)),
        ("colour_profile", saved(scene(), "WEBP", icc_profile=curve_profile([257 * level for level in range(256)]))),
        ("animation", saved(scene(), "WEBP", save_all=True, append_images=[scene("L")])),
        ("alpha", saved(scene("RGBA").rotate(20), "WEBP")),
        ("alpha", saved(scene("RGBA").rotate(20), "WEBP", lossless=True)),
    ],
)
def test_whatever_is_not_listed_for_webp_is_a_departure(code, data):
    assert code in why(data)


def test_alpha_that_the_canvas_of_a_webp_denies_is_a_departure():
    data = saved(scene("RGBA").rotate(20), "WEBP", lossless=True)
    pixels = data[data.index(b"VP8L") :]
    head = struct.pack("<4sIB3x", b"VP8X", 10, 0) + b"".join(struct.pack("<I", side - 1)[:3] for side in SIZE)
    assert "alpha" in why(b"RIFF" + struct.pack("<I", 4 + len(head) + len(pixels)) + b"WEBP" + head + pixels)


def bmp(mode="RGB", **fields):
    data = bytearray(saved(scene(mode), "BMP"))
    for code, at, value in fields.values():
        struct.pack_into(code, data, at, value)
    return bytes(data)


def bmp_v5(space):
    plain = saved(scene(), "BMP")
    head = bytearray(plain[14:54] + bytes(84))
    struct.pack_into("<I", head, 0, 124)
    struct.pack_into("<I", head, 56, space)
    return plain[:10] + struct.pack("<I", 14 + 124) + bytes(head) + plain[54:]


@pytest.mark.parametrize("data", [bmp(), bmp("L"), bmp("P"), bmp("1"), bmp(flip=("<i", 22, -24)), bmp_v5(0x73524742)])
def test_a_bmp_as_windows_writes_it_has_one_reading(data):
    assert why(data) == ()


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("trailing_data", bmp() + b"\0"),
        ("bit_layout", bmp("RGBA")),
        ("bit_layout", bmp(planes=("<H", 26, 3))),
        ("colour_space", bmp_v5(0)),
        ("stray_bytes", bmp()[:10] + struct.pack("<I", 58) + bmp()[14:54] + bytes(4) + bmp()[54:]),
        ("palette", bmp("P", colours=("<I", 46, 999))),
        ("palette", bmp("P", colours=("<I", 46, 16))),
    ],
)
def test_whatever_is_not_listed_for_bmp_is_a_departure(code, data):
    assert code in why(data)


def tiff_with(tag, kind, value, **options):
    """A TIFF with one more entry: its directory is written again at the end."""
    data = saved(scene(), "TIFF", **options)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = [data[at + 2 + 12 * index : at + 14 + 12 * index] for index in range(count)]
    entries.append(struct.pack("<HHII", tag, kind, 1, value))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    data = data[:4] + struct.pack("<I", len(data)) + data[8:]
    return data + struct.pack("<H", count + 1) + b"".join(entries) + bytes(4)


@pytest.mark.parametrize(
    "data",
    [
        *(saved(scene(), "TIFF", compression=name) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        saved(scene("L"), "TIFF"),
        saved(scene(), "TIFF", dpi=(300, 300), description="a scan", icc_profile=srgb()),
        tiff_with(0x0112, 3, 1),
    ],
)
def test_a_tiff_of_one_plain_page_has_one_reading(data):
    result = decode(data)
    assert result.departures == ()
    assert result.is_lossy == (struct.pack("<HHII", 259, 3, 1, 7) in data)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("pages", saved(scene(), "TIFF", save_all=True, append_images=[scene("L")])),
        ("coding", saved(scene(), "TIFF", compression="packbits")),
        ("bit_depth", saved(scene("1"), "TIFF")),
        ("bit_depth", saved(Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40)), "TIFF")),
        ("cmyk", saved(scene("CMYK"), "TIFF")),
        ("colour_space", saved(scene("P"), "TIFF")),
        ("colour_space", saved(scene("LAB"), "TIFF")),
        ("colour_space", saved(scene("YCbCr"), "TIFF", compression="jpeg")),
        ("colour_profile", saved(scene(), "TIFF", icc_profile=curve_profile([257 * x for x in range(256)]))),
        ("unlisted_part", tiff_with(330, 4, 8)),
        ("unlisted_part", tiff_with(50_000, 4, 8)),
        ("repeated_part", tiff_with(262, 3, 2)),
        ("orientation", tiff_with(0x0112, 3, 6)),
        ("broken_metadata", tiff_with(0x0112, 3, 9)),
        ("bit_layout", tiff_with(266, 3, 2)),
        ("alpha", saved(scene("RGBA").rotate(20), "TIFF")),
    ],
)
def test_whatever_is_not_listed_for_tiff_is_a_departure(code, data):
    assert code in why(data)


# What is no file


@pytest.mark.parametrize("source", [scene(), scene("L"), scene("P"), np.zeros((4, 4, 3), np.uint8)])
def test_pixels_of_eight_bits_have_one_reading(source):
    assert why(source) == ()


@pytest.mark.parametrize(
    ("code", "source"),
    [
        ("colour_space", scene("CMYK")),
        ("colour_space", scene("HSV")),
        ("bit_depth", scene("I")),
        ("alpha", scene("RGBA").rotate(20)),
        ("bit_depth", np.zeros((4, 4), np.uint16)),
        ("bit_depth", np.zeros((4, 4))),
    ],
)
def test_other_pixels_have_several_readings(code, source):
    assert code in why(source)


def test_frames_that_nobody_looked_at_are_a_departure_and_named():
    pages = [Image.new("RGB", (6, 4), (9 * index, 0, 0)) for index in range(9)]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    all_seen, some = decode(data, ImageLimits(max_frames=9)), decode(data, ImageLimits(max_frames=2))
    assert "frames_unseen" in some.departures
    assert some.frame_count == 9
    assert len(some.frames_seen) == 2
    if "frames_unseen" not in all_seen.departures:
        assert all_seen.frames_seen == tuple(range(9))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_change_of_a_byte_makes_a_hidden_second_reading_of_a_png(data):
    """A changed byte is refused, is a departure, or leaves the pixels or a part that says nothing of them."""
    original = png(chunk(b"gAMA", struct.pack(">I", 45455)))
    at = data.draw(st.integers(8, len(original) - 1))
    broken = bytearray(original)
    broken[at] ^= data.draw(st.integers(1, 255))
    try:
        result = decode(bytes(broken))
    except ImageDecodeError:
        return
    assert result.departures
