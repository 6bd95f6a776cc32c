"""The result of a check: the verdict, and the image to pass on if one may pass.

There is one way to the image, and it raises for a blocked one. So the shortest code that a caller can write,
``send(result.output)``, leaks nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guardalign_guardrails.errors import ImageDecodeError, UnsafeContentError
from guardalign_guardrails.images import decode, encode_png
from guardalign_guardrails.images.containers import media_type
from guardalign_guardrails.images.mask import is_marked, with_mark
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
    _read: ImageOutput | None = field(default=None, repr=False)
    # What goes on if it is not the original: pixels, encoded, or both. Results of a long chat must not hold all pixels.
    _still: Image.Image | None = field(default=None, repr=False)
    _encoded: bytes | None = field(default=None, repr=False)
    # The original, decoded.
    _decoded: Image.Image | None = field(default=None, repr=False)

    @property
    def is_blocked(self) -> bool:
        """Whether nothing may pass (``route``, ``block``); never in monitor mode."""
        return self.verdict.is_blocked

    @cached_property
    def output(self) -> ImageOutput:
        """The image to pass on, in the form in which it came; which one that is, ``verdict.delivery`` says.

        The original: for bytes and paths the very bytes that were decoded, for a PIL image a copy of the frame that was
        scored, for an array a copy. A canonical or masked image has the same form: JPEG or PNG bytes (an animation's
        are APNG, pages a TIFF), an RGB image, an array of uint8 with shape HxWx3.

        Raises:
            UnsafeContentError: Nothing may pass; see `is_blocked`.
            ImageDecodeError: The policy lets pass what cannot be opened, but there was nothing that could be read.
        """
        if self._is_replaced():
            return self._in_form_of_read()
        if self._read is None:
            reason = self.verdict.uninspectable or "unreadable"
            raise ImageDecodeError(reason, "There is no image to pass on: nothing could be read.")
        return self._read

    @property
    def pixels(self) -> Image.Image:
        """The image to pass on as an opaque RGB still, for a model that runs in this process.

        These are the pixels that were scored, or masked: those of the check after
        ``check_batch(..., keep_pixels=True)``, else `output` decoded once more.

        Raises:
            UnsafeContentError: Nothing may pass; see `is_blocked`.
            ImageDecodeError: The policy lets pass what cannot be opened.
        """
        if self._is_replaced():
            return self._replacement()
        if self._decoded is not None:
            return self._decoded
        if self._read is None or self.verdict.uninspectable is not None:
            raise ImageDecodeError(self.verdict.uninspectable or "unreadable", "There are no pixels to pass on.")
        return decode(self._read).flattened

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
        return media_type(output) or _UNKNOWN_TYPE

    def _is_replaced(self) -> bool:
        """Whether something else goes on in the original's place.

        Raises:
            UnsafeContentError: Nothing may pass.
        """
        if self.verdict.delivery == "original" and not self.is_blocked:
            return False
        has_replacement = self._still is not None or self._encoded is not None
        if self.is_blocked or self.verdict.delivery == "none" or not has_replacement:
            raise UnsafeContentError(self.verdict)
        return True

    def _replacement(self) -> Image.Image:
        """The first frame of what goes on in the original's place."""
        if self._still is None and self._encoded is not None:
            return decode(self._encoded).flattened
        return cast("Image.Image", self._still)

    def _in_form_of_read(self) -> ImageOutput:
        if isinstance(self._read, np.ndarray):
            return np.asarray(self._replacement()).copy()
        # Of an image that another guard masked the mark stays.
        has_mark = self.verdict.delivery == "masked" or (self._read is not None and is_marked(self._read))
        if isinstance(self._read, Image.Image):
            return with_mark(self._replacement()) if has_mark else self._replacement()
        encoded = encode_png(self._replacement()) if self._encoded is None else self._encoded
        return with_mark(encoded) if has_mark else encoded
