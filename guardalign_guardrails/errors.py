"""Every error this package raises on purpose.

One small hierarchy, so that a caller can catch `GuardAlignError` and be done. Messages name the remedy and never carry
pixels, data URLs or prompt text; what a program needs to act on is an attribute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardalign_guardrails.verdict import Verdict


class GuardAlignError(Exception):
    """Base of all errors raised by this package."""


class PolicyError(GuardAlignError):
    """A policy cannot be read, or contradicts itself."""


class SettingsError(GuardAlignError):
    """An integration is set up in a way that cannot work, or would leave something unguarded."""


class EncoderUnavailable(GuardAlignError):
    """An encoder's packages or weights are not here."""


class ProfileMissing(GuardAlignError):
    """No calibration profile fits this encoder, policy and scoring."""


class ProfileError(GuardAlignError):
    """A calibration profile cannot be read or cannot be made from the images given."""


class CalibrationError(GuardAlignError):
    """A model's attention cannot be calibrated, or not as asked."""


class ModelUnavailable(GuardAlignError):
    """A local model's packages, files or device are not here, or it cannot be loaded."""


class PromptError(GuardAlignError):
    """A chat cannot be written into a model's prompt, or not so that the safety prefix is where it must be."""


class ContextOverflow(PromptError):
    """A prompt leaves no room for an answer in the model's context.

    Attributes:
        prompt_tokens: Length of the prompt.
        context_window: What the model can take.
    """

    def __init__(self, prompt_tokens: int, context_window: int) -> None:
        super().__init__(
            f"The prompt has {prompt_tokens} tokens and the model's context holds {context_window}; shorten the chat "
            "or use fewer or smaller images."
        )
        self.prompt_tokens = prompt_tokens
        self.context_window = context_window


class EvaluationError(GuardAlignError):
    """An evaluation cannot be run as asked: its prompts, settings or files are not what they should be."""


class ImageDecodeError(GuardAlignError):
    """Bytes that should be an image cannot be turned into pixels that can be trusted.

    Attributes:
        reason: Stable machine-readable code: ``unsupported_format``, ``too_large``, ``too_many_pixels``,
            ``too_many_frames``, ``truncated``, ``corrupt``, ``empty``, ``unreadable`` or ``wrong_type``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class FetchUnavailable(GuardAlignError):
    """The packages that fetch image URLs are not here."""


class FetchRefused(GuardAlignError):
    """An image URL was not fetched, or what came back cannot be taken.

    Attributes:
        reason: Stable machine-readable code: ``url_scheme``, ``url_malformed``, ``url_host``, ``url_port``,
            ``url_address``, ``url_unreachable``, ``url_status``, ``url_redirects``, ``url_encoding``, ``url_empty``,
            ``url_timeout``, ``too_large`` or ``too_many_urls``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class UnsafeContentError(GuardAlignError):
    """The policy blocked an image and the caller asked for an exception.

    Attributes:
        verdict: What was found and done; safe to log.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(
            f"Blocked an image (digest {verdict.digest[:12]}, source {verdict.source}): "
            f"{verdict.category or verdict.uninspectable or 'failure'}; see .verdict for what was found."
        )
        self.verdict = verdict
