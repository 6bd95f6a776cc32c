"""What was found in one image and what was done about it.

A verdict is a record: frozen, JSON-safe, and free of pixels and prompt text, so it may be logged, traced, cached and
shown. The sanitised image travels beside it, never inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from guardalign_guardrails.actions import Action, Delivery, Source, severest

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the image as displayed (EXIF orientation applied)."""


Finding = Literal["none", "unsafe", "unchecked"]
"""What a check came to: nothing to act on, something unsafe, or that the image could not be checked."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CategoryFinding(_Record):
    """One category's finding in one image.

    Attributes:
        score: Image-level score, higher is more unsafe; comparable within one scoring and encoder.
        p_value: Share of benign reference images that score as high in any category, in (0, 1]; None when no
            reference profile was used.
        action: What the thresholds of this category ask for, before per-source limits.
    """

    score: float
    p_value: float | None = None
    action: Action


class RegionFinding(_Record):
    """One region's finding.

    Attributes:
        box: Pixels of the image as displayed.
        score: In the units of the image's score.
        category: The category that fits best.
        is_masked: Whether a mask covers the region's centre.
    """

    box: Box
    score: float
    category: str
    is_masked: bool = False


class AfterMasking(_Record):
    """What the masked image scored.

    Attributes:
        score: Image-level score of the masked image.
        p_value: Its p-value, or None without a profile.
        coverage: Share of the image's area that is covered, in [0, 1].
        rounds: How often the mask was grown and scored again, at least 1.
        is_clean: Whether the masked image no longer calls for masking.
    """

    score: float | None = None
    p_value: float | None = None
    coverage: float
    rounds: int
    is_clean: bool


class Verdict(_Record):
    """All that is known of one image.

    Attributes:
        digest: SHA-256 of the decoded pixels; of the raw bytes if they could not be decoded; empty if there are none.
        source: Where the image came from.
        action: What was done: the outcome after source rules, masking and escalation; ``allow`` in monitor mode.
        proposed: What enforcing the policy would have done; equals ``action`` unless the mode is ``monitor``.
        score: Best category's score; None if the image was not scored.
        p_value: Best category's p-value; None if not scored or no profile was used.
        category: Best category; None if not scored.
        categories: Finding per category, empty if not scored.
        regions: All regions of the worst view, in reading order.
        masks: Boxes that were covered, in pixels as displayed.
        after_masking: What the masked image scored; None if nothing was masked.
        uninspectable: Why the image could not be opened, a code of `ImageDecodeError.reason` or of the integration that
            found it (such as ``remote_reference``); None if it could.
        failure: Why detection failed, an error's class name or ``timeout``; None if it did not.
        remedy: What a developer can do to have content checked that was not; None if it was checked.
        reasons: Short sentences on how the action came about.
        delivery: Which pixels go on: ``original``, the image as it came; ``canonical``, the guard's own reading of it;
            ``masked``; or ``none``.
        delivery_proposed: What enforcing the policy would have delivered; equals ``delivery`` unless the mode is
            ``monitor``.
        delivery_reasons: Short codes of why it is not the original, such as ``orientation`` or ``larger_than_checked``.
        looked_at: Longest side in pixels at which all of the image was scored; None if it was not scored.
        frame_count: Frames or pages of the file; None if it could not be opened.
        frames_seen: Indices of those that were scored, ascending.
        view: Which of the images a viewer may see was the worst: frame number, backdrop, tile.
        timings: Milliseconds by stage.
        is_cached: Whether the scores came from the verdict cache.
        encoder: Encoder name.
        policy_fingerprint: Digest of the policy that decided.
        profile: Reference profile's name, or None.
    """

    digest: str
    source: Source
    action: Action
    proposed: Action
    score: float | None = None
    p_value: float | None = None
    category: str | None = None
    categories: dict[str, CategoryFinding] = Field(default_factory=dict)
    regions: tuple[RegionFinding, ...] = ()
    masks: tuple[Box, ...] = ()
    after_masking: AfterMasking | None = None
    uninspectable: str | None = None
    failure: str | None = None
    remedy: str | None = None
    reasons: tuple[str, ...] = ()
    delivery: Delivery = "none"
    delivery_proposed: Delivery = "none"
    delivery_reasons: tuple[str, ...] = ()
    looked_at: int | None = None
    frame_count: int | None = None
    frames_seen: tuple[int, ...] = ()
    view: str | None = None
    timings: dict[str, float] = Field(default_factory=dict)
    is_cached: bool = False
    encoder: str | None = None
    policy_fingerprint: str | None = None
    profile: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _finding_is_derived(cls, data: Any) -> Any:
        """Drop ``finding`` from a dumped verdict: it follows from the other fields."""
        return {k: v for k, v in data.items() if k != "finding"} if isinstance(data, dict) else data

    @computed_field  # type: ignore[prop-decorator]
    @property
    def finding(self) -> Finding:
        """``unchecked`` if the image could not be opened or scored, else ``unsafe`` if the policy wants an action."""
        if self.uninspectable is not None or self.failure is not None:
            return "unchecked"
        return "none" if self.proposed == "allow" else "unsafe"

    @property
    def is_blocked(self) -> bool:
        """Whether nothing may pass in the image's place (``route``, ``block``); never in monitor mode."""
        return self.action in ("route", "block")

    def summary(self) -> dict[str, object]:
        """The verdict without its regions: small enough for an event or a message's metadata."""
        return self.model_dump(mode="json", exclude={"regions"}, exclude_none=True)


def event_of(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Verdicts as the data of an event: plain, without pixels, regions or text."""
    return {
        "action": severest(*(verdict.action for verdict in verdicts)),
        "verdicts": [verdict.summary() for verdict in verdicts],
    }
