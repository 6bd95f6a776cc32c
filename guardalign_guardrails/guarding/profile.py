"""Chooses a guard's reference profile: the given one, or one that is found, if it fits."""

from __future__ import annotations

import logging

from guardalign_guardrails.detection.reference import Profile, ProfileKey, find_profile
from guardalign_guardrails.errors import ProfileMissing
from guardalign_guardrails.policy import Policy

logger = logging.getLogger(__name__)


def fitting_profile(policy: Policy, key: ProfileKey, given: Profile | None, encoder_name: str) -> Profile | None:
    """The profile for a policy; None if its thresholds need none and none fits.

    Args:
        policy: Says whether a profile is needed, and for which rates.
        key: What the profile must have been made with.
        given: The one a guard was given; None to look for one.
        encoder_name: For messages.

    Raises:
        ProfileMissing: The given one does not fit, or none fits and the policy needs one.
        ProfileError: The profile cannot be read.
    """
    if given is not None:
        if given.key.digest != key.digest:
            raise ProfileMissing(
                f"The profile '{given.name}' was made with another encoder, other anchors or another scoring; make one "
                "that fits with 'guardalign reference'."
            )
        return _warned(given, policy)
    try:
        return _warned(find_profile(key, encoder_name=encoder_name), policy)
    except ProfileMissing:
        if policy.needs_profile:
            raise
        return None


def _warned(profile: Profile, policy: Policy) -> Profile:
    rate = policy.smallest_rate
    if rate is not None and rate < profile.resolution:
        logger.warning(
            "Profile %s holds %d images and cannot resolve a false-positive rate of %g (at least %d are needed); "
            "that threshold is never met.",
            profile.name,
            len(profile.scores),
            rate,
            int(1 / rate),
        )
    return profile
