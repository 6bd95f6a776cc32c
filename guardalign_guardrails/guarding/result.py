"""The result of a check: the verdict, and the image to pass on if one may pass.

There is one way to the image, and it raises for a blocked one. So the shortest code that a caller can write,
``send(result.output)``, leaks nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guardalign_guardrails.errors import ImageDecodeError, UnsafeContentError
from guardalign_guardrails.images import decode, encode_png
from guardalign_guardrails.images.containers import sniff
from guardalign_guardrails.verdict import Verdict

ImageOutput: TypeAlias = bytes | Image.Image | NDArray[Any]
"""Encoded bytes for bytes and paths, a PIL image for a PIL image, an array for an array."""

_UNKNOWN_TYPE = "application/octet-stream"


@dataclass(frozen=True, eq=False)
class CheckResult:
    """A verdict and, if one may pass, the image to pass on.

    Attributes:
        verdict: What was found and done.
    """

    verdict: Verdict
    _scored: ImageOutput | None = field(default=None, repr=False)
    _masked: Image.Image | None = field(default=None, repr=False)
    _decoded: Image.Image | None = field(default=None, repr=False)

    @property
    def is_blocked(self) -> bool:
        """Whether nothing may pass (``route``, ``block``); never in monitor mode."""
        return self.verdict.is_blocked

    @cached_property
    def output(self) -> ImageOutput:
        """The image to pass on, in the form in which it came.

        For bytes and paths the very bytes that were decoded, for a PIL image a copy of the frame that was scored, for
        an array a copy. A masked image has the same form: PNG bytes, an RGB image, an array of uint8 with shape HxWx3.

        Raises:
            UnsafeContentError: Nothing may pass; see `is_blocked`.
            ImageDecodeError: The policy lets pass what cannot be opened, but there was nothing that could be read.
        """
        if self.is_blocked:
            raise UnsafeContentError(self.verdict)
        if self.verdict.action == "mask":
            if self._masked is None:
                raise UnsafeContentError(self.verdict)
            return _in_form_of(self._scored, self._masked)
        if self._scored is None:
            reason = self.verdict.uninspectable or "unreadable"
            raise ImageDecodeError(reason, "There is no image to pass on: nothing could be read.")
        return self._scored

    @property
    def pixels(self) -> Image.Image:
        """The image to pass on as an opaque RGB still, for a model that runs in this process.

        These are the pixels that were scored, or masked: those of the check after
        ``check_batch(..., keep_pixels=True)``, else `output` decoded once more.

        Raises:
            UnsafeContentError: Nothing may pass; see `is_blocked`.
            ImageDecodeError: The policy lets pass what cannot be opened.
        """
        if self.is_blocked:
            raise UnsafeContentError(self.verdict)
        if self.verdict.action == "mask":
            if self._masked is None:
                raise UnsafeContentError(self.verdict)
            return self._masked
        if self._decoded is not None:
            return self._decoded
        if self._scored is None or self.verdict.uninspectable is not None:
            raise ImageDecodeError(self.verdict.uninspectable or "unreadable", "There are no pixels to pass on.")
        return decode(self._scored).flattened

    @property
    def mime_type(self) -> str:
        """Media type of `output`: of encoded bytes their own, ``image/png`` for what would have to be encoded.

        Raises:
            UnsafeContentError: Nothing may pass.
            ImageDecodeError: There is nothing to pass on.
        """
        output = self.output
        if not isinstance(output, bytes):
            return "image/png"
        return Image.MIME.get(sniff(output) or "", _UNKNOWN_TYPE)


def _in_form_of(scored: ImageOutput | None, masked: Image.Image) -> ImageOutput:
    if isinstance(scored, Image.Image):
        return masked
    if isinstance(scored, np.ndarray):
        return np.asarray(masked).copy()
    return encode_png(masked)
