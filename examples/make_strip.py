"""Draws the strip of the README: the image that a user sends, the guard's heat map, and the image that the model gets.

All of it comes from one check of ``images/coffee_and_pistol.jpg`` with the offline encoder and the demo's policy.
Run: ``python examples/make_strip.py``.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from guardalign_guardrails import CheckResult, Guard, Policy
from guardalign_guardrails.explain import heat_map, heat_scale
from guardalign_guardrails.images import decode

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "examples" / "images" / "coffee_and_pistol.jpg"
OUT = ROOT / "docs" / "images" / "strip.jpg"
PANEL_WIDTH = 480
GAP = 12
CAPTION_HEIGHT = 44
TEXT_SIZE = 24
INK, PAPER = (36, 41, 47), (255, 255, 255)


def panels(guard: Guard, image: Path) -> list[tuple[str, Image.Image]]:
    """Captions and images: what came in, why it was acted on, and what is passed on."""
    result: CheckResult = guard.check(image)
    verdict = result.verdict
    original = decode(image).flattened
    heat = heat_map(original, verdict, heat_scale(guard.policy, guard.profile, "user"))
    passed_on = Image.open(io.BytesIO(bytes(result.output))).convert("RGB")
    sure = "" if verdict.p_value is None else f", p = {verdict.p_value:.3f}"
    return [
        ("the user sends", original),
        (f"the guard finds {verdict.category}{sure}", heat),
        ("the model gets", passed_on),
    ]


def strip(captioned: list[tuple[str, Image.Image]]) -> Image.Image:
    """The images side by side at one width, each under its caption."""
    shown = [
        (
            caption,
            image.resize((PANEL_WIDTH, round(PANEL_WIDTH * image.height / image.width)), Image.Resampling.LANCZOS),
        )
        for caption, image in captioned
    ]
    width = len(shown) * PANEL_WIDTH + (len(shown) - 1) * GAP
    sheet = Image.new("RGB", (width, CAPTION_HEIGHT + max(image.height for _, image in shown)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    for place, (caption, image) in enumerate(shown):
        left = place * (PANEL_WIDTH + GAP)
        draw.text((left + PANEL_WIDTH / 2, CAPTION_HEIGHT / 2), caption, fill=INK, font=font, anchor="mm")
        sheet.paste(image, (left, CAPTION_HEIGHT))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the strip of the README.")
    parser.add_argument("--out", type=Path, default=OUT, help="where the strip goes")
    out: Path = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    guard = Guard(Policy.load(ROOT / "examples" / "policy.yaml"))
    strip(panels(guard, IMAGE)).save(out, quality=88, optimize=True)
    print(f"{out}: {out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
