"""Masking: what is inside a box is gone, what is outside stays, and nothing else changes."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from guardalign_guardrails.images import coverage, encode_png, mask_regions

FILLS = ["solid", "blur", "pixelate"]


def noise(width=120, height=90, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def test_without_boxes_the_very_same_object_comes_back():
    image = noise()
    assert mask_regions(image, []) is image


@pytest.mark.parametrize("fill", FILLS)
def test_the_input_is_never_changed_and_the_output_is_rgb_of_the_same_size(fill):
    image = noise().convert("RGBA")
    before = image.tobytes()
    result = mask_regions(image, [(10, 10, 50, 50)], fill=fill)
    assert (result.mode, result.size) == ("RGB", image.size)
    assert image.tobytes() == before


def test_a_box_is_rounded_outwards_so_that_touched_pixels_are_covered():
    result = np.asarray(mask_regions(Image.new("RGB", (20, 20), "white"), [(4.9, 5.1, 8.1, 8.0)], feather=0))
    expected = np.full((20, 20, 3), 255)
    expected[5:8, 4:9] = 0
    assert np.array_equal(result, expected)


def test_boxes_are_clipped_to_the_image_and_those_outside_or_without_area_do_nothing():
    image = Image.new("RGB", (20, 20), "white")
    assert np.asarray(mask_regions(image, [(-50, -50, 500, 500)])).max() == 0
    result = mask_regions(image, [(30, 30, 40, 40), (-9, 0, -1, 5), (5, 5, 5, 9)])
    assert result is not image
    assert np.asarray(result).min() == 255


@pytest.mark.parametrize("box", [(0, 0, float("nan"), 5), (0, 0, float("inf"), 5), (5, 0, 1, 5), (0, 5, 5, 1)])
def test_a_box_that_is_not_finite_or_is_inside_out_is_a_value_error(box):
    with pytest.raises(ValueError, match="box"):
        mask_regions(noise(), [box])
    with pytest.raises(ValueError, match="box"):
        coverage([box], (10, 10))


@pytest.mark.parametrize("feather", [-0.1, float("nan"), float("inf")])
def test_a_senseless_feather_is_a_value_error(feather):
    with pytest.raises(ValueError, match="feather"):
        mask_regions(noise(), [(0, 0, 5, 5)], feather=feather)


def test_the_feather_fades_outside_of_the_box_only():
    image = Image.new("RGB", (200, 200), "white")
    result = np.asarray(mask_regions(image, [(50, 50, 150, 150)], feather=0.1))[..., 0]
    assert result[50:150, 50:150].max() == 0
    edge = result[100, 138:170].astype(int)
    assert 0 < edge[12] < 128
    assert np.all(np.diff(edge) >= 0)
    assert result[100, 161] == 255
    assert result[100, 39] == result[100, 160]


def test_a_soft_edge_never_thins_out_a_neighbouring_mask():
    result = np.asarray(mask_regions(Image.new("RGB", (200, 100), "white"), [(0, 0, 100, 100), (100, 0, 200, 100)]))
    assert result.max() == 0


@pytest.mark.parametrize("feather", [0, 0.04])
@pytest.mark.parametrize("fill", FILLS)
def test_two_secrets_with_equal_cell_colours_mask_to_the_same_pixels(fill, feather):
    """Only coarse colour survives: content that differs in detail alone cannot be told apart afterwards."""
    plain = np.asarray(noise(320, 320)).copy()
    plain[0:320] = 128
    secret = plain.copy()
    stripes = np.where(np.arange(320) % 2, 158, 98)
    secret[:, :] = stripes[None, :, None]
    box = (0, 0, 320, 320)
    left, right = (
        np.asarray(mask_regions(Image.fromarray(each.astype(np.uint8)), [box], fill=fill, feather=feather), int)
        for each in (plain, secret)
    )
    assert np.abs(left - right).max() <= 1


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (31, 7), (5, 5), (1, 1)])
def test_a_mosaic_has_at_most_eight_cells_on_its_longer_side(size):
    result = np.asarray(mask_regions(noise(*size), [(0, 0, *size)], fill="pixelate"))
    assert len(np.unique(result.reshape(-1, 3), axis=0)) <= 64
    along = result[0] if size[0] >= size[1] else result[:, 0]
    assert np.any(np.diff(along.astype(int), axis=0), axis=1).sum() <= 7


def test_a_blur_is_smooth_and_carries_no_detail():
    result = np.asarray(mask_regions(noise(240, 240), [(0, 0, 240, 240)], fill="blur"), int)
    assert np.abs(np.diff(result, axis=0)).max() <= 4
    assert result.std() < 10


def test_a_mask_of_a_few_pixels_still_hides_them():
    image = noise(30, 30)
    for fill in ("blur", "pixelate"):
        patch = np.asarray(mask_regions(image, [(3, 3, 6, 6)], fill=fill))[3:6, 3:6]
        assert len(np.unique(patch.reshape(-1, 3), axis=0)) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(-20, 80)] * 4).map(lambda b: (*np.minimum(b[:2], b[2:]), *np.maximum(b[:2], b[2:])))
    ),
    st.sampled_from([0, 0.04, 0.3]),
)
def test_every_pixel_in_a_box_is_solid_and_pixels_far_away_are_untouched(boxes, feather):
    image = noise(60, 50)
    result = np.asarray(mask_regions(image, boxes, colour=(1, 2, 3), feather=feather))
    reach = np.zeros((50, 60), bool)
    for left, top, right, bottom in boxes:
        rows = slice(max(0, int(np.floor(top))), max(0, int(np.ceil(bottom))))
        columns = slice(max(0, int(np.floor(left))), max(0, int(np.ceil(right))))
        assert np.all(result[rows, columns] == (1, 2, 3))
        soft = 40 if feather else 0
        reach[max(0, rows.start - soft) : rows.stop + soft, max(0, columns.start - soft) : columns.stop + soft] = True
    assert np.array_equal(result[~reach], np.asarray(image)[~reach])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_is_lossless_deterministic_and_without_metadata(mode):
    image = noise().convert(mode)
    image.info.update(exif=b"Exif\0\0II*\0", icc_profile=b"profile", comment="x", dpi=(72, 72), transparency=None)
    del image.info["transparency"]
    data = encode_png(image)
    assert data == encode_png(image.copy())
    back = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(back.convert("RGBA")), np.asarray(image.convert("RGBA")))
    kinds, at = [], 8
    while at < len(data):
        kinds.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


def test_coverage_counts_overlaps_once_and_ignores_what_is_outside():
    assert coverage([], (10, 10)) == 0
    assert coverage([(0, 0, 5, 10), (0, 0, 5, 10)], (10, 10)) == pytest.approx(0.5)
    assert coverage([(0, 0, 6, 10), (4, 0, 10, 10)], (10, 10)) == pytest.approx(1)
    assert coverage([(-5, -5, 5, 5), (20, 20, 30, 30)], (10, 10)) == pytest.approx(0.25)
    assert coverage([(0, 0, 0.5, 0.5)], (10, 10)) == pytest.approx(0.0025)
    assert coverage([(3, 3, 3, 9)], (10, 10)) == 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(*[st.integers(-3, 18)] * 4), max_size=12))
def test_coverage_equals_counting_pixels(corners):
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    grid = np.zeros((12, 15), bool)
    for left, top, right, bottom in boxes:
        grid[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
    assert coverage(boxes, (15, 12)) == pytest.approx(grid.mean())


# Two boxes side by side, whose soft edges reach over each other.
NEIGHBOURS = [(10, 20, 50, 60), (52, 20, 92, 60)]


@pytest.mark.parametrize("boxes", [NEIGHBOURS, NEIGHBOURS[::-1]], ids=["left first", "right first"])
@pytest.mark.parametrize("fill", FILLS)
def test_a_soft_edge_never_shows_in_a_neighbours_cover(fill, boxes):
    image = noise(110, 80)
    result = np.asarray(mask_regions(image, boxes, fill=fill, feather=0.3))
    for left, top, right, bottom in boxes:
        alone = np.asarray(mask_regions(image, [(left, top, right, bottom)], fill=fill, feather=0))
        assert np.array_equal(result[top:bottom, left:right], alone[top:bottom, left:right])


@pytest.mark.parametrize("fill", FILLS)
def test_a_soft_edge_is_made_of_the_original_and_not_of_a_neighbours_edge(fill):
    image, feather = noise(110, 80), 0.3
    expected = image
    for left, top, right, bottom in NEIGHBOURS:
        # White under a black mask shows how much of the cover each pixel takes.
        white = Image.new("RGB", image.size, "white")
        taken = ImageOps.invert(mask_regions(white, [(left, top, right, bottom)], feather=feather).convert("L"))
        around = (max(0, left - 12), top - 12, right + 12, bottom + 12)
        assert taken.getbbox() == around, "0.3 of the shorter side, which is 40"
        cover = mask_regions(image, [around], fill=fill, feather=0)
        expected = Image.composite(cover, expected, taken)
    result = np.asarray(mask_regions(image, NEIGHBOURS, fill=fill, feather=feather), int)
    outside = np.ones(result.shape[:2], bool)
    for left, top, right, bottom in NEIGHBOURS:
        outside[top:bottom, left:right] = False
    assert np.abs(result - np.asarray(expected, int))[outside].max() <= 1


@pytest.mark.parametrize("feather", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("box", [(20, 30, 60, 50), (40, 10, 60, 50), (0, 0, 40, 20), (50, 40, 90, 60)])
def test_each_pixel_of_a_soft_edge_takes_of_the_cover_by_its_distance_from_the_box(box, feather):
    width, height = 90, 60
    left, top, right, bottom = box
    reach = round(feather * 20)
    expected = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            away = math.hypot(max(left - x, x - (right - 1), 0), max(top - y, y - (bottom - 1), 0))
            expected[y, x] = 255 * min(1, away / (reach + 1))
    result = np.asarray(mask_regions(Image.new("RGB", (width, height), "white"), [box], feather=feather))[..., 0]
    assert np.abs(result - expected).max() <= 1.5


def test_an_edge_softer_than_half_a_pixel_is_hard_and_one_of_a_pixel_is_one_pixel_wide():
    image = Image.new("RGB", (60, 60), "white")
    hard = np.asarray(mask_regions(image, [(20, 20, 40, 40)], feather=0))
    assert np.array_equal(np.asarray(mask_regions(image, [(20, 20, 40, 40)], feather=0.02)), hard)
    soft = np.asarray(mask_regions(image, [(20, 20, 40, 40)], feather=0.05), int)[30, :, 0]
    assert (soft[18], soft[20], soft[39], soft[41]) == (255, 0, 0, 255)
    assert soft[19] == soft[40] == pytest.approx(127, abs=1)


@pytest.mark.parametrize(
    ("size", "cells"),
    [
        ((400, 300), (8, 6)),
        ((300, 400), (6, 8)),
        ((64, 8), (8, 1)),
        ((31, 9), (7, 2)),
        ((9, 31), (2, 7)),
        ((3, 3), (1, 1)),
    ],
)
def test_a_mosaic_has_eight_cells_along_its_longer_side_and_none_is_narrower_than_four_pixels(size, cells):
    result = np.asarray(mask_regions(noise(*size), [(0, 0, *size)], fill="pixelate"), int)
    columns, rows = (1 + np.any(np.diff(result, axis=axis), axis=(1 - axis, 2)).sum() for axis in (1, 0))
    assert (columns, rows) == cells


@pytest.mark.parametrize("fill", ["blur", "pixelate"])
def test_a_cover_shows_the_colours_of_its_own_box_and_of_nothing_beside_it(fill):
    image = Image.new("RGB", (100, 80), "red")
    image.paste("blue", (40, 32, 72, 64))
    inside = np.asarray(mask_regions(image, [(40, 32, 72, 64)], fill=fill, feather=0))[32:64, 40:72]
    assert (inside == (0, 0, 255)).all()


def test_a_blur_mixes_colours_of_neighbouring_cells_and_leaves_those_further_away_as_they_are():
    image = Image.new("RGB", (320, 240), "black")
    image.paste("white", (160, 0, 320, 240))
    row = np.asarray(mask_regions(image, [(0, 0, 320, 240)], fill="blur"), int)[120, :, 0]
    assert row[:61].max() <= 2
    assert row[-61:].min() >= 253
    assert 5 < row[100] < 30
    assert 225 < row[219] < 250


def test_a_mask_is_black_and_a_little_soft_unless_it_is_told_otherwise():
    image = Image.new("RGB", (200, 200), "white")
    by_default = np.asarray(mask_regions(image, [(50, 50, 150, 150)]))
    assert np.array_equal(by_default, np.asarray(mask_regions(image, [(50, 50, 150, 150)], feather=0.04)))
    assert (by_default[50:150, 50:150] == 0).all()
    assert 0 < by_default[100, 46, 0] < 255
    assert by_default[100, 45, 0] == 255


def test_a_box_without_width_or_height_is_no_mistake_and_covers_nothing():
    image = noise(20, 20)
    assert np.array_equal(np.asarray(mask_regions(image, [(5, 5, 5, 5), (3, 7, 9, 7)])), np.asarray(image))


def test_boxes_that_touch_the_edges_are_covered_to_the_last_pixel():
    result = np.asarray(mask_regions(Image.new("RGB", (30, 20), "white"), [(29, 0, 30, 1), (0, 19, 1, 20)], feather=0))
    assert [tuple(place) for place in np.argwhere(result[..., 0] == 0)] == [(0, 29), (19, 0)]


def test_coverage_of_the_whole_image_is_one_and_never_more():
    assert coverage([(0, 0, 3, 3)], (3, 3)) == 1.0
    assert coverage([(-1, -1, 9, 9)] * 3, (7, 3)) == 1.0
    assert coverage([(0.0, 0.0, 0.1, 0.7), (0.1, 0.0, 1 / 3, 0.7), (1 / 3, 0.0, 0.7, 0.7)], (0.7, 0.7)) <= 1.0


def test_the_text_of_a_png_is_as_small_as_zlibs_usual_level_makes_it():
    data = encode_png(noise())
    start = data.index(b"IDAT") + 4
    assert data[start : start + 2] == b"\x78\x9c", "level 6: another level would give other bytes for the same pixels"
