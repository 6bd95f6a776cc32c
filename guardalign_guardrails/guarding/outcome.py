"""The outcome of one image, and its verdict.

The guard works with outcomes, which hold tensors and are kept in the verdict cache; callers get verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from PIL import Image

from guardalign_guardrails.actions import Action, Delivery, FailureAction, Mode
from guardalign_guardrails.detection.scoring import ScoreMap
from guardalign_guardrails.guarding.decide import ImageDecision
from guardalign_guardrails.guarding.delivery import DeliveryRecord
from guardalign_guardrails.guarding.remedies import remedy_for
from guardalign_guardrails.verdict import AfterMasking, Box, RegionFinding, Verdict


@dataclass(frozen=True, eq=False)
class Outcome:
    """Scores and decision of one image; what the verdict cache keeps.

    Attributes:
        worst: Scores of the worst view.
        view: Name of that view.
        decision: What the policy says of it.
        proposed: The action after masking and escalation.
        masks: Boxes to cover, in pixels.
        after: What the masked image scored.
        reasons: How it came about.
        timings: Milliseconds by stage.
        delivery: How it was looked at, and what goes on if it may pass.
        drawn: The masked image; None if nothing was masked, or if it was not drawn.
        follow_up: Digest of the masked image and what is known of it; None if nothing was masked and scored again.
    """

    worst: ScoreMap
    view: str
    decision: ImageDecision
    proposed: Action
    masks: tuple[Box, ...] = ()
    after: AfterMasking | None = None
    reasons: tuple[str, ...] = ()
    timings: tuple[tuple[str, float], ...] = ()
    delivery: DeliveryRecord = field(default_factory=DeliveryRecord)
    drawn: Image.Image | None = None
    follow_up: tuple[str, Outcome] | None = None

    @property
    def delivers(self) -> Delivery:
        """What goes on if the policy is enforced."""
        return _delivery(self.proposed, self.delivery.kind)

    def to_keep(self) -> Outcome:
        """The outcome without what belongs to this check alone: a cache holds no pixels, and each image once."""
        return self if self.drawn is None and self.follow_up is None else replace(self, drawn=None, follow_up=None)


@dataclass(frozen=True)
class Failure:
    """Why one image has no outcome.

    Attributes:
        digest: Of the decoded pixels, else of the raw bytes, else empty.
        action: What the policy's failure rules say.
        uninspectable: Code of `ImageDecodeError.reason`, or None.
        failure: Error class name or ``timeout``, or None.
    """

    digest: str
    action: FailureAction
    uninspectable: str | None = None
    failure: str | None = None


def scored_verdict(blank: Verdict, outcome: Outcome, size: tuple[int, int], *, is_cached: bool, mode: Mode) -> Verdict:
    """Fill in a verdict from an outcome.

    Args:
        blank: Verdict with what does not depend on the outcome.
        outcome: What was found.
        size: Width and height of the image as displayed, in pixels.
        is_cached: Whether the outcome came from the cache; its timings are then left out.
        mode: Whether the proposed action is taken.
    """
    record = outcome.delivery
    proposed = outcome.delivers
    return blank.model_copy(
        update={
            "action": outcome.proposed if mode == "enforce" else "allow",
            "proposed": outcome.proposed,
            "delivery": proposed if mode == "enforce" else "original",
            "delivery_proposed": proposed,
            "delivery_reasons": record.reasons,
            "looked_at": record.looked_at,
            "frame_count": record.frame_count,
            "frames_seen": record.frames_seen,
            "score": outcome.decision.score,
            "p_value": outcome.decision.p_value,
            "category": outcome.decision.category,
            "categories": outcome.decision.categories,
            "regions": _regions(outcome, size),
            "masks": outcome.masks,
            "after_masking": outcome.after,
            "reasons": outcome.reasons,
            "view": outcome.view,
            "timings": {**blank.timings, **({} if is_cached else dict(outcome.timings))},
            "is_cached": is_cached,
        }
    )


def failed_verdict(blank: Verdict, failure: Failure, *, mode: Mode) -> Verdict:
    """Fill in a verdict for an image without an outcome."""
    what = f"uninspectable ({failure.uninspectable})" if failure.uninspectable else f"failed ({failure.failure})"
    proposed = _delivery(failure.action, "original")
    return blank.model_copy(
        update={
            "action": failure.action if mode == "enforce" else "allow",
            "proposed": failure.action,
            "delivery": proposed if mode == "enforce" else "original",
            "delivery_proposed": proposed,
            "uninspectable": failure.uninspectable,
            "failure": failure.failure,
            "remedy": remedy_for(failure.uninspectable, failure.failure),
            "reasons": (f"{what}: the policy says {failure.action}",),
        }
    )


def _delivery(action: Action, if_passed: Literal["original", "canonical"]) -> Delivery:
    if action in ("route", "block"):
        return "none"
    return "masked" if action == "mask" else if_passed


def in_pixels(box: tuple[float, float, float, float], size: tuple[int, int]) -> Box:
    """A box of fractions of an image as pixels."""
    width, height = size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def _regions(outcome: Outcome, size: tuple[int, int]) -> tuple[RegionFinding, ...]:
    names = list(outcome.decision.categories)
    best, index = outcome.worst.scores.max(-1)
    regions = []
    for fractions, score, category in zip(outcome.worst.boxes.tolist(), best.tolist(), index.tolist(), strict=True):
        box = in_pixels(fractions, size)
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        is_masked = any(left <= x < right and top <= y < bottom for left, top, right, bottom in outcome.masks)
        regions.append(RegionFinding(box=box, score=score, category=names[category], is_masked=is_masked))
    return tuple(regions)
