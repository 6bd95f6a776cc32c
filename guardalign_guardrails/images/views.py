"""The views of an image: each distinct thing that a model might be shown, and what they are collected in."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from PIL import Image

from guardalign_guardrails.images.pixels import Backdrop, fingerprint, images

SCORED_PIXELS: Final = 4_000_000
"""Views that are only scored need no more; an encoder uses less than one megapixel."""

_ORDER: Final = ("plain", "white", "black")


@dataclass(frozen=True, eq=False)
class View:
    """One image that a model might be shown.

    Attributes:
        pixels: The image, mode RGB. Whole if it is the base of masks (`DecodedImage.flattened`); else reduced to at
            most 4 megapixels, which is more than any encoder uses.
        frame: Index of the frame or page it comes from, from 0.
        backdrop: ``plain`` with alpha dropped, as a processor's ``convert("RGB")`` does; else what lies underneath.
        orientation: EXIF orientation 1-8 that would turn ``pixels`` into the image as displayed; 1 if they are.
        reading: What a reader does to show this instead of the guard's own reading, such as ``no profile``; empty for
            that reading.
    """

    pixels: Image.Image = field(repr=False)
    frame: int = 0
    backdrop: Backdrop = "plain"
    orientation: int = 1
    reading: str = ""

    @property
    def name(self) -> str:
        """What a verdict calls this view."""
        return f"frame {self.frame}, {self.backdrop}" + (f", {self.reading}" if self.reading else "")


STILL_VIEW: Final = "frame 0, plain"
"""The name of an opaque still's only view."""


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image that was decoded within its limits.

    Attributes:
        views: The distinct images a model might be shown, first frame first; exactly one for an opaque 8-bit still
            with one reading.
        size: Width and height of the first frame in pixels, as displayed (EXIF orientation applied).
        format: Pillow's name of the format, such as ``PNG``; ``PIL`` or ``ARRAY`` for what was no file.
        frame_count: Frames or pages in the file, checked or not.
        is_lossy: Whether the source's pixels were compressed with loss.
        departures: Why readers may disagree on what the source shows, short codes; empty if it has one reading.
        digest: SHA-256 (hex) of a still's displayed pixels in all its readings, alpha included, whatever the format; of
            a file with several frames, of the parts that make pixels.
        frames_seen: Indices of the frames or pages that were looked at, ascending.
    """

    views: tuple[View, ...] = field(repr=False)
    size: tuple[int, int]
    format: str
    frame_count: int
    digest: str
    is_lossy: bool = False
    departures: tuple[str, ...] = ()
    frames_seen: tuple[int, ...] = (0,)

    @property
    def flattened(self) -> Image.Image:
        """The guard's own reading of the first frame: an opaque RGB still, upright, in sRGB, over white where it is
        transparent. Do not change it in place.
        """  # noqa: D205  one sentence
        own = [view for view in self.views if view.frame == 0 and not view.reading]
        return next((view.pixels for view in own if view.backdrop == "white"), own[0].pixels)


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded frame.

    Attributes:
        image: The guard's own reading: upright, in sRGB, mode RGB, or RGBA if some pixel is not opaque.
        others: Further readings, reduced to `SCORED_PIXELS`.
        departures: Codes of what was found in its pixels.
    """

    image: Image.Image
    others: tuple[View, ...] = ()
    departures: frozenset[str] = frozenset()


class ViewCollector:
    """Collects distinct views and the digest of a still."""

    def __init__(self) -> None:
        self._views: list[View] = []
        self._places: dict[bytes, int] = {}
        self._digest = hashlib.sha256()
        self._size = (0, 0)
        self._frames: list[int] = []
        self._departures: set[str] = set()

    def add_still(self, frame: Frame) -> None:
        """Add the only frame: its own reading over every backdrop, and all others."""
        image = frame.image
        self._note(0, frame)
        self._digest.update(struct.pack(">I", 0))
        if image.mode == "RGBA":
            self._digest.update(fingerprint(image))
        for backdrop, pil_image in images(image):
            key = self._keep(View(pil_image, 0, backdrop), is_base=image.mode == "RGB" or backdrop == "white")
            del pil_image
            if image.mode == "RGB":
                self._digest.update(key)
        for view in frame.others:
            known = len(self._views)
            key = self._keep(view, is_base=False)
            if len(self._views) > known:
                self._digest.update(key)

    def add_frame(self, index: int, frame: Frame) -> None:
        """Add one of several frames by its own reading only, over white where it is transparent."""
        self._note(index, frame)
        backdrop, pil_image = own_reading(frame.image)
        self._keep(View(pil_image, index, backdrop), is_base=index == 0)

    def add_more(self, views: Iterable[View], most: int) -> None:
        """Add further views while there are fewer than ``most``."""
        for view in views:
            if len(self._views) >= most:
                return
            self._keep(view, is_base=False)

    def finish(
        self,
        name: str,
        frame_count: int = 1,
        *,
        is_lossy: bool = False,
        departures: Iterable[str] = (),
        digest: str | None = None,
    ) -> DecodedImage:
        """The image; ``digest`` replaces that of a still's pixels."""
        if len(self._frames) < frame_count:
            self._departures.add("frames_unseen")
        return DecodedImage(
            views=tuple(sorted(self._views, key=lambda v: (v.frame, bool(v.reading), _ORDER.index(v.backdrop)))),
            size=self._size,
            format=name,
            frame_count=frame_count,
            digest=digest or self._digest.hexdigest(),
            is_lossy=is_lossy,
            departures=tuple(sorted(self._departures.union(departures))),
            frames_seen=tuple(sorted(self._frames)),
        )

    def _note(self, index: int, frame: Frame) -> None:
        if not self._frames:
            self._size = frame.image.size
        self._frames.append(index)
        self._departures |= frame.departures
        if frame.image.mode == "RGBA":
            self._departures.add("alpha")

    def _keep(self, view: View, *, is_base: bool) -> bytes:
        key = fingerprint(view.pixels)
        place = self._places.setdefault(key, len(self._views))
        if place == len(self._views):
            self._views.append(view if is_base else replace(view, pixels=reduced(view.pixels)))
        elif is_base:
            # Seen before, but masks need it whole.
            self._views[place] = replace(self._views[place], pixels=view.pixels)
        return key


def own_reading(image: Image.Image) -> tuple[Backdrop, Image.Image]:
    """An RGB or RGBA image as the guard reads it: opaque, over white where it is transparent."""
    if image.mode == "RGB":
        return "plain", image
    base = Image.new("RGB", image.size, (255, 255, 255))
    base.paste(image, mask=image)
    return "white", base


def reduced(image: Image.Image) -> Image.Image:
    """The image averaged down to at most `SCORED_PIXELS`; itself if it has no more."""
    factor = math.ceil((image.width * image.height / SCORED_PIXELS) ** 0.5)
    return image.reduce(factor) if factor > 1 else image
