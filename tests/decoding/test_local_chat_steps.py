"""An image of a local chat takes each step once: counted around the real functions, so that a second decode shows.

Before the guard handed its pixels on, a clean image was decoded twice and a masked one three times (masked twice), with
a PNG and a base64 text written and read in between.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

from guardalign_guardrails.content import screen
from guardalign_guardrails.content.payload import to_data_url
from guardalign_guardrails.decoding.chat.admission import aadmit, admit
from guardalign_guardrails.decoding.chat.messages import messages_of
from guardalign_guardrails.guarding import assess
from guardalign_guardrails.images import ImageLimits, decode, encode_png
from guardalign_guardrails.testing.colours import colour_guard, painted

CLEAN = {"find": 1, "read": 1, "decode": 1}
MASKED = {**CLEAN, "mask": 1}


@pytest.fixture
def counts(monkeypatch) -> Counter[str]:
    counts: Counter[str] = Counter()

    def count(home, name, step):
        plain = getattr(home, name)
        monkeypatch.setattr(home, name, lambda *args, **options: counts.update([step]) or plain(*args, **options))

    count(screen, "find", "find")
    count(base64, "b64decode", "read")
    count(base64, "b64encode", "write")
    count(import_module("guardalign_guardrails.images.decode"), "_decode", "decode")
    count(assess, "mask_regions", "mask")
    count(Image.Image, "save", "encode")
    return counts


def asking(image):
    if isinstance(image, Image.Image):
        block = {"type": "image", "image": image}
    else:
        block = {"type": "image_url", "image_url": {"url": to_data_url(image, "image/png")}}
    return [messages_of([{"role": "user", "content": [block, {"type": "text", "text": "What is it?"}]}])]


def admitted(guard, chat, is_async=False):
    if is_async:
        (admission,) = asyncio.run(aadmit(guard, chat, "refuse", ImageLimits()))
    else:
        (admission,) = admit(guard, chat, "refuse", ImageLimits())
    return admission


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("colour", "steps"), [("white", CLEAN), ("magenta", CLEAN), ("red", MASKED)])
def test_an_image_in_base64_takes_each_step_once_new_or_seen_before(cache_dir, counts, colour, steps, is_async):
    guard, chat = colour_guard(cache_dir), asking(encode_png(painted(colour)))
    for _ in range(2):
        counts.clear()
        (image,) = admitted(guard, chat, is_async).messages[0].images
        assert counts == steps
    assert image.mode == "RGB"


@pytest.mark.parametrize(("colour", "steps"), [("white", CLEAN), ("red", MASKED)])
def test_so_does_an_image_that_is_decoded_already(cache_dir, counts, colour, steps):
    guard, chat = colour_guard(cache_dir), asking(painted(colour))
    counts.clear()
    assert admitted(guard, chat).messages[0].images
    assert counts == {name: count for name, count in steps.items() if name != "read"}


def test_so_does_an_image_that_no_guard_checks(counts):
    chat = asking(encode_png(painted("red")))
    counts.clear()
    assert admitted(None, chat).messages[0].images
    assert counts == CLEAN


@pytest.mark.parametrize("colour", ["white", "red"])
def test_the_model_is_given_the_pixels_that_were_checked(cache_dir, colour):
    guard, data = colour_guard(cache_dir), encode_png(painted(colour))
    (image,) = admitted(guard, asking(data)).messages[0].images
    assert np.array_equal(np.asarray(image), np.asarray(decode(guard.redact(data)).flattened))
    is_unchanged = np.array_equal(np.asarray(image), np.asarray(painted(colour)))
    assert is_unchanged == (colour == "white")
