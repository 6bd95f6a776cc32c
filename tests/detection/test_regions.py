"""Cutting images into regions, and pooling their evidence on the finest grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from guardalign_guardrails.detection.regions import cut, pool_windows, window_starts
from guardalign_guardrails.policy.detection import RegionConfig
from guardalign_guardrails.testing.colours import ColourEncoder, painted


class MapEncoder(ColourEncoder):
    """Feature maps of mean colours: cell (row, column) of an image resized to ``resolution`` / 16 cells a side."""

    def encode_map(self, images, resolution=None):
        side = (resolution or 64) // 16
        maps = []
        for image in images:
            small = np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float32)
            maps.append(torch.from_numpy(small) / 255)
        return maps


def test_grid_regions_are_the_whole_image_and_crops_that_tile_it():
    (regions,) = cut(ColourEncoder(), [painted("red")], RegionConfig(method="grid", scales=(1, 2, 4)))
    assert regions.features.shape[0] == 1 + 4 + 16
    areas = (regions.layout.boxes[:, 2:] - regions.layout.boxes[:, :2]).prod(-1)
    torch.testing.assert_close(areas.sum(), torch.tensor(3.0))
    torch.testing.assert_close(regions.whole, regions.features[0])


def test_a_grid_without_the_whole_image_still_knows_its_feature():
    encoder = ColourEncoder()
    (regions,) = cut(encoder, [painted("red")], RegionConfig(method="grid", scales=(4,)))
    assert regions.features.shape[0] == 16
    (with_whole,) = cut(encoder, [painted("red")], RegionConfig(method="grid", scales=(1,)))
    torch.testing.assert_close(regions.whole, with_whole.whole)


def test_all_crops_of_all_images_go_to_the_encoder_in_one_call():
    encoder = ColourEncoder()
    cut(encoder, [painted("red"), painted("blue"), painted()], RegionConfig(method="grid", scales=(1, 4)))
    assert encoder.calls == [51]


def test_images_are_cut_the_same_alone_and_together():
    encoder = ColourEncoder()
    images = [painted("red"), painted("white", "blue")]
    together = cut(encoder, images, RegionConfig(method="grid", scales=(1, 2)))
    for image, regions in zip(images, together, strict=True):
        (alone,) = cut(encoder, [image], RegionConfig(method="grid", scales=(1, 2)))
        torch.testing.assert_close(alone.features, regions.features)


def test_a_window_of_the_whole_map_is_the_mean_of_its_cells():
    (regions,) = cut(MapEncoder(), [painted("red")], RegionConfig(method="dense", scales=(64,), windows=(1, 4)))
    assert regions.features.shape[0] == 17
    torch.testing.assert_close(regions.features[-1], regions.whole)
    assert regions.layout.boxes[-1].tolist() == [0, 0, 1, 1]


def test_a_window_larger_than_the_map_is_the_whole_map():
    (regions,) = cut(MapEncoder(), [painted("red")], RegionConfig(method="dense", scales=(64,), windows=(1, 9)))
    assert regions.layout.boxes[-1].tolist() == [0, 0, 1, 1]


def test_no_images_are_no_regions():
    assert cut(ColourEncoder(), [], RegionConfig()) == []


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9))
def test_windows_reach_every_cell_and_stay_inside(cells, window):
    window = min(window, cells)
    starts = window_starts(cells, window)
    assert starts == sorted(set(starts))
    reached = {cell for start in starts for cell in range(start, start + window)}
    assert reached == set(range(cells))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 7))
def test_pooling_windows_is_averaging_slices(rows, columns, window):
    window = min(window, rows, columns)
    feature_map = torch.randn(rows, columns, 3)
    pooled = pool_windows(feature_map, window)
    for i, top in enumerate(window_starts(rows, window)):
        for j, left in enumerate(window_starts(columns, window)):
            expected = feature_map[top : top + window, left : left + window].mean((0, 1))
            torch.testing.assert_close(pooled[i, j], expected)


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(1, 7), min_size=1), st.sets(st.sampled_from([32, 64, 96, 160]), min_size=1))
def test_pooling_on_the_grid_is_a_weighted_mean_that_keeps_constants(windows, scales):
    config = RegionConfig(method="dense", scales=tuple(scales), windows=tuple(windows))
    (regions,) = cut(MapEncoder(), [painted("red")], config)
    layout = regions.layout
    assert (layout.fusion >= 0).all()
    torch.testing.assert_close(layout.fusion.sum(1), torch.ones(layout.rows * layout.columns))
    assert layout.boxes.shape[0] == regions.features.shape[0]
    cell_areas = (layout.cells[:, 2:] - layout.cells[:, :2]).prod(-1)
    torch.testing.assert_close(cell_areas.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("bad", [{"scales": (2, 2)}, {"scales": (-1,)}, {"scales": ()}, {"windows": (0,)}])
def test_region_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValidationError):
        RegionConfig(**bad)
