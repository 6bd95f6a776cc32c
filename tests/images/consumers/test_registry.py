"""The registry of consumers: names, sizes as their sources state them, and renderings."""

from __future__ import annotations

import json
from importlib import resources

import pytest
from PIL import Image

from guardalign_guardrails.errors import PolicyError
from guardalign_guardrails.images import consumers
from guardalign_guardrails.images.consumers import AVERAGING, DEFAULT, SAMPLERS, load_consumers

SHAPES = [(4000, 3000), (3000, 4000), (1568, 1045), (768, 576), (500, 333), (336, 336), (2480, 3508), (100, 60)]


def one(name):
    return load_consumers([name])[0]


def test_every_entry_has_a_source_a_known_sampler_and_its_own_name():
    text = (
        resources.files("guardalign_guardrails.images.consumers").joinpath("registry.json").read_text(encoding="utf-8")
    )
    entries = json.loads(text)
    assert len({entry["name"] for entry in entries}) == len(entries) == len(consumers.names())
    assert all(entry["source"] and entry["sampler"] in SAMPLERS for entry in entries)


def test_an_unknown_name_is_an_error_with_a_hint():
    with pytest.raises(PolicyError, match=r"did you mean 'llava-1\.5'"):
        load_consumers(["llava-15"])
    with pytest.raises(PolicyError, match="known are claude"):
        load_consumers(["zzz"])


def test_a_name_given_twice_counts_once_and_the_order_stays():
    assert [consumer.name for consumer in load_consumers(["pixtral", "claude", "pixtral"])] == ["pixtral", "claude"]


def test_the_default_needs_at_most_1568_pixels_for_ordinary_shapes():
    common = load_consumers(DEFAULT)
    for size in [*SHAPES, (4000, 2000), (2000, 4000)]:
        assert max(consumer.side(size) for consumer in common) <= 1568
    assert max(consumer.side((4000, 3000)) for consumer in common) == 1568


def test_the_default_holds_every_sparse_sampler_that_a_registered_model_uses():
    models = [consumer for consumer in load_consumers(consumers.names()) if consumer.name != "torch-align-corners"]
    assert {c.sampler for c in models} - AVERAGING <= {c.sampler for c in load_consumers(DEFAULT)}


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("openai", (4000, 3000), (1024, 768)),
        ("openai", (600, 400), (600, 400)),
        ("claude", (4000, 3000), (1568, 1176)),
        ("claude", (800, 600), (800, 600)),
        ("llava-1.5", (640, 480), (448, 336)),
        ("siglip-384", (640, 480), (384, 384)),
        ("gemma", (640, 480), (896, 896)),
        ("pixtral", (4000, 3000), (1024, 768)),
        ("pixtral", (1000, 333), (1008, 336)),
        ("qwen-vl", (1000, 750), (1008, 756)),
        ("internvl", (4000, 3000), (1792, 1344)),
        ("llava-next", (640, 480), (672, 504)),
        ("llama.cpp", (2688, 2688), (336, 336)),
        ("opencv-linear", (1500, 1500), (336, 336)),
    ],
)
def test_sizes_are_those_of_the_source(name, size, expected):
    assert one(name).sizes(size)[0] == expected


@pytest.mark.parametrize("size", SHAPES)
def test_sizes_agree_with_the_processors_of_transformers(size):
    pytest.importorskip("transformers")
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
    from transformers.models.molmo2.image_processing_molmo2 import compute_crop_geometry
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    width, height = size
    turned = (height, width)
    assert one("qwen-vl").sizes(size)[0][::-1] == smart_resize(height, width, max_pixels=12845056)
    columns, rows = get_optimal_tiled_canvas(turned, (448, 448), 1, 12)
    assert one("internvl").sizes(size)[0] == (columns * 448, rows * 448)
    *_, canvas_height, canvas_width = compute_crop_geometry(height, width, 8, [4, 4], 378, 14)
    assert min(size) < 112 or one("molmo2").sizes(size)[0] == (canvas_width, canvas_height)
    canvas = select_best_resolution(turned, [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]])
    inside = one("llava-next").sizes(size)[0]
    assert inside[0] <= canvas[1]
    assert inside[1] <= canvas[0]
    assert inside[0] == canvas[1] or inside[1] == canvas[0]


@pytest.mark.parametrize("name", consumers.names())
def test_renderings_have_the_sizes_that_are_stated(name):
    consumer, image = one(name), Image.new("L", (90, 60), 77)
    sizes = consumer.sizes(image.size)
    assert [made.size for made in consumer.renderings(image)[:3]] == list(sizes[:3])
    first = consumer.render(image)
    assert (first.size, first.getpixel((0, 0))) == (sizes[0], (77, 77, 77))


def test_a_maximal_side_limits_the_side():
    assert one("opencv-linear").side((4000, 1000)) == 1024
    assert one("openai").side((5000, 1000)) == 2048
