"""Bytes, files, PIL images and arrays → pixels that can be trusted, or one error that says why not.

Everything a guard scores and masks comes through here, so no input may cause a huge allocation, a hang, a crash, or an
image other than the one that a model will be shown. It fetches nothing and knows no
policy.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import pathlib
import struct
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from guardalign_guardrails.errors import ImageDecodeError
from guardalign_guardrails.images.colour import is_srgb
from guardalign_guardrails.images.containers import Container, inspect
from guardalign_guardrails.images.containers.metadata import MAX_PROFILE_BYTES
from guardalign_guardrails.images.files import check_bytes, read_file
from guardalign_guardrails.images.limits import DEFAULT_LIMITS, ImageLimits, check_size, refusal
from guardalign_guardrails.images.pixels import (
    Backdrop,
    fingerprint,
    from_array,
    images,
    to_eight_bits,
    upright,
)

ImageSource: TypeAlias = bytes | bytearray | memoryview | pathlib.Path | Image.Image | NDArray[Any]

# Views of one frame: plain, over white, over black.
_VIEWS_PER_FRAME: Final = 3
# Pixels held at once, as a multiple of max_pixels: Pillow spends four bytes on each, and a decoder's own buffers come
# on top. The floor lets small custom limits still hold the first and the last frame.
_HELD_FACTOR: Final = 3
_HELD_FLOOR: Final = 48_000_000
_ORDER: Final = ("plain", "white", "black")
# Views that are only scored need no more; an encoder uses less than one megapixel.
_SCORED_PIXELS: Final = 4_000_000
# A decoder of animations holds several canvases besides our views.
_CANVAS_SHARE: Final = 4
_CANVAS_FLOOR: Final = 10_000_000
_MOST_CHANNELS: Final = 4
_PLAIN_MODES: Final = ("L", "P", "RGB", "RGBA", "LA", "PA")


@dataclass(frozen=True, eq=False)
class View:
    """One image that a model might be shown.

    Attributes:
        pixels: The image, mode RGB. Whole if it is the base of masks (`DecodedImage.flattened`); else reduced to at
            most 4 megapixels, which is more than any encoder uses.
        frame: Index of the frame or page it comes from, from 0.
        backdrop: ``plain`` with alpha dropped, as a processor's ``convert("RGB")`` does; else what lies underneath.
        orientation: EXIF orientation 1-8 that would turn ``pixels`` into the image as displayed; 1 if they are.
    """

    pixels: Image.Image = field(repr=False)
    frame: int = 0
    backdrop: Backdrop = "plain"
    orientation: int = 1

    @property
    def name(self) -> str:
        """What a verdict calls this view."""
        return f"frame {self.frame}, {self.backdrop}"


STILL_VIEW: Final = "frame 0, plain"
"""The name of an opaque still's only view."""


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image that was decoded within its limits.

    Attributes:
        views: The distinct images a model might be shown, first frame first; exactly one for an opaque 8-bit still.
        size: Width and height of the first frame in pixels, as displayed (EXIF orientation applied).
        format: ``PNG``, ``JPEG``, ``WEBP``, ``GIF``, ``BMP``, ``TIFF``, ``PIL`` or ``ARRAY``.
        frame_count: Frames or pages in the file, checked or not.
        is_lossy: Whether the source's pixels were compressed with loss.
        departures: Why readers may disagree on what the source shows, short codes; empty if it has one reading.
        digest: SHA-256 (hex) of the displayed pixels of all checked frames, alpha included, whatever the format.
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
        """The first frame as an opaque RGB still, over white where it is transparent; do not change it in place."""
        white = (view.pixels for view in self.views if view.frame == 0 and view.backdrop == "white")
        return next(white, self.views[0].pixels)


def decode(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> DecodedImage:
    """Decode an image within limits.

    Args:
        source: Encoded bytes, a path to a regular file, a PIL image (its current frame; left as it is), or an array of
            shape HxW, HxWx1, HxWx3 or HxWx4 of uint8, bool, uint16 or floats in [0, 1]. A ``str`` is refused: text
            from a message is never a local path.
        limits: What the image may cost.

    Returns:
        The distinct images that a model might be shown.

    Raises:
        ImageDecodeError: For every image that cannot be decoded; ``reason`` says why, the message what to do.
    """
    try:
        # NumPy warns about the odder NaNs.
        with _quiet(), np.errstate(all="ignore"):
            return _decode(source, limits)
    except ImageDecodeError:
        raise
    except Exception as error:  # noqa: BLE001 - a decoder can raise anything; all of it means "no image"
        failure = _as_refusal(error)
    # Raised out here so that it drags no decoder error along, whose text may quote the file.
    raise failure


def freeze(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> bytes | Image.Image | NDArray[Any]:
    """What `decode` would read, as an object that no caller can change, so that a check of it holds.

    Args:
        source: See `decode`.
        limits: What the image may cost; what is over them is not copied.

    Returns:
        The bytes of bytes-likes and files; a copy of a PIL image's current frame, turned as its EXIF orientation asks;
        a copy of an array.

    Raises:
        ImageDecodeError: There is nothing to check.
    """
    try:
        # Only Pillow warns, and silencing it costs more than to freeze bytes.
        with _quiet() if isinstance(source, Image.Image) else contextlib.nullcontext():
            return _frozen(source, limits)
    except ImageDecodeError:
        raise
    except Exception as error:  # noqa: BLE001 - as in `decode`
        failure = _as_refusal(error)
    raise failure


def still_digest(image: Image.Image) -> str:
    """The digest that `decode` gives an opaque RGB image, without decoding it."""
    return hashlib.sha256(struct.pack(">I", 0) + fingerprint(image)).hexdigest()


def _frozen(source: ImageSource, limits: ImageLimits) -> bytes | Image.Image | NDArray[Any]:
    if isinstance(source, Image.Image):
        check_size(source.width, source.height, limits)
        source.load()
        try:
            return ImageOps.exif_transpose(source)
        except Exception:  # noqa: BLE001 - EXIF that cannot be read says nothing about the pixels
            return source.copy()
    if isinstance(source, np.ndarray):
        # One that is too large is refused before it is copied.
        return source if source.size > _MOST_CHANNELS * limits.max_pixels else source.copy()
    if isinstance(source, pathlib.Path):
        return read_file(source, limits.max_bytes)
    if isinstance(source, bytes | bytearray | memoryview):
        check_bytes(source.nbytes if isinstance(source, memoryview) else len(source), limits.max_bytes)
        return bytes(source)
    raise _wrong_type(source)


def _wrong_type(source: object) -> ImageDecodeError:
    hint = " A str is never read as a path: pass pathlib.Path(...) or bytes." if isinstance(source, str) else ""
    return refusal("wrong_type", f"Pass bytes, a pathlib.Path, a PIL image or a numpy array.{hint}")


def _decode(source: ImageSource, limits: ImageLimits) -> DecodedImage:
    if isinstance(source, Image.Image):
        return _decode_pil(source, limits)
    if isinstance(source, np.ndarray):
        views = _Views(limits)
        views.add(0, *from_array(source, limits))
        return views.finish("ARRAY", 1, departures={"bit_depth"} if source.dtype.itemsize > 1 else ())
    if isinstance(source, pathlib.Path):
        data = read_file(source, limits.max_bytes)
    elif isinstance(source, bytes | bytearray | memoryview):
        size = source.nbytes if isinstance(source, memoryview) else len(source)
        check_bytes(size, limits.max_bytes)
        data = bytes(source)
    else:
        raise _wrong_type(source)
    container = inspect(data, limits)
    # The caller's copy aside, only the cleaned bytes are kept while decoding.
    del data, source
    return _decode_container(container, limits)


def _decode_container(container: Container, limits: ImageLimits) -> DecodedImage:
    area = container.size[0] * container.size[1]
    if container.is_composited and area > max(limits.max_pixels // _CANVAS_SHARE, _CANVAS_FLOOR):
        raise refusal("too_many_pixels", "The animation's frames are too large; send a still or scale it down.")
    views = _Views(limits)
    if container.frame_count == 1:
        # The decoder and its buffers are gone before the views are made: that halves the peak.
        views.add(0, *_load_still(container, limits))
    else:
        with _open(container) as image:
            for index in _sampled(container.frame_count, area, limits):
                if index:
                    image.seek(index)
                views.add(index, *_load(image, container.orientation(index), limits))
    return views.finish(
        container.format, container.frame_count, is_lossy=container.is_lossy, departures=_departures(container)
    )


def _departures(container: Container) -> Iterator[str]:
    """Why readers may disagree on a file before its pixels are known."""
    yield from container.departures
    if any(value != 1 for value in (*container.orientations, *container.xmp_orientations)):
        yield "orientation"
    if container.profile and not is_srgb(container.profile):
        yield "colour_profile"


def _open(container: Container) -> Image.Image:
    return Image.open(io.BytesIO(container.data), formats=[container.format])


def _load_still(container: Container, limits: ImageLimits) -> tuple[Image.Image, Image.Image | None]:
    with _open(container) as image:
        return _load(image, container.orientation(0), limits)


def _load(image: Image.Image, orientation: int, limits: ImageLimits) -> tuple[Image.Image, Image.Image | None]:
    # A page may be larger than the first one said, and loading may enlarge the canvas.
    check_size(image.width, image.height, limits)
    image.load()
    check_size(image.width, image.height, limits)
    return to_eight_bits(upright(image, orientation))


def _decode_pil(image: Image.Image, limits: ImageLimits) -> DecodedImage:
    check_size(image.width, image.height, limits)
    image.load()
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - EXIF that cannot be read says nothing about the pixels
        orientation = 1
    departures = set()
    if orientation != 1:
        departures.add("orientation")
    if image.mode not in _PLAIN_MODES:
        departures.add("colour_space")
    profile = image.info.get("icc_profile")
    if profile and not (isinstance(profile, bytes) and len(profile) <= MAX_PROFILE_BYTES and is_srgb(profile)):
        departures.add("colour_profile")
    views = _Views(limits)
    views.add(0, *to_eight_bits(upright(image, orientation if isinstance(orientation, int) else 1)))
    return views.finish("PIL", 1, departures=departures)


class _Views:
    """Collects distinct views, the digest, and the memory they take."""

    def __init__(self, limits: ImageLimits) -> None:
        self._views: list[View] = []
        self._places: dict[bytes, int] = {}
        self._digest = hashlib.sha256()
        self._room = max(_HELD_FACTOR * limits.max_pixels, _HELD_FLOOR)
        self._size = (0, 0)
        self._frames: list[int] = []
        self._departures: set[str] = set()

    def add(self, frame: int, image: Image.Image, clipped: Image.Image | None = None) -> None:
        """Add one frame: RGB or RGBA, and a second rendering of a deep image if there is one."""
        needed = image.width * image.height * (_VIEWS_PER_FRAME if image.mode == "RGBA" else 1)
        if needed > self._room:
            raise refusal("too_many_pixels", "The frames are too large to hold; send a still or scale it down.")
        self._frames.append(frame)
        if image.mode == "RGBA":
            self._departures.add("alpha")
        if clipped is not None:
            self._departures.add("bit_depth")
        self._digest.update(struct.pack(">I", frame))
        if not self._views:
            self._size = image.size
        if image.mode == "RGBA":
            self._digest.update(fingerprint(image))
        for backdrop, pil_image in images(image):
            is_base = frame == 0 and (image.mode == "RGB" or backdrop == "white")
            key = self._keep(frame, backdrop, pil_image, is_base=is_base)
            del pil_image
            if image.mode == "RGB":
                self._digest.update(key)
        if clipped is not None:
            self._digest.update(self._keep(frame, "plain", clipped, is_base=False))

    def finish(
        self, name: str, frame_count: int, *, is_lossy: bool = False, departures: Iterable[str] = ()
    ) -> DecodedImage:
        if len(self._frames) < frame_count:
            self._departures.add("frames_unseen")
        return DecodedImage(
            views=tuple(sorted(self._views, key=lambda view: (view.frame, _ORDER.index(view.backdrop)))),
            size=self._size,
            format=name,
            frame_count=frame_count,
            digest=self._digest.hexdigest(),
            is_lossy=is_lossy,
            departures=tuple(sorted(self._departures.union(departures))),
            frames_seen=tuple(self._frames),
        )

    def _keep(self, frame: int, backdrop: Backdrop, image: Image.Image, *, is_base: bool) -> bytes:
        key = fingerprint(image)
        place = self._places.setdefault(key, len(self._views))
        if place < len(self._views) and not is_base:
            return key
        factor = math.ceil((image.width * image.height / _SCORED_PIXELS) ** 0.5)
        if factor > 1 and not is_base:
            image = image.reduce(factor)
        self._room -= image.width * image.height
        if place < len(self._views):
            # Seen before, but masks need it whole.
            self._views[place] = View(image, frame, self._views[place].backdrop)
        else:
            self._views.append(View(image, frame, backdrop))
        return key


def _sampled(count: int, pixels: int, limits: ImageLimits) -> list[int]:
    """Frame indices to check: first, last and evenly between, fewer if the frames are large."""
    fitting = max(_HELD_FACTOR * limits.max_pixels, _HELD_FLOOR) // (_VIEWS_PER_FRAME * pixels)
    wanted = min(limits.max_frames, max(fitting, 2), count)
    if wanted == 1:
        return [0]
    return sorted({round(step * (count - 1) / (wanted - 1)) for step in range(wanted)})


def _as_refusal(error: Exception) -> ImageDecodeError:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return refusal("too_many_pixels")
    is_short = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return refusal("truncated" if is_short else "corrupt")


class _Quiet:
    """Counts the decodes under way, because `warnings.catch_warnings` is not safe across threads.

    The first one in silences Pillow, the last one out restores. Where filters are per context (Python 3.14 on), each
    decode has its own and no counting is needed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._saved: warnings.catch_warnings[None] | None = None

    def enter(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")

    def leave(self) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0 and self._saved is not None:
                self._saved.__exit__(None, None, None)
                self._saved = None


_QUIET: Final = _Quiet()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    if getattr(sys.flags, "context_aware_warnings", False):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")
            yield
        return
    _QUIET.enter()
    try:
        yield
    finally:
        _QUIET.leave()
