"""The cosine baselines: scores known by hand, and a place of their own in profiles and caches."""

from __future__ import annotations

import pytest

from detection.test_scoring import SCALE, bank, scene
from guardalign_guardrails import Guard
from guardalign_guardrails.evaluation.baselines import CosineScorer
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard, colour_policy, painted


@pytest.mark.parametrize("hot", [0, 6, 15])
def test_the_planted_region_and_category_score_highest(hot):
    anchors, scorer = bank(), CosineScorer("best-region-cosine")
    found = scorer.score(scene(anchors, hot), anchors, SCALE)
    assert divmod(int(found.scores.argmax()), 2) == (hot, 1)
    expected = (scene(anchors, hot).features[hot] @ anchors.categories[1].T).max()
    assert float(found.image_scores[1]) == pytest.approx(float(expected))


def test_the_strongest_pair_is_the_planted_one():
    anchors = bank()
    (pair,) = CosineScorer("best-region-cosine").pairs(scene(anchors, 6), anchors, SCALE, 1)
    assert (pair.anchor, pair.category) == ("text 5", "c1")


def test_the_whole_image_is_one_region(tmp_path):
    scorer = CosineScorer("global-cosine")
    guard = Guard(colour_policy(), ColourEncoder(), cache_dir=tmp_path, scorer=scorer)
    assert len(guard.check(painted("red")).verdict.regions) == 1


def test_one_cache_does_not_mix_them_up_with_the_policys_scoring(tmp_path):
    guard = colour_guard(tmp_path)
    other = Guard(
        colour_policy(),
        ColourEncoder(),
        cache_dir=tmp_path,
        cache=guard.cache,
        scorer=CosineScorer("best-region-cosine"),
    )
    guard.check(painted("magenta"))
    assert not other.check(painted("magenta")).verdict.is_cached
    assert guard.detector.profile_key.digest != other.detector.profile_key.digest
