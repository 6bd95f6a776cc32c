"""The profiles in the package fit the policy and the offline encoder in the package."""

from __future__ import annotations

from typing import get_args

import pytest

from guardalign_guardrails import Guard
from guardalign_guardrails.cli.options import ScoringName, chosen_policy, chosen_scorer
from guardalign_guardrails.detection.encoders.offline import OfflineEncoder
from guardalign_guardrails.evaluation import baselines
from guardalign_guardrails.policy.detection import Scoring


@pytest.mark.parametrize("scoring", get_args(ScoringName))
def test_every_scoring_of_the_shipped_policy_has_a_profile_for_the_offline_encoder(cache_dir, scoring):
    policy, scorer = chosen_policy(None, scoring), chosen_scorer(scoring)
    profile = Guard(policy, OfflineEncoder(cache_dir=cache_dir), cache_dir=cache_dir, scorer=scorer).profile
    assert profile is not None
    assert profile.encoder_name == "offline"
    if scoring == "paper":
        assert policy.smallest_rate is None, "it asks for no rate"
    else:
        assert profile.resolution < policy.smallest_rate, "every rate of the shipped policy can be met"
        assert len(profile.tiled) == len(profile.scores), "each image was looked at in tiles too"
        pairs = zip(profile.tiled, profile.scores, strict=True)
        assert all(tiled >= whole - 1e-5 for tiled, whole in pairs)


def test_the_command_line_knows_every_scoring_and_baseline():
    assert get_args(ScoringName) == get_args(Scoring) + get_args(baselines.Baseline)
