"""Guardrails for vision-language apps: find, mask or route unsafe image regions before a model sees them.

The public face of the package. Everything else is imported from where it lives.
"""

from guardalign_guardrails.errors import (
    EncoderUnavailable,
    GuardAlignError,
    ImageDecodeError,
    PolicyError,
    ProfileError,
    ProfileMissing,
    UnsafeContentError,
)
from guardalign_guardrails.guard import Checked, Guard
from guardalign_guardrails.policy import Action, Policy, Source
from guardalign_guardrails.verdict import Verdict

__all__ = [
    "Action",
    "Checked",
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
