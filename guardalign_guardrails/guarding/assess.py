"""From decoded images to outcomes: detect, decide, mask, score again, escalate.

Keeps nothing and catches nothing: the guard owns caches and failure rules.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from PIL import Image

from guardalign_guardrails.actions import Source, is_at_least_mask
from guardalign_guardrails.detection.detector import Detector
from guardalign_guardrails.detection.extent import outermost, unsafe_boxes
from guardalign_guardrails.detection.reference import Profile
from guardalign_guardrails.detection.scoring import ScoreMap
from guardalign_guardrails.guarding.decide import ImageDecision, decide, mask_thresholds
from guardalign_guardrails.guarding.outcome import Outcome, in_pixels
from guardalign_guardrails.images import STILL_VIEW, DecodedImage, coverage, mask_regions, still_digest
from guardalign_guardrails.policy import Masking, Policy
from guardalign_guardrails.verdict import AfterMasking, Box

_MASK_ROUNDS: Final = 3


def assess(
    images: Sequence[tuple[DecodedImage, Source]], detector: Detector, policy: Policy, profile: Profile | None
) -> list[Outcome]:
    """Detect and decide; all views of all images are scored in one batch.

    Args:
        images: Images with their sources, at least one.
        detector: Scores them.
        policy: Decides.
        profile: Reference profile; required by thresholds of kind ``false_positive_rate``.

    Returns:
        One outcome per image, in order; that of its worst view.

    Raises:
        ArithmeticError: A score is not finite.
    """
    views = [view for image, _ in images for view in image.views]
    maps, timings = detector.detect([view.pixels for view in views])
    stages = (("encode", timings.encode / len(images)), ("score", timings.score / len(images)))
    remaining = iter(zip(views, maps, strict=True))
    outcomes = []
    for image, source in images:
        own = [next(remaining) for _ in image.views]
        view, worst = max(own, key=lambda pair: float(pair[1].image_scores.max()))
        decision = decide(worst.image_scores.tolist(), policy, profile, source)
        outcome = Outcome(worst, view.name, decision, decision.action, reasons=decision.reasons, timings=stages)
        if decision.action == "mask":
            started = time.perf_counter()
            outcome = _masked(outcome, image, [m for _, m in own], source, detector, policy, profile)
            took = (time.perf_counter() - started) * 1e3
            outcome = replace(outcome, timings=(*stages, ("mask", took)))
        outcomes.append(outcome)
    return outcomes


def draw_mask(image: DecodedImage, boxes: Sequence[Box], rules: Masking) -> Image.Image:
    """The image as an opaque still with boxes covered."""
    return mask_regions(image.flattened, boxes, fill=rules.fill, colour=rules.colour, feather=rules.feather)


def _masked(
    outcome: Outcome,
    image: DecodedImage,
    maps: Sequence[ScoreMap],
    source: Source,
    detector: Detector,
    policy: Policy,
    profile: Profile | None,
) -> Outcome:
    """Cover what is unsafe, score again, cover what is left, and escalate if something is still unsafe."""
    rules = policy.masking
    thresholds = mask_thresholds(policy, profile, source)
    boxes: list[Box] = []
    for rounds in range(1, _MASK_ROUNDS + 1):  # noqa: B007  counted for the report
        for score_map in maps:
            boxes += [in_pixels(box, image.size) for box in unsafe_boxes(score_map, thresholds, rules.extent)]
        boxes = outermost(boxes)
        covered = coverage(boxes, image.size)
        again: ImageDecision | None = None
        if rules.rescore and covered <= rules.max_coverage:
            drawn = draw_mask(image, boxes, rules)
            maps, _ = detector.detect([drawn])
            again = decide(maps[0].image_scores.tolist(), policy, profile, source)
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
        known = None if again is None else (still_digest(drawn), _known(maps[0], again))
        return replace(
            outcome, masks=tuple(boxes), after=after, drawn=None if again is None else drawn, follow_up=known
        )
    is_too_much = covered > rules.max_coverage
    why = "the mask would cover too much" if is_too_much else "the masked image is unsafe still"
    reasons = (*outcome.reasons, f"{why}, so it becomes {rules.escalate_to}")
    return replace(outcome, proposed=rules.escalate_to, masks=tuple(boxes), after=after, reasons=reasons)


def _known(score_map: ScoreMap, decision: ImageDecision) -> Outcome:
    """Outcome of a masked image, which is an opaque still."""
    return Outcome(score_map, STILL_VIEW, decision, decision.action, reasons=decision.reasons)
