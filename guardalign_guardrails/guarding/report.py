"""From outcomes and failures to the results that callers get."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Final

from PIL import Image

from guardalign_guardrails.actions import Source
from guardalign_guardrails.guarding.assess import draw_mask
from guardalign_guardrails.guarding.delivery import DeliveryPlan
from guardalign_guardrails.guarding.outcome import Failure, Outcome, failed_verdict, scored_verdict
from guardalign_guardrails.guarding.reading import OpenedImage, ReadImage
from guardalign_guardrails.guarding.result import CheckResult
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.verdict import Verdict

logger = logging.getLogger(__name__)

_PLACEHOLDER_SIZE: Final = (336, 336)


@dataclass(frozen=True)
class Reporter:
    """Writes the results of one guard.

    Attributes:
        policy: What decided.
        policy_fingerprint: Its digest, which costs enough to be kept.
        encoder: Encoder name.
        profile: Name of the reference profile; None without one.
    """

    policy: Policy
    policy_fingerprint: str
    encoder: str
    profile: str | None

    def recalled(self, read: ReadImage, digest: str, size: tuple[int, int], outcome: Outcome) -> CheckResult:
        """The result for bytes whose outcome is known and which pass as they came, or not at all."""
        blank = self._blank(digest, read.source, read.took_ms)
        return CheckResult(scored_verdict(blank, outcome, size, is_cached=True, mode=self.policy.mode), read.scored)

    def opened(
        self, read: ReadImage, image: OpenedImage, outcome: Outcome | Failure, *, keep_pixels: bool
    ) -> CheckResult:
        """The result for a decoded image."""
        if isinstance(outcome, Failure):
            failure = replace(outcome, digest=image.digest)
            return self.failed(failure, read, image.plan.size, took_ms=image.took_ms)
        return self.scored(
            read,
            image.digest,
            image.plan,
            outcome,
            took_ms=image.took_ms,
            is_cached=image.known is not None,
            keep_pixels=keep_pixels,
        )

    def scored(
        self,
        read: ReadImage,
        digest: str,
        plan: DeliveryPlan,
        outcome: Outcome,
        *,
        took_ms: float,
        is_cached: bool,
        keep_pixels: bool,
    ) -> CheckResult:
        """The result for a decoded image; ``plan`` says what goes on of it if it may pass."""
        blank = self._blank(digest, read.source, took_ms)
        verdict = scored_verdict(blank, outcome, plan.size, is_cached=is_cached, mode=self.policy.mode)
        if verdict.delivery == "masked":
            return CheckResult(
                verdict, read.scored, outcome.drawn or draw_mask(plan, outcome.masks, self.policy.masking)
            )
        if verdict.delivery == "canonical":
            is_kept = keep_pixels or not isinstance(read.scored, bytes)
            return CheckResult(verdict, read.scored, plan.still if is_kept else None, plan.data)
        is_whole = plan.record.kind == "original" and plan.still.size == plan.size
        return CheckResult(verdict, read.scored, _decoded=plan.still if keep_pixels and is_whole else None)

    def failed(
        self,
        failure: Failure,
        read: ReadImage,
        size: tuple[int, int] = _PLACEHOLDER_SIZE,
        *,
        took_ms: float = 0.0,
    ) -> CheckResult:
        """The result for an image without an outcome; where the policy masks it, a plain image of ``size``."""
        verdict = failed_verdict(self._blank(failure.digest, read.source, took_ms), failure, mode=self.policy.mode)
        why = failure.uninspectable or failure.failure
        # A chat brings its history with every turn: what could not be checked in it was a warning when it came.
        level = logging.INFO if read.source == "history" else logging.WARNING
        logger.log(level, "Could not check content (%s, source %s): %s", why, read.source, verdict.remedy)
        plain = Image.new("RGB", size, self.policy.masking.colour) if verdict.delivery == "masked" else None
        return CheckResult(verdict, read.scored, plain)

    def _blank(self, digest: str, source: Source, decode_ms: float) -> Verdict:
        return Verdict(
            digest=digest,
            source=source,
            action="allow",
            proposed="allow",
            encoder=self.encoder,
            policy_fingerprint=self.policy_fingerprint,
            profile=self.profile,
            timings={"decode": decode_ms},
        )
