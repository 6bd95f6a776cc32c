"""The rules of a policy: thresholds, what differs by source, what happens on failures, how to mask. Data only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, field_validator, model_validator
from typing_extensions import Self

from guardalign_guardrails.actions import LADDER, Action, DeliveryRule, FailureAction, severest


def read_only(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """A mapping that cannot be changed."""
    return MappingProxyType(dict(value))


class FrozenModel(BaseModel):
    """Part of a policy: it cannot be changed, knows every key it may have, pickles, and is shared by its copies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __reduce__(self) -> tuple[Any, ...]:
        # The read-only mappings cannot be pickled as they are.
        return type(self).model_validate, (self.model_dump(mode="json"),)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self


class Thresholds(FrozenModel):
    """From which point each action is taken; None never takes it.

    With ``kind: false_positive_rate`` (default) a number is the share of benign images that may be acted on: the action
    is taken when the p-value is at or below it, so a severer action has a smaller number. With
    ``kind: score`` it is a raw score, taken at or above it, so a severer action has a larger number; no reference
    profile is needed then.
    """

    kind: Literal["false_positive_rate", "score"] = "false_positive_rate"
    flag: float | None = None
    prefix: float | None = None
    mask: float | None = None
    route: float | None = None
    block: float | None = None

    @model_validator(mode="after")
    def _severer_is_rarer(self) -> Thresholds:
        is_rate = self.kind == "false_positive_rate"
        previous: tuple[str, float] | None = None
        for action, value in self.items():
            if is_rate and not 0 < value < 1:
                raise ValueError(f"{action} is a false-positive rate and must lie between 0 and 1, got {value}")
            if previous and (value > previous[1] if is_rate else value < previous[1]):
                side = "at most" if is_rate else "at least"
                raise ValueError(f"{action} ({value}) must be {side} {previous[0]} ({previous[1]}): it is severer")
            previous = (action, value)
        return self

    def items(self) -> Iterator[tuple[Action, float]]:
        """The actions that are set, mildest first, with their thresholds."""
        for action in LADDER[1:]:
            value = getattr(self, action)
            if value is not None:
                yield action, value

    def action_for(self, score: float, p_value: float | None) -> Action:
        """The severest action whose threshold is met.

        Args:
            score: Raw score, higher is more unsafe.
            p_value: P-value in (0, 1], or None when no profile was used.

        Raises:
            ValueError: The thresholds are rates and ``p_value`` is None.
        """
        met: list[Action] = []
        for action, value in self.items():
            if self.kind == "score":
                is_met = score >= value
            elif p_value is None:
                raise ValueError("false-positive-rate thresholds need a p-value")
            else:
                is_met = p_value <= value
            if is_met:
                met.append(action)
        return severest(*met)


class SourceRule(FrozenModel):
    """What differs for images of one source.

    Attributes:
        thresholds: Replaces the policy's own for this source; None to keep them.
        categories: Replaces the thresholds of single categories for this source.
        at_least: Once any action but ``allow`` is due, it is at least this one.
        at_most: No action on a finding is severer than this one. Failures (unreadable images, errors) are not softened.
        delivery: Replaces the policy's own for this source; None to keep it.
    """

    thresholds: Thresholds | None = None
    categories: Annotated[
        Mapping[str, Thresholds], AfterValidator(read_only), PlainSerializer(dict, return_type=dict[str, Any])
    ] = Field(default_factory=dict)
    at_least: Action = "allow"
    at_most: Action = "block"
    delivery: DeliveryRule | None = None

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> SourceRule:
        if LADDER.index(self.at_least) > LADDER.index(self.at_most):
            raise ValueError(f"at_least ({self.at_least}) must not be severer than at_most ({self.at_most})")
        return self

    def limit(self, action: Action) -> Action:
        """Limit an action on a finding to this source's range."""
        if action == "allow":
            return action
        return min(severest(action, self.at_least), self.at_most, key=LADDER.index)


class FailureRules(FrozenModel):
    """What happens when an image cannot be checked, and how much a call may ask for.

    Attributes:
        uninspectable: The image cannot be opened (broken, unknown format, too large), or its call has too many images.
        on_error: Detection failed with an error.
        on_timeout: Decoding and scoring took longer than ``timeout_s``.
        on_overload: The call was not admitted: too many waited already, or it waited longer than ``max_wait_s``.
        timeout_s: Seconds that decoding and scoring of one call may take, from when it is admitted; None for no limit.
        max_wait_s: Seconds that a call waits to be admitted.
        max_waiting: Calls that wait to be admitted at once; 0 lets none wait.
        max_images: Images of one call that are checked, not counting those seen before; None for no limit. If there
            are more, the latest of a chat's history come before its earlier ones, and all else before its history.

    ``block`` lets nothing pass, ``mask`` puts a plain image in its place, ``allow`` lets it pass unseen.
    """

    uninspectable: FailureAction = "block"
    on_error: FailureAction = "block"
    on_timeout: FailureAction = "block"
    on_overload: FailureAction = "block"
    timeout_s: float | None = Field(default=60, gt=0, allow_inf_nan=False)
    max_wait_s: float = Field(default=30, gt=0, allow_inf_nan=False)
    max_waiting: int = Field(default=64, ge=0)
    max_images: int | None = Field(default=64, gt=0)


class Masking(FrozenModel):
    """How unsafe regions are covered and what follows.

    Attributes:
        fill: ``solid`` leaves nothing to recover; ``blur`` and ``pixelate`` keep colours for orientation.
        colour: RGB of the solid fill, 0 to 255.
        feather: Width of the soft edge outside the boxes, as a share of a box's shorter side.
        extent: A region is covered when its heat is at least this share of the hottest region's.
        margin: How far a mask reaches beyond the covered regions, as a share of the image's sides.
        whole_objects: An object on a plain ground, as in drawings, that lies mostly under the mask is covered whole.
        max_coverage: If more than this share of the image would be covered, ``escalate_to`` is taken instead.
        rescore: Score the masked image again before it passes.
        escalate_to: Action when the masked image is still unsafe, or the mask would cover too much.
    """

    fill: Literal["solid", "blur", "pixelate"] = "solid"
    colour: tuple[int, int, int] = (0, 0, 0)
    feather: float = Field(default=0.04, ge=0, le=1)
    extent: float = Field(default=0.12, gt=0, le=1)
    margin: float = Field(default=0.045, ge=0, le=0.5)
    whole_objects: bool = True
    max_coverage: float = Field(default=0.9, gt=0, le=1)
    rescore: bool = True
    escalate_to: Literal["route", "block"] = "block"

    @field_validator("colour")
    @classmethod
    def _colour_is_rgb(cls, colour: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= channel <= 255 for channel in colour):
            raise ValueError("colour channels lie between 0 and 255")
        return colour
