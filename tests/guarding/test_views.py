"""What is cut out of an image to be scored, and where its scores belong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from guardalign_guardrails.detection.scoring import ScoreMap
from guardalign_guardrails.guarding.views import (
    ScoredView,
    highest,
    reference_tiles,
    seen_side,
    tile_boxes,
    turned,
    with_tiles,
)


def rounded(box):
    return tuple(round(edge, 5) for edge in box)


SIDES = st.integers(1, 2000)
REACHES = st.integers(16, 1000)


@settings(deadline=None)
@given(st.tuples(SIDES, SIDES), REACHES)
@example((1568, 1045), 896)
@example((897, 1), 896)
def test_tiles_cover_the_image_and_none_is_larger_than_one_look_sees(size, reach):
    boxes = tile_boxes(size, reach)
    if max(size) <= reach:
        assert boxes == []
        return
    covered = np.zeros(size[::-1], dtype=bool)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert max(right - left, bottom - top) <= reach
        covered[top:bottom, left:right] = True
    assert covered.all()


@given(st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)), REACHES, st.integers(0, 16))
@example((4000, 3000), 896, 4)
@example((1654, 2339), 896, 4)
def test_an_image_of_the_side_that_the_budget_reaches_needs_no_more_tiles(size, reach, most):
    side = seen_side(size, reach, most)
    assert side >= reach
    scale = min(1.0, side / max(size))
    boxes = tile_boxes((max(1, int(size[0] * scale)), max(1, int(size[1] * scale))), reach)
    assert len(boxes) <= max(most, 0) or not boxes


def test_four_tiles_reach_a_twelve_megapixel_photo_and_a_scanned_page_at_1568_pixels():
    assert seen_side((4000, 3000), 896, 4) >= 1568
    assert seen_side((1654, 2339), 896, 4) >= 1568


def test_an_object_on_the_border_of_two_tiles_is_whole_in_one_of_them():
    starts = sorted({box[0] for box in tile_boxes((3000, 800), 896)})
    assert all(after - before <= 896 - 896 // 8 for before, after in itertools.pairwise(starts))


def test_the_reference_is_cut_like_an_image_that_is_as_large_as_the_budget_reaches():
    still = Image.new("RGB", (1568, 1568))
    boxes = tile_boxes(still.size, 896)
    assert len(reference_tiles(still)) == len(boxes) == 4
    assert {tile.size for tile in reference_tiles(still)} == {(896, 896)}


def test_the_scores_of_a_tile_lie_where_the_tile_does():
    _, *tiles = with_tiles(ScoredView(Image.new("RGB", (1000, 500)), "frame 0, plain"), 600)
    assert [tile.name for tile in tiles] == ["frame 0, plain, tile 1 of 2", "frame 0, plain, tile 2 of 2"]
    whole = ScoreMap(torch.tensor([[0.0, 0.0, 1.0, 0.5]]), torch.zeros(1, 1), None)
    assert tiles[1].placed(whole).boxes.tolist() == [[pytest.approx(0.4), 0.0, 1.0, 0.5]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scores_of_a_stored_image_lie_where_its_pixels_are_displayed(orientation):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    stored = Image.fromarray(values)
    stored.getexif()[0x0112] = orientation
    displayed = np.asarray(ImageOps.exif_transpose(stored))
    edges = [(c / 3, r / 2, (c + 1) / 3, (r + 1) / 2) for r in range(2) for c in range(3)]
    score_map = ScoreMap(torch.tensor(edges), torch.tensor(values.reshape(-1, 1).astype(np.float32)), (2, 3))
    found = turned(score_map, orientation)
    assert found.grid == displayed.shape
    assert found.scores.reshape(found.grid).tolist() == displayed.tolist()
    rows, columns = displayed.shape
    expected = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)]
    assert found.boxes.flatten().tolist() == pytest.approx([edge for box in expected for edge in box], abs=1e-6)
    loose = turned(ScoreMap(score_map.boxes, score_map.scores, None), orientation)
    assert sorted(map(rounded, loose.boxes.tolist())) == sorted(map(rounded, found.boxes.tolist()))


def test_of_each_category_the_highest_score_of_any_view_counts():
    maps = [ScoreMap(torch.zeros(1, 4), torch.tensor([scores]), None) for scores in ([0.9, 0.1], [0.2, 0.8])]
    assert highest(maps) == pytest.approx([0.9, 0.8])
