"""Decoding: every accepted format, every odd mode, and every way in which a file can lie."""

import contextlib
import importlib.util
import io
import os
import pathlib
import struct
import sys
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from PIL.GifImagePlugin import GifImageFile

from guardalign_guardrails.errors import ImageDecodeError
from guardalign_guardrails.images import ImageLimits, decode

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]


def pil_image(width=12, height=8, channels=3):
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(values)


def saved(image, name, **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def animation(name, count=3, size=(6, 4), **options):
    pages = [Image.new("RGB", size, (10 * i % 256, 200 - i % 200, i % 256)) for i in range(count)]
    return saved(pages[0], name, save_all=True, append_images=pages[1:], **options)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, body, depth=8, colour=2, extra=b""):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def reason(source, limits=None):
    with pytest.raises(ImageDecodeError) as caught:
        decode(source, limits or ImageLimits())
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return caught.value.reason


def same(left, right):
    return np.array_equal(np.asarray(left), np.asarray(right))


@pytest.mark.parametrize("name", FORMATS)
def test_an_opaque_still_of_every_accepted_format_is_exactly_one_rgb_view(name):
    result = decode(saved(pil_image(), name))
    assert (result.format, result.size, result.frame_count, len(result.views)) == (name, (12, 8), 1, 1)
    assert result.views[0].pixels.mode == "RGB"
    assert type(result.views[0].pixels) is Image.Image
    assert result.flattened is result.views[0].pixels


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_accepted(kind):
    data = saved(pil_image(), "PNG")
    assert decode(kind(data)).digest == decode(data).digest


def test_the_same_pixels_share_a_digest_whatever_carries_them(tmp_path):
    image = pil_image()
    (tmp_path / "a.png").write_bytes(saved(image, "PNG"))
    sources = [saved(image, name) for name in ("PNG", "BMP", "TIFF")]
    sources += [saved(image, "WEBP", lossless=True), saved(image.convert("RGBA"), "PNG"), tmp_path / "a.png"]
    sources += [image, np.asarray(image), np.asarray(image).astype(np.uint16) * 257, np.asarray(image) / 255.0]
    digests = {decode(source).digest for source in sources[:-2]}
    assert len(digests) == 1
    assert decode(sources[-1]).digest in digests


def test_the_digest_changes_with_a_pixel_the_shape_or_the_alpha():
    image = pil_image(12, 8)
    changed = image.copy()
    changed.putpixel((3, 3), (1, 2, 3))
    clear = image.convert("RGBA")
    clear.putpixel((3, 3), (*image.getpixel((3, 3)), 254))
    reshaped = Image.frombytes("RGB", (8, 12), image.tobytes())
    assert len({decode(each).digest for each in (image, changed, clear, reshaped)}) == 4


def test_the_digest_covers_later_frames():
    first = Image.new("RGB", (6, 4), RED)
    files = [saved(first, "PNG", save_all=True, append_images=[Image.new("RGB", (6, 4), c)]) for c in (GREEN, BLUE)]
    assert decode(files[0]).digest != decode(files[1]).digest


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_eight_exif_orientations_show_the_same_pil_image(name):
    wanted = Image.new("RGB", (64, 32), RED)
    wanted.paste(GREEN, (32, 0, 64, 32))
    wanted.paste(BLUE, (0, 16, 32, 32))
    stored = {1: (), 2: (0,), 3: (3,), 4: (1,), 5: (5,), 6: (2,), 7: (6,), 8: (4,)}
    for orientation, moves in stored.items():
        image = wanted
        for move in moves:
            image = image.transpose(Image.Transpose(move))
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"quality": 100, "subsampling": 0} if name == "JPEG" else {"lossless": True} if name == "WEBP" else {}
        for source in (data := saved(image, name, exif=exif, **options), Image.open(io.BytesIO(data))):
            result = decode(source)
            assert result.size == (64, 32), orientation
            off = np.abs(np.asarray(result.flattened, int) - np.asarray(wanted, int)).max()
            assert off < 12, (orientation, off)


@pytest.mark.parametrize(
    "exif", [b"", b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + b"\1\x12" * 9]
)
def test_broken_exif_means_upright(exif):
    image = Image.new("RGB", (8, 4), RED)
    assert decode(saved(image, "PNG", exif=b"Exif\0\0" + exif)).size == (8, 4)
    assert decode(saved(image, "JPEG", exif=b"Exif\0\0" + exif)).size == (8, 4)


def test_transparent_content_is_shown_plain_over_white_and_over_black():
    image = Image.new("RGBA", (6, 4), (255, 0, 0, 0))
    result = decode(saved(image, "PNG"))
    assert [(view.backdrop, view.pixels.getpixel((0, 0))) for view in result.views] == [
        ("plain", RED),
        ("white", (255, 255, 255)),
        ("black", (0, 0, 0)),
    ]
    assert result.flattened.getpixel((0, 0)) == (255, 255, 255)


def test_views_that_look_the_same_are_dropped():
    hidden_black = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    assert [view.backdrop for view in decode(hidden_black).views] == ["plain", "white"]
    hidden_white = Image.new("RGBA", (6, 4), (255, 255, 255, 0))
    result = decode(hidden_white)
    assert [view.backdrop for view in result.views] == ["plain", "black"]
    assert result.flattened.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "La", "RGBa"])
def test_every_mode_with_alpha_gives_three_views(mode):
    image = Image.new("RGBA", (6, 4), (90, 90, 90, 128))
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    image = image.convert(through).convert(mode) if through else image.convert(mode)
    if mode == "PA":
        image.putalpha(128)
    assert len(decode(image).views) == 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"])
def test_every_opaque_mode_gives_one_view(mode):
    image = Image.new("LAB", (6, 4)) if mode == "LAB" else Image.new("RGB", (6, 4), (200, 40, 40)).convert(mode)
    assert len(decode(image).views) == 1


def test_palette_transparency_is_seen():
    image = pil_image().quantize(8)
    data = saved(image, "PNG", transparency=image.getpixel((0, 0)))
    assert len(decode(data).views) == 3
    assert len(decode(saved(image, "PNG")).views) == 1
    partly = saved(image, "PNG", transparency=bytes([0, 128, 255]))
    assert len(decode(partly).views) == 3


@pytest.mark.parametrize(
    ("depth", "colour", "row", "trns"),
    [(8, 0, b"\x07\x09", b"\0\x07"), (8, 2, b"\1\2\3\4\5\6", b"\0\1\0\2\0\3"), (16, 0, b"\7\7\x90\0", b"\7\7"),
     (1, 0, b"\x40", b"\0\1")],
)  # fmt: skip
def test_a_png_transparent_colour_is_seen(depth, colour, row, trns):
    data = png(2, 1, b"\0" + row, depth, colour, chunk(b"tRNS", trns))
    assert {"white", "black"} & {view.backdrop for view in decode(data).views}


def test_sixteen_bit_grey_is_scaled_and_the_clipped_rendering_is_kept_too():
    values = np.linspace(0, 65535, 60).astype(np.uint16).reshape(6, 10)
    for source in (saved(Image.fromarray(values), "PNG"), saved(Image.fromarray(values), "TIFF"), values):
        result = decode(source)
        assert same(np.asarray(result.flattened)[..., 0], values >> 8)
        assert len(result.views) == 2
        assert same(np.asarray(result.views[1].pixels)[..., 0], np.minimum(values, 255))


def test_content_in_the_low_byte_of_sixteen_bits_cannot_hide():
    values = np.asarray(pil_image().convert("L")).astype(np.uint16)
    assert any(same(np.asarray(view.pixels)[..., 0], values) for view in decode(Image.fromarray(values)).views)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (0, 65535), (-5, 7), (1e30, 2e30)])
def test_float_images_are_brought_into_range(low, high):
    values = np.linspace(low, high, 60, dtype=np.float32).reshape(6, 10)
    grey = np.asarray(decode(saved(Image.fromarray(values), "TIFF")).flattened)[..., 0]
    assert grey.min() <= 5
    assert grey.max() >= 250


def test_nan_and_infinity_in_a_float_image_do_no_harm():
    values = np.array([[0, 0.5, 1], [np.nan, np.inf, -np.inf]], np.float32)
    assert np.asarray(decode(Image.fromarray(values)).flattened)[..., 0].tolist() == [[0, 127, 255], [0, 255, 0]]
    assert decode(Image.fromarray(np.full((3, 3), np.nan, np.float32))).size == (3, 3)


def test_a_tiff_page_larger_than_the_first_is_checked_too():
    small, large = Image.new("L", (8, 8)), Image.new("L", (50, 50))
    data = saved(small, "TIFF", save_all=True, append_images=[large])
    assert decode(data).frame_count == 2
    assert reason(data, ImageLimits(max_pixels=100)) == "too_many_pixels"


def test_a_gif_frame_outside_of_its_canvas_is_checked_too():
    data = bytearray(animation("GIF", 2))
    second = data.rindex(b",\0\0\0\0")
    struct.pack_into("<HH", data, second + 5, 9000, 9000)
    assert reason(bytes(data)) == "too_many_pixels"


def test_a_gif_frame_without_area_is_corrupt():
    data = bytearray(animation("GIF", 2))
    struct.pack_into("<HH", data, data.rindex(b",\0\0\0\0") + 5, 0, 0)
    assert reason(bytes(data)) == "corrupt"


def test_an_animation_too_long_to_draw_is_refused():
    data = animation("GIF", 30, size=(200, 200))
    assert reason(data, ImageLimits(max_frame_pixels_total=1_000_000)) == "too_many_frames"


def test_an_animation_with_many_tiny_frames_is_refused_without_drawing_one(monkeypatch):
    drawn, load = [], GifImageFile.load
    monkeypatch.setattr(GifImageFile, "load", lambda image: (drawn.append(image), load(image))[1])
    data = animation("GIF", 2, size=(1, 1))
    start = data.rindex(b"!\xf9")
    decode(data)
    assert drawn
    drawn.clear()
    assert reason(data[:start] + data[start:-1] * 100_000 + b";") == "too_many_frames"
    assert not drawn


def test_an_apng_that_lies_about_its_frame_count_is_corrupt():
    data = animation("PNG", 3)
    at = data.index(b"acTL") + 4
    body = struct.pack(">II", 500, 0)
    lie = data[:at] + body + struct.pack(">I", zlib.crc32(b"acTL" + body)) + data[at + 12 :]
    assert reason(lie) == "corrupt"


def test_a_tiff_whose_pages_form_a_loop_is_corrupt():
    data = bytearray(saved(pil_image(), "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    assert reason(bytes(data)) == "corrupt"


def test_mpo_is_read_as_one_jpeg():
    data = saved(pil_image(), "MPO", save_all=True, append_images=[Image.new("RGB", (12, 8), RED)])
    result = decode(data)
    assert (result.format, result.frame_count, len(result.views)) == ("JPEG", 1, 1)


def test_a_400_megapixel_png_is_refused_without_memory():
    body = zlib.compressobj(9)
    packed = b"".join(body.compress(bytes(1_000_000)) for _ in range(40)) + body.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    tracemalloc.start()
    assert reason(data) == "too_many_pixels"
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("name", FORMATS)
def test_a_lying_header_is_refused_before_any_pixel(name):
    data = bytearray(saved(pil_image(), name))
    at, code, numbers = {
        "PNG": (16, ">II", (30_000, 30_000)),
        "JPEG": (data.find(b"\xff\xc0") + 5, ">HH", (60_000, 60_000)),
        "GIF": (6, "<HH", (60_000, 60_000)),
        "BMP": (18, "<ii", (60_000, -60_000)),
        "WEBP": (26, "<HH", (16_000, 16_000)),
        "TIFF": (None, "", ()),
    }[name]
    if name == "TIFF":
        for tag in (256, 257):
            entry = data.find(struct.pack("<H", tag), struct.unpack_from("<I", data, 4)[0])
            struct.pack_into("<HII", data, entry + 2, 4, 1, 60_000)
    else:
        struct.pack_into(code, data, at, *numbers)
    assert reason(bytes(data)) == "too_many_pixels"


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0)])
def test_a_header_without_area_is_empty(width, height):
    assert reason(png(width, height, b"")) == "empty"


def test_a_side_longer_than_any_real_image_is_refused():
    assert reason(png(1, 5_000_000, b"", colour=0)) == "too_many_pixels"


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_an_error_with_reason_truncated(name):
    data = saved(pil_image(40, 40), name)
    for share in (0.5, 0.8):
        assert reason(data[: int(len(data) * share)]) == "truncated", share


def test_a_flipped_bit_behind_a_checksum_is_corrupt():
    data = bytearray(saved(pil_image(), "PNG"))
    data[data.index(b"IDAT") + 10] ^= 0xFF
    assert reason(bytes(data)) == "corrupt"


@pytest.mark.parametrize(
    "data",
    [
        *(b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\0\0\0\x18ftypisom", b"SIMPLE  = T", b"%!PS"),
        *(b"\0\0\1\0\1\0", b"II+\0\x08\0\0\0", b"just text", b"\xff\xd8", b"RIFF\0\0\0\0WAVE"),
    ],
)
def test_anything_else_is_an_unsupported_format_and_the_message_says_what_is_accepted(data):
    with pytest.raises(
        ImageDecodeError, match="PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000 images"
    ) as caught:
        decode(data)
    assert caught.value.reason == "unsupported_format"


def test_an_icon_that_pillow_could_read_is_still_unsupported():
    assert reason(saved(pil_image(16, 16), "ICO")) == "unsupported_format"


@pytest.mark.parametrize("source", [b"", bytearray(), np.zeros((0, 4), np.uint8), Image.new("RGB", (0, 0))])
def test_nothing_is_empty(source):
    assert reason(source) == "empty"


def test_a_str_is_never_a_path(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(pil_image(), "PNG"))
    with pytest.raises(ImageDecodeError, match=r"pathlib\.Path") as caught:
        decode(str(path))
    assert caught.value.reason == "wrong_type"
    assert str(tmp_path) not in str(caught.value)
    assert reason(None) == reason(7) == "wrong_type"


def test_bytes_over_the_cap_are_too_large_also_in_a_file(tmp_path):
    data = saved(pil_image(40, 40), "BMP")
    (tmp_path / "a.bmp").write_bytes(data)
    limits = ImageLimits(max_bytes=len(data) - 1)
    assert reason(data, limits) == reason(memoryview(data), limits) == reason(tmp_path / "a.bmp", limits) == "too_large"


def test_only_regular_files_are_read_and_the_name_stays_out_of_the_message(tmp_path):
    fifo = tmp_path / "secret-name"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, tmp_path / "absent", pathlib.Path("/dev/zero"), pathlib.Path("a\0b")):
        with pytest.raises(ImageDecodeError) as caught:
            decode(path)
        assert caught.value.reason == "unreadable"
        assert "secret" not in str(caught.value)
        assert str(tmp_path) not in repr(caught.value)


def test_pixel_caps_hold_for_pil_images_and_arrays():
    limits = ImageLimits(max_pixels=10)
    assert reason(pil_image(), limits) == reason(np.zeros((4, 4)), limits) == "too_many_pixels"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16", "F"])
def test_a_pil_image_is_left_as_it_was(mode):
    image = Image.new("RGBA", (6, 4), (9, 8, 7, 100)) if mode == "RGBA" else Image.new(mode, (6, 4))
    image.info["note"] = "kept"
    before = (image.mode, image.size, image.tobytes(), dict(image.info))
    result = decode(image)
    for view in result.views:
        view.pixels.paste((1, 2, 3), (0, 0, 6, 4))
    assert (image.mode, image.size, image.tobytes(), dict(image.info)) == before


def test_a_lazy_pil_image_is_read_and_an_animation_stays_on_its_frame():
    image = Image.open(io.BytesIO(animation("GIF")))
    image.seek(1)
    result = decode(image)
    assert image.tell() == 1
    assert result.frame_count == 1
    assert same(result.flattened, image.convert("RGB"))


def test_a_pil_image_of_a_broken_file_is_an_error_of_ours():
    image = Image.open(io.BytesIO(saved(pil_image(50, 50), "PNG")[:2000]))
    assert reason(image) == "truncated"


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 6), bool), np.zeros((4, 6, 1), np.uint8), np.ones((4, 6, 3), np.float32), np.ones((4, 6, 4), float)],
)
def test_arrays_of_the_usual_shapes_and_types_are_accepted(array):
    before = array.copy()
    result = decode(array)
    assert (result.size, result.format) == ((6, 4), "ARRAY")
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    "array",
    [
        *(np.zeros(5), np.zeros((2, 2, 2)), np.zeros((1, 2, 2, 3)), np.zeros((2, 2), np.int64), np.zeros((2, 2), "U1")),
        *(np.full((2, 2), 1.5), np.full((2, 2), -0.1), np.full((2, 2), np.nan), np.zeros((2, 2), complex)),
        np.array([[None]]),
    ],
)
def test_other_arrays_are_the_wrong_type(array):
    assert reason(array) == "wrong_type"


@pytest.mark.parametrize("field", ["max_bytes", "max_pixels", "max_frames", "max_frame_pixels_total"])
def test_limits_must_be_positive(field):
    with pytest.raises(ValueError, match=field):
        ImageLimits(**{field: 0})


def test_no_warning_leaks_and_no_global_is_touched():
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    data = bytearray(saved(pil_image(), "TIFF"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reason(Image.open(io.BytesIO(saved(pil_image(50, 50), "PNG")[:2000])))
        decode(saved(pil_image().quantize(8), "PNG", transparency=bytes([0, 128])))
        for at in range(8, len(data), 3):
            broken = bytearray(data)
            broken[at] ^= 0xFF
            with contextlib.suppress(ImageDecodeError):
                decode(bytes(broken))
    assert caught == []
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_reprs_show_no_pixels():
    result = decode(pil_image())
    assert "PIL" not in repr(result).replace("'PIL'", "")
    assert "Image" not in repr(result.views[0]).replace("View", "")


_path = pathlib.Path(__file__).parents[2] / "benchmarks" / "fuzz_images.py"
_spec = importlib.util.spec_from_file_location("fuzz_images", _path)
fuzz_images = importlib.util.module_from_spec(_spec)
sys.modules["fuzz_images"] = fuzz_images
_spec.loader.exec_module(fuzz_images)


def test_two_hundred_damaged_files_end_in_a_result_or_our_error():
    files = (item for item in fuzz_images.mutations(7) if not item[0].startswith("bomb"))
    outcomes = {fuzz_images.decode_one(data) for (_, data), _ in zip(files, range(250), strict=False)}
    assert {"decoded", "truncated", "corrupt", "unsupported_format"} <= outcomes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(magic=st.sampled_from(fuzz_images.MAGIC), tail=st.binary(max_size=300))
def test_random_bytes_after_a_valid_magic_never_raise_anything_else(magic, tail):
    fuzz_images.decode_one(magic + tail)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_lossless_formats_give_back_the_very_pixels(width, height, data):
    raw = data.draw(st.binary(min_size=width * height * 3, max_size=width * height * 3))
    image = Image.frombytes("RGB", (width, height), raw)
    name = data.draw(st.sampled_from(["PNG", "BMP", "TIFF"]))
    assert decode(saved(image, name)).flattened.tobytes() == raw


def test_of_a_large_transparent_image_only_the_base_of_masks_is_held_whole():
    image = Image.new("RGBA", (3000, 2000), (200, 10, 10, 100))
    decoded = decode(image)
    sizes = {view.backdrop: view.pixels.size for view in decoded.views}
    assert decoded.size == decoded.flattened.size == sizes["white"] == (3000, 2000)
    assert sizes["plain"] == sizes["black"] == (1500, 1000)


def test_the_base_of_masks_is_whole_also_when_another_view_looks_the_same():
    image = Image.new("RGBA", (3000, 2000), (255, 255, 255, 0))
    decoded = decode(image)
    assert {view.backdrop for view in decoded.views} == {"plain", "black"}
    assert decoded.flattened.size == decoded.size == (3000, 2000)
