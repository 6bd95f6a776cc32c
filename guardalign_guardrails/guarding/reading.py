"""Reads the images of a batch, each once, so that what is scored is what is passed on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from guardalign_guardrails.actions import FailureAction, Source
from guardalign_guardrails.errors import ImageDecodeError
from guardalign_guardrails.guarding.outcome import Failure
from guardalign_guardrails.guarding.result import ImageOutput
from guardalign_guardrails.images import ImageLimits, ImageSource, freeze


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
