"""Conformal reference profiles: ranks, thresholds, files, and the guarantee itself."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardalign_guardrails.detection.reference import Profile, ProfileKey, find_profile, make_profile
from guardalign_guardrails.errors import ProfileError, ProfileMissing
from guardalign_guardrails.policy.detection import RegionConfig, ScoringConfig

KEY = ProfileKey(encoder="e", anchors="a", regions=RegionConfig(), scoring=ScoringConfig())


def profile_of(scores):
    return make_profile(scores, KEY, name="test", encoder_name="e")


scores = st.lists(st.floats(-5, 5), min_size=1, max_size=60)


@given(scores, st.floats(-6, 6))
def test_the_p_value_counts_the_benign_scores_that_are_as_high(reference, score):
    profile = profile_of(reference)
    at_least = sum(round(value, 7) >= round(score, 7) for value in reference)
    assert profile.p_value(score) == pytest.approx((1 + at_least) / (len(reference) + 1))


@given(scores, st.floats(-6, 6), st.floats(-6, 6))
def test_a_higher_score_never_has_a_larger_p_value(reference, one, other):
    low, high = sorted([one, other])
    profile = profile_of(reference)
    assert profile.p_value(high) <= profile.p_value(low)


@given(scores, st.floats(0.001, 0.999))
def test_the_threshold_of_a_rate_is_where_p_values_fall_to_the_rate(reference, rate):
    profile = profile_of(reference)
    threshold = profile.threshold(rate)
    if threshold == float("inf"):
        assert profile.resolution > rate
        return
    assert profile.p_value(threshold) <= rate + 1e-9
    assert threshold == float("-inf") or profile.p_value(threshold - 2e-7) > rate


def test_a_rate_finer_than_the_profile_is_never_met():
    profile = profile_of(range(50))
    assert profile.threshold(0.001) == float("inf")
    assert profile.p_value(10_000) == pytest.approx(1 / 51)


def test_new_benign_images_are_flagged_at_the_rate_asked_for():
    rng = random.Random(0)
    flagged = total = 0
    for _ in range(300):
        profile = profile_of(rng.gauss(0, 1) for _ in range(99))
        flagged += sum(profile.p_value(rng.gauss(0, 1)) <= 0.05 for _ in range(40))
        total += 40
    assert flagged / total == pytest.approx(0.05, abs=0.01)


def test_a_profile_survives_its_file(tmp_path):
    profile = profile_of([0.3, 0.1, 0.2])
    profile.save(tmp_path / "deep" / "p.json")
    assert Profile.load(tmp_path / "deep" / "p.json") == profile


def test_files_that_are_no_profiles_are_refused_in_one_line(tmp_path):
    with pytest.raises(ProfileError, match="Cannot read the profile"):
        Profile.load(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text('{"name": 1}')
    with pytest.raises(ProfileError, match="is not a reference profile") as refusal:
        Profile.load(tmp_path / "bad.json")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("bad", [[], [0.2, 0.1], [0.1, float("nan")]])
def test_scores_that_are_missing_unsorted_or_not_numbers_are_no_profile(bad):
    with pytest.raises(ValueError, match="scores"):
        Profile(name="x", encoder_name="e", key=KEY, scores=tuple(bad))
    with pytest.raises(ProfileError, match="No benign image"):
        make_profile([], KEY, name="x", encoder_name="e")


def test_a_missing_profile_is_one_line_that_says_how_to_make_one():
    with pytest.raises(ProfileMissing, match="guardalign reference") as refusal:
        find_profile(KEY, encoder_name="e")
    assert "\n" not in str(refusal.value)


def test_the_key_follows_what_changes_scores_and_nothing_else():
    assert KEY.model_copy(update={"scoring": ScoringConfig(paper_tau=0.1)}).digest == KEY.digest
    for change in (
        {"encoder": "other"},
        {"anchors": "other"},
        {"regions": RegionConfig(scales=(1, 2))},
        {"scoring": ScoringConfig(method="conditional")},
    ):
        assert KEY.model_copy(update=change).digest != KEY.digest
