"""The guard takes each step once: counted around the real functions, so that a second decode or mask shows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from guardalign_guardrails.guarding import assess, guard, reading, result
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import colour_guard, painted

# A first version masked and decoded a new masked image twice.
STEPS = {"read": (reading, "freeze"), "decode": (guard, "decode"), "mask": (assess, "mask_regions")}
EXPECTED = {
    (): {"read": 1, "decode": 1},
    ("magenta",): {"read": 1, "decode": 1},
    ("red",): {"read": 1, "decode": 1, "mask": 1, "encode": 1},
    ("blue",): {"read": 1, "decode": 1},
}


@pytest.fixture
def counted(monkeypatch):
    counts: Counter[str] = Counter()

    def count(name, module, attribute):
        plain = getattr(module, attribute)
        monkeypatch.setattr(module, attribute, lambda *a, **k: counts.update([name]) or plain(*a, **k))

    for name, (module, attribute) in STEPS.items():
        count(name, module, attribute)
    count("encode", result, "encode_png")
    return counts


@pytest.mark.parametrize("colours", list(EXPECTED))
def test_a_new_image_is_read_decoded_masked_and_encoded_once(tmp_path, counted, colours):
    checked = colour_guard(tmp_path).check(encode_png(painted(*colours)))
    if not checked.is_blocked:
        assert checked.output is checked.output
    assert counted == EXPECTED[colours]


@pytest.mark.parametrize("given", [painted("red"), np.asarray(painted("red"))])
def test_what_is_not_encoded_is_masked_without_being_encoded(tmp_path, counted, given):
    _ = colour_guard(tmp_path).check(given).output
    assert counted == {"read": 1, "decode": 1, "mask": 1}


def test_nobody_who_does_not_ask_for_the_image_pays_for_encoding_it(tmp_path, counted):
    assert colour_guard(tmp_path).check(encode_png(painted("red"))).verdict.action == "mask"
    assert counted["encode"] == 0


def test_a_known_masked_image_is_drawn_once_more_and_not_scored(tmp_path, counted):
    guarded, data = colour_guard(tmp_path), encode_png(painted("red"))
    guarded.check(data)
    passes = len(guarded.detector.encoder.calls)
    counted.clear()
    _ = guarded.check(data).output
    assert counted == {"read": 1, "decode": 1, "mask": 1, "encode": 1}
    assert len(guarded.detector.encoder.calls) == passes


def test_the_cache_holds_no_pixels(tmp_path):
    guarded = colour_guard(tmp_path)
    guarded.check(encode_png(painted("red")))
    assert [(kept.drawn, kept.follow_up) for kept in guarded.cache._entries.values()] == [(None, None)] * 2
