"""Guardrails for vision-language apps: find, mask or route unsafe image regions before a model sees them.

What `__all__` names is public, and so is what the API reference (docs/api.md) names of other modules. Everything else
may change with any release.
"""

from typing import TYPE_CHECKING, Any

from guardalign_guardrails.actions import Action, Source
from guardalign_guardrails.errors import (
    CalibrationError,
    ContextOverflow,
    EncoderUnavailable,
    EvaluationError,
    FetchRefused,
    FetchUnavailable,
    ForkedProcessError,
    GuardAlignError,
    ImageDecodeError,
    ModelUnavailable,
    NotPicklable,
    PolicyError,
    ProfileError,
    ProfileMissing,
    PromptError,
    SettingsError,
    UnguardedWarning,
    UnsafeContentError,
)
from guardalign_guardrails.policy import (
    Anchors,
    Category,
    FailureRules,
    FetchRules,
    Masking,
    Policy,
    RegionConfig,
    ScoringConfig,
    SourceRule,
    Thresholds,
)
from guardalign_guardrails.verdict import AfterMasking, CategoryFinding, RegionFinding, Verdict

if TYPE_CHECKING:
    from guardalign_guardrails.decoding.chat.settings import GenerationSettings
    from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
    from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
    from guardalign_guardrails.detection.encoders import Encoder, load_encoder
    from guardalign_guardrails.detection.reference import Profile
    from guardalign_guardrails.fetch import Fetcher
    from guardalign_guardrails.guarding.cache import VerdictCache
    from guardalign_guardrails.guarding.guard import Guard
    from guardalign_guardrails.guarding.result import CheckResult
    from guardalign_guardrails.guarding.settings import GuardSettings
    from guardalign_guardrails.images import ImageLimits

    __version__: str

__all__ = [
    "Action",
    "AfterMasking",
    "Anchors",
    "CalibratedLVLM",
    "CalibrationConfig",
    "CalibrationError",
    "Category",
    "CategoryFinding",
    "CheckResult",
    "ContextOverflow",
    "Encoder",
    "EncoderUnavailable",
    "EvaluationError",
    "FailureRules",
    "FetchRefused",
    "FetchRules",
    "FetchUnavailable",
    "Fetcher",
    "ForkedProcessError",
    "GenerationSettings",
    "Guard",
    "GuardAlignError",
    "GuardSettings",
    "ImageDecodeError",
    "ImageLimits",
    "Masking",
    "ModelUnavailable",
    "NotPicklable",
    "Policy",
    "PolicyError",
    "Profile",
    "ProfileError",
    "ProfileMissing",
    "PromptError",
    "RegionConfig",
    "RegionFinding",
    "SafetyPrefix",
    "ScoringConfig",
    "SettingsError",
    "Source",
    "SourceRule",
    "Thresholds",
    "UnguardedWarning",
    "UnsafeContentError",
    "Verdict",
    "VerdictCache",
    "__version__",
    "load_encoder",
]

# They need torch or transformers, and reading a policy must not take the seconds that importing those does.
_LATER = {
    "CalibratedLVLM": "guardalign_guardrails.decoding.lvlm",
    "CalibrationConfig": "guardalign_guardrails.decoding.config",
    "CheckResult": "guardalign_guardrails.guarding.result",
    "Encoder": "guardalign_guardrails.detection.encoders",
    "Fetcher": "guardalign_guardrails.fetch",
    "GenerationSettings": "guardalign_guardrails.decoding.chat.settings",
    "Guard": "guardalign_guardrails.guarding.guard",
    "GuardSettings": "guardalign_guardrails.guarding.settings",
    "ImageLimits": "guardalign_guardrails.images",
    "Profile": "guardalign_guardrails.detection.reference",
    "SafetyPrefix": "guardalign_guardrails.decoding.config",
    "VerdictCache": "guardalign_guardrails.guarding.cache",
    "load_encoder": "guardalign_guardrails.detection.encoders",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for (PEP 562)."""
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("guardalign-guardrails")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
