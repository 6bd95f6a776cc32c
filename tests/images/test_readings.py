"""Profile, gamma and orientation: the guard's reading is the managed, upright one; what others show is scored too."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from guardalign_guardrails.images import colour, decode
from guardalign_guardrails.images.colour import differs_visibly, is_bent, is_srgb, render
from guardalign_guardrails.images.pixels import turn_between, upright
from guardalign_guardrails.images.views import View


def saved(image, name, **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def built_in(name):
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def profile(tags, space=b"RGB ", size=None):
    """An ICC profile of version 2 for displays, with the tags given as bytes by name."""
    table, body = b"", b""
    start = 132 + 12 * len(tags)
    for name, value in tags:
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    length = start + len(body) if size is None else size
    head = struct.pack(">I4sI4s4s4s", length, b"lcms", 0x02400000, b"mntr", space, b"XYZ ")
    head = head.ljust(36, b"\0") + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(*values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))


def curve(levels):
    return b"curv\0\0\0\0" + struct.pack(f">I{len(levels)}H", len(levels), *levels)


def srgb_levels():
    shares = np.linspace(0, 1, 1024)
    light = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return [round(65535 * each) for each in light]


WHITE = (b"wtpt", xyz(0.9642, 1, 0.8249))
PRIMARIES = [
    (b"rXYZ", xyz(0.4360, 0.2225, 0.0139)),
    (b"gXYZ", xyz(0.3851, 0.7169, 0.0971)),
    (b"bXYZ", xyz(0.1431, 0.0606, 0.7141)),
]


def matrix_profile(levels, primaries=PRIMARIES, extra=()):
    curves = [(name, curve(levels)) for name in (b"rTRC", b"gTRC", b"bTRC")]
    return profile([WHITE, *primaries, *curves, *extra])


# The published attack: the two low bits of each level spread over the whole range.
SPREAD = [round(65535 * (level & 3) / 3) for level in range(256)]
LINEAR = [257 * level for level in range(256)]


def cover():
    values = np.random.default_rng(3).integers(60, 200, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(values).resize((64, 48), Image.Resampling.BICUBIC)


def payload():
    values = np.zeros((48, 64, 3), np.uint8)
    values[10:30, 20:50] = 255
    return values


def two_in_one():
    return Image.fromarray((np.asarray(cover()) & 252) | (payload() // 85))


def off(left, right):
    return float(np.abs(np.asarray(left, float) - np.asarray(right, float)).mean())


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_an_image_that_a_tone_curve_hides_is_the_first_reading_and_the_other_a_view(name):
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}[name]
    result = decode(saved(two_in_one(), name, icc_profile=matrix_profile(SPREAD), **options))
    assert {"colour_profile", "curve"} <= set(result.departures)
    assert [view.reading for view in result.views] == ["", "no profile"]
    assert off(result.views[1].pixels, cover()) < 5
    # Compressing with loss destroys the low bits, so only the others still hide something.
    if name != "JPEG":
        assert off(result.flattened, payload()) < 5
    assert result.flattened is result.views[0].pixels


def test_a_pil_image_with_such_a_profile_has_both_readings_too():
    image = two_in_one()
    image.info["icc_profile"] = matrix_profile(SPREAD)
    assert [view.reading for view in decode(image).views] == ["", "no profile"]


def test_a_transparent_image_with_a_profile_has_every_backdrop_and_one_reading_without():
    image = two_in_one().convert("RGBA")
    image.putalpha(128)
    result = decode(saved(image, "PNG", icc_profile=matrix_profile(SPREAD)))
    assert [(view.backdrop, view.reading) for view in result.views] == [
        ("plain", ""),
        ("white", ""),
        ("black", ""),
        ("white", "no profile"),
    ]
    assert result.flattened is result.views[1].pixels


@pytest.mark.parametrize("levels", [srgb_levels(), [*srgb_levels()[::2], 65535]])
def test_a_profile_that_renders_like_srgb_is_srgb_whatever_it_is_called(levels):
    made = matrix_profile(levels, extra=[(b"desc", b"desc\0\0\0\0\0\0\0\5Evil\0")])
    assert is_srgb(made)
    assert decode(saved(cover(), "PNG", icc_profile=made)).departures == ()


def test_the_built_in_srgb_profile_is_srgb():
    assert is_srgb(built_in("sRGB"))
    assert decode(saved(cover(), "PNG", icc_profile=built_in("sRGB"))).departures == ()


def swapped(primaries):
    names = [name for name, _ in primaries]
    return list(zip(names, [value for _, value in primaries[1:] + primaries[:1]], strict=True))


@pytest.mark.parametrize(
    "made",
    [
        matrix_profile(LINEAR),
        matrix_profile(SPREAD),
        matrix_profile(srgb_levels(), swapped(PRIMARIES)),
        matrix_profile(srgb_levels(), extra=[(b"A2B0", b"mft1")]),
        matrix_profile(srgb_levels(), extra=[(b"cicp", b"cicp\0\0\0\0\x09\x10\0\1")]),
        matrix_profile(srgb_levels(), extra=[(b"rTRC", curve(LINEAR))]),
        profile([WHITE, *PRIMARIES]),
        profile([WHITE, (b"kTRC", curve(LINEAR))], b"GRAY"),
        built_in("sRGB") + b"\0",
        built_in("sRGB")[:-1],
        built_in("LAB"),
        b"",
        b"garbage",
        bytes(5000),
    ],
)
def test_any_other_profile_is_not(made):
    assert not is_srgb(made)


def test_a_tag_that_is_there_twice_is_never_srgb_whichever_a_reader_takes(monkeypatch):
    monkeypatch.setattr(colour, "render", lambda image, _: image.convert("RGB"))
    assert is_srgb(matrix_profile(srgb_levels()))
    assert not is_srgb(matrix_profile(srgb_levels(), extra=[(b"rTRC", curve(LINEAR))]))


def test_what_a_bent_curve_shows_is_scored_both_ways_however_little_it_is():
    image = Image.new("RGB", (640, 480), "white")
    image.putpixel((300, 200), (4, 4, 4))
    result = decode(saved(image, "PNG", icc_profile=matrix_profile(SPREAD)))
    assert "curve" in result.departures
    assert len(result.views) == 2


def test_a_gray_profile_is_judged_by_its_grays():
    gray = Image.linear_gradient("L")
    made = profile([WHITE, (b"kTRC", curve(srgb_levels()))], b"GRAY")
    assert is_srgb(made)
    assert decode(saved(gray, "PNG", icc_profile=made)).departures == ()
    result = decode(saved(gray, "PNG", icc_profile=profile([WHITE, (b"kTRC", curve(LINEAR))], b"GRAY")))
    assert [view.reading for view in result.views] == ["", "no profile"]
    assert result.views[0].pixels.getpixel((128, 64)) > result.views[1].pixels.getpixel((128, 64))
    translucent = gray.convert("LA")
    translucent.putalpha(77)
    assert len(decode(saved(translucent, "PNG", icc_profile=made)).views) == 3


def test_a_profile_for_other_pixels_is_broken_and_the_plain_pixels_are_the_reading():
    made = profile([WHITE, (b"kTRC", curve(LINEAR))], b"GRAY")
    for broken in (made, b"garbage" * 40, built_in("LAB")):
        result = decode(saved(cover(), "PNG", icc_profile=broken))
        assert "broken_profile" in result.departures
        assert len(result.views) == 1
        assert off(result.flattened, cover()) == 0


def test_a_profile_that_changes_nothing_visible_adds_no_view_but_is_a_departure():
    near = [min(65535, round(level * 1.03)) for level in srgb_levels()]
    result = decode(saved(cover(), "PNG", icc_profile=matrix_profile(near)))
    assert result.departures == ("colour_profile",)
    assert len(result.views) == 1


def test_a_visible_difference_is_seen_in_a_small_corner_and_without_a_change_of_the_mean():
    one = Image.new("RGB", (640, 480), (100, 100, 100))
    other = one.copy()
    assert not differs_visibly(one, other)
    other.paste((108, 100, 100), (0, 0, 21, 16))
    assert differs_visibly(one, other)
    noise = np.random.default_rng(0).choice([-12, 12], (480, 640, 3)) + 100
    assert differs_visibly(one, Image.fromarray(noise.astype(np.uint8)))
    assert not differs_visibly(one, Image.new("RGB", (640, 480), (103, 97, 100)))
    assert differs_visibly(Image.new("RGB", (1, 1)), Image.new("RGB", (1, 1), (9, 9, 9)))


def test_a_bent_curve_is_told_from_a_steep_one():
    steep = [0] * 128 + [65535] * 128
    assert is_bent(matrix_profile(SPREAD))
    assert not is_bent(matrix_profile(steep))
    assert not is_bent(built_in("sRGB"))
    only_blue = [(b"bTRC", curve(SPREAD)), *((name, curve(LINEAR)) for name in (b"rTRC", b"gTRC"))]
    assert is_bent(profile([WHITE, *PRIMARIES, *only_blue]))


def cmyk_profile():
    """A profile of four inks whose table makes the first ink's full use red."""
    grid, channels = 2, 4
    table = []
    for cell in range(grid**channels):
        inks = [cell >> (channels - 1 - place) & 1 for place in range(channels)]
        light = max(0, 255 - 80 * sum(inks[1:]))
        table += [light, 200 if inks[0] else 128, 190 if inks[0] else 128]
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    body = b"mft1\0\0\0\0" + bytes([channels, 3, grid, 0]) + matrix + ramp * channels + bytes(table) + ramp * 3
    made = profile([WHITE, (b"A2B0", body)], b"CMYK")
    return made[:12] + b"prtr" + made[16:20] + b"Lab " + made[24:]


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_inks_are_rendered_by_their_profile_and_plainly(name):
    image = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    made = cmyk_profile()
    assert render(image, made) is not None
    result = decode(saved(image, name, icc_profile=made))
    assert {"cmyk", "colour_profile"} <= set(result.departures)
    red, plain = (view.pixels.getpixel((9, 9)) for view in result.views)
    assert red[0] > red[2]
    assert plain[0] < plain[2]
    assert [view.reading for view in result.views] == ["", "no profile"]
    assert decode(saved(image, name)).departures[0] == "cmyk"


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(image, *chunks):
    data = saved(image, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def gamma(value):
    return chunk(b"gAMA", struct.pack(">I", round(100_000 * value)))


def test_gamma_is_rendered_and_the_plain_pixels_are_a_view():
    result = decode(png(cover(), gamma(1.0)))
    assert "gamma" in result.departures
    assert [view.reading for view in result.views] == ["", "no gamma"]
    assert off(result.views[1].pixels, cover()) == 0
    level = cover().getpixel((5, 5))[0]
    assert result.flattened.getpixel((5, 5))[0] == round(255 * (level / 255) ** (1 / 2.2))


def test_a_payload_in_the_darkest_levels_is_shown_by_gamma():
    dark = Image.fromarray(payload() // 85)
    result = decode(png(dark, gamma(2.2 * 4)))
    assert max(off(view.pixels, Image.new("RGB", dark.size)) for view in result.views) > 20


@pytest.mark.parametrize("over", [chunk(b"sRGB", b"\0"), chunk(b"iCCP", b"x\0\0" + zlib.compress(built_in("sRGB")))])
def test_a_colour_space_that_is_stated_overrules_gamma(over):
    result = decode(png(cover(), gamma(1.0), over))
    assert "gamma" in result.departures
    assert len(result.views) == 1
    assert off(result.flattened, cover()) == 0


def test_transparency_is_left_alone_by_gamma():
    image = cover().convert("RGBA")
    image.putalpha(100)
    result = decode(png(image, gamma(1.0)))
    assert [(view.backdrop, view.reading) for view in result.views][-1] == ("white", "no gamma")
    assert len(result.views) == 4


# Orientation


def exif(orientation):
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, 3, 1, orientation) + bytes(4)


def xmp(orientation):
    return f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()


def with_tags(name, from_exif, from_xmp):
    image = Image.new("RGB", (64, 32), "white")
    image.paste("red", (0, 0, 20, 10))
    options = {"lossless": True} if name == "WEBP" else {}
    if from_exif:
        options["exif"] = exif(from_exif)
    if name == "PNG":
        options["pnginfo"] = info = PngInfo()
        if from_xmp:
            info.add_itxt("XML:com.adobe.xmp", xmp(from_xmp).decode())
    elif name == "TIFF" and from_xmp:
        options["tiffinfo"] = {700: xmp(from_xmp)} | ({0x0112: from_exif} if from_exif else {})
    elif from_xmp:
        options["xmp"] = xmp(from_xmp)
    return image, saved(image, name, **options)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("from_exif", "from_xmp", "readings"),
    [
        (0, 0, [1]),
        (1, 0, [1]),
        (1, 1, [1]),
        (6, 0, [6, 1]),
        (6, 6, [6, 1]),
        (0, 8, [1, 8]),
        (1, 8, [1, 8]),
        (6, 1, [6, 1]),
        (6, 3, [6, 1, 3]),
    ],
)
def test_every_orientation_that_a_reader_may_go_by_is_a_view_and_exif_the_first(name, from_exif, from_xmp, readings):
    image, data = with_tags(name, from_exif, from_xmp)
    result = decode(data)
    assert len(result.views) == len(readings)
    assert ("orientation" in result.departures) == (len(readings) > 1)
    own = upright(image, readings[0])
    assert result.size == own.size
    assert off(result.flattened, own) < 8
    for view, orientation in zip(result.views, readings, strict=True):
        assert off(view.pixels, upright(image, orientation)) < 8
        assert off(upright(view.pixels, view.orientation), own) < 8
    assert len({view.name for view in result.views}) == len(readings)


@given(st.integers(1, 8), st.integers(1, 8))
def test_the_turn_between_two_orientations_leads_from_one_to_the_other(one, other):
    image = Image.frombytes("L", (5, 4), bytes(range(20)))
    turned = upright(upright(image, one), turn_between(one, other))
    assert turned.tobytes() == upright(image, other).tobytes()
    assert turned.size == upright(image, other).size


def test_an_image_that_looks_the_same_turned_has_one_view():
    data = saved(Image.new("RGB", (8, 8), "red"), "JPEG", exif=exif(6))
    result = decode(data)
    assert len(result.views) == 1
    assert result.departures == ("orientation",)
    assert result.digest == decode(saved(Image.new("RGB", (8, 8), "red"), "JPEG")).digest


def test_the_digest_covers_every_reading():
    plain, turned = with_tags("PNG", 1, 0)[1], with_tags("PNG", 1, 6)[1]
    assert decode(plain).digest != decode(turned).digest
    managed = saved(two_in_one(), "PNG", icc_profile=matrix_profile(SPREAD))
    assert decode(managed).digest not in (
        decode(two_in_one()).digest,
        decode(managed[:-12] + managed[-12:-5]).digest if False else "",
    )


def test_views_have_names_of_their_own():
    view = View(Image.new("RGB", (1, 1)), 2, "white", 6, "as stored")
    assert view.name == "frame 2, white, as stored"
    assert View(view.pixels).name == "frame 0, plain"


def test_of_a_large_turned_image_only_the_own_reading_is_whole():
    image = Image.linear_gradient("L").resize((3000, 2000)).convert("RGB")
    result = decode(saved(image, "PNG", exif=exif(6), icc_profile=matrix_profile(LINEAR)))
    assert result.flattened.size == (2000, 3000)
    assert {view.pixels.size for view in result.views if view.reading} == {(1000, 1500), (1500, 1000)}
