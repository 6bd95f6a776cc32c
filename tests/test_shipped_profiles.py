"""The profiles in the package fit the policy and the offline encoder in the package."""

from __future__ import annotations

from typing import get_args

import pytest

from guardalign_guardrails import Guard, Policy
from guardalign_guardrails.detection.encoders.offline import OfflineEncoder
from guardalign_guardrails.policy.detection import Scoring


@pytest.mark.parametrize("scoring", get_args(Scoring))
def test_every_scoring_of_the_shipped_policy_has_a_profile_for_the_offline_encoder(cache_dir, scoring):
    policy = Policy.default()
    policy = policy.model_copy(update={"scoring": policy.scoring.model_copy(update={"method": scoring})})
    profile = Guard(policy, OfflineEncoder(cache_dir=cache_dir), cache_dir=cache_dir).profile
    assert profile is not None
    assert profile.encoder_name == "offline"
    if scoring == "paper":
        assert policy.smallest_rate is None, "it asks for no rate"
    else:
        assert profile.resolution < policy.smallest_rate, "every rate of the shipped policy can be met"
