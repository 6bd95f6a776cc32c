"""The pixels of a result are those that were scored or masked, and cannot be had where nothing may pass."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from guardalign_guardrails.errors import ImageDecodeError, UnsafeContentError
from guardalign_guardrails.images import decode, encode_png
from guardalign_guardrails.testing.colours import colour_guard, painted


def checked(guard, image):
    (result,) = guard.check_batch([image], keep_pixels=True)
    return result


@pytest.mark.parametrize("form", [encode_png, lambda image: image, np.asarray], ids=["bytes", "PIL", "array"])
@pytest.mark.parametrize("colour", ["white", "red"])
def test_pixels_are_those_of_the_output_in_any_form_also_when_it_was_seen_before(cache_dir, colour, form):
    guard, image = colour_guard(cache_dir), form(painted(colour))
    for _ in range(2):
        result = checked(guard, image)
        assert result.pixels.mode == "RGB"
        assert np.array_equal(np.asarray(result.pixels), np.asarray(decode(result.output).flattened))


def test_a_transparent_image_is_over_white_as_it_was_scored(cache_dir):
    result = checked(colour_guard(cache_dir), Image.new("RGBA", (64, 64), (0, 0, 0, 0)))
    assert np.asarray(result.pixels).min() == 255


@pytest.mark.parametrize("image", [painted("blue"), b"no image"], ids=["unsafe", "unreadable"])
def test_a_blocked_image_has_none(cache_dir, image):
    result = checked(colour_guard(cache_dir, failure={"uninspectable": "block"}), image)
    with pytest.raises(UnsafeContentError):
        _ = result.pixels


def test_neither_has_what_may_pass_but_cannot_be_opened(cache_dir):
    result = checked(colour_guard(cache_dir, failure={"uninspectable": "allow"}), b"no image")
    with pytest.raises(ImageDecodeError) as caught:
        _ = result.pixels
    assert caught.value.reason == result.verdict.uninspectable


def test_in_monitor_mode_they_are_the_originals(cache_dir):
    result = checked(colour_guard(cache_dir, mode="monitor"), painted("red"))
    assert np.array_equal(np.asarray(result.pixels), np.asarray(painted("red")))


@pytest.mark.parametrize("colour", ["white", "red"])
def test_a_check_that_keeps_none_gives_the_same(cache_dir, colour):
    guard, data = colour_guard(cache_dir), encode_png(painted(colour))
    assert np.array_equal(np.asarray(guard.check(data).pixels), np.asarray(checked(guard, data).pixels))
