"""The interface of an encoder.

An encoder puts texts, image crops and the cells of a feature map into one space in which a smaller angle means a
closer meaning. Everything above it (regions, transport, policy) is the same for every encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from guardalign_guardrails.policy.detection import RegionConfig

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the image it belongs to."""


class Crop(NamedTuple):
    """A rectangle of an image; the image itself is not copied.

    Attributes:
        image: RGB image.
        box: Pixels to encode.
    """

    image: Image.Image
    box: Box


@runtime_checkable
class Encoder(Protocol):
    """Texts and images into one space.

    All methods may be called from several threads at once, load weights on first use, raise
    `guardalign_guardrails.errors.EncoderUnavailable` when packages or weights are missing, and return float32 on the
    CPU; joint-space rows have unit length.
    """

    @property
    def name(self) -> str:
        """What a user writes to get this encoder, such as ``offline`` or ``open_clip:ViT-L-14/openai``."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest that changes when the features would: weights, architecture, preprocessing."""
        ...

    @property
    def logit_scale(self) -> float:
        """Inverse temperature of the softmax over cosines, positive (about 100 for CLIP)."""
        ...

    @property
    def side(self) -> int:
        """Side in pixels of the square that one crop is resized to."""
        ...

    @property
    def default_regions(self) -> RegionConfig:
        """How this encoder is best asked for regions."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts, shape [len(texts), d]."""
        ...

    def encode_crops(self, crops: Sequence[Crop]) -> Tensor:
        """Encode crops, shape [len(crops), d], in batches of a bounded size."""
        ...

    def encode_map(self, images: Sequence[Image.Image], resolution: int | None = None) -> list[Tensor]:
        """Feature map of each image, one forward pass each.

        Map features live in a space where averaging over cells makes sense; `embed` carries them to the joint space.

        Args:
            images: RGB images of any size.
            resolution: Side in pixels of the square the image is resized to; None for the encoder's own.

        Returns:
            One map per image, shape [rows, columns, k], float32, on the CPU.
        """
        ...

    def embed(self, map_features: Tensor) -> Tensor:
        """Carry map features, or means of them, to the joint space.

        Args:
            map_features: Shape [n, k].

        Returns:
            Unit-length rows, shape [n, d].
        """
        ...
