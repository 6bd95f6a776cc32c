"""One decoded frame → the guard's own reading of it, and what other readers would show instead.

The guard's own reading is upright by EXIF and in sRGB as littleCMS renders the profile. Readers that leave one of these
steps out, or go by XMP, see another image; each is scored where it looks different.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

from PIL import Image

from guardalign_guardrails.images.colour import differs_visibly, is_bent, render, render_gamma
from guardalign_guardrails.images.pixels import to_eight_bits, turn_between, upright
from guardalign_guardrails.images.views import Frame, View, own_reading, reduced

_GRAY_MODES: Final = ("1", "L", "LA", "I", "F")


@dataclass(frozen=True)
class Tags:
    """What a file says about a frame besides its pixels.

    Attributes:
        orientation: EXIF orientation 1-8.
        other_orientations: Orientations 1-8 that XMP or others state.
        profile: ICC profile that is not sRGB; empty for none.
        gamma: Encoding exponent that departs from 1/2.2; 0 for none.
        palette_size: Colours in its palette, 0 if it has none or that is not known.
    """

    orientation: int = 1
    other_orientations: tuple[int, ...] = ()
    profile: bytes = b""
    gamma: float = 0.0
    palette_size: int = 0


@dataclass(frozen=True, eq=False)
class Pixels:
    """A frame as stored, with 8 bits a channel.

    Attributes:
        plain: As a reader shows it that ignores profile and gamma; mode RGB or RGBA.
        managed: In sRGB by its profile or gamma, None if it has none that can be used.
        clipped: Of a deep frame, what a reader shows that clips instead of scaling.
        is_off_palette: Whether some pixel asks for a colour that the palette does not have.
    """

    plain: Image.Image
    managed: Image.Image | None = None
    clipped: Image.Image | None = None
    is_off_palette: bool = False


def read_pixels(raw: Image.Image, tags: Tags) -> Pixels:
    """Copy a loaded frame out of its decoder, so that this can be closed before the frame is worked on.

    Args:
        raw: Of any Pillow mode; not changed.
        tags: What its file says about it.
    """
    plain, clipped = to_eight_bits(raw)
    is_off = raw.mode == "P" and 0 < tags.palette_size <= max(cast("tuple[int, int]", raw.getextrema()))
    return Pixels(plain, _managed(raw, plain, tags), clipped, is_off)


def read_frame(pixels: Pixels, tags: Tags) -> Frame:
    """Make the guard's own reading of a frame, and the other readings."""
    plain, managed, clipped = pixels.plain, pixels.managed, pixels.clipped
    departures = set() if clipped is None else {"bit_depth"}
    if pixels.is_off_palette:
        departures.add("palette")
    # The caller keeps none of it: a large frame is held once while it is turned.
    del pixels
    if tags.profile:
        departures.add("broken_profile" if managed is None else "colour_profile")
        if is_bent(tags.profile):
            departures.add("curve")
    others = []
    if managed is not None and ("curve" in departures or differs_visibly(plain, managed)):
        others.append(_other(plain, tags, "no profile" if tags.profile else "no gamma"))
    if clipped is not None:
        others.append(_other(clipped, tags, "clipped"))
    own = plain if managed is None else managed
    del plain, managed, clipped
    others += _turned(own, tags)
    return Frame(upright(own, tags.orientation), tuple(others), frozenset(departures))


def _managed(raw: Image.Image, plain: Image.Image, tags: Tags) -> Image.Image | None:
    """The frame in sRGB by its profile or gamma; None if it has none that can be used."""
    if not tags.profile:
        return render_gamma(plain, tags.gamma) if tags.gamma else None
    if raw.mode == "CMYK":
        return render(raw, tags.profile)
    if raw.mode.startswith(_GRAY_MODES) and (gray := render(plain.getchannel(0), tags.profile)) is not None:
        if plain.mode == "RGBA":
            gray.putalpha(plain.getchannel("A"))
        return gray
    return render(plain, tags.profile) if raw.mode not in ("LAB", "HSV") else None


def _turned(own: Image.Image, tags: Tags) -> Iterator[View]:
    """The readings of those who ignore EXIF's orientation or go by XMP's."""
    seen = {tags.orientation}
    for orientation in (1, *tags.other_orientations):
        if orientation not in seen:
            seen.add(orientation)
            backdrop, image = own_reading(own)
            yield View(
                upright(reduced(image), orientation),
                backdrop=backdrop,
                orientation=turn_between(orientation, tags.orientation),
                reading="as stored" if orientation == 1 else f"orientation {orientation}",
            )


def _other(image: Image.Image, tags: Tags, name: str) -> View:
    backdrop, opaque = own_reading(image)
    return View(upright(reduced(opaque), tags.orientation), backdrop=backdrop, reading=name)
