"""Guardrails for vision-language apps: find, mask or route unsafe image regions before a model sees them.

The public face of the package. Everything else is imported from where it lives.
"""

from typing import TYPE_CHECKING, Any

from guardalign_guardrails.actions import Action, Source
from guardalign_guardrails.errors import (
    EncoderUnavailable,
    GuardAlignError,
    ImageDecodeError,
    PolicyError,
    ProfileError,
    ProfileMissing,
    UnsafeContentError,
)
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.verdict import Verdict

if TYPE_CHECKING:
    from guardalign_guardrails.guarding.guard import CheckResult, Guard

__all__ = [
    "Action",
    "CheckResult",
    "EncoderUnavailable",
    "Guard",
    "GuardAlignError",
    "ImageDecodeError",
    "Policy",
    "PolicyError",
    "ProfileError",
    "ProfileMissing",
    "Source",
    "UnsafeContentError",
    "Verdict",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for, so that reading a policy does not take seconds (PEP 562)."""
    if name in ("CheckResult", "Guard"):
        from guardalign_guardrails.guarding import guard

        return getattr(guard, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
