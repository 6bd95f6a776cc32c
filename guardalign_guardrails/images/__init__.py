"""Images: bytes → pixels that can be trusted, and drawing on them. Knows nothing of detection, policy or frameworks."""

from __future__ import annotations

from guardalign_guardrails.images.decode import ImageSource, decode, freeze, still_digest
from guardalign_guardrails.images.files import Unread, first_bytes, keep_image, read_file, read_named_file
from guardalign_guardrails.images.limits import ImageLimits
from guardalign_guardrails.images.mask import Box, Fill, coverage, encode_png, mask_regions
from guardalign_guardrails.images.overlay import OverlayRegion, draw_overlay
from guardalign_guardrails.images.views import STILL_VIEW, DecodedImage, View

__all__ = [
    "STILL_VIEW",
    "Box",
    "DecodedImage",
    "Fill",
    "ImageLimits",
    "ImageSource",
    "OverlayRegion",
    "Unread",
    "View",
    "coverage",
    "decode",
    "draw_overlay",
    "encode_png",
    "first_bytes",
    "freeze",
    "keep_image",
    "mask_regions",
    "read_file",
    "read_named_file",
    "still_digest",
]
