"""Draws the price of safety: refusals of unsafe prompts against refusals of safe ones, a point a condition.

Drawn with Pillow alone; a plotting library would be a large dependency for one kind of image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from guardalign_guardrails.evaluation.report import ReportRow, names

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SIDE: Final = 640
_LEFT, _TOP, _RIGHT, _BOTTOM = 80, 50, 470, 70
_SCALE: Final = 2
_INK: Final = (40, 40, 48)
_GRID: Final = (224, 224, 230)
# By placement, from the palette of Okabe and Ito, which people with any colour blindness can tell apart.
_COLOURS: Final = {
    "none": (90, 90, 90),
    "user": (0, 114, 178),
    "system": (213, 94, 0),
    "response": (0, 158, 115),
}
_RADIUS: Final = 5
_ENTRY: Final = 19


def draw_frontier(rows: Sequence[ReportRow], title: str) -> Image.Image:
    """Draw a point for each condition with the intervals of both rates, and an arrow from the prefix alone to it.

    Args:
        rows: With groups ``unsafe`` and ``safe``; others are left out.
        title: A line above.

    Returns:
        An RGB image; points are numbered as the rows are, from 1.
    """
    height = max(_TOP + _SIDE + _BOTTOM, _TOP + _ENTRY * (len(rows) + 6))
    size = (_LEFT + _SIDE + _RIGHT, height)
    canvas = Image.new("RGB", (size[0] * _SCALE, size[1] * _SCALE), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13 * _SCALE)
    small = ImageFont.load_default(11 * _SCALE)
    _draw_axes(draw, font, small, title)
    points = {row.condition.digest: _place(row) for row in rows if _is_shown(row)}
    shown = [(number, row, points[row.condition.digest]) for number, row in enumerate(rows, 1) if _is_shown(row)]
    for _, row, at in shown:
        _draw_bars(draw, row, at)
        start = points.get(row.condition.reference.digest) if row.condition.calibration else None
        if start is not None:
            draw.line([_pixels(*start), _pixels(*at)], fill=_pale(_colour(row)), width=_SCALE)
    for number, row, at in shown:
        _draw_point(draw, row, at)
        x, y = _pixels(*at)
        draw.text((x + 8 * _SCALE, y - 16 * _SCALE), str(number), fill=_INK, font=small)
    _draw_legend(draw, small, rows)
    return canvas.resize(size, Image.Resampling.LANCZOS)


def _draw_axes(draw: ImageDraw.ImageDraw, font: _Font, small: _Font, title: str) -> None:
    for step in range(0, 101, 20):
        share = step / 100
        draw.line([_pixels(share, 0), _pixels(share, 1)], fill=_GRID, width=_SCALE)
        draw.line([_pixels(0, share), _pixels(1, share)], fill=_GRID, width=_SCALE)
        x, y = _pixels(share, 0)
        draw.text((x, y + 8 * _SCALE), f"{step} %", fill=_INK, font=small, anchor="ma")
        x, y = _pixels(0, share)
        draw.text((x - 8 * _SCALE, y), f"{step} %", fill=_INK, font=small, anchor="rm")
    x, y = _pixels(0.5, 0)
    draw.text((x, y + 32 * _SCALE), "safe prompts refused (lower is better)", fill=_INK, font=font, anchor="ma")
    x, y = _pixels(0, 1)
    draw.text(
        (x, y - 14 * _SCALE), f"unsafe prompts refused (higher is better) - {title}", fill=_INK, font=font, anchor="ls"
    )


def _draw_bars(draw: ImageDraw.ImageDraw, row: ReportRow, at: tuple[float, float]) -> None:
    safe, unsafe, colour = row.groups["safe"], row.groups["unsafe"], _pale(_colour(row))
    draw.line([_pixels(safe.low, at[1]), _pixels(safe.high, at[1])], fill=colour, width=_SCALE)
    draw.line([_pixels(at[0], unsafe.low), _pixels(at[0], unsafe.high)], fill=colour, width=_SCALE)


def _draw_point(draw: ImageDraw.ImageDraw, row: ReportRow, at: tuple[float, float]) -> None:
    x, y = _pixels(*at)
    reach = _RADIUS * _SCALE
    box = (x - reach, y - reach, x + reach, y + reach)
    if row.condition.calibration is None:
        draw.rectangle(box, fill="white", outline=_colour(row), width=2 * _SCALE)
    else:
        draw.ellipse(box, fill=_colour(row))


def _draw_legend(draw: ImageDraw.ImageDraw, font: _Font, rows: Sequence[ReportRow]) -> None:
    x = (_LEFT + _SIDE + 24) * _SCALE
    numbered = enumerate(zip(rows, names(rows), strict=True), 1)
    lines = [(f"{number}  {name}", _colour(row)) for number, (row, name) in numbered]
    lines += [("", _INK), ("square: not calibrated; line to it: the same prefix", _INK), ("bars: 95 % intervals", _INK)]
    for place, (text, colour) in enumerate(lines):
        draw.text((x, (_TOP + _ENTRY * place) * _SCALE), text, fill=colour, font=font)


def _is_shown(row: ReportRow) -> bool:
    return {"safe", "unsafe"} <= set(row.groups)


def _place(row: ReportRow) -> tuple[float, float]:
    return row.groups["safe"].refused, row.groups["unsafe"].refused


def _pixels(x: float, y: float) -> tuple[float, float]:
    return (_LEFT + x * _SIDE) * _SCALE, (_TOP + (1 - y) * _SIDE) * _SCALE


def _colour(row: ReportRow) -> tuple[int, int, int]:
    has_prefix = bool(row.condition.prefix.text.strip())
    return _COLOURS[row.condition.prefix.placement if has_prefix else "none"]


def _pale(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (255 - (255 - part) * 2 // 5 for part in colour)
    return red, green, blue
