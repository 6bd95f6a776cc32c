"""Why an image got its verdict: a heat map to look at and the anchors its regions met.

Reads verdicts and draws; it decides nothing. The numbers it shows are the verdict's own, so an image and a log entry
can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageChops, ImageDraw

from guardalign_guardrails.actions import LADDER, Source, is_at_least_mask
from guardalign_guardrails.detection.reference import Profile
from guardalign_guardrails.detection.scoring import Pair, Scorer, TransportScorer
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.images import DecodedImage, ImageSource, OverlayRegion, decode, draw_overlay
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.verdict import Box, RegionFinding, Verdict

# Below this the legend and labels, which have a smallest readable size, would cover the image.
_SMALLEST_SIDE: Final = 720
_LARGEST_SIDE: Final = 1600
_MOST_LABELS: Final = 4
# The overlay's own colours for what was masked.
_MASKED: Final = (0, 229, 255)
_EDGE: Final = (16, 18, 24)


@dataclass(frozen=True)
class HeatScale:
    """Which scores are drawn as no heat and as full heat.

    Attributes:
        low: Score drawn as 0; None for the lowest region of the image itself.
        high: Score drawn as 1; None for the highest region of the image itself.
    """

    low: float | None = None
    high: float | None = None

    def heats(self, scores: Sequence[float]) -> list[float]:
        """Heat of each region; NaN stays NaN, which the overlay draws as hot."""
        finite = [score for score in scores if math.isfinite(score)]
        low = min(finite, default=0.0) if self.low is None else self.low
        high = max(finite, default=1.0) if self.high is None else self.high
        if high <= low:
            # One region, or an image that is unsafe all over: there is no contrast, only above or below.
            return [score if math.isnan(score) else float(score >= high) for score in scores]
        return [(score - low) / (high - low) for score in scores]


SHARE: Final = HeatScale(0.0, 1.0)
"""For scores that are shares of mass ("joint"): heat is the score."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """A verdict with its heat map and the pairs behind it.

    Attributes:
        verdict: The finding.
        size: Width and height in pixels of the image as displayed; the unit of ``verdict``'s boxes.
        image: The heat map.
        pairs: Region-anchor pairs that the transport joins most strongly, strongest first; their boxes are fractions
            of the image. Empty if the image was not scored.
    """

    verdict: Verdict
    size: tuple[int, int]
    image: Image.Image
    pairs: tuple[Pair, ...]


def explanation(guard: Guard, image: ImageSource, source: Source = "user", *, count: int = 8) -> Explanation:
    """Check an image and say why it got its verdict.

    Args:
        guard: Checks the image.
        image: See `Guard.check`.
        source: Where the image came from.
        count: How many pairs at most.

    Raises:
        ImageDecodeError: The image cannot be opened.
        EncoderUnavailable: The encoder's packages or weights are missing.
        ProfileMissing: No reference profile fits and the policy needs one.
    """
    decoded = decode(image, guard.limits)
    verdict = guard.check(image, source=source).verdict
    seen = scored_view(decoded, verdict)
    pairs = guard.detector.pairs(seen, count) if verdict.score is not None else []
    pil_image = heat_map(seen, verdict, heat_scale(guard.policy, guard.profile, source, guard.detector.scorer))
    return Explanation(verdict, decoded.size, pil_image, tuple(pairs))


def scored_view(decoded: DecodedImage, verdict: Verdict) -> Image.Image:
    """The image that a verdict's regions belong to: the worst frame and backdrop, in the size its boxes are in.

    Tiles lie in the image as displayed, and so do the boxes of a reading that is turned otherwise.
    """
    views = (view.pixels for view in decoded.views if view.name == verdict.view and view.orientation == 1)
    image = next(views, decoded.flattened)
    return image if image.size == decoded.size else image.resize(decoded.size, Image.Resampling.LANCZOS)


def heat_scale(policy: Policy, profile: Profile | None, source: Source, scorer: Scorer | None = None) -> HeatScale:
    """How to draw scores so that heat means the same from image to image.

    Shares of mass are drawn as they are. Other scores have no natural zero and one: full heat is the score from which
    the policy masks (or, if it never does, takes its severest action), no heat the lowest region of the image.
    """
    if (scorer or TransportScorer(policy.scoring)).is_share:
        return SHARE
    levels = []
    for category in policy.categories:
        thresholds = policy.thresholds_for(category, source)
        values = list(thresholds.items())
        covering = [value for action, value in values if is_at_least_mask(action)] or [
            value for _, value in values[-1:]
        ]
        if covering and thresholds.kind == "score":
            levels.append(covering[0])
        elif covering and profile is not None:
            levels.append(profile.threshold(covering[0]))
    return HeatScale(high=min((level for level in levels if math.isfinite(level)), default=None))


def heat_map(image: Image.Image, verdict: Verdict, scale: HeatScale = SHARE) -> Image.Image:
    """Draw a verdict over its image.

    Small images are enlarged so that the text on them can be read.

    Args:
        image: The image that was scored, in the size its boxes are in; see `scored_view`.
        verdict: What was found in it.
        scale: Which scores are hot; `heat_scale` knows for a policy. The default is right for "joint".

    Returns:
        A new RGB image: heat of every region, the hottest region of each category that calls for an action (and of
        the best one) with its score and p-value, what was masked, and the outcome as a title.
    """
    factor = max(1.0, _SMALLEST_SIDE / max(image.size))
    canvas = image.convert("RGB")
    if factor > 1:
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        canvas = canvas.resize(size, Image.Resampling.LANCZOS)
    across, down = canvas.width / image.width, canvas.height / image.height

    def enlarged(box: Box) -> Box:
        return box[0] * across, box[1] * down, box[2] * across, box[3] * down

    heats = scale.heats([region.score for region in verdict.regions])
    labels = {id(region): _label(name, verdict) for name, region in _notable(verdict)}
    drawn = [
        OverlayRegion(enlarged(region.box), heat, labels.get(id(region)))
        for region, heat in zip(verdict.regions, heats, strict=True)
    ]
    title = headline(verdict)
    if scale != SHARE and scale.high is not None:
        title += f", full heat from {scale.high:.2f}"
    return _outlined(draw_overlay(canvas, drawn, title=title, max_side=_LARGEST_SIDE), verdict.masks, image.size)


def headline(verdict: Verdict) -> str:
    """A verdict in one line: action, best category, score, p-value; or why there is no score."""
    action: str = verdict.action
    if verdict.proposed != verdict.action:
        action += f" (monitoring; else {verdict.proposed})"
    if verdict.uninspectable:
        return f"{action}: cannot be opened: {verdict.uninspectable}"
    if verdict.failure or verdict.category is None:
        return f"{action}: not scored: {verdict.failure or 'unknown'}"
    return f"{action}: {_label(verdict.category, verdict)}"


def _label(category: str, verdict: Verdict) -> str:
    finding = verdict.categories[category]
    p_value = "" if finding.p_value is None else f" p={finding.p_value:.3g}"
    return f"{category} {finding.score:.2f}{p_value}"


def _notable(verdict: Verdict) -> list[tuple[str, RegionFinding]]:
    """The hottest region of the best category and of those that call for an action, severest first."""
    hottest: dict[str, RegionFinding] = {}
    for region in verdict.regions:
        if region.category not in hottest or region.score > hottest[region.category].score:
            hottest[region.category] = region
    wanted = sorted(
        (name for name, finding in verdict.categories.items() if finding.action != "allow"),
        key=lambda name: (-LADDER.index(verdict.categories[name].action), -verdict.categories[name].score),
    )
    first = [verdict.category] if verdict.category else []
    names = dict.fromkeys([*first, *wanted])
    return [(name, hottest[name]) for name in names if name in hottest][:_MOST_LABELS]


def _outlined(canvas: Image.Image, boxes: Sequence[Box], size: tuple[int, int]) -> Image.Image:
    """The canvas with a line around all that was covered, however many boxes overlap in it.

    The overlay would draw each box on its own and count it as a cool region, which dims the heat under it.
    """
    if not boxes:
        return canvas
    width = max(2, min(canvas.size) // 160)
    # A margin, so that an edge of the image closes the line.
    margin = width + 2
    across, down = canvas.width / size[0], canvas.height / size[1]
    covered = Image.new("L", (canvas.width + 2 * margin, canvas.height + 2 * margin))
    draw = ImageDraw.Draw(covered)
    for left, top, right, bottom in boxes:
        draw.rectangle(
            (
                margin + round(left * across),
                margin + round(top * down),
                margin + max(min(round(right * across), canvas.width) - 1, round(left * across)),
                margin + max(min(round(bottom * down), canvas.height) - 1, round(top * down)),
            ),
            fill=255,
        )
    inside = (margin, margin, margin + canvas.width, margin + canvas.height)
    core = _shrunk(covered, 1)
    # A dark line on both sides keeps the bright one visible on any image.
    dark = ImageChops.subtract(covered, _shrunk(core, width + 1)).crop(inside)
    bright = ImageChops.subtract(core, _shrunk(core, width)).crop(inside)
    canvas.paste(_EDGE, mask=dark)
    canvas.paste(_MASKED, mask=bright)
    return canvas


def _shrunk(area: Image.Image, by: int) -> Image.Image:
    """A white area on black, drawn in by some pixels on every side."""
    for x, y in ((by, 0), (-by, 0), (0, by), (0, -by)):
        area = ImageChops.darker(area, ImageChops.offset(area, x, y))
    return area
