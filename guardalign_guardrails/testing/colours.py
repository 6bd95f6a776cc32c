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
from guardalign_guardrails.detection.encoders import Crop
from guardalign_guardrails.policy.detection import RegionConfig

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
_GRID = 4


class ColourEncoder:
    """One axis per colour.

    Attributes:
        calls: Number of crops or images of each call, to count encoder passes.
        failure: Raised by the next calls if it is set.
    """

    name = "colour"
    fingerprint = "c0" * 32
    logit_scale = 50.0
    side = 224
    default_regions = RegionConfig(method="grid", scales=(4,))

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.failure: Exception | None = None

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """One-hot rows of the colour words in each text."""
        rows = [[float(colour in text) for colour in COLOURS] for text in texts]
        return functional.normalize(torch.tensor(rows), dim=-1)

    def encode_crops(self, crops: Sequence[Crop]) -> Tensor:
        """Share of each colour's pixels in each crop, as unit rows; `failure` is raised if there is one."""
        self.calls.append(len(crops))
        if self.failure is not None:
            raise self.failure
        return self.embed(torch.stack([_shares(image.crop(_whole_pixels(box))) for image, box in crops]))

    def encode_map(self, images: Sequence[Image.Image], resolution: int | None = None) -> list[Tensor]:
        """Share of each colour's pixels in 4 x 4 cells of each image; ``resolution`` changes nothing."""
        self.calls.append(len(images))
        maps = []
        for image in images:
            edges = [(row, column) for row in range(_GRID) for column in range(_GRID)]
            cells = [
                image.crop(
                    _whole_pixels(
                        (
                            column * image.width / _GRID,
                            row * image.height / _GRID,
                            (column + 1) * image.width / _GRID,
                            (row + 1) * image.height / _GRID,
                        )
                    )
                )
                for row, column in edges
            ]
            maps.append(torch.stack([_shares(cell) for cell in cells]).reshape(_GRID, _GRID, -1))
        return maps

    def embed(self, map_features: Tensor) -> Tensor:
        """Unit rows."""
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
        "masking": {"feather": 0.0, "margin": 0.0},
    }
    return Policy.model_validate({**data, **changes})


def colour_guard(cache_dir: Path, **changes: Any) -> Guard:
    """A guard that sees colours; ``changes`` are fields of `colour_policy`."""
    return Guard(colour_policy(**changes), ColourEncoder(), cache_dir=cache_dir)


def painted(*colours: str, shade: int = 0) -> Image.Image:
    """A white image with one square of each colour, down the diagonal; ``shade`` makes it another image."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    image.putpixel((SIDE - 1, 0), (255, 255, 255 - shade))
    for place, colour in enumerate(colours):
        image.paste(COLOURS[colour], (CELL * place, CELL * place, CELL * (place + 1), CELL * (place + 1)))
    return image


def _whole_pixels(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(side) for side in box)
    return left, top, right, bottom


def _shares(image: Image.Image) -> Tensor:
    """Share of the pixels that are nearest to each colour, shape [colours]."""
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    pixels = np.asarray(image, dtype=np.float32).reshape(-1, 3)
    nearest = ((pixels[:, None] - palette) ** 2).sum(-1).argmin(-1)
    return torch.tensor(np.bincount(nearest, minlength=len(palette)) / len(nearest), dtype=torch.float32)
