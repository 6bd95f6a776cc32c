"""Guardrails for vision-language apps: find, mask or route unsafe image regions before a model sees them.

What `__all__` names is public, and so is what the API reference names of other modules. Everything else may change with
any release.
"""

from typing import TYPE_CHECKING, Any

from guardalign_guardrails.actions import Action, Source
from guardalign_guardrails.errors import (
    EncoderUnavailable,
    ForkedProcessError,
    GuardAlignError,
    ImageDecodeError,
    NotPicklable,
    PolicyError,
    ProfileError,
    ProfileMissing,
    SettingsError,
    UnsafeContentError,
)
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.verdict import Verdict

if TYPE_CHECKING:
    from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
    from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
    from guardalign_guardrails.guarding.guard import Guard
    from guardalign_guardrails.guarding.result import CheckResult
    from guardalign_guardrails.guarding.settings import GuardSettings

    __version__: str

__all__ = [
    "Action",
    "CalibratedLVLM",
    "CalibrationConfig",
    "CheckResult",
    "EncoderUnavailable",
    "ForkedProcessError",
    "Guard",
    "GuardAlignError",
    "GuardSettings",
    "ImageDecodeError",
    "NotPicklable",
    "Policy",
    "PolicyError",
    "ProfileError",
    "ProfileMissing",
    "SafetyPrefix",
    "SettingsError",
    "Source",
    "UnsafeContentError",
    "Verdict",
    "__version__",
]

# They need torch or transformers, and reading a policy must not take the seconds that importing those does.
_LATER = {
    "CalibratedLVLM": "guardalign_guardrails.decoding.lvlm",
    "CalibrationConfig": "guardalign_guardrails.decoding.config",
    "CheckResult": "guardalign_guardrails.guarding.result",
    "Guard": "guardalign_guardrails.guarding.guard",
    "GuardSettings": "guardalign_guardrails.guarding.settings",
    "SafetyPrefix": "guardalign_guardrails.decoding.config",
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
