"""Reads the images of a batch, each once, so that what is scored is what is passed on; what is known of them then."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from guardalign_guardrails.actions import FailureAction, Source
from guardalign_guardrails.errors import ImageDecodeError
from guardalign_guardrails.guarding.delivery import DeliveryPlan
from guardalign_guardrails.guarding.outcome import Failure, Outcome
from guardalign_guardrails.guarding.result import ImageOutput
from guardalign_guardrails.images import ImageLimits, ImageSource, freeze

Key: TypeAlias = tuple[str, ...]
"""Key in the verdict cache."""


@dataclass(frozen=True, eq=False)
class ReadImage:
    """One image of a batch, as it was read.

    Attributes:
        place: Which of the batch.
        source: Where it came from.
        scored: A copy that no caller can change; None if nothing could be read.
        digest: SHA-256 of its bytes; empty for what is not encoded.
        failure: Why nothing could be read.
        took_ms: How long that took, in milliseconds.
    """

    place: int
    source: Source
    scored: ImageOutput | None = field(repr=False)
    digest: str = ""
    failure: Failure | None = None
    took_ms: float = 0.0


@dataclass(frozen=True)
class SeenImage:
    """What some bytes were decoded to before.

    Attributes:
        key: Names the image and its delivery.
        digest: Of its pixels.
        size: Width and height in pixels as displayed.
    """

    key: str
    digest: str
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class OpenedImage:
    """An image that was decoded.

    Attributes:
        key: Its key in the verdict cache.
        digest: Of its pixels.
        plan: What goes on of it.
        known: Its outcome; None if it was not scored before.
        took_ms: How long reading, decoding and planning took, in milliseconds.
    """

    key: Key
    digest: str
    plan: DeliveryPlan = field(repr=False)
    known: Outcome | None
    took_ms: float


def read_all(
    images: Sequence[ImageSource], sources: Sequence[Source], limits: ImageLimits, rule: FailureAction
) -> Iterator[ReadImage]:
    """Read images one after another, when they are asked for.

    Args:
        images: See `guardalign_guardrails.Guard.check`.
        sources: Where they came from.
        limits: What each may cost.
        rule: What the policy says of an image that cannot be read.
    """
    for place, (image, source) in enumerate(zip(images, sources, strict=True)):
        yield _read(place, image, source, limits, rule)


def _read(place: int, image: ImageSource, source: Source, limits: ImageLimits, rule: FailureAction) -> ReadImage:
    started = time.perf_counter()
    try:
        scored = freeze(image, limits)
    except ImageDecodeError as error:
        # Bytes that are too many are passed on all the same where the policy lets pass what cannot be opened.
        data = bytes(image) if isinstance(image, bytes | bytearray | memoryview) else b""
        digest = hashlib.sha256(data).hexdigest() if data else ""
        return ReadImage(place, source, data or None, failure=Failure(digest, rule, uninspectable=error.reason))
    digest = hashlib.sha256(scored).hexdigest() if isinstance(scored, bytes) else ""
    return ReadImage(place, source, scored, digest, took_ms=(time.perf_counter() - started) * 1e3)


def budgeted(reads: Sequence[ReadImage], most: int | None) -> tuple[list[ReadImage], list[ReadImage]]:
    """Choose which new images of a call are checked.

    What a user sends now comes before a chat's history, and the latest of its history before the earlier. The same
    bytes count once.

    Args:
        reads: New images, in order.
        most: How many are checked at most; None for all.

    Returns:
        Those that are checked, the most important ones first, and those that are not.
    """
    ordered = [read for read in reads if read.source != "history"]
    ordered += [read for read in reversed(reads) if read.source == "history"]
    counted: set[str | int] = set()
    chosen: list[ReadImage] = []
    rest: list[ReadImage] = []
    for read in ordered:
        name = read.digest or read.place
        if most is None or name in counted or len(counted) < most:
            counted.add(name)
            chosen.append(read)
        else:
            rest.append(read)
    return chosen, rest
