"""How much an image may cost, and the one place where images are refused.

Every refusal in this folder is made here, so that no message can ever carry a file name, a header string or any other
content of the image: only a stable reason and what to do about it.
"""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from guardalign_guardrails.errors import ImageDecodeError

ACCEPTED: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC", "JPEG 2000")

# A frame costs time however small it is (headers, seeking); counting each as at least this many pixels bounds the
# number of frames with the same limit that bounds their area.
MIN_FRAME_PIXELS: Final = 16_384

# Pillow keeps a pointer or two for every row, so an image one pixel wide costs ten times its area.
MAX_SIDE: Final = 65_535

REMEDIES: Final = {
    "unsupported_format": f"Only {', '.join(ACCEPTED)} images are accepted; convert it to PNG first.",
    "too_large": "The image has more bytes than ImageLimits.max_bytes; shrink it or raise the limit.",
    "too_many_pixels": "The image has more pixels than ImageLimits allows; scale it down or raise max_pixels.",
    "too_many_frames": "The animation has more frames or pages than ImageLimits allows; send fewer or smaller ones.",
    "truncated": "The image ends too early; send the whole file.",
    "corrupt": "The image is not well-formed; save it again as PNG.",
    "empty": "There are no pixels to check; send an image that is not empty.",
    "unreadable": "The file cannot be read; pass a regular file that exists and is readable.",
    "wrong_type": "Pass bytes, a pathlib.Path, a PIL image or a numpy array.",
}
"""What to do about each reason."""


class ImageLimits(BaseModel):
    """What one image may cost before it is refused; all values are positive.

    Attributes:
        max_bytes: Encoded size in bytes.
        max_pixels: Width x height of any frame or page.
        max_frames: Most frames of an animation that are checked: the first, those that differ most, and some at random.
        max_frame_pixels_total: Frames x pixels of an animation above which it is refused, because reaching a late
            frame means drawing every earlier one. Pages of a TIFF stand alone, so only their number counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=50 * 1024 * 1024, gt=0)
    max_pixels: int = Field(default=40_000_000, gt=0)
    max_frames: int = Field(default=8, gt=0)
    max_frame_pixels_total: int = Field(default=400_000_000, gt=0)


DEFAULT_LIMITS: Final = ImageLimits()


def refusal(reason: str, message: str | None = None) -> ImageDecodeError:
    """The error for a reason, with the usual remedy unless a better one is given."""
    return ImageDecodeError(reason, message or REMEDIES[reason])


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Refuse a size in pixels before anything of that size is allocated.

    Raises:
        ImageDecodeError: ``empty`` for sides below one, ``too_many_pixels`` above the limit or for a side above 65,535.
    """
    if width < 1 or height < 1:
        raise refusal("empty")
    if width * height > limits.max_pixels or max(width, height) > MAX_SIDE:
        raise refusal("too_many_pixels")


def check_frames(count: int, pixels: int, limits: ImageLimits) -> None:
    """Refuse an animation of ``count`` frames of ``pixels`` each when drawing them all would take too long.

    Raises:
        ImageDecodeError: ``too_many_frames``.
    """
    if count > 1 and count * max(pixels, MIN_FRAME_PIXELS) > max(limits.max_frame_pixels_total, 2 * MIN_FRAME_PIXELS):
        raise refusal("too_many_frames")
