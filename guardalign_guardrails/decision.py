"""Scores to an action, by the policy. Pure: no pixels, no encoder, no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guardalign_guardrails.detection.calibration import Profile
from guardalign_guardrails.policy import LADDER, Action, Policy, Source, SourceRule, Thresholds, severest
from guardalign_guardrails.verdict import CategoryVerdict

_NEVER = float("inf")


@dataclass(frozen=True)
class Judgement:
    """What the policy says of one picture's scores.

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
    categories: dict[str, CategoryVerdict]
    action: Action
    reasons: tuple[str, ...]


def judge(scores: Sequence[float], policy: Policy, profile: Profile | None, source: Source) -> Judgement:
    """Decide on one picture.

    Args:
        scores: Image-level score of each category, in the policy's order.
        policy: Thresholds and rules. Under ``scoring: paper`` its thresholds are not asked: a picture with a region
            whose raw cost is at most tau is masked (GuardAlign eqs. 10-11).
        profile: Calibration; required by thresholds of kind ``false_positive_rate``.
        source: Where the picture came from.

    Returns:
        The judgement.
    """
    categories = {}
    for name, score in zip(policy.categories, scores, strict=True):
        p_value = profile.p_value(score) if profile else None
        action = _action(policy, policy.thresholds_for(name, source), score, p_value)
        categories[name] = CategoryVerdict(score=score, p_value=p_value, action=action)
    best = max(categories, key=lambda name: categories[name].score)
    due = severest(*(finding.action for finding in categories.values()))
    action = policy.sources.get(source, SourceRule()).limit(due)
    reasons = [
        f"{name} calls for {finding.action}" for name, finding in categories.items() if finding.action != "allow"
    ]
    if action != due:
        reasons.append(f"the rule for its source makes it {action}")
    top = categories[best]
    return Judgement(top.score, top.p_value, best, categories, action, tuple(reasons))


def mask_thresholds(policy: Policy, profile: Profile | None, source: Source) -> list[float]:
    """Score from which a region of each category has to be covered, infinity for never.

    It is the score at which the mildest action comes due that, within the source's limits, is ``mask`` or severer.
    """
    if policy.scoring.method == "paper":
        return [-policy.scoring.paper_tau] * len(policy.categories)
    rule = policy.sources.get(source, SourceRule())
    levels = []
    for name in policy.categories:
        thresholds = policy.thresholds_for(name, source)
        values = [value for action, value in thresholds.items() if is_at_least_mask(rule.limit(action))]
        if not values:
            levels.append(_NEVER)
        elif thresholds.kind == "score":
            levels.append(values[0])
        else:
            levels.append(_score_at(profile, values[0]))
    return levels


def is_prefix_due(policy: Policy, actions: Sequence[Action]) -> bool:
    """Whether a chat is to be given the safety prefix.

    A masked picture asks for it too: the method's two halves work together. One that is not passed on asks for nothing.

    Args:
        policy: Its ``prefix_when`` decides; in monitor mode nothing is given.
        actions: What was done about each image of the chat.
    """
    if policy.mode == "monitor" or not policy.prefix.strip():
        return False
    if policy.prefix_when == "finding":
        return "prefix" in actions or "mask" in actions
    return policy.prefix_when == "always" or bool(actions)


def is_at_least_mask(action: Action) -> bool:
    """Whether an action keeps the original picture from passing."""
    return LADDER.index(action) >= LADDER.index("mask")


def _action(policy: Policy, thresholds: Thresholds, score: float, p_value: float | None) -> Action:
    if policy.scoring.method == "paper":
        return "mask" if score >= -policy.scoring.paper_tau else "allow"
    return thresholds.action_for(score, p_value)


def _score_at(profile: Profile | None, rate: float) -> float:
    if profile is None:
        raise ValueError("false-positive-rate thresholds need a profile")
    return profile.threshold(rate)
