"""What masks cover, before and after they reach beyond the hot regions: the table of docs/benchmarks.md, in one run.

    python benchmarks/masks.py --data DIR [--drawings DIR] [--pastes 60] [--seed 0]

DIR holds ``images.jsonl`` (rows with ``path``, ``group``) and the images. Weapons, half of them mirrored, are pasted at
25, 10 and 5 % of the area on photos and documents that are not in the shipped reference profile, and, redrawn as line
drawings and as drawings in a few colours, on white sheets and on photos redrawn likewise. ``--drawings`` adds drawings
of weapons (PNG files), pasted on white sheets: for instance those of Debian's package openclipart-png, of which two are
also in the project's examples. Only images that call for a mask count: "covered" is what a mask covers of the object's
rectangle and of the rest, where the masked image scored clean; "escalated" are those that did not get clean.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps
from torch import Tensor

from detection import FRACTIONS, Sample, busyness, mask_shares, paste
from guardalign_guardrails.detection.encoders import Encoder, load_encoder
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.images import decode, still_digest
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.verdict import Verdict

EXAMPLES = Path(__file__).parents[1] / "examples" / "images"
SHEETS = ((640, 480), (480, 640), (512, 512), (800, 500))
BEFORE: dict[str, Any] = {"margin": 0.0, "whole_objects": False}
_NOT_WHITE, _CHANGED, _INK = 16, 60, 6


class RememberingEncoder:
    """Encodes each image once for all rules: the same image gives the same maps until `forget` is called."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._maps: dict[tuple[str, int | None], Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_map(self, images: Sequence[Image.Image], resolution: int | None = None) -> list[Tensor]:
        """See `Encoder`."""
        keys = [(still_digest(image), resolution) for image in images]
        for key, image in zip(keys, images, strict=True):
            if key not in self._maps:
                (self._maps[key],) = self._encoder.encode_map([image], resolution)
        return [self._maps[key] for key in keys]

    def forget(self) -> None:
        """Let go of all maps."""
        self._maps.clear()


@dataclass(frozen=True)
class Covered:
    """What one rule made of one image: shares of the object and of the rest under its masks, or None if not masked."""

    object_share: float | None
    rest_share: float | None
    is_escalated: bool


def main() -> None:
    arguments = _arguments()
    encoder = RememberingEncoder(load_encoder(arguments.encoder))
    policy = Policy.load(arguments.policy) if arguments.policy else Policy.default()
    before = policy.model_copy(update={"masking": policy.masking.model_copy(update=BEFORE)})
    guards = [Guard(before, encoder), Guard(policy, encoder)]
    samples = [*pastes(arguments.data, arguments.pastes, random.Random(arguments.seed)), *examples()]
    if arguments.drawings:
        samples += drawings(arguments.drawings, arguments.pastes, random.Random(arguments.seed))
    measured: dict[str, list[list[Covered]]] = {}
    for number, sample in enumerate(samples):
        verdicts = [guard.check(sample.image).verdict for guard in guards]
        measured.setdefault(sample.kind, []).append([covered(sample, verdict) for verdict in verdicts])
        encoder.forget()
        if number % 50 == 0:
            print(f"{number} of {len(samples)}", file=sys.stderr, flush=True)
    print(f"{encoder.name} encoder, policy '{policy.name}', seed {arguments.seed}, {len(samples)} images\n")
    print("| image | masked or escalated | before: object / rest covered, escalated | after |\n|---|---|---|---|")
    for kind, pairs in measured.items():
        print(row(kind, pairs))


def pastes(data: Path, count: int, rng: random.Random) -> Iterator[Sample]:
    """Weapons on photos, on documents and on drawings, ``count`` each at 25 % and half as many at 10 and 5 %."""
    rows = [json.loads(line) for line in (data / "images.jsonl").read_text(encoding="utf-8").splitlines()]
    weapons = [decode(data / row["path"]).flattened for row in rows if row["group"] == "weapons"]
    paths = sorted({row["path"] for row in rows if row["group"] in ("photos", "documents")})
    # The same third that benchmarks/detection.py measures: the reference holds the other two.
    held_out = [path for path in paths if int(hashlib.sha256(path.encode()).hexdigest(), 16) % 3 == 0]
    images = {path: decode(data / path).flattened for path in held_out}
    photos = sorted((path for path in held_out if "photos" in path), key=lambda path: -busyness(images[path]))
    photos = photos[: len(photos) // 2]
    documents = [path for path in held_out if "documents" in path]
    for kind, choices in (("photos", photos), ("documents", documents)):
        rng.shuffle(choices)
        for item, fraction, turn in _turns(weapons, count, rng):
            ground = images[choices[turn % len(choices)]]
            yield _pasted(kind, ground, item, fraction, rng)
    styles: tuple[Callable[[Image.Image], Image.Image], ...] = (line_drawing, flat_drawing)
    for item, fraction, turn in _turns(weapons, count, rng):
        style = styles[turn % 2]
        is_on_white = turn % 4 < 2
        sheet = Image.new("RGB", SHEETS[turn % len(SHEETS)], "white")
        ground = sheet if is_on_white else style(images[photos[turn % len(photos)]])
        yield _pasted("drawings on " + ("white" if is_on_white else "scenes"), ground, style(item), fraction, rng)


def drawings(folder: Path, count: int, rng: random.Random) -> Iterator[Sample]:
    """Drawings of a folder on white sheets, without their borders."""
    items = [_without_border(decode(path).flattened) for path in sorted(folder.glob("*.png"))]
    for item, fraction, turn in _turns(items, count, rng):
        sheet = Image.new("RGB", SHEETS[turn % len(SHEETS)], "white")
        yield _pasted(folder.name, sheet, item, fraction, rng)


def examples() -> list[Sample]:
    """The project's own drawn weapons, each with the rectangle of the object."""
    rifle = decode(EXAMPLES / "rifle.png").flattened
    scene, clean = (decode(EXAMPLES / name).flattened for name in ("coffee_and_pistol.jpg", "coffee.jpg"))
    changed = ImageChops.difference(scene, clean).convert("L").point(lambda value: 255 if value > _CHANGED else 0)
    return [
        Sample(rifle, "examples/rifle.png", box=_ink(rifle)),
        Sample(scene, "examples/coffee_and_pistol.jpg", box=changed.filter(ImageFilter.MedianFilter(5)).getbbox()),
    ]


def line_drawing(image: Image.Image) -> Image.Image:
    """Black lines on white where an image is darker than its surroundings."""
    smooth = ImageOps.autocontrast(image.convert("L").filter(ImageFilter.GaussianBlur(1.2)))
    around = np.asarray(smooth.filter(ImageFilter.GaussianBlur(4)), dtype=np.float32)
    lines = np.where(np.asarray(smooth) - around < -_INK, 0, 255).astype(np.uint8)
    return Image.fromarray(lines).filter(ImageFilter.MedianFilter(3)).convert("RGB")


def flat_drawing(image: Image.Image) -> Image.Image:
    """Six colours with black outlines."""
    flat = np.asarray(image.filter(ImageFilter.MedianFilter(7)).quantize(6).convert("RGB")).copy()
    flat[np.asarray(line_drawing(image).convert("L")) < 128] = 0
    return Image.fromarray(flat)


def covered(sample: Sample, verdict: Verdict) -> Covered:
    """What the masks of a verdict cover."""
    after = verdict.after_masking
    if after is None or not after.is_clean:
        return Covered(None, None, after is not None)
    return Covered(*mask_shares(sample, verdict.masks), False)


def row(kind: str, pairs: Sequence[Sequence[Covered]]) -> str:
    """One line of the table."""
    acted = [pair for pair in pairs if pair[0].is_escalated or pair[0].object_share is not None]
    return (
        f"| {kind} | {len(acted)} of {len(pairs)} | "
        + " | ".join(_cell(rule) for rule in zip(*acted, strict=True))
        + " |"
    )


def _cell(rule: Sequence[Covered]) -> str:
    shares = [(one.object_share, one.rest_share) for one in rule if one.object_share is not None]
    means = " / ".join(f"{mean:.1%}" for mean in np.mean(np.array(shares, dtype=float), 0)) if shares else "none"
    return f"{means}, {sum(one.is_escalated for one in rule)}"


def _turns(items: Sequence[Image.Image], count: int, rng: random.Random) -> Iterator[tuple[Image.Image, float, int]]:
    """Items in turn, mirrored at random, with the shares of the area they are pasted at."""
    for place, fraction in enumerate(FRACTIONS):
        for turn in range(count if place == 0 else count // 2):
            item = items[turn % len(items)]
            yield ImageOps.mirror(item) if rng.random() < 0.5 else item, fraction, turn


def _pasted(kind: str, ground: Image.Image, item: Image.Image, fraction: float, rng: random.Random) -> Sample:
    image, box = paste(ground, item, fraction, rng)
    return Sample(image, f"{kind}, {fraction:.0%}", box=box)


def _without_border(image: Image.Image) -> Image.Image:
    return image.crop(_ink(image))


def _ink(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The rectangle of what is not white."""
    return ImageOps.invert(image.convert("L")).point(lambda value: 255 if value > _NOT_WHITE else 0).getbbox()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with images.jsonl")
    parser.add_argument("--drawings", type=Path, help="folder with PNG drawings of weapons, for further pastes")
    parser.add_argument("--pastes", type=int, default=60, help="pastes at 25 %% on each kind of ground")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--encoder", default="offline")
    parser.add_argument("--policy", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
