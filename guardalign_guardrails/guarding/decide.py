"""From scores to an action, by the policy. Pure: no pixels, no encoder, no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from guardalign_guardrails.actions import Action, Source, is_at_least_mask, severest
from guardalign_guardrails.detection.reference import ONE_LOOK, Looks, Profile
from guardalign_guardrails.policy import Policy, SourceRule
from guardalign_guardrails.verdict import CategoryFinding

_NEVER = float("inf")


@dataclass(frozen=True)
class ImageDecision:
    """What the policy decides from one image's scores.

    Attributes:
        score: Best category's score.
        p_value: Its p-value, None without a profile.
        category: The best category.
        categories: Finding per category.
        action: What to do, after the source's limits.
        reasons: How it came about.
    """

    score: float
    p_value: float | None
    category: str
    categories: dict[str, CategoryFinding]
    action: Action
    reasons: tuple[str, ...]


def decide(
    scores: Sequence[float], policy: Policy, profile: Profile | None, source: Source, looks: Looks = ONE_LOOK
) -> ImageDecision:
    """Decide on one image.

    Args:
        scores: Image-level score of each category, in the policy's order.
        policy: Thresholds and rules.
        profile: Reference profile; required by thresholds of kind ``false_positive_rate``.
        source: Where the image came from.
        looks: How often the image was looked at.

    Returns:
        The decision.
    """
    categories = {}
    looks = _counted(looks, policy, profile, source)
    for name, score in zip(policy.categories, scores, strict=True):
        p_value = profile.p_value(score, looks) if profile else None
        action = policy.thresholds_for(name, source).action_for(score, p_value)
        categories[name] = CategoryFinding(score=score, p_value=p_value, action=action)
    best = max(categories, key=lambda name: categories[name].score)
    due = severest(*(finding.action for finding in categories.values()))
    action = policy.sources.get(source, SourceRule()).limit(due)
    reasons = [
        f"{name} calls for {finding.action}" for name, finding in categories.items() if finding.action != "allow"
    ]
    if action != due:
        reasons.append(f"the rule for its source makes it {action}")
    top = categories[best]
    return ImageDecision(top.score, top.p_value, best, categories, action, tuple(reasons))


def mask_thresholds(policy: Policy, profile: Profile | None, source: Source, looks: Looks = ONE_LOOK) -> list[float]:
    """Score from which a region of each category has to be covered, infinity for never.

    It is the score at which the mildest action comes due that, within the source's limits, is ``mask`` or severer.
    """
    rule = policy.sources.get(source, SourceRule())
    levels = []
    looks = _counted(looks, policy, profile, source)
    for name in policy.categories:
        thresholds = policy.thresholds_for(name, source)
        values = [value for action, value in thresholds.items() if is_at_least_mask(rule.limit(action))]
        if not values:
            levels.append(_NEVER)
        elif thresholds.kind == "score":
            levels.append(values[0])
        else:
            levels.append(_score_at(profile, values[0], looks))
    return levels


def _counted(looks: Looks, policy: Policy, profile: Profile | None, source: Source) -> Looks:
    """The looks for which a p-value is corrected: never so many that the policy's masks get out of reach.

    Who sends an image chooses how many readings it has. A correction for all of them would let an image with many
    pass whatever it shows, because the reference is finite.
    """
    if profile is None:
        return looks
    rule = policy.sources.get(source, SourceRule())
    rates = []
    for name in policy.categories:
        thresholds = policy.thresholds_for(name, source)
        values = [value for action, value in thresholds.items() if is_at_least_mask(rule.limit(action))]
        if thresholds.kind == "false_positive_rate":
            rates += values[:1] or [value for _, value in thresholds.items()][-1:]
    most = min((profile.most_readings(rate, looks.tiles) for rate in rates), default=looks.readings)
    return replace(looks, readings=max(1, min(looks.readings, most)))


def _score_at(profile: Profile | None, rate: float, looks: Looks) -> float:
    if profile is None:
        raise ValueError("false-positive-rate thresholds need a profile")
    return profile.threshold(rate, looks)
