"""Growing mask boxes from hot regions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardalign_guardrails.detection.extent import outermost, unsafe_boxes
from guardalign_guardrails.detection.regions import _layout
from guardalign_guardrails.detection.scoring import ScoreMap


def score_map(heat: torch.Tensor) -> ScoreMap:
    rows, columns = heat.shape
    return ScoreMap(_layout(((rows, columns, 1),)).cells, heat.reshape(-1, 1), (rows, columns))


def test_an_image_below_the_threshold_has_no_boxes():
    assert unsafe_boxes(score_map(torch.rand(6, 6)), [2.0], 0.3) == []


def test_a_box_spans_the_hot_patch_around_its_peak_and_not_the_warm_rest():
    heat = torch.full((8, 8), 0.01)
    heat[2:5, 3:7] = 0.6
    heat[3, 4] = 0.9
    heat[7, 0] = 0.2
    assert unsafe_boxes(score_map(heat), [0.8], 0.5) == [(3 / 8, 2 / 8, 7 / 8, 5 / 8)]


def test_two_hot_patches_get_a_box_each():
    heat = torch.zeros(8, 8)
    heat[0:2, 0:2] = 0.9
    heat[5:8, 5:8] = 0.7
    assert sorted(unsafe_boxes(score_map(heat), [0.5], 0.5)) == [(0, 0, 0.25, 0.25), (0.625, 0.625, 1, 1)]


def test_every_category_is_covered_from_its_own_threshold():
    heat = torch.zeros(4, 4, 2)
    heat[0, 0, 0] = 0.9
    heat[3, 3, 1] = 0.4
    both = ScoreMap(_layout(((4, 4, 1),)).cells, heat.reshape(-1, 2), (4, 4))
    assert len(unsafe_boxes(both, [0.5, 0.3], 0.5)) == 2
    assert len(unsafe_boxes(both, [0.5, float("inf")], 0.5)) == 1


def test_regions_that_do_not_tile_the_image_are_covered_as_they_are():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 1.0, 1.0]])
    loose = ScoreMap(boxes, torch.tensor([[0.9], [0.1]]), None)
    assert unsafe_boxes(loose, [0.5], 0.3) == [(0.0, 0.0, 0.5, 0.5)]


def test_boxes_inside_others_and_repeats_are_dropped():
    outer, inner, apart = (0.0, 0.0, 0.5, 0.5), (0.1, 0.1, 0.5, 0.4), (0.6, 0.6, 0.9, 0.9)
    assert outermost([inner, outer, outer, apart, inner]) == [outer, apart]


def test_a_region_exactly_at_its_threshold_is_unsafe():
    heat = torch.zeros(4, 4)
    heat[1, 2] = 0.5
    assert unsafe_boxes(score_map(heat), [0.5], 0.5) == [(0.5, 0.25, 0.75, 0.5)]
    loose = ScoreMap(torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]), torch.tensor([[0.5], [0.25]]), None)
    assert unsafe_boxes(loose, [0.5], 1.0) == [(0.0, 0.0, 0.5, 0.5)]


def test_a_neighbour_exactly_at_the_extents_level_belongs_to_the_box_and_one_below_it_does_not():
    heat = torch.zeros(4, 4)
    heat[1, 1], heat[1, 2], heat[1, 3] = 0.5, 0.25, 0.125
    assert unsafe_boxes(score_map(heat), [0.5], 0.5) == [(0.25, 0.25, 0.75, 0.5)]


def test_a_second_peak_exactly_at_the_threshold_gets_its_own_box():
    heat = torch.zeros(4, 4)
    heat[0, 0], heat[3, 3] = 1.0, 0.5
    assert unsafe_boxes(score_map(heat), [0.5], 0.5) == [(0.0, 0.0, 0.25, 0.25), (0.75, 0.75, 1.0, 1.0)]


def test_a_box_grows_along_its_own_rows_and_columns_where_these_differ_in_number():
    heat = torch.zeros(2, 8)
    heat[1, 5], heat[1, 6] = 1.0, 0.75
    assert unsafe_boxes(score_map(heat), [0.9], 0.5) == [(5 / 8, 0.5, 7 / 8, 1.0)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 1), st.floats(0, 1), st.integers(0, 999))
def test_every_region_above_the_threshold_lies_in_a_box_within_the_image(rows, columns, extent, threshold, seed):
    heat = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    found = score_map(heat)
    boxes = unsafe_boxes(found, [threshold], extent)
    assert all(0 <= l < r <= 1 and 0 <= t < b <= 1 for l, t, r, b in boxes)  # noqa: E741
    for (left, top, right, bottom), value in zip(found.boxes.tolist(), heat.flatten().tolist(), strict=True):
        x, y = (left + right) / 2, (top + bottom) / 2
        assert value < threshold or any(l <= x < r and t <= y < b for l, t, r, b in boxes)  # noqa: E741


def test_a_margin_reaches_its_share_of_the_sides_beyond_the_hot_patch_and_not_beyond_the_image():
    heat = torch.zeros(10, 20)
    heat[4:6, 1:3] = 1.0
    ((left, top, right, bottom),) = unsafe_boxes(score_map(heat), [0.5], 0.5, 0.0625)
    assert (left, right) == pytest.approx((0.0, 3 / 20 + 0.0625))
    assert (top, bottom) == pytest.approx((0.4 - 0.0625, 0.6 + 0.0625))
    heat[4:6, 1:3], heat[8:10, 19] = 0.0, 1.0
    ((left, top, right, bottom),) = unsafe_boxes(score_map(heat), [0.5], 0.5, 0.0625)
    assert (left, top) == pytest.approx((0.95 - 0.0625, 0.8 - 0.0625))
    assert (right, bottom) == (1.0, 1.0)


@pytest.mark.parametrize(("gap", "count"), [(1, 1), (2, 1), (3, 2)])
def test_hot_parts_whose_margins_touch_are_one_object(gap, count):
    heat = torch.zeros(20, 20)
    heat[5, 5], heat[5, 6 + gap] = 1.0, 0.75
    boxes = unsafe_boxes(score_map(heat), [0.5], 0.5, 0.05)
    assert len(boxes) == count
    assert len(unsafe_boxes(score_map(heat), [0.5], 0.5)) == 2, "without a margin they are two"
    assert max(box[2] for box in boxes) == pytest.approx((7 + gap) / 20 + 0.05)


def test_parts_are_joined_along_the_side_on_which_the_margin_spans_a_cell():
    heat = torch.zeros(4, 20)
    heat[0, 0], heat[0, 2], heat[2, 0] = 1.0, 1.0, 1.0
    boxes = unsafe_boxes(score_map(heat), [0.5], 0.5, 0.05)
    assert sorted(box[:2] for box in boxes) == [(0.0, 0.0), (0.0, pytest.approx(0.45))]
    assert sorted(box[2] for box in boxes) == pytest.approx([1 / 20 + 0.05, 3 / 20 + 0.05])


def test_a_part_below_the_threshold_belongs_to_the_object_next_to_it_and_not_to_one_far_away():
    heat = torch.zeros(20, 20)
    heat[10, 2], heat[10, 4], heat[10, 16] = 1.0, 0.4, 0.4
    ((left, _, right, _),) = unsafe_boxes(score_map(heat), [0.9], 0.3, 0.05)
    assert (left, right) == pytest.approx((2 / 20 - 0.05, 5 / 20 + 0.05))


def test_a_tiles_margin_is_a_share_of_the_tile_and_may_reach_beyond_it():
    heat = torch.zeros(10, 10)
    heat[4, 9] = 1.0
    whole = score_map(heat)
    tile = ScoreMap(
        whole.boxes * torch.tensor([0.5, 0.25] * 2) + torch.tensor([0.25, 0.5] * 2), whole.scores, whole.grid
    )
    ((left, top, right, bottom),) = unsafe_boxes(tile, [0.5], 0.5, 0.1)
    assert (left, right) == pytest.approx((0.7 - 0.05, 0.75 + 0.05))
    assert (top, bottom) == pytest.approx((0.6 - 0.025, 0.625 + 0.025))


def test_regions_that_do_not_tile_the_image_get_no_margin():
    loose = ScoreMap(torch.tensor([[0.25, 0.25, 0.5, 0.5]]), torch.tensor([[0.9]]), None)
    assert unsafe_boxes(loose, [0.5], 0.3, 0.1) == [(0.25, 0.25, 0.5, 0.5)]


def contains(outer, inner):
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
    st.floats(0, 0.5),
    st.integers(0, 99),
)
def test_the_hottest_regions_box_holds_it_and_grows_with_a_smaller_extent_or_a_wider_margin(
    rows, columns, one, other, margin, seed
):
    heat = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) ** 3
    found, threshold = score_map(heat), [float(heat.max())]
    near, far = max(one, other), min(one, other)
    (tight,) = unsafe_boxes(found, threshold, near)
    (looser,) = unsafe_boxes(found, threshold, far)
    (wider,) = unsafe_boxes(found, threshold, near, margin)
    (widest,) = unsafe_boxes(found, threshold, far, margin)
    assert contains(tight, found.boxes[int(heat.argmax())].tolist())
    assert contains(looser, tight)
    assert contains(wider, tight)
    assert contains(widest, looser)
    assert contains(widest, wider)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.floats(0, 0.5), st.integers(0, 99))
def test_with_a_margin_too_every_region_above_the_threshold_lies_in_a_box_within_the_image(
    rows, columns, threshold, margin, seed
):
    heat = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    found = score_map(heat)
    boxes = unsafe_boxes(found, [threshold], 0.5, margin)
    assert all(0 <= l < r <= 1 and 0 <= t < b <= 1 for l, t, r, b in boxes)  # noqa: E741
    for cell, value in zip(found.boxes.tolist(), heat.flatten().tolist(), strict=True):
        assert value < threshold or any(contains(box, cell) for box in boxes)
