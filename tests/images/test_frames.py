"""Which frames are looked at: the first, the odd ones out, and some that nobody can foresee."""

import importlib
import io

import numpy as np
import pytest
from PIL import Image

from guardalign_guardrails.images import ImageLimits, decode
from guardalign_guardrails.images.frames import choose, frame_budget, shuffled, thumbnail

FORMATS = ["GIF", "PNG", "WEBP", "TIFF"]


def saved(pages, name, **options):
    buffer = io.BytesIO()
    options |= {"lossless": True} if name == "WEBP" else {}
    pages[0].save(buffer, name, save_all=True, append_images=pages[1:], **options)
    return buffer.getvalue()


def noise(seed, size=(160, 160)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1] // 20, size[0] // 20, 3), np.uint8))


def video(count, odd=(), size=(160, 160)):
    """Frames that hardly differ, but for those in ``odd``."""
    calm = Image.new("RGB", size, (90, 90, 90))
    frames = []
    for index in range(count):
        frame = noise(index).resize(size, Image.Resampling.NEAREST) if index in odd else calm.copy()
        frame.paste((index % 256, 0, 0), (0, 0, 4, 4))
        frames.append(frame)
    return frames


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("odd", [1, 2, 13, 20])
def test_a_frame_unlike_the_others_is_seen_wherever_it_is(name, odd):
    result = decode(saved(video(21, {odd}), name), ImageLimits(max_frames=5))
    assert result.frame_count == 21
    assert len(result.frames_seen) == 5
    assert {0, odd} <= set(result.frames_seen)
    assert "frames_unseen" in result.departures


@pytest.mark.parametrize("name", FORMATS)
def test_every_frame_is_seen_where_there_are_few(name):
    result = decode(saved(video(5, size=(256, 256)), name))
    assert result.frames_seen == (0, 1, 2, 3, 4)
    assert "frames_unseen" not in result.departures
    assert {"pages", "animation"} & set(result.departures)


def test_decoys_do_not_take_the_places_of_chance():
    data = saved(video(40, set(range(1, 20))), "PNG")
    seen = [set(decode(data, secret=bytes([secret])).frames_seen) for secret in range(12)]
    calm = [frames & set(range(20, 40)) for frames in seen]
    assert sum(map(bool, calm)) >= 8
    assert len(set().union(*calm)) >= 10


def test_the_choice_hangs_on_the_secret_and_the_file_and_on_nothing_else():
    data, other = saved(video(40), "PNG"), saved(video(40, {3}), "PNG")
    limits = ImageLimits(max_frames=4)

    def seen(data, secret):
        return decode(data, limits, secret=secret).frames_seen

    assert seen(data, b"a") == seen(data, b"a")
    assert len({seen(data, bytes([secret])) for secret in range(8)}) > 4
    assert seen(data, b"a") != seen(other, b"a")
    assert len({seen(data, None) for _ in range(8)}) > 4


def test_the_digest_of_an_animation_does_not_hang_on_the_secret_but_on_all_that_it_shows():
    data = saved(video(40), "PNG")
    assert decode(data, secret=b"a").digest == decode(data, secret=b"b").digest
    hidden = saved(video(40, {31}), "PNG")
    assert decode(data).digest != decode(hidden).digest
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode(saved(video(40), "PNG", exif=turned)).digest != decode(data).digest


def test_a_frame_that_looks_like_another_counts_as_seen():
    pages = [Image.new("RGB", (256, 256), shade) for shade in ("red", "blue", "red")]
    result = decode(saved(pages, "TIFF"))
    assert result.frames_seen == (0, 1, 2)
    assert len(result.views) == 2


def test_a_tiny_animation_costs_two_views_however_many_frames_it_has():
    frames = [Image.new("RGBA", (16, 16), (30 * index, 200, 0, 100)) for index in range(8)]
    result = decode(saved(frames, "WEBP"))
    assert result.frame_count == 8
    assert len(result.views) == 2
    assert result.frames_seen[0] == 0
    assert len(result.frames_seen) == 2


@pytest.mark.parametrize(("count", "views"), [(2, 2), (3, 2), (4, 2)])
def test_further_backdrops_of_the_first_frame_take_what_is_left(count, views):
    frames = [Image.new("RGBA", (16, 16), (30 * index, 200, 0, 100)) for index in range(count)]
    result = decode(saved(frames, "PNG", disposal=1, blend=0))
    assert len(result.views) == views
    assert all(view.frame == 0 for view in result.views if view.backdrop != "white")
    assert {view.frame for view in result.views if view.backdrop == "white"} == set(result.frames_seen)


def test_large_translucent_frames_are_seen_over_white_within_the_limit():
    frames = [Image.new("RGBA", (600, 400), (20 * index, 200, 0, 100)) for index in range(10)]
    result = decode(saved(frames, "PNG", disposal=1, blend=0))
    assert len(result.views) == 8
    assert {view.backdrop for view in result.views} == {"white"}


def test_of_pages_too_large_to_leaf_through_some_are_seen(monkeypatch):
    module, drawn = importlib.import_module("guardalign_guardrails.images.decode"), []
    monkeypatch.setattr(module, "thumbnail", lambda image: (drawn.append(image), thumbnail(image))[1])
    pages = [Image.new("L", (5000, 5000), 20 * index) for index in range(6)]
    data = saved(pages, "TIFF", compression="tiff_lzw")
    result = decode(data, ImageLimits(max_frames=2), secret=b"a")
    assert len(result.frames_seen) == 2
    assert len(drawn) == 4


@pytest.mark.parametrize(
    ("count", "pixels", "budget"),
    [(1, 9, 1), (2, 9, 2), (8, 256, 2), (8, 65_536, 8), (20, 100_000, 8), (9, 40_000_000, 8), (300, 2_000, 8)],
)
def test_the_number_of_frames_follows_their_pixels(count, pixels, budget):
    assert frame_budget(count, pixels, ImageLimits()) == budget


def test_more_frames_than_can_be_held_are_not_asked_for():
    assert frame_budget(500, 40_000_000, ImageLimits(max_frames=500)) == 30


def test_the_farthest_are_chosen_first_and_frames_alike_only_by_chance():
    thumbnails = {index: np.full(768, value, np.uint8) for index, value in enumerate([0, 0, 200, 100, 0, 0, 90, 0])}
    order = shuffled(8, b"key")
    chosen = choose(thumbnails, order, 4)
    assert {0, 2, 3} <= set(chosen)
    assert len(choose(dict.fromkeys(range(8), thumbnails[0]), order, 5)) == 5


def test_frames_without_a_thumbnail_can_be_chosen_by_chance_only():
    thumbnails = {index: np.full(768, 9 * index, np.uint8) for index in range(3)}
    picked = {max(choose(thumbnails, shuffled(50, bytes([key])), 4)) for key in range(20)}
    assert max(picked) > 10
    assert all(set(choose(thumbnails, shuffled(50, bytes([key])), 4)) >= {0, 2} for key in range(20))
