"""What may be done about an image, and where an image may come from: the vocabulary that all other rooms share."""

from __future__ import annotations

from typing import Final, Literal, get_args

Action = Literal["allow", "flag", "prefix", "mask", "route", "block"]
Source = Literal["user", "history", "tool", "retrieved", "generated"]
FailureAction = Literal["block", "mask", "allow"]
Mode = Literal["enforce", "monitor"]
Delivery = Literal["original", "canonical", "masked", "none"]
DeliveryRule = Literal["auto", "canonical", "original"]

LADDER: Final[tuple[Action, ...]] = get_args(Action)
"""Actions from mildest to most severe."""

SOURCES: Final[tuple[Source, ...]] = get_args(Source)


def severest(*actions: Action) -> Action:
    """The most severe of the given actions, ``allow`` if none is given."""
    return max(actions, key=LADDER.index, default="allow")


def is_at_least_mask(action: Action) -> bool:
    """Whether an action keeps the original image from passing."""
    return LADDER.index(action) >= LADDER.index("mask")
