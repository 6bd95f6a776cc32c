"""The registry of consumers: what models and common pipelines make of an image before they look at it.

The data is ``registry.json``; this module turns names into objects. A consumer knows no detection and no policy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from typing import Annotated, Final

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from guardalign_guardrails.errors import PolicyError
from guardalign_guardrails.images.consumers.rules import Side, Size, SizeRule
from guardalign_guardrails.images.consumers.samplers import AVERAGING, Sampler, resize

DEFAULT: Final[tuple[str, ...]] = (
    "openai",
    "claude",
    "llava-1.5",
    "llava-next",
    "siglip-384",
    "gemma",
    "pixtral",
    "molmo2",
    "llama.cpp",
    "llama.cpp-bicubic",
    "opencv-nearest",
    "opencv-linear",
    "opencv-cubic",
    "opencv-lanczos4",
    "pillow-nearest",
)
"""Common consumers, and common pipelines in front of others; images of ordinary shape need at most 1,568 px for them.

``gemini``, ``internvl`` and ``qwen-vl`` take more pixels than that. They shrink with an average, so that nothing can
be hidden from them by scaling; name them in a policy if images must reach them at their full size.
"""


class Consumer(BaseModel):
    """One model or pipeline, as data: how large it makes an image, and with which sampler.

    Attributes:
        name: Unique name.
        title: What it stands for.
        sampler: The arithmetic of its resize.
        rules: Its size rules; it makes an image of each of their sizes.
        max_side: The longest side that it ever takes, in pixels; None if its rules say it all.
        source: Where the figures come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    sampler: Sampler
    rules: Annotated[tuple[SizeRule, ...], Field(min_length=1)]
    max_side: Side | None = None
    source: str

    @property
    def averages(self) -> bool:
        """Whether it reads every pixel when it shrinks, so that none is hidden from the average."""
        return self.sampler in AVERAGING

    def sizes(self, size: Size) -> tuple[Size, ...]:
        """The (width, height) of everything it makes of an image of that size; its main rendering first.

        Crops and tiles are cut from these renderings, padding is added to them; neither is part of the size.
        """
        return tuple(dict.fromkeys(made for rule in self.rules for made in rule.sizes(size)))

    def side(self, size: Size) -> int:
        """The longest side, in pixels, of what it makes of an image of that size."""
        longest = max(max(made) for made in self.sizes(size))
        return longest if self.max_side is None else min(longest, self.max_side)

    def render(self, image: Image.Image) -> Image.Image:
        """Its main rendering of an image, as RGB."""
        return self.renderings(image)[0]

    def renderings(self, image: Image.Image) -> tuple[Image.Image, ...]:
        """All its renderings of an image, one for each of `sizes`, as RGB."""
        pixels = image.convert("RGB")
        return tuple(resize(pixels, size, self.sampler) for size in self.sizes(image.size))


def names() -> tuple[str, ...]:
    """Names of all registered consumers, in alphabetical order."""
    return tuple(sorted(_registered()))


def load_consumers(names: Sequence[str]) -> tuple[Consumer, ...]:
    """Consumers by name.

    Args:
        names: Names in any order; one that is given twice counts once.

    Returns:
        The consumers in the order of their names.

    Raises:
        PolicyError: A name is not registered.
    """
    known = _registered()
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(sorted(known))}."
            raise PolicyError(f"consumers: there is no consumer of that name ({name!r}); {hint}")
    return tuple(known[name] for name in dict.fromkeys(names))


@lru_cache(maxsize=1)
def _registered() -> Mapping[str, Consumer]:
    text = (
        resources.files("guardalign_guardrails.images.consumers").joinpath("registry.json").read_text(encoding="utf-8")
    )
    entries = [Consumer.model_validate(entry) for entry in json.loads(text)]
    return {entry.name: entry for entry in entries}
