"""What is unsafe and what to do about it: the policy, its file, and the settings it holds for other rooms."""

from guardalign_guardrails.policy.detection import RegionConfig, ScoringConfig
from guardalign_guardrails.policy.fetch import FetchRules
from guardalign_guardrails.policy.model import Anchors, Category, Policy
from guardalign_guardrails.policy.rules import FailureRules, Masking, SourceRule, Thresholds

__all__ = [
    "Anchors",
    "Category",
    "FailureRules",
    "FetchRules",
    "Masking",
    "Policy",
    "RegionConfig",
    "ScoringConfig",
    "SourceRule",
    "Thresholds",
]
