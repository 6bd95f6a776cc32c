"""Which pixels of an image go on, and so which are scored.

An image passes as it came only if all its readers see the same in it and all of it is looked at. Otherwise the guard's
own reading of it goes on: it is encoded first and decoded again, and those pixels are scored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from guardalign_guardrails.actions import DeliveryRule
from guardalign_guardrails.guarding.views import ScoredView, seen_side, with_tiles
from guardalign_guardrails.images import DecodedImage, View, decode
from guardalign_guardrails.images.canonical import encode_canonical, shrunk
from guardalign_guardrails.images.consumers import Consumer
from guardalign_guardrails.images.scaling import find_scaling, quiet, renderings


@dataclass(frozen=True)
class Sight:
    """How closely a guard looks.

    Attributes:
        reach: Longest side in pixels up to which one look at an image sees it in full detail.
        max_tiles: Most tiles of one image that are looked at beside the whole.
        consumers: The models that images may go to.
    """

    reach: int
    max_tiles: int
    consumers: tuple[Consumer, ...]

    def side(self, size: tuple[int, int], frame_count: int) -> int:
        """Longest side in pixels to which an image is looked at in full detail.

        As far as any consumer looks, within the budget of tiles; frames and pages have no tiles.
        """
        if frame_count > 1:
            return self.reach
        wanted = max((consumer.side(size) for consumer in self.consumers), default=self.reach)
        return max(self.reach, min(wanted, seen_side(size, self.reach, self.max_tiles)))


@dataclass(frozen=True)
class DeliveryRecord:
    """How one image was looked at, and which pixels of it go on if it may pass.

    Attributes:
        kind: ``original`` or ``canonical``.
        reasons: Short codes of why it is not, or should not be, the original.
        looked_at: Longest side in pixels at which all of the image is scored.
        frame_count: Frames or pages in the file.
        frames_seen: Indices of those that are scored.
        is_quieted: Whether what goes on was low-passed because resizing it would have shown something else.
    """

    kind: Literal["original", "canonical"] = "original"
    reasons: tuple[str, ...] = ()
    looked_at: int = 0
    frame_count: int = 1
    frames_seen: tuple[int, ...] = (0,)
    is_quieted: bool = False


@dataclass(frozen=True, eq=False)
class DeliveryPlan:
    """What goes on of one image if it may pass, and what is scored for it.

    Attributes:
        record: What a verdict says of it.
        still: The first frame of what goes on, mode RGB, as it is scored; smaller than the original if the policy
            delivers originals that are larger than what was looked at.
        data: The canonical reading, encoded; None for the original.
        views: What is scored, the still first; none of an image whose outcome is known.
        readings: How many of the views are readings of the image; the others are tiles.
        size: Width and height of the image as displayed, in pixels.
        digest: Key under which ``data`` is known when it comes back; None for the original.
    """

    record: DeliveryRecord
    still: Image.Image = field(repr=False)
    data: bytes | None = field(repr=False)
    views: tuple[ScoredView, ...] = field(repr=False)
    readings: int
    size: tuple[int, int]
    digest: str | None = None

    @property
    def tiles(self) -> int:
        """How many of the views are tiles."""
        return len(self.views) - self.readings

    @property
    def held_pixels(self) -> int:
        """How many pixels are held, to score it or to pass on what is known."""
        held = [view.pixels for view in self.views] or [self.still]
        return sum(pixels.width * pixels.height for pixels in held)


def image_key(image: DecodedImage) -> str:
    """Names an image by its pixels and by all that decides on its delivery."""
    marks = [*image.departures, *(("lossy",) if image.is_lossy else ())]
    return "|".join([image.digest, *marks])


def plan_delivery(
    image: DecodedImage, rule: DeliveryRule, sight: Sight, known: DeliveryRecord | None = None
) -> DeliveryPlan:
    """Decide which pixels of an image go on if it may pass.

    Args:
        image: The image.
        rule: The policy's rule for its source.
        sight: How closely the guard looks.
        known: What was found when the image was scored: it is not looked at again, and there is nothing to score; None
            if it is new.
    """
    stills = _stills(image)
    side = sight.side(image.size, image.frame_count)
    reasons = list(image.departures)
    if not reasons and len(image.views) > len(stills):
        reasons.append("several_readings")
    if len(image.frames_seen) < image.frame_count and "frames_unseen" not in reasons:
        reasons.append("frames_unseen")
    if max(image.size) > side:
        reasons.append("larger_than_checked")
    frames = [shrunk(view.pixels, side) for view in stills]
    findings = [] if known else [find_scaling(frame, sight.consumers) for frame in frames]
    shown = [
        ScoredView(pixels, f"{view.name}, resized without averaging {number}")
        for view, frame, finding in zip(stills, frames, findings, strict=False)
        if finding.is_suspicious
        for number, pixels in enumerate(renderings(frame, finding), start=1)
    ]
    is_suspicious = known.is_quieted if known else any(finding.is_suspicious for finding in findings)
    if is_suspicious:
        reasons.append("scaling")
    is_paged = image.format == "TIFF"
    # An animation's frames have one size; others are scored and left out.
    goes_on = [is_paged or frame.size == frames[0].size for frame in frames]
    if not all(goes_on):
        reasons.append("frame_size")
    is_original = rule == "original" or (rule == "auto" and not reasons)
    if rule == "canonical":
        reasons.append("policy")
    data, digest = None, None
    if not is_original:
        frames = [quiet(frame, sight.consumers) if is_suspicious else frame for frame in frames]
        sent = [frame for frame, is_sent in zip(frames, goes_on, strict=True) if is_sent]
        data = encode_canonical(sent, is_lossy=image.is_lossy, is_paged=is_paged)
        again = decode(data)
        digest = image_key(again)
        frames[0] = again.flattened
    record = DeliveryRecord(
        kind="original" if is_original else "canonical",
        reasons=tuple(reasons),
        looked_at=min(side, max(image.size)),
        frame_count=image.frame_count,
        frames_seen=image.frames_seen,
        is_quieted=is_suspicious and not is_original,
    )
    if known:
        return DeliveryPlan(record, frames[0], data, (), 0, image.size, digest)
    delivered, *others = (
        ScoredView(frame, view.name, is_delivered=is_original or is_sent)
        for view, frame, is_sent in zip(stills, frames, goes_on, strict=True)
    )
    others += [_alternative(view, side) for view in image.views if all(view is not still for still in stills)]
    others += shown
    whole, *tiles = with_tiles(delivered, sight.reach)
    return DeliveryPlan(record, frames[0], data, (whole, *others, *tiles), 1 + len(others), image.size, digest)


def views_of(still: Image.Image, name: str, sight: Sight) -> list[ScoredView]:
    """What is scored of an opaque still that has one reading, such as a masked image."""
    return with_tiles(ScoredView(still, name, is_delivered=True), sight.reach)


def _stills(image: DecodedImage) -> list[View]:
    """The canonical reading of each frame that was seen: over white where it is transparent."""
    found: dict[int, View] = {}
    for view in image.views:
        if view.reading:
            continue
        if view.frame not in found or (view.backdrop == "white" and found[view.frame].backdrop != "white"):
            found[view.frame] = view
    return [found[frame] for frame in sorted(found)]


def _alternative(view: View, side: int) -> ScoredView:
    return ScoredView(shrunk(view.pixels, side), view.name, orientation=view.orientation)
