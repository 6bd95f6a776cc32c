"""Every error this package raises on purpose.

One small hierarchy, so that a caller can catch `GuardAlignError` and be done. Messages name the remedy and never carry
pixels, data URLs or prompt text; what a program needs to act on is an attribute.
"""

from __future__ import annotations

from typing import Any

from guardalign_guardrails.verdict import Verdict


class GuardAlignError(Exception):
    """Base of all errors raised by this package."""


class PolicyError(GuardAlignError):
    """A policy cannot be read, or contradicts itself."""


class SettingsError(GuardAlignError):
    """An integration is set up in a way that cannot work, or would leave something unguarded."""


class UnguardedWarning(UserWarning):
    """Something is set up in a way that lets images reach a model unchecked."""


class NotPicklable(GuardAlignError):
    """A guard, or a component that holds one, was given something that cannot be pickled.

    Attributes:
        member: What it was given, such as ``encoder``.
    """

    def __init__(self, member: str, kind: str) -> None:
        super().__init__(
            f"The {member} ({kind}) cannot be pickled, so nothing that holds it can be sent to another process; give "
            "it by name or path, or make what holds it in the process that uses it."
        )
        self.member, self.kind = member, kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.member, self.kind)


class ForkedProcessError(GuardAlignError):
    """PyTorch worked in the parent of this process before the fork and would hang in it."""

    def __init__(self) -> None:
        super().__init__(
            "This process was forked after its parent had used a guard or a local model, and PyTorch would hang in it. "
            "Use them first after the fork (gunicorn: without --preload, or in post_fork; Celery: in "
            "worker_process_init), or start processes with multiprocessing's 'spawn'."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class EncoderUnavailable(GuardAlignError):
    """An encoder's packages or weights are missing."""


class ProfileMissing(GuardAlignError):
    """No reference profile fits this encoder, policy and scoring."""


class ProfileError(GuardAlignError):
    """A reference profile cannot be read or cannot be made from the images given."""


class CalibrationError(GuardAlignError):
    """A model's attention cannot be calibrated, or not as asked."""


class ModelUnavailable(GuardAlignError):
    """A local model's packages, files or device are missing, or it cannot be loaded."""


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

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.prompt_tokens, self.context_window)


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

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, str(self))


class FetchUnavailable(GuardAlignError):
    """The packages that fetch image URLs are missing."""


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

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, str(self))


class UnsafeContentError(GuardAlignError):
    """The policy lets nothing pass in the place of an image: it is unsafe, or it could not be checked.

    Attributes:
        verdict: What was found and done; safe to log.
    """

    def __init__(self, verdict: Verdict) -> None:
        # What could not be opened has no digest.
        digest = f"digest {verdict.digest[:12]}, " if verdict.digest else ""
        where = f"({digest}source {verdict.source})"
        if verdict.finding == "unchecked":
            what = f"Could not check content {where}: {verdict.uninspectable or verdict.failure}"
        elif not verdict.is_blocked:
            # It may pass changed, where nothing can be written in its place.
            is_masked = verdict.action == "mask"
            new = "the masked image" if is_masked else "the guard's own reading of an image"
            why = verdict.category if is_masked else ", ".join(verdict.delivery_reasons)
            what = f"Cannot write {new} in its place {where}: {why}; where it is a file, give a masked_dir"
            what += "" if is_masked else ", or let this source deliver originals"
        else:
            what = f"Blocked an image {where}: {verdict.category}"
        remedy = f" {verdict.remedy}" if verdict.remedy else ""
        super().__init__(f"{what}; see .verdict for what was found.{remedy}")
        self.verdict = verdict

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.verdict,)
