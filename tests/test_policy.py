"""Policies as data: reading, refusing, resolving, fingerprinting."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guardalign_guardrails.actions import LADDER, severest
from guardalign_guardrails.errors import PolicyError
from guardalign_guardrails.policy import Policy, SourceRule, Thresholds

CUSTOM_CATEGORY = """
extends: default
categories:
  alcohol:
    concepts: [a bottle of whisky, a glass of wine, a pint of beer, a cocktail]
    thresholds: {flag: 0.05}
"""


def test_the_default_policy_covers_the_promised_categories_with_at_least_eight_anchors_each():
    policy = Policy.default()
    wanted = {
        "violence",
        "weapons",
        "sexual_content",
        "hate_symbols",
        "drugs",
        "self_harm",
        "crime_fraud",
        "privacy",
        "political_manipulation",
    }
    assert wanted <= set(policy.categories)
    assert all(len(category.texts) >= 8 for category in policy.categories.values())
    assert len(policy.benign.texts) >= 40


@pytest.mark.parametrize("dump", [Policy.to_yaml, Policy.to_json])
def test_a_policy_survives_a_round_trip_through_yaml_and_json(dump):
    policy = Policy.from_yaml(CUSTOM_CATEGORY)
    again = Policy.from_yaml(dump(policy))
    assert again == policy
    assert again.fingerprint == policy.fingerprint


def test_a_custom_category_takes_five_lines_and_keeps_everything_else():
    policy = Policy.from_yaml(CUSTOM_CATEGORY)
    assert len(CUSTOM_CATEGORY.strip().splitlines()) == 5
    assert set(policy.categories) == {*Policy.default().categories, "alcohol"}
    assert policy.benign == Policy.default().benign
    assert policy.anchor_fingerprint != Policy.default().anchor_fingerprint


def test_thresholds_and_actions_leave_the_anchor_fingerprint_alone():
    changed = Policy.from_yaml("extends: default\nthresholds: {block: 0.004, mask: 0.01}\nmode: monitor")
    assert changed.anchor_fingerprint == Policy.default().anchor_fingerprint
    assert changed.fingerprint != Policy.default().fingerprint


def test_a_copy_with_a_change_has_a_fingerprint_of_its_own():
    policy = Policy.default()
    before = policy.fingerprint
    assert policy.model_copy(update={"mode": "monitor"}).fingerprint != before


def test_name_and_version_are_for_people_and_not_in_the_fingerprint():
    policy = Policy.default()
    assert policy.model_copy(update={"name": "x", "version": "9"}).fingerprint == policy.fingerprint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: default\nthreshold: {flag: 0.1}", "did you mean 'thresholds'"),
        ("extends: default\nthresholds: {flagg: 0.1}", "thresholds.flagg: unknown key, did you mean 'flag'"),
        ("extends: default\nmasking: {fil: blur}", "did you mean 'fill'"),
        ("extends: default\ncategories: {weapons: {concept: [gun]}}", "did you mean 'concepts'"),
        ("extends: default\nsources: {user: {categories: {weapon: {flag: 0.1}}}}", "did you mean 'weapons'"),
        ("extends: default\nsources: {usr: {}}", "sources.usr"),
        ("extends: default\nthresholds: {flag: 5}", "between 0 and 1"),
        ("extends: default\nthresholds: {flag: 0.01, mask: 0.05}", "mask (0.05) must be at most flag (0.01)"),
        ("extends: default\nthresholds: {kind: score, flag: 0.5, mask: 0.1}", "mask (0.1) must be at least flag"),
        ("extends: default\ntemplates: [a photo]", "exactly one {}"),
        ("extends: default\ntemplates: ['{} of {x}']", "exactly one {}"),
        ("extends: other", "only 'default' can be extended"),
        ("categories: {}\nbenign: {concepts: [a dog]}", "at least one category"),
        ("categories: {x: {}}\nbenign: {concepts: [a dog]}", "at least one concept or description"),
        ("categories: {x: {concepts: [a, a]}}\nbenign: {concepts: [a dog]}", "distinct"),
        ("categories: {x: {concepts: [a gun]}}", "benign: missing (start from the shipped policy"),
        ("a: [", "not valid YAML at line"),
        ("just text", "a mapping with keys"),
        ("", "a mapping with keys"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_bad_policy_is_refused_in_one_line_that_names_the_field(text, said):
    with pytest.raises(PolicyError) as refusal:
        Policy.from_yaml(text)
    assert said.lower() in str(refusal.value).lower()
    assert "\n" not in str(refusal.value)


def test_a_missing_policy_file_is_a_policy_error(tmp_path):
    with pytest.raises(PolicyError, match="Cannot read the policy file"):
        Policy.load(tmp_path / "nothing.yaml")


def test_a_policy_cannot_be_changed_in_place():
    policy = Policy.default()
    with pytest.raises(ValidationError):
        policy.mode = "monitor"
    with pytest.raises(TypeError):
        policy.categories["new"] = policy.categories["weapons"]


def test_the_schema_is_json_and_names_every_field():
    schema = Policy.model_json_schema()
    json.dumps(schema)
    assert set(schema["properties"]) == set(Policy.model_fields)


def test_the_most_specific_thresholds_count():
    policy = Policy.from_yaml(
        "extends: default\n"
        "thresholds: {flag: 0.05}\n"
        "categories: {weapons: {thresholds: {flag: 0.04}}}\n"
        "sources:\n"
        "  tool: {thresholds: {flag: 0.03}, categories: {weapons: {flag: 0.02}}}\n"
    )
    assert policy.thresholds_for("drugs", "user").flag == 0.05
    assert policy.thresholds_for("weapons", "user").flag == 0.04
    assert policy.thresholds_for("drugs", "tool").flag == 0.03
    assert policy.thresholds_for("weapons", "tool").flag == 0.02
    assert policy.smallest_rate == 0.02


@given(st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_smaller_p_value_never_gets_a_milder_action(one, other):
    thresholds = Thresholds(flag=0.2, prefix=0.1, mask=0.05, route=0.02, block=0.01)
    low, high = sorted([one, other])
    severe, mild = thresholds.action_for(0, low), thresholds.action_for(0, high)
    assert LADDER.index(severe) >= LADDER.index(mild)


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_a_higher_score_never_gets_a_milder_action(one, other):
    thresholds = Thresholds(kind="score", flag=0.1, mask=0.4, block=0.8)
    low, high = sorted([one, other])
    assert LADDER.index(thresholds.action_for(high, None)) >= LADDER.index(thresholds.action_for(low, None))


def test_rates_without_a_p_value_are_refused_not_passed_over():
    with pytest.raises(ValueError, match="p-value"):
        Thresholds(flag=0.1).action_for(0.9, None)


def test_source_rules_raise_and_cap_actions_but_never_turn_allow_into_anything():
    rule = SourceRule(at_least="mask", at_most="route")
    assert [rule.limit(action) for action in LADDER] == ["allow", "mask", "mask", "mask", "route", "route"]
    with pytest.raises(ValidationError, match="must not be severer"):
        SourceRule(at_least="block", at_most="flag")


def test_the_severest_of_no_actions_is_allow():
    assert severest() == "allow"
    assert severest("flag", "route", "mask") == "route"
