"""From delivery plans to outcomes: detect, decide, mask, score again, escalate.

Keeps nothing and catches nothing: the guard owns caches and failure rules.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from PIL import Image

from guardalign_guardrails.actions import Source, is_at_least_mask
from guardalign_guardrails.detection.detector import Detector
from guardalign_guardrails.detection.extent import outermost, unsafe_boxes
from guardalign_guardrails.detection.plain_ground import half_covered_objects
from guardalign_guardrails.detection.reference import Looks, Profile
from guardalign_guardrails.detection.scoring import ScoreMap
from guardalign_guardrails.guarding.decide import ImageDecision, decide, mask_thresholds
from guardalign_guardrails.guarding.delivery import DeliveryPlan, DeliveryRecord, Sight, views_of
from guardalign_guardrails.guarding.outcome import Outcome, in_pixels
from guardalign_guardrails.guarding.views import ScoredView, highest
from guardalign_guardrails.images import STILL_VIEW, coverage, mask_regions, still_digest
from guardalign_guardrails.policy import Masking, Policy
from guardalign_guardrails.verdict import AfterMasking, Box

_MASK_ROUNDS: Final = 3


@dataclass(frozen=True, eq=False)
class _Scored:
    """Views of one image with their scores, placed in the image as displayed."""

    views: Sequence[ScoredView]
    maps: Sequence[ScoreMap] = field(repr=False)
    looks: Looks

    @property
    def worst(self) -> int:
        """Index of the view with the highest score."""
        return max(range(len(self.maps)), key=lambda place: float(self.maps[place].image_scores.max()))


def assess(
    plans: Sequence[tuple[DeliveryPlan, Source]],
    detector: Detector,
    policy: Policy,
    profile: Profile | None,
    sight: Sight,
) -> list[Outcome]:
    """Detect and decide; all views of all images are scored in one batch.

    Args:
        plans: What goes on of each image, with its source, at least one.
        detector: Scores them.
        policy: Decides.
        profile: Reference profile; required by thresholds of kind ``false_positive_rate``.
        sight: How closely masked images are looked at.

    Returns:
        One outcome per image, in order. Of each category the highest score of all views counts.

    Raises:
        ArithmeticError: A score is not finite.
    """
    maps, timings = detector.detect([view.pixels for plan, _ in plans for view in plan.views])
    stages = (("encode", timings.encode / len(plans)), ("score", timings.score / len(plans)))
    remaining = iter(maps)
    outcomes = []
    for plan, source in plans:
        own = [view.placed(next(remaining)) for view in plan.views]
        scored = _Scored(plan.views, own, Looks(plan.readings, plan.tiles))
        outcome = replace(_outcome(scored, policy, profile, source), timings=stages, delivery=plan.record)
        if outcome.proposed == "mask":
            started = time.perf_counter()
            outcome = _masked(outcome, plan, scored, source, detector, policy, profile, sight)
            took = (time.perf_counter() - started) * 1e3
            outcome = replace(outcome, timings=(*stages, ("mask", took)))
        elif plan.digest is not None:
            known = _outcome(_delivered(scored), policy, profile, source)
            back = replace(known, delivery=DeliveryRecord(looked_at=plan.record.looked_at))
            outcome = replace(outcome, follow_up=(plan.digest, back))
        outcomes.append(outcome)
    return outcomes


def draw_mask(plan: DeliveryPlan, boxes: Sequence[Box], rules: Masking) -> Image.Image:
    """What goes on of an image, as a still with boxes covered; boxes are in pixels of the image as displayed."""
    across, down = plan.still.width / plan.size[0], plan.still.height / plan.size[1]
    scaled = [(left * across, top * down, right * across, bottom * down) for left, top, right, bottom in boxes]
    return mask_regions(plan.still, scaled, fill=rules.fill, colour=rules.colour, feather=rules.feather)


def _outcome(scored: _Scored, policy: Policy, profile: Profile | None, source: Source) -> Outcome:
    decision = decide(highest(scored.maps), policy, profile, source, scored.looks)
    worst = scored.worst
    return Outcome(scored.maps[worst], scored.views[worst].name, decision, decision.action, reasons=decision.reasons)


def _delivered(scored: _Scored) -> _Scored:
    """The views of what goes on, without the image's other readings."""
    own = [(view, m) for view, m in zip(scored.views, scored.maps, strict=True) if view.is_delivered]
    tiles = scored.looks.tiles
    return _Scored([view for view, _ in own], [m for _, m in own], Looks(len(own) - tiles, tiles))


def _masked(
    outcome: Outcome,
    plan: DeliveryPlan,
    scored: _Scored,
    source: Source,
    detector: Detector,
    policy: Policy,
    profile: Profile | None,
    sight: Sight,
) -> Outcome:
    """Cover what is unsafe, score again, cover what is left, and escalate if something is still unsafe."""
    rules = policy.masking
    boxes: list[Box] = []
    for rounds in range(1, _MASK_ROUNDS + 1):  # noqa: B007  counted for the report
        thresholds = mask_thresholds(policy, profile, source, scored.looks)
        for score_map in scored.maps:
            hot = unsafe_boxes(score_map, thresholds, rules.extent, rules.margin)
            boxes += [in_pixels(box, plan.size) for box in hot]
        if rules.whole_objects:
            boxes += half_covered_objects(plan.still, boxes, plan.size)
        boxes = outermost(boxes)
        covered = coverage(boxes, plan.size)
        again: ImageDecision | None = None
        if rules.rescore and covered <= rules.max_coverage:
            drawn = draw_mask(plan, boxes, rules)
            scored = _scored_still(drawn, detector, sight)
            again = decide(highest(scored.maps), policy, profile, source, scored.looks)
        is_clean = covered <= rules.max_coverage and (again is None or not is_at_least_mask(again.action))
        if is_clean or covered > rules.max_coverage:
            break
    after = AfterMasking(
        score=again.score if again else None,
        p_value=again.p_value if again else None,
        coverage=covered,
        rounds=rounds,
        is_clean=is_clean,
    )
    if is_clean:
        known = None
        if again is not None:
            back = _outcome(scored, policy, profile, source)
            known = (still_digest(drawn), replace(back, delivery=DeliveryRecord(looked_at=max(drawn.size))))
        return replace(
            outcome, masks=tuple(boxes), after=after, drawn=None if again is None else drawn, follow_up=known
        )
    is_too_much = covered > rules.max_coverage
    why = "the mask would cover too much" if is_too_much else "the masked image is unsafe still"
    reasons = (*outcome.reasons, f"{why}, so it becomes {rules.escalate_to}")
    return replace(outcome, proposed=rules.escalate_to, masks=tuple(boxes), after=after, reasons=reasons)


def _scored_still(still: Image.Image, detector: Detector, sight: Sight) -> _Scored:
    views = views_of(still, STILL_VIEW, sight)
    maps, _ = detector.detect([view.pixels for view in views])
    return _Scored(views, [view.placed(m) for view, m in zip(views, maps, strict=True)], Looks(1, len(views) - 1))
