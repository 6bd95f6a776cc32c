"""Bytes, files, PIL images and arrays → pixels that can be trusted, or one error that says why not.

Everything a guard scores and masks comes through here, so no input may cause a huge allocation, a hang, a crash, or an
image other than the one that a model will be shown. It fetches nothing and knows no
policy.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import pathlib
import secrets
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guardalign_guardrails.errors import ImageDecodeError
from guardalign_guardrails.images.colour import is_srgb
from guardalign_guardrails.images.containers import Container, inspect
from guardalign_guardrails.images.containers.metadata import MAX_PROFILE_BYTES
from guardalign_guardrails.images.files import check_bytes, read_file
from guardalign_guardrails.images.frames import choose, frame_budget, shuffled, thumbnail, view_budget
from guardalign_guardrails.images.heif import open_heif
from guardalign_guardrails.images.limits import DEFAULT_LIMITS, ImageLimits, check_size, refusal
from guardalign_guardrails.images.pixels import fingerprint, from_array, images
from guardalign_guardrails.images.readings import Pixels, Tags, read_frame, read_pixels
from guardalign_guardrails.images.views import DecodedImage, Frame, View, ViewCollector, reduced

ImageSource: TypeAlias = bytes | bytearray | memoryview | pathlib.Path | Image.Image | NDArray[Any]

# A decoder of animations holds several canvases besides our views.
_CANVAS_SHARE: Final = 4
_CANVAS_FLOOR: Final = 10_000_000
# Pages stand alone, so that their pixels have no common limit; as many as this are leafed through.
_LEAFED_PIXELS: Final = 100_000_000
_MOST_CHANNELS: Final = 4
_ORIENTATION: Final = 0x0112
_PLAIN_MODES: Final = ("L", "P", "RGB", "RGBA", "LA", "PA")


def decode(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS, *, secret: bytes | None = None) -> DecodedImage:
    """Decode an image within limits.

    Args:
        source: Encoded bytes, a path to a regular file, a PIL image (its current frame; left as it is), or an array of
            shape HxW, HxWx1, HxWx3 or HxWx4 of uint8, bool, uint16 or floats in [0, 1]. A ``str`` is refused: text
            from a message is never a local path.
        limits: What the image may cost.
        secret: Decides together with the file which frames of an animation are looked at where not all are; None draws
            a new one for this call. It must not be known to senders.

    Returns:
        The distinct images that a model might be shown.

    Raises:
        ImageDecodeError: For every image that cannot be decoded; ``reason`` says why, the message what to do.
    """
    try:
        # NumPy warns about the odder NaNs.
        with _quiet(), np.errstate(all="ignore"):
            return _decode(source, limits, secret)
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
        The bytes of bytes-likes and files; a copy of a PIL image's current frame, with its orientation; a copy of an
        array.

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
        copy = source.copy()
        if (orientation := _orientation(source)) != 1:
            # It may have been set on the object alone, which a copy does not know.
            copy.getexif()[_ORIENTATION] = orientation
        return copy
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


def _decode(source: ImageSource, limits: ImageLimits, secret: bytes | None) -> DecodedImage:
    if isinstance(source, Image.Image):
        return _decode_pil(source, limits)
    if isinstance(source, np.ndarray):
        image, clipped = from_array(source, limits)
        views = ViewCollector()
        views.add_still(Frame(image, () if clipped is None else (View(reduced(clipped), reading="clipped"),)))
        return views.finish("ARRAY", departures={"bit_depth"} if source.dtype.itemsize > 1 else ())
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
    return _decode_container(container, limits, secret)


def _decode_container(container: Container, limits: ImageLimits, secret: bytes | None) -> DecodedImage:
    area = container.size[0] * container.size[1]
    if container.is_composited and area > max(limits.max_pixels // _CANVAS_SHARE, _CANVAS_FLOOR):
        raise refusal("too_many_pixels", "The animation's frames are too large; send a still or scale it down.")
    departures = set(container.departures)
    if any(value != 1 for value in (*container.orientations, *container.other_orientations)):
        departures.add("orientation")
    # A profile that changes nothing needs no rendering.
    profile = b"" if is_srgb(container.profile) else container.profile
    tags = Tags(other_orientations=container.other_orientations, profile=profile, gamma=container.gamma)
    views, digest = ViewCollector(), None
    if container.frame_count == 1:
        # The decoder and its buffers are gone before the views are made: that halves the peak.
        tags = replace(tags, orientation=container.orientation(0), palette_size=container.palette_size)
        views.add_still(read_frame(_load_still(container, tags, limits), tags))
    else:
        digest = _digest(container)
        key = hmac.digest(secret or secrets.token_bytes(32), bytes.fromhex(digest), "sha256")
        _add_frames(views, container, tags, limits, key)
    return views.finish(
        container.format,
        container.frame_count + container.hidden_frames,
        is_lossy=container.is_lossy,
        departures=departures,
        digest=digest,
    )


def _add_frames(views: ViewCollector, container: Container, tags: Tags, limits: ImageLimits, key: bytes) -> None:
    """Choose frames, and add the guard's own reading of each; other readings of the first while there is room."""
    wanted = frame_budget(container.frame_count, container.size[0] * container.size[1], limits)
    chosen = list(range(container.frame_count))
    if wanted < container.frame_count:
        order = shuffled(container.frame_count, key)
        chosen = choose(_thumbnails(container, order, limits), order, wanted)
    more: list[View] = []
    with _open(container) as image:
        for index in chosen:
            own = replace(tags, orientation=container.orientation(index))
            frame = read_frame(read_pixels(_load(image, index, limits), own), own)
            views.add_frame(index, frame)
            if index == 0:
                more += frame.others
                if frame.image.mode == "RGBA":
                    more += [View(reduced(shown), 0, backdrop) for backdrop, shown in images(frame.image)]
            del frame
    views.add_more(more, view_budget(wanted))


def _thumbnails(container: Container, order: list[int], limits: ImageLimits) -> dict[int, NDArray[np.uint8]]:
    """Thumbnails of all frames; of pages, which are not bounded together, of as many as a budget allows."""
    most = container.frame_count
    if not container.is_composited:
        most = max(1, _LEAFED_PIXELS // (container.size[0] * container.size[1]))
    with _open(container) as image:
        return {index: thumbnail(_load(image, index, limits)) for index in sorted([0, *order[: most - 1]])}


def _digest(container: Container) -> str:
    """SHA-256 of what a file with several frames shows, whichever of them are looked at."""
    digest = hashlib.sha256(container.data)
    readings = (container.orientations, container.other_orientations, container.profile, container.gamma)
    digest.update(repr(readings).encode())
    return digest.hexdigest()


def _open(container: Container) -> Image.Image:
    if container.format == "HEIF":
        return open_heif(container.data)
    return Image.open(io.BytesIO(container.data), formats=[container.format])


def _load_still(container: Container, tags: Tags, limits: ImageLimits) -> Pixels:
    with _open(container) as image:
        return read_pixels(_load(image, 0, limits), tags)


def _load(image: Image.Image, index: int, limits: ImageLimits) -> Image.Image:
    if index != image.tell():
        image.seek(index)
    # A page may be larger than the first one said, and loading may enlarge the canvas.
    check_size(image.width, image.height, limits)
    image.load()
    check_size(image.width, image.height, limits)
    return image


def _decode_pil(image: Image.Image, limits: ImageLimits) -> DecodedImage:
    check_size(image.width, image.height, limits)
    image.load()
    orientation = _orientation(image)
    departures = set()
    if orientation != 1:
        departures.add("orientation")
    if image.mode not in _PLAIN_MODES:
        departures.add("colour_space")
    profile = image.info.get("icc_profile") or b""
    if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE_BYTES:
        departures.add("broken_profile")
        profile = b""
    elif is_srgb(profile):
        profile = b""
    views = ViewCollector()
    tags = Tags(orientation=orientation, profile=profile)
    views.add_still(read_frame(read_pixels(image, tags), tags))
    return views.finish("PIL", departures=departures)


def _orientation(image: Image.Image) -> int:
    """The orientation that a PIL image asks for, 1 for none."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - EXIF that cannot be read says nothing about the pixels
        return 1
    return orientation if isinstance(orientation, int) else 1


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
