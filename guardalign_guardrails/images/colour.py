"""What colour profiles make of pixels, and whether that matters.

A model's processor ignores profiles, a browser or an upload service applies them, and a crafted tone curve makes two
images of one file. Profiles are judged by what littleCMS renders, never by their names.
"""

from __future__ import annotations

import io
import itertools
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageCms

# Tags of profiles made of one curve a channel and a matrix, and tags that describe. Any other tag (tables, newer curves
# that overrule the old ones) makes readers differ, so it is no profile that is sRGB for all of them.
_PLAIN_TAGS: Final = frozenset(
    b"rXYZ gXYZ bXYZ rTRC gTRC bTRC kTRC wtpt bkpt chad lumi desc cprt dmnd dmdd vued view meas tech chrm dscm mmod "
    b"vcgt ndin aarg aagg aabg targ calt meta".split()
)
_MODES: Final = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_HEADER_BYTES: Final = 128
_MAX_TAGS: Final = 100
_SAME_LEVELS: Final = 1
_GRID: Final = 17
_USUAL_GAMMA: Final = 1 / 2.2
# Sums of three channels: rounding alone makes a level's sum fall by up to two.
_BENT_LEVELS: Final = 3
_CELLS: Final = 32
_VISIBLE_LEVELS: Final = 4


def is_srgb(profile: bytes) -> bool:
    """Whether a profile renders every pixel as sRGB would, within one 8-bit level.

    Args:
        profile: An ICC profile; one for gray levels is compared with sRGB's grays.
    """
    if not _is_plain(profile):
        return False
    probe = _probe(profile_mode(profile))
    rendered = None if probe is None else render(probe, profile)
    if probe is None or rendered is None:
        return False
    off = np.abs(np.asarray(rendered, np.int16) - np.asarray(probe.convert("RGB"), np.int16))
    return bool(off.max() <= _SAME_LEVELS)


def profile_mode(profile: bytes) -> str | None:
    """Pillow's mode of the pixels that a profile is for: RGB, L or CMYK; None for any other."""
    return _MODES.get(profile[16:20].decode("latin-1").rstrip())


def render(image: Image.Image, profile: bytes) -> Image.Image | None:
    """What littleCMS makes of an image by its profile.

    Args:
        image: Of the profile's mode, or RGBA for a profile of RGB.
        profile: An ICC profile, of a size that the caller has bounded.

    Returns:
        The image in sRGB, mode RGB or RGBA; None if the profile is broken or for other pixels.
    """
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    if profile_mode(profile) != image.mode.removesuffix("A"):
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            image.mode,
            mode,
            ImageCms.Intent.PERCEPTUAL,
        )
        return ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def render_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """What a reader that honours a PNG's gamma makes of an RGB or RGBA image.

    Args:
        image: Mode RGB or RGBA.
        gamma: Encoding exponent, positive; 1/2.2 changes nothing.
    """
    levels = [round(255 * (level / 255) ** (_USUAL_GAMMA / gamma)) for level in range(256)]
    return image.point(levels * 3 + (list(range(256)) if image.mode == "RGBA" else []))


def is_bent(profile: bytes) -> bool:
    """Whether a brighter gray or channel becomes darker by a profile, as in curves that hide one image in another."""
    mode = profile_mode(profile)
    if mode is None:
        return False
    channels = len(Image.new(mode, (1, 1)).getbands())
    levels = np.arange(256, dtype=np.uint8)
    for moving in [range(channels), *([channel] for channel in range(channels))]:
        ramp = np.zeros((1, 256, channels), np.uint8)
        ramp[..., list(moving)] = levels[:, np.newaxis]
        rendered = render(Image.frombytes(mode, (256, 1), ramp.tobytes()), profile)
        if rendered is None:
            return False
        # More ink is darker.
        light = np.asarray(rendered, np.int16).sum(-1)[0] * (-1 if mode == "CMYK" else 1)
        if np.diff(light).min() < -_BENT_LEVELS:
            return True
    return False


def differs_visibly(one: Image.Image, other: Image.Image) -> bool:
    """Whether a channel differs by more than 4 levels on average in some cell of a grid of 32 x 32.

    Args:
        one: Mode RGB or RGBA.
        other: Of the same size; alpha is left out.
    """
    edges = sorted({row * one.height // _CELLS for row in range(_CELLS + 1)})
    across = min(_CELLS, one.width)
    for top, bottom in itertools.pairwise(edges):
        strips = [image.crop((0, top, image.width, bottom)).convert("RGB") for image in (one, other)]
        cells = ImageChops.difference(*strips).resize((across, 1), Image.Resampling.BOX)
        if np.asarray(cells).max() > _VISIBLE_LEVELS:
            return True
    return False


def _is_plain(profile: bytes) -> bool:
    """Whether a profile holds nothing but one curve a channel, a matrix and descriptions, each once."""
    try:
        (size,) = struct.unpack_from(">I", profile, 0)
        (count,) = struct.unpack_from(">I", profile, _HEADER_BYTES)
        if size != len(profile) or count > _MAX_TAGS or profile[36:40] != b"acsp" or profile[20:24] != b"XYZ ":
            return False
        tags = [bytes(profile[at : at + 4]) for at in range(132, 132 + 12 * count, 12)]
    except struct.error:
        return False
    return len(set(tags)) == len(tags) and _PLAIN_TAGS.issuperset(tags)


def _probe(mode: str | None) -> Image.Image | None:
    """Pixels that show all of a matrix profile: every level of each channel alone, of gray, and a lattice."""
    levels = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(levels[np.newaxis])
    if mode != "RGB":
        return None
    ramps: list[NDArray[np.uint8]] = [np.stack([levels] * 3, -1)]
    for channel in range(3):
        ramp = np.zeros((256, 3), np.uint8)
        ramp[:, channel] = levels
        ramps.append(ramp)
    steps = np.linspace(0, 255, _GRID).astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    return Image.fromarray(np.concatenate([*ramps, lattice])[np.newaxis])
