"""Samplers do the arithmetic of the programs that they are named after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from guardalign_guardrails.images.consumers import AVERAGING, SAMPLERS, matrix, resize, taps

SPARSE = [sampler for sampler in SAMPLERS if sampler not in AVERAGING]
SIZES = [((65, 47), (21, 17)), ((96, 96), (32, 32)), ((61, 83), (40, 25)), ((40, 30), (57, 30))]


def noise(size):
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def levels_apart(one, other):
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize(("size", "target"), [*SIZES, ((64, 48), (21, 17)), ((1000, 700), (336, 336))])
def test_nearest_center_is_pillows_nearest(size, target):
    image = noise(size)
    assert levels_apart(resize(image, target, "nearest-center"), image.resize(target, Image.Resampling.NEAREST)) == 0


@pytest.mark.parametrize(("size", "target"), SIZES)
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("nearest-floor", {"mode": "nearest"}),
        ("nearest-center", {"mode": "nearest-exact"}),
        ("opencv-linear", {"mode": "bilinear", "align_corners": False}),
        ("opencv-cubic", {"mode": "bicubic", "align_corners": False}),
        ("align-corners", {"mode": "bilinear", "align_corners": True}),
    ],
)
def test_pytorch_gives_the_same(size, target, sampler, options):
    image = noise(size)
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32))[None]
    theirs = torch.nn.functional.interpolate(pixels, size=target[::-1], **options)[0].round().clamp(0, 255)
    assert levels_apart(resize(image, target, sampler), theirs.numpy().transpose(1, 2, 0)) <= 1


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("nearest-floor", [3, 17, 44, 0, 31, 140]),
        ("opencv-linear", [209, 145, 149, 55, 129, 43]),
        ("opencv-cubic", [235, 166, 158, 55, 137, 27]),
        ("opencv-lanczos4", [238, 189, 171, 53, 132, 22]),
        ("opencv-area", [99, 116, 155, 32, 118, 118]),
    ],
)
def test_opencv_gave_this_for_one_line_of_pixels(sampler, expected):
    """Made with OpenCV 5.0; not needed to run the tests."""
    line = [3, 250, 17, 90, 200, 44, 128, 255, 0, 66, 31, 180, 77, 140, 9, 211]
    image = Image.fromarray(np.array([line], dtype=np.uint8)).convert("RGB")
    found = np.asarray(resize(image, (6, 1), sampler))[0, :, 0]
    assert np.abs(found.astype(int) - np.array(expected)).max() <= 1


def test_llama_cpp_bilinear_starts_at_the_first_pixel_and_cuts_fractions_off():
    image = noise((50, 40))
    pixels = np.asarray(image).astype(float)
    found = np.asarray(resize(image, (7, 9), "llama.cpp-bilinear"))
    for y, x in ((0, 0), (3, 4), (8, 6)):
        py, px = y * 39 / 9, x * 49 / 7
        top, left = int(py), int(px)
        above = pixels[top, left] * (1 - (px - left)) + pixels[top, left + 1] * (px - left)
        below = pixels[top + 1, left] * (1 - (px - left)) + pixels[top + 1, left + 1] * (px - left)
        assert levels_apart(found[y, x], np.floor(above * (1 - (py - top)) + below * (py - top) + 1e-6)) == 0


def test_llama_cpp_bicubic_is_the_cubic_through_four_pixels():
    image = noise((50, 40))
    pixels = np.asarray(image).astype(float)
    found = np.asarray(resize(image, (7, 9), "llama.cpp-bicubic"))
    for y, x in ((2, 3), (5, 4)):
        py, px = y * 40 / 9, x * 50 / 7
        top, left = int(py), int(px)
        rows = [cubic_through(pixels[row, left - 1 : left + 3], px - left) for row in range(top - 1, top + 3)]
        assert levels_apart(found[y, x], np.clip(np.rint(cubic_through(np.array(rows), py - top)), 0, 255)) <= 1


def cubic_through(values, fraction):
    """The polynomial of degree 3 through values at -1, 0, 1 and 2."""
    return np.stack([np.polyval(np.polyfit([-1, 0, 1, 2], values[:, c], 3), fraction) for c in range(3)])


@pytest.mark.parametrize("sampler", SPARSE)
def test_weights_of_a_sample_sum_to_one_and_stay_on_the_line(sampler):
    for source, target in ((100, 33), (64, 32), (40, 90), (5, 3), (2, 1)):
        indices, weights = taps(sampler, source, target)
        assert indices.min() >= 0
        assert indices.max() < source
        assert np.allclose(weights.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("sampler", SPARSE)
def test_a_matrix_per_axis_is_the_resize(sampler):
    image = noise((60, 45))
    down, across = matrix(sampler, 45, 13), matrix(sampler, 60, 17)
    product = np.einsum("hy,yxc,wx->hwc", down, np.asarray(image, dtype=float), across)
    assert levels_apart(resize(image, (17, 13), sampler), np.clip(product, 0, 255)) <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_flat_image_stays_flat(sampler):
    image = Image.new("RGB", (70, 50), (3, 128, 254))
    assert resize(image, (23, 31), sampler).getcolors() == [(23 * 31, (3, 128, 254))]


def test_the_same_size_is_the_same_image():
    image = noise((8, 8))
    assert resize(image, (8, 8), "opencv-cubic") is image


def test_area_averages_whole_blocks():
    image = noise((60, 40))
    assert levels_apart(resize(image, (20, 10), "opencv-area"), image.resize((20, 10), Image.Resampling.BOX)) <= 1


def test_averaging_samplers_have_no_taps():
    with pytest.raises(ValueError, match="averages"):
        taps("pillow-bicubic", 10, 5)
