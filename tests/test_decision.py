"""Scores to actions."""

from __future__ import annotations

import pytest

from guardalign_guardrails.detection.reference import ProfileKey, make_profile
from guardalign_guardrails.guarding.decide import decide, mask_thresholds
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.policy.detection import RegionConfig, ScoringConfig

KEY = ProfileKey(encoder="e", anchors="a", regions=RegionConfig(), scoring=ScoringConfig())
PROFILE = make_profile([i / 1000 for i in range(999)], KEY, name="test", encoder_name="e")


def policy(extra=""):
    return Policy.from_yaml(
        "categories: {fire: {concepts: [fire]}, flood: {concepts: [flood]}}\n"
        "benign: {concepts: [a dog]}\n"
        "thresholds: {flag: 0.05, mask: 0.01}\n" + extra
    )


@pytest.mark.parametrize(("score", "action"), [(0.5, "allow"), (0.96, "flag"), (0.995, "mask")])
def test_the_action_follows_the_p_value(score, action):
    decision = decide([score, 0.1], policy(), PROFILE, "user")
    assert decision.action == action
    assert decision.category == "fire"
    assert decision.p_value == pytest.approx(1 - score, abs=0.002)
    assert decision.categories["flood"].action == "allow"


def test_a_weaker_category_with_stricter_thresholds_can_decide():
    strict = policy("sources: {tool: {categories: {flood: {block: 0.2}}}}")
    assert decide([0.9, 0.85], strict, PROFILE, "tool").action == "block"
    assert decide([0.9, 0.85], strict, PROFILE, "user").action == "allow"


def test_source_limits_are_said_in_the_reasons():
    capped = policy("sources: {history: {at_most: flag}}")
    decision = decide([0.999, 0], capped, PROFILE, "history")
    assert decision.action == "flag"
    assert "the rule for its source makes it flag" in decision.reasons


def test_the_paper_scoring_masks_at_tau_and_asks_no_profile():
    paper = policy("scoring: {method: paper}")
    assert decide([-0.41, -0.6], paper, None, "user").action == "mask"
    assert decide([-0.43, -0.6], paper, None, "user").action == "allow"
    assert mask_thresholds(paper, None, "user") == [-0.42, -0.42]


def test_a_score_that_calls_for_masking_reaches_the_mask_threshold():
    for score in (0.98, 0.989, 0.99, 0.991, 0.9985):
        is_due = decide([score, 0], policy(), PROFILE, "user").action == "mask"
        assert is_due == (score >= mask_thresholds(policy(), PROFILE, "user")[0] - 1e-9)


def test_a_source_that_raises_flags_to_masks_masks_from_the_flag_threshold():
    raised = policy("sources: {tool: {at_least: mask}}")
    (level, _) = mask_thresholds(raised, PROFILE, "tool")
    assert level == pytest.approx(PROFILE.threshold(0.05))
    assert mask_thresholds(policy("sources: {tool: {at_most: flag}}"), PROFILE, "tool")[0] == float("inf")


def test_with_raw_scores_a_region_is_masked_from_the_mildest_action_that_keeps_the_original_back():
    scores = policy("sources: {tool: {thresholds: {kind: score, flag: 0.3, mask: 0.5, route: 0.7, block: 0.9}}}")
    assert mask_thresholds(scores, None, "tool") == [0.5, 0.5]
    raised = policy("sources: {tool: {at_least: mask, thresholds: {kind: score, flag: 0.3, mask: 0.5, block: 0.9}}}")
    assert mask_thresholds(raised, None, "tool") == [0.3, 0.3]


def test_with_rates_a_region_is_masked_from_the_mildest_action_that_keeps_the_original_back():
    rates = policy("sources: {tool: {thresholds: {flag: 0.2, mask: 0.1, block: 0.01}}}")
    assert mask_thresholds(rates, PROFILE, "tool") == [PROFILE.threshold(0.1)] * 2
    with pytest.raises(ValueError, match="need a profile"):
        mask_thresholds(rates, None, "tool")


@pytest.mark.parametrize(
    ("rule", "action", "reasons"),
    [
        ("", "mask", ("fire calls for mask",)),
        ("sources: {user: {at_most: flag}}", "flag", ("fire calls for mask", "the rule for its source makes it flag")),
        (
            "sources: {user: {at_least: block}}",
            "block",
            ("fire calls for mask", "the rule for its source makes it block"),
        ),
        ("sources: {user: {at_least: flag, at_most: route}}", "mask", ("fire calls for mask",)),
    ],
)
def test_the_reasons_name_what_calls_for_an_action_and_the_rule_only_where_it_changes_something(rule, action, reasons):
    decision = decide([0.995, 0.1], policy(rule), PROFILE, "user")
    assert (decision.action, decision.reasons) == (action, reasons)


def test_a_raised_flag_is_said_in_the_reasons():
    decision = decide([0.96, 0.1], policy("sources: {tool: {at_least: mask}}"), PROFILE, "tool")
    assert decision.reasons == ("fire calls for flag", "the rule for its source makes it mask")


def test_the_best_category_is_that_of_the_highest_score_and_its_figures_are_the_images():
    decision = decide([0.2, 0.96], policy(), PROFILE, "user")
    assert (decision.category, decision.score, decision.p_value) == ("flood", 0.96, PROFILE.p_value(0.96))
    assert [finding.action for finding in decision.categories.values()] == ["allow", "flag"]
    assert decide([0.1, 0.1], policy(), PROFILE, "user").reasons == ()


def test_without_a_profile_there_are_no_p_values():
    by_score = policy("sources: {tool: {thresholds: {kind: score, mask: 0.5}}}")
    decision = decide([0.5, 0.1], by_score, None, "tool")
    assert (decision.action, decision.p_value) == ("mask", None)
    assert decision.categories["flood"].p_value is None


@pytest.mark.parametrize("scores", [[], [0.5], [0.5, 0.5, 0.5]])
def test_scores_that_are_not_one_for_each_category_are_an_error(scores):
    with pytest.raises(ValueError, match="zip"):
        decide(scores, policy(), PROFILE, "user")


def test_each_category_is_masked_from_its_own_threshold():
    own = policy("sources: {tool: {thresholds: {kind: score, mask: 0.5}, categories: {flood: {flag: 0.05}}}}")
    assert mask_thresholds(own, PROFILE, "tool") == [0.5, float("inf")]
