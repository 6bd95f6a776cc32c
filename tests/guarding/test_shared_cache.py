"""One verdict cache may serve several guards: whatever can change an outcome is part of the key, and pixels are not."""

from __future__ import annotations

import pytest

from guardalign_guardrails import Guard
from guardalign_guardrails.detection.reference import make_profile
from guardalign_guardrails.guarding.cache import VerdictCache
from guardalign_guardrails.testing.colours import COLOURS, ColourEncoder, colour_policy, painted

RED = painted("red")


class OtherColourEncoder(ColourEncoder):
    """Another encoder, which takes red for white."""

    fingerprint = "0c" * 32

    def encode_crops(self, crops):
        features = super().encode_crops(crops)
        names = list(COLOURS)
        features[:, names.index("white")] += features[:, names.index("red")]
        features[:, names.index("red")] = 0
        return self.embed(features)


class RecordingCache(VerdictCache):
    """Keeps what was put into it to be looked at."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def put(self, key, value):
        self.kept.append(value)
        super().put(key, value)


def first_and_second(one, other):
    """Verdicts of two guards on the same image, one after the other."""
    first, second = one.check(RED).verdict, other.check(RED).verdict
    assert not first.is_cached
    return first, second


def test_guards_that_agree_in_everything_share_their_outcomes(tmp_path):
    cache = VerdictCache()
    one, other = (Guard(colour_policy(), ColourEncoder(), cache_dir=tmp_path, cache=cache) for _ in range(2))
    first, second = first_and_second(one, other)
    assert (second.is_cached, second.action, second.score) == (True, first.action, first.score)


def test_a_guard_with_another_policy_gets_an_outcome_of_its_own(tmp_path):
    cache, strict = VerdictCache(), colour_policy()
    red_may_pass = {**strict.categories, "red_things": {"concepts": ["red"], "thresholds": {"kind": "score"}}}
    mild = colour_policy(categories=red_may_pass)
    assert mild.anchor_fingerprint == strict.anchor_fingerprint, "only the policy's rules differ"
    one, other = (Guard(each, ColourEncoder(), cache_dir=tmp_path, cache=cache) for each in (mild, strict))
    first, second = first_and_second(one, other)
    assert (first.action, second.action, second.is_cached) == ("allow", "mask", False)


def test_a_guard_with_another_encoder_gets_an_outcome_of_its_own(tmp_path):
    cache, encoders = VerdictCache(), (OtherColourEncoder(), ColourEncoder())
    one, other = (Guard(colour_policy(), each, cache_dir=tmp_path, cache=cache) for each in encoders)
    first, second = first_and_second(one, other)
    assert (first.action, second.action, second.is_cached) == ("allow", "mask", False)


@pytest.mark.parametrize("names", [("one", "other"), ("same", "same")], ids=["other name", "same name"])
def test_a_guard_with_another_profile_gets_an_outcome_of_its_own(tmp_path, names):
    cache, policy = (
        VerdictCache(),
        colour_policy(
            thresholds={"mask": 0.2},
            categories={"red_things": {"concepts": ["red"]}},
        ),
    )
    key = Guard(policy, ColourEncoder(), cache_dir=tmp_path).detector.profile_key
    # To the first profile nothing is out of the ordinary, to the second everything.
    profiles = [
        make_profile([score] * 9, key, name=name, encoder_name="colour")
        for name, score in zip(names, (2.0, -2.0), strict=True)
    ]
    one, other = (Guard(policy, ColourEncoder(), profile=each, cache_dir=tmp_path, cache=cache) for each in profiles)
    first, second = first_and_second(one, other)
    assert (first.p_value, second.p_value) == (1.0, 0.1)
    assert (first.action, second.is_cached) == ("allow", False)
    assert second.action != "allow"


def test_what_is_kept_of_a_masked_image_holds_neither_pixels_nor_the_outcome_of_the_image_it_became(tmp_path):
    cache = RecordingCache()
    guard = Guard(colour_policy(), ColourEncoder(), cache_dir=tmp_path, cache=cache)
    assert guard.check(RED).verdict.action == "mask"
    assert len(cache.kept) == 2, "the image's outcome and that of the masked one"
    assert [outcome.follow_up for outcome in cache.kept] == [None, None]
    assert [outcome.drawn for outcome in cache.kept] == [None, None], "a cache holds no pixels"
