"""An image for people: where the scores are high, and what was masked.

Only explains; nothing downstream reads it. Heat is drawn at a reduced resolution and scaled up, which both blends
overlapping regions and keeps a thousand of them fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

# Inferno, sampled: brightness rises evenly from dark to light, so it reads the same with every colour blindness.
_STOPS: Final = np.array(
    [(0, 0, 4), (50, 10, 94), (120, 28, 109), (188, 55, 84), (237, 105, 37), (251, 180, 26), (252, 255, 164)],
    dtype=np.float32,
)
# Longest side of the grid on which heat is blended.
_GRID: Final = 160
# Cool areas stay almost clear, so that the image can still be seen under its own heat map.
_MIN_OPACITY, _MAX_OPACITY = 0.18, 0.75
_PLATE: Final = (16, 18, 24, 215)
_TEXT: Final = (255, 255, 255, 255)
_LABELLED: Final = (255, 255, 255, 255)
# A hue that the heat map does not have.
_MASKED: Final = (0, 229, 255, 255)


@dataclass(frozen=True)
class OverlayRegion:
    """One scored region.

    Attributes:
        box: (left, top, right, bottom) in pixels of the image.
        heat: 0 (harmless) to 1 (unsafe); values outside are clipped, NaN is drawn as 1.
        label: Text at the box, or None for no outline and no text.
        is_masked: Whether the region was covered; drawn with a stronger outline.
    """

    box: tuple[float, float, float, float]
    heat: float
    label: str | None = None
    is_masked: bool = False


def draw_overlay(
    image: Image.Image, regions: Sequence[OverlayRegion], *, title: str | None = None, max_side: int = 1024
) -> Image.Image:
    """Draw a heat map, the outlines and labels of notable regions, and a legend over an image.

    Args:
        image: Image of any mode; not changed.
        regions: Scored regions in pixels of ``image``; overlaps average out between their mean and their maximum.
        title: A line above the legend, cut to fit.
        max_side: Longest side of the result in pixels; smaller images keep their size.

    Returns:
        A new RGB image.
    """
    canvas = image.convert("RGB")
    scale = min(1.0, max_side / max(canvas.size))
    if scale < 1:
        size = (max(1, round(canvas.width * scale)), max(1, round(canvas.height * scale)))
        canvas = canvas.resize(size, Image.Resampling.LANCZOS)
    canvas = _with_heat(canvas, regions, image.size).convert("RGBA")
    ink = Image.new("RGBA", canvas.size)
    draw = ImageDraw.Draw(ink)
    text_size = max(11, min(canvas.size) // 36)
    font = ImageFont.load_default(text_size)
    _draw_legend(ink, draw, font, text_size, title)
    # Strongest last, so that its label stays on top.
    for region in sorted(regions, key=lambda item: (item.is_masked, item.heat)):
        if region.label is not None or region.is_masked:
            _draw_region(draw, region, image.size, canvas.size, font, text_size)
    return Image.alpha_composite(canvas, ink).convert("RGB")


def heat_colours(heat: NDArray[Any]) -> NDArray[Any]:
    """Colours of heat values.

    Args:
        heat: Values in [0, 1], any shape [...].

    Returns:
        RGB in [0, 255], shape [..., 3].
    """
    places = np.linspace(0, 1, len(_STOPS))
    return np.stack([np.interp(heat, places, _STOPS[:, channel]) for channel in range(3)], axis=-1).astype(np.float32)


def heat_grid(regions: Sequence[OverlayRegion], size: tuple[int, int]) -> NDArray[Any]:
    """Blend the regions' heat on a coarse grid over the image.

    Each cell holds one third average and two thirds maximum of the regions over it: the maximum alone turns one hot
    large box into a flat plate, the average alone drowns a small hot one.

    Args:
        regions: Regions in pixels.
        size: Width and height of the image in pixels.

    Returns:
        Shape [rows, columns], in [0, 1]; 0 where there is no region.
    """
    scale = _GRID / max(size)
    columns, rows = (max(1, math.ceil(side * scale)) for side in size)
    total = np.zeros((rows, columns), np.float32)
    count = np.zeros((rows, columns), np.float32)
    most = np.zeros((rows, columns), np.float32)
    for region in regions:
        left, top, right, bottom = _scaled_box(region.box, size, (columns, rows))
        cells = np.s_[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)]
        # A score that is not a number is shown as hot, so that people see it.
        heat = np.float32(1.0 if math.isnan(region.heat) else min(max(region.heat, 0.0), 1.0))
        total[cells] += heat
        count[cells] += 1
        np.maximum(most[cells], heat, out=most[cells])
    blended: NDArray[Any] = (total / np.maximum(count, 1) + 2 * most) / 3
    return blended


def _with_heat(canvas: Image.Image, regions: Sequence[OverlayRegion], size: tuple[int, int]) -> Image.Image:
    if not regions:
        return canvas
    grid = Image.fromarray((heat_grid(regions, size) * 255).astype(np.uint8))
    smooth = grid.filter(ImageFilter.GaussianBlur(_GRID / 64)).resize(canvas.size, Image.Resampling.BICUBIC)
    levels = np.arange(256, dtype=np.float32) / 255
    # Through tables of 256 levels, so that no float copy of the whole image is ever made.
    colours = heat_colours(levels).astype(np.uint8)
    opacity = ((_MIN_OPACITY + (_MAX_OPACITY - _MIN_OPACITY) * levels) * 255).astype(np.uint8)
    index = np.asarray(smooth)
    # Grey underneath: heat is then the only colour in the image.
    faded = Image.blend(canvas, canvas.convert("L").convert("RGB"), 0.85)
    return Image.composite(Image.fromarray(colours[index]), faded, Image.fromarray(opacity[index]))


def _scaled_box(
    box: tuple[float, float, float, float], size: tuple[int, int], target: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A box of an image of ``size`` on a canvas of size ``target``, clipped; empty for boxes outside or not finite."""
    if not all(map(math.isfinite, box)):
        return 0.0, 0.0, 0.0, 0.0
    across, down = target[0] / size[0], target[1] / size[1]
    left, right = (min(max(x * across, 0.0), float(target[0])) for x in (box[0], box[2]))
    top, bottom = (min(max(y * down, 0.0), float(target[1])) for y in (box[1], box[3]))
    return left, top, right, bottom


def _draw_region(
    draw: ImageDraw.ImageDraw,
    region: OverlayRegion,
    size: tuple[int, int],
    target: tuple[int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    text_size: int,
) -> None:
    left, top, right, bottom = _scaled_box(region.box, size, target)
    if right - left < 1 or bottom - top < 1:
        return
    colour = _MASKED if region.is_masked else _LABELLED
    width = max(1, text_size // 6) + region.is_masked
    edge = (left, top, right - 1, bottom - 1)
    # A dark line outside the bright one keeps it visible on any image.
    draw.rectangle(edge, outline=_PLATE, width=width + 2)
    draw.rectangle(
        (edge[0] + 1, edge[1] + 1, max(edge[2] - 1, edge[0] + 1), max(edge[3] - 1, edge[1] + 1)),
        outline=colour,
        width=width,
    )
    if region.label:
        _draw_text(draw, (left, top), region.label, target, font, text_size, colour)


def _draw_text(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    target: tuple[int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    text_size: int,
    accent: tuple[int, int, int, int],
) -> None:
    """A label on a plate above its corner, or below if there is no room, moved and cut to stay within the image."""
    pad = max(2, text_size // 4)
    stripe = max(2, text_size // 5)
    text = _fitting(draw, " ".join(text.split()), font, target[0] - 2 * pad - stripe)
    width = math.ceil(draw.textlength(text, font=font)) + 2 * pad + stripe
    height = text_size + 2 * pad
    x = min(max(corner[0], 0), max(0, target[0] - width))
    above = corner[1] - height
    y = above if above >= 0 else min(corner[1], max(0, target[1] - height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_PLATE)
    draw.rectangle((x, y, x + stripe - 1, y + height - 1), fill=accent)
    draw.text((x + stripe + pad, y + height / 2), text, fill=_TEXT, font=font, anchor="lm")


def _fitting(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: float
) -> str:
    """The text, cut with an ellipsis until it fits into ``room`` pixels."""
    text = text[:200]
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(text + "...", font=font) > room:
        text = text[:-1]
    return text + "..." if text else ""


def _draw_legend(
    ink: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    text_size: int,
    title: str | None,
) -> None:
    """A bar from harmless to unsafe in the lower left corner, the title above it; left out on tiny images."""
    pad = max(4, text_size // 2)
    low, high = "0", "1"
    ends = math.ceil(draw.textlength(low, font=font) + draw.textlength(high, font=font))
    bar = min(text_size * 9, ink.width // 3)
    width = bar + ends + 5 * pad
    height = text_size + 2 * pad
    if width > ink.width or 2 * height > ink.height:
        return
    if title:
        title = _fitting(draw, " ".join(title.split()), font, ink.width - 4 * pad)
        width = max(width, math.ceil(draw.textlength(title, font=font)) + 2 * pad)
        height += text_size + pad
    left, top = pad, ink.height - height - pad
    width = min(width, ink.width - 2 * pad)
    draw.rounded_rectangle((left, top, left + width, top + height), radius=pad, fill=_PLATE)
    middle = top + height - pad - text_size / 2
    if title:
        draw.text((left + pad, top + pad + text_size / 2), title, fill=_TEXT, font=font, anchor="lm")
    draw.text((left + pad, middle), low, fill=_TEXT, font=font, anchor="lm")
    start = left + 2 * pad + math.ceil(draw.textlength(low, font=font))
    ramp = heat_colours(np.linspace(0, 1, bar, dtype=np.float32)[None, :]).astype(np.uint8)
    strip = Image.fromarray(ramp).resize((bar, max(4, text_size * 2 // 3)))
    ink.paste(strip, (start, round(middle - strip.height / 2)))
    draw.text((start + bar + pad, middle), high, fill=_TEXT, font=font, anchor="lm")
