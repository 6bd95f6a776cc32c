"""An encoder that sees colours and reads colour words: exact, instant, and real enough for everything around it.

With `colour_policy` each colour stands for one action, so that a test paints the verdict it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from guardalign_guardrails import Guard, Policy
from guardalign_guardrails.detection.config import RegionConfig
from guardalign_guardrails.detection.encoders import Crop

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
ACTION_COLOURS = {"flag": "magenta", "prefix": "green", "mask": "red", "route": "yellow", "block": "blue"}
SIDE = 64
CELL = SIDE // 4


class ColourEncoder:
    """One axis per colour. ``calls`` holds the number of crops of each call."""

    name = "colour"
    fingerprint = "c0" * 32
    logit_scale = 50.0
    default_regions = RegionConfig(method="grid", scales=(4,))

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.failure: Exception | None = None

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        rows = [[float(colour in text) for colour in COLOURS] for text in texts]
        return functional.normalize(torch.tensor(rows), dim=-1)

    def encode_crops(self, crops: Sequence[Crop]) -> Tensor:
        self.calls.append(len(crops))
        if self.failure is not None:
            raise self.failure
        palette = np.array(list(COLOURS.values()), dtype=np.float32)
        rows = []
        for image, box in crops:
            pixels = np.asarray(image.crop(tuple(round(side) for side in box)), dtype=np.float32).reshape(-1, 3)
            nearest = ((pixels[:, None] - palette) ** 2).sum(-1).argmin(-1)
            rows.append(np.bincount(nearest, minlength=len(palette)) / len(nearest))
        return functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=-1)

    def encode_map(self, images: Sequence[Image.Image], resolution: int | None = None) -> list[Tensor]:
        raise NotImplementedError

    def embed(self, map_features: Tensor) -> Tensor:
        return functional.normalize(map_features, dim=-1)


def colour_policy(**changes: Any) -> Policy:
    """A policy in which each of `ACTION_COLOURS` calls for its action."""
    data: dict[str, Any] = {
        "name": "colours",
        "prefix": "Be careful.",
        "templates": ["{}"],
        "categories": {
            f"{colour}_things": {"concepts": [colour], "thresholds": {"kind": "score", action: 0.5}}
            for action, colour in ACTION_COLOURS.items()
        },
        "benign": {"concepts": ["white", "black"]},
        "thresholds": {"kind": "score"},
        "masking": {"feather": 0.0},
    }
    return Policy.model_validate({**data, **changes})


def colour_guard(cache_dir: Path, **changes: Any) -> Guard:
    return Guard(colour_policy(**changes), ColourEncoder(), cache_dir=cache_dir)


def painted(*colours: str, shade: int = 0) -> Image.Image:
    """A white picture with one square of each colour, down the diagonal; ``shade`` makes it another picture."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    image.putpixel((SIDE - 1, 0), (255, 255, 255 - shade))
    for place, colour in enumerate(colours):
        image.paste(COLOURS[colour], (CELL * place, CELL * place, CELL * (place + 1), CELL * (place + 1)))
    return image
