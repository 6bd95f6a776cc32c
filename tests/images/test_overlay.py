"""The explaining image: heat where it belongs, labels that can be read, and no surprise on odd input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from guardalign_guardrails.images import OverlayRegion, draw_overlay
from guardalign_guardrails.images.overlay import heat_colours, heat_grid

GREY = Image.new("RGB", (300, 200), (120, 120, 120))


def pixels(image):
    return np.asarray(image, int)


def test_it_returns_a_new_rgb_image_and_leaves_its_input_alone():
    image = GREY.copy()
    result = draw_overlay(image, [OverlayRegion((0, 0, 100, 100), 0.8, "knife")], title="Flagged")
    assert (result.mode, result.size) == ("RGB", (300, 200))
    assert image.tobytes() == GREY.tobytes()


def test_large_images_shrink_to_max_side_and_small_ones_keep_their_size():
    assert draw_overlay(Image.new("RGB", (3000, 1500)), [], max_side=600).size == (600, 300)
    assert draw_overlay(Image.new("RGB", (64, 20)), [], max_side=600).size == (64, 20)


def test_the_colour_map_gets_steadily_brighter():
    colours = heat_colours(np.linspace(0, 1, 64))
    brightness = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert np.all(np.diff(brightness) > 0)
    assert brightness[-1] - brightness[0] > 200


def test_hot_regions_are_warmer_than_cold_ones():
    regions = [OverlayRegion((0, 0, 150, 200), 0.05), OverlayRegion((150, 0, 300, 200), 0.95)]
    result = pixels(draw_overlay(GREY, regions))
    cold, hot = result[60, 40], result[60, 260]
    assert hot[0] - hot[2] > cold[0] - cold[2] + 60


def test_heat_blends_the_mean_and_the_maximum_of_overlapping_regions():
    regions = [OverlayRegion((0, 0, 100, 100), 0.0), OverlayRegion((0, 0, 50, 100), 0.9)]
    grid = heat_grid(regions, (100, 100))
    assert grid[50, 10] == pytest.approx((0.45 + 2 * 0.9) / 3)
    assert grid[50, -5] == 0


def test_only_labelled_or_masked_regions_get_an_outline():
    box = (100, 60, 220, 160)
    bare, labelled, masked = (
        pixels(draw_overlay(GREY, [OverlayRegion(box, 0.5, label, is_masked)]))
        for label, is_masked in ((None, False), ("knife", False), (None, True))
    )
    on_edge = np.s_[62:64, 140:180]
    assert np.ptp(bare[on_edge], axis=(0, 1)).max() < 20
    for marked in (labelled, masked):
        assert np.abs(marked[58:66, 140:180] - bare[58:66, 140:180]).max() > 80


@pytest.mark.parametrize("corner", [(0, 0), (280, 0), (0, 190), (280, 190), (-40, -40), (290, 195)])
def test_a_label_stays_within_the_image_wherever_its_box_is(corner):
    box = (*corner, corner[0] + 60, corner[1] + 60)
    with_text, without = (pixels(draw_overlay(GREY, [OverlayRegion(box, 0.5, text)])) for text in ("weapons 0.93", ""))
    changed = np.abs(with_text - without).max(-1) > 60
    rows, columns = np.nonzero(changed)
    assert len(rows) > 400
    assert columns.max() - columns.min() > 60


@pytest.mark.parametrize("text", ["x" * 5000, "line\nbreaks\tand  spaces", "Ünïcödé 武器 🔪", "", " "])
def test_any_text_can_be_a_label_and_a_title(text):
    assert draw_overlay(GREY, [OverlayRegion((20, 20, 90, 90), 1.0, text)], title=text).size == GREY.size


def test_a_thousand_regions_are_drawn():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 800, (1000, 2))
    regions = [
        OverlayRegion((x, y, x + 200, y + 200), float(h)) for (x, y), h in zip(corners, rng.random(1000), strict=True)
    ]
    drawn = np.asarray(draw_overlay(Image.new("RGB", (1024, 1024)), regions, title="many"))
    assert (drawn[:1000, :1000].reshape(10, 100, 10, 100, 3).max((1, 3, 4)) > 0).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 500), (500, 2), (17, 13)])
def test_tiny_and_thin_images_are_drawn(size):
    regions = [OverlayRegion((0, 0, *size), 0.7, "label", True)]
    assert draw_overlay(Image.new("RGB", size), regions, title="title").size == size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_can_be_drawn_on(mode):
    assert draw_overlay(Image.new(mode, (40, 30)), [OverlayRegion((0, 0, 9, 9), 0.4, "a")]).mode == "RGB"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.builds(
            OverlayRegion,
            box=st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 4),
            heat=st.floats(allow_nan=True, allow_infinity=True),
            label=st.none() | st.text(max_size=20),
            is_masked=st.booleans(),
        ),
        max_size=5,
    )
)
def test_no_box_heat_or_text_can_break_it(regions):
    assert draw_overlay(Image.new("RGB", (90, 60)), regions).size == (90, 60)
