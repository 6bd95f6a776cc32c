"""An object on a plain ground that lies mostly under a mask is covered whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from guardalign_guardrails.detection import plain_ground
from guardalign_guardrails.images import coverage


def sheet(*things, size=(200, 200), ground="white", ink="black"):
    """A sheet with filled rectangles, each left, top, right, bottom without the last row and column."""
    image = Image.new("RGB", size, ground)
    for left, top, right, bottom in things:
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=ink)
    return image


def half_covered_objects(image, boxes):
    return plain_ground.half_covered_objects(image, boxes, image.size)


def noise(size):
    """Random colours, none of them near white."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 230, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize(("ground", "ink"), [("white", "black"), ("black", "white"), ((90, 140, 200), (130, 140, 200))])
def test_the_rest_of_an_object_under_a_mask_is_covered_whatever_the_colours(ground, ink):
    image = sheet((20, 20, 120, 60), (60, 60, 80, 90), ground=ground, ink=ink)
    assert half_covered_objects(image, [(10, 10, 130, 70)]) == [(19, 19, 121, 91)]


def test_every_pixel_of_the_object_lies_under_the_masks_then():
    image = Image.new("RGB", (640, 430), "white")
    ImageDraw.Draw(image).polygon([(101, 100), (500, 130), (477, 333), (300, 180)], fill=(60, 60, 60))
    mask = (90.0, 90.0, 520.0, 270.0)
    (rest,) = half_covered_objects(image, [mask])
    rows, columns = np.nonzero(np.asarray(image.convert("L")) < 255)
    for left, top, right, bottom in [rest]:
        assert ((columns >= left) & (columns + 1 <= right) & (rows >= top) & (rows + 1 <= bottom)).all()


def test_the_share_from_which_an_object_counts_as_covered_is_sixty_percent_of_its_rectangle():
    image = sheet((50, 50, 150, 150))
    assert half_covered_objects(image, [(50, 50, 150, 110)]) == [(49, 49, 151, 151)]
    assert half_covered_objects(image, [(50, 50, 150, 109.9)]) == []


def test_boxes_count_together_and_only_once_where_they_overlap():
    image = sheet((50, 50, 150, 150))
    assert half_covered_objects(image, [(50, 50, 150, 80), (0, 75, 150, 110)]) == [(49, 49, 151, 151)]
    assert half_covered_objects(image, [(50, 50, 150, 80), (50, 50, 150, 80)]) == []


def test_an_object_at_the_edge_of_the_image_is_covered_up_to_the_edge():
    assert half_covered_objects(sheet((0, 0, 60, 200)), [(0, 0, 100, 150)]) == [(0, 0, 61, 200)]
    assert half_covered_objects(sheet((140, 0, 200, 200)), [(100, 0, 200, 150)]) == [(139, 0, 200, 200)]


def test_an_object_that_is_covered_already_or_apart_from_every_mask_gives_nothing():
    image = sheet((20, 20, 80, 80))
    assert half_covered_objects(image, [(20, 20, 80, 80)]) == []
    assert half_covered_objects(image, [(120, 120, 180, 180)]) == []


def test_without_a_mask_nothing_is_covered():
    assert half_covered_objects(sheet((20, 20, 80, 80)), []) == []


def test_what_is_as_small_as_a_letter_is_left_out():
    letter, sign = (10, 10, 19, 21), (10, 10, 20, 20)  # 99 and 100 of 40,000 pixels
    assert half_covered_objects(sheet(letter), [(0, 0, 100, 18)]) == []
    assert half_covered_objects(sheet(sign), [(0, 0, 100, 18)]) == [(9, 9, 21, 21)]


def test_strokes_two_pixels_apart_are_one_object_and_those_further_apart_are_not():
    mask = (0, 0, 200, 82)
    assert half_covered_objects(sheet((20, 20, 80, 80), (20, 82, 80, 90)), [mask]) == [(19, 19, 81, 91)]
    assert half_covered_objects(sheet((20, 20, 80, 80), (20, 83, 80, 91)), [mask]) == []


@pytest.mark.parametrize(("plain", "count"), [(80, 1), (79, 0)])
def test_an_image_needs_forty_percent_of_one_colour_to_have_a_plain_ground(plain, count):
    image = noise((200, 200))
    image.paste("white", (0, 0, 200, plain))
    assert len(half_covered_objects(image, [(0, 60, 200, 190)])) == count


def test_a_busy_image_has_no_objects():
    assert half_covered_objects(noise((120, 90)), [(0, 0, 120, 80)]) == []


def test_a_ground_that_is_plain_but_for_compression_is_plain():
    speckled = np.asarray(sheet((20, 20, 120, 60), (60, 60, 80, 90))).astype(int)
    speckled += np.random.default_rng(0).integers(-24, 1, speckled.shape)
    image = Image.fromarray(speckled.clip(0, 255).astype(np.uint8))
    assert half_covered_objects(image, [(10, 10, 130, 70)]) == [(19, 19, 121, 91)]


def test_a_large_image_is_looked_at_small_and_no_side_of_the_object_is_lost():
    image = sheet((200, 200, 1201, 601), (603, 601, 799, 903), size=(2000, 1500))
    ((left, top, right, bottom),) = half_covered_objects(image, [(100, 100, 1300, 700)])
    pixel = 2000 / 256
    assert 200 - 2 * pixel <= left <= 200
    assert 200 - 2 * pixel <= top <= 200
    assert 1201 <= right <= 1201 + 2 * pixel
    assert 903 <= bottom <= 903 + 2 * pixel


def test_boxes_may_be_in_pixels_of_a_larger_image_than_the_one_looked_at():
    image = sheet((20, 20, 120, 60), (60, 60, 80, 90))
    (found,) = plain_ground.half_covered_objects(image, [(30, 20, 390, 140)], (600, 400))
    assert found == (57, 38, 363, 182)


def test_the_image_and_the_boxes_are_left_as_they_are():
    image, boxes = sheet((20, 20, 120, 60), (60, 60, 80, 90)), [(10, 10, 130, 70)]
    before = image.copy()
    half_covered_objects(image, boxes)
    assert image.tobytes() == before.tobytes()
    assert boxes == [(10, 10, 130, 70)]


SIDES = st.tuples(st.integers(1, 300), st.integers(1, 300))
PLACES = st.tuples(st.integers(0, 250), st.integers(0, 250), st.integers(1, 80), st.integers(1, 80))


@settings(max_examples=60, deadline=None)
@given(SIDES, st.lists(PLACES, min_size=1, max_size=4), st.lists(PLACES, min_size=1, max_size=3))
@example((117, 262), [(36, 0, 80, 1)], [(4, 0, 80, 2)])
def test_what_is_found_lies_in_the_image_partly_under_a_mask_and_not_wholly(size, things, covers):
    image = sheet(*((x, y, x + w, y + h) for x, y, w, h in things), size=size)
    masks = [(float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in covers]
    for left, top, right, bottom in half_covered_objects(image, masks):
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        moved = [(box[0] - left, box[1] - top, box[2] - left, box[3] - top) for box in masks]
        assert 0 < coverage(moved, (right - left, bottom - top)) < 1
