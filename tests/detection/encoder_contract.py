"""What every encoder owes the rest of the package, as a base class of tests.

A subclass says how to make an encoder that has not loaded anything yet; all tests here then apply to it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from guardalign_guardrails.detection.encoders import Crop, Encoder

TEXTS = ["a photo of a cat", "blood", "a dog runs", "a kitchen knife on a table", "x"]
THREADS = 8


def pil_image(seed: int = 0, width: int = 90, height: int = 70) -> Image.Image:
    """An image with large and small structure, so that no two parts of it look alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def whole(image: Image.Image) -> Crop:
    return Crop(image, (0.0, 0.0, float(image.width), float(image.height)))


def crops() -> list[Crop]:
    image, other = pil_image(1), pil_image(2, 40, 64)
    return [
        whole(image),
        Crop(image, (0.0, 0.0, 45.0, 35.0)),
        Crop(image, (45.0, 35.0, 90.0, 70.0)),
        Crop(other, (3.5, 7.25, 31.0, 40.5)),
        whole(other),
    ]


class Cells(NamedTuple):
    """Joint-space rows of an image's cells in reading order."""

    cells: Tensor
    rows: int
    columns: int


def dense(encoder: Encoder, images: Sequence[Image.Image], resolution: int | None = None) -> list[Cells]:
    maps = encoder.encode_map(images, resolution)
    return [Cells(encoder.embed(m.flatten(0, 1)), m.shape[0], m.shape[1]) for m in maps]


def assert_unit_rows(rows: Tensor, count: int) -> None:
    assert rows.shape[0] == count
    assert rows.ndim == 2
    assert rows.dtype == torch.float32
    assert rows.device.type == "cpu"
    assert torch.isfinite(rows).all()
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(count), atol=1e-5, rtol=0)
    assert not rows.is_inference(), "callers may use the rows in autograd"


class EncoderContract:
    """Inherit, define ``make``, and set the attributes that differ."""

    has_dense = True
    dense_resolution: int | None = None
    """A side other than the encoder's own that its cells tile; None to skip."""
    loaded: Encoder

    def make(self) -> Encoder:
        """An encoder that has loaded nothing yet; the same weights every time."""
        raise NotImplementedError

    @pytest.fixture
    def encoder(self) -> Encoder:
        """One loaded encoder for all tests of a class: loading is the slow part."""
        if "loaded" not in vars(type(self)):
            type(self).loaded = self.make()
        return type(self).loaded

    def dense(self, encoder: Encoder, *images: Image.Image, resolution: int | None = None) -> list[Cells]:
        if not self.has_dense:
            pytest.skip("no dense features")
        return dense(encoder, images, resolution)

    def test_it_is_an_encoder(self, encoder: Encoder) -> None:
        assert isinstance(encoder, Encoder)
        assert encoder.name
        assert encoder.logit_scale > 0
        assert math.isfinite(encoder.logit_scale)
        assert encoder.default_regions.method in {"grid", "dense"}

    def test_texts_become_unit_rows(self, encoder: Encoder) -> None:
        assert_unit_rows(encoder.encode_texts(TEXTS), len(TEXTS))

    def test_crops_become_unit_rows_of_the_same_space(self, encoder: Encoder) -> None:
        rows = encoder.encode_crops(crops())
        assert_unit_rows(rows, len(crops()))
        assert rows.shape[1] == encoder.encode_texts(TEXTS).shape[1]

    def test_no_texts_and_no_crops_give_no_rows_of_full_width(self, encoder: Encoder) -> None:
        width = encoder.encode_texts(["x"]).shape[1]
        assert encoder.encode_texts([]).shape == (0, width)
        assert encoder.encode_crops([]).shape == (0, width)

    def test_a_text_does_not_depend_on_its_neighbours(self, encoder: Encoder) -> None:
        alone = torch.cat([encoder.encode_texts([text]) for text in TEXTS])
        torch.testing.assert_close(encoder.encode_texts(TEXTS), alone, atol=1e-5, rtol=0)

    def test_a_crop_does_not_depend_on_its_neighbours(self, encoder: Encoder) -> None:
        alone = torch.cat([encoder.encode_crops([crop]) for crop in crops()])
        torch.testing.assert_close(encoder.encode_crops(crops()), alone, atol=1e-5, rtol=0)

    def test_rows_come_in_the_order_asked_for(self, encoder: Encoder) -> None:
        forward, backward = encoder.encode_texts(TEXTS), encoder.encode_texts(TEXTS[::-1])
        torch.testing.assert_close(forward.flip(0), backward, atol=1e-5, rtol=0)
        forward, backward = encoder.encode_crops(crops()), encoder.encode_crops(crops()[::-1])
        torch.testing.assert_close(forward.flip(0), backward, atol=1e-5, rtol=0)

    def test_different_texts_and_different_crops_differ(self, encoder: Encoder) -> None:
        for rows in (encoder.encode_texts(TEXTS), encoder.encode_crops(crops())):
            apart = torch.cdist(rows, rows) + torch.eye(len(rows))
            assert apart.min() > 1e-4

    def test_a_box_that_reaches_out_of_the_image_is_clipped(self, encoder: Encoder) -> None:
        image = pil_image(3)
        inside, outside = encoder.encode_crops([whole(image), Crop(image, (-9.0, -9.0, 200.0, 200.0))])
        torch.testing.assert_close(inside, outside, atol=1e-6, rtol=0)

    def test_an_empty_box_is_still_encoded(self, encoder: Encoder) -> None:
        image = pil_image(3)
        assert_unit_rows(encoder.encode_crops([Crop(image, (5.0, 5.0, 5.0, 5.0)), Crop(image, (90, 70, 99, 99))]), 2)

    def test_a_crop_equals_the_image_cut_out(self, encoder: Encoder) -> None:
        image = pil_image(4)
        cut = image.crop((10, 5, 60, 45))
        a, b = encoder.encode_crops([Crop(image, (10.0, 5.0, 60.0, 45.0)), whole(cut)])
        assert torch.dot(a, b) > 0.99

    def test_every_image_gets_its_own_cells(self, encoder: Encoder) -> None:
        images = [pil_image(5), pil_image(6, 33, 120)]
        both = self.dense(encoder, *images)
        assert len(both) == 2
        for image, features in zip(images, both, strict=True):
            assert_unit_rows(features.cells, features.rows * features.columns)
            (alone,) = self.dense(encoder, image)
            torch.testing.assert_close(features.cells, alone.cells, atol=1e-5, rtol=0)
        assert (both[0].cells - both[1].cells).abs().max() > 1e-4

    def test_cells_live_in_the_space_of_texts(self, encoder: Encoder) -> None:
        (features,) = self.dense(encoder, pil_image(5))
        assert features.cells.shape[1] == encoder.encode_texts(["x"]).shape[1]

    def test_a_map_is_plain_float32_on_the_cpu(self, encoder: Encoder) -> None:
        if not self.has_dense:
            pytest.skip("no dense features")
        (features,) = encoder.encode_map([pil_image(5)])
        assert features.ndim == 3
        assert features.dtype == torch.float32
        assert features.device.type == "cpu"
        assert not features.is_inference()

    def test_a_mean_of_cells_is_embedded_like_a_cell_and_apart_from_its_neighbours(self, encoder: Encoder) -> None:
        if not self.has_dense:
            pytest.skip("no dense features")
        cells = encoder.encode_map([pil_image(5)])[0].flatten(0, 1)
        mixed = torch.stack([cells.mean(0), cells[0], cells[-1]])
        rows = encoder.embed(mixed)
        assert_unit_rows(rows, 3)
        torch.testing.assert_close(rows[:1], encoder.embed(mixed[:1]), atol=1e-5, rtol=0)
        assert encoder.embed(cells[:0]).shape == (0, rows.shape[1])

    def test_no_images_have_no_cells(self, encoder: Encoder) -> None:
        assert self.dense(encoder) == []

    def test_another_resolution_changes_the_grid_in_proportion(self, encoder: Encoder) -> None:
        if self.dense_resolution is None:
            pytest.skip("one resolution only")
        (own,) = self.dense(encoder, pil_image(5))
        (other,) = self.dense(encoder, pil_image(5), resolution=self.dense_resolution)
        assert (other.rows, other.columns) != (own.rows, own.columns)
        assert_unit_rows(other.cells, other.rows * other.columns)

    def test_threads_that_come_first_at_once_agree(self) -> None:
        encoder, start = self.make(), threading.Barrier(THREADS)

        def work(_: int) -> tuple[Tensor, Tensor]:
            start.wait()
            return encoder.encode_texts(TEXTS), encoder.encode_crops(crops()[:2])

        with ThreadPoolExecutor(THREADS) as pool:
            results = list(pool.map(work, range(THREADS)))
        for texts, images in results[1:]:
            torch.testing.assert_close(texts, results[0][0], atol=1e-5, rtol=0)
            torch.testing.assert_close(images, results[0][1], atol=1e-5, rtol=0)

    def test_the_fingerprint_is_the_same_for_the_same_encoder(self, encoder: Encoder) -> None:
        assert encoder.fingerprint == self.make().fingerprint
        assert len(bytes.fromhex(encoder.fingerprint)) >= 16
