"""The part that open_clip and transformers encoders have in common: one load, bounded batches, unit rows.

What differs between the libraries (how a checkpoint is opened, how its towers are laid out) is a `Towers`; this module
knows neither library. Models are used as they are: no class is patched and no hook stays behind.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from guardalign_guardrails.detection.encoders.base import Crop
from guardalign_guardrails.detection.encoders.fingerprint import fingerprint
from guardalign_guardrails.detection.encoders.pixels import Channels, batched, crop_batch
from guardalign_guardrails.errors import EncoderUnavailable
from guardalign_guardrails.policy.detection import RegionConfig

_PROBE = "A photo of 2 cats, naïve café; 猫 NSFW"
"""Case, digits, accents and another script: enough to tell two tokenizers apart."""

_REPORT_LENGTH = 160

_ROWS_PER_CROP: Final = 256
"""Cells that `TwoTowerEncoder.embed` takes for one crop of a batch: what a map of 16 by 16 holds."""


@dataclass
class Towers(ABC):
    """A loaded model with its text and vision towers, as one library lays them out.

    Attributes:
        module: The model, a `torch.nn.Module` in eval mode; Any, since each library gives it methods of its own.
        size: Height and width in pixels of the images the model was made for.
        mean: Colour mean of its preprocessing.
        std: Colour standard deviation of its preprocessing.
        logit_scale: Inverse temperature, read before weights were rounded to a lower precision.
        cell: Side in pixels of one cell of the feature map; None when the model has no dense features.
    """

    module: Any
    size: tuple[int, int]
    mean: Channels
    std: Channels
    logit_scale: float
    cell: int | None

    def __post_init__(self) -> None:
        """Settle where and in which precision pixels must arrive.

        The first convolution or linear layer decides: mixed-precision checkpoints keep embeddings and norms wider.
        """
        weight = next(m.weight for m in self.module.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        self.device, self.dtype = weight.device, weight.dtype

    @abstractmethod
    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """Turn texts into the text tower's inputs, each of shape [len(texts), length], on the CPU."""

    @abstractmethod
    def text_features(self, tokens: dict[str, Tensor]) -> Tensor:
        """Encode the result of `tokenize`, already on the model's device; shape [n, d]."""

    @abstractmethod
    def image_features(self, pixels: Tensor) -> Tensor:
        """Encode pixels of shape [n, 3, height, width]; shape [n, d]."""

    @abstractmethod
    def map_features(self, pixels: Tensor) -> Tensor:
        """Encode every cell of pixels of shape [n, 3, height, width]; shape [n, rows * columns, k]."""

    def embed(self, features: Tensor) -> Tensor:
        """Carry map features of shape [n, k] to the joint space, shape [n, d]; here they are in it already."""
        return features


class TwoTowerEncoder(ABC):
    """An encoder whose model is loaded on first use, once, whichever thread comes first.

    Subclasses say how to load; everything in `guardalign_guardrails.detection.encoders.base.Encoder` follows.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
    ) -> None:
        """Remember what to load; nothing is imported or read yet.

        Args:
            name: What a user writes to get this encoder.
            device: Where to run; None for CUDA when there is one, else the CPU.
            dtype: Floating-point type to run in.
            batch_size: Most texts or crops in one forward pass.

        Raises:
            ValueError: If ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        self._name = name
        self._device = torch.device(device) if device is not None else None
        self._dtype = dtype
        self._batch_size = batch_size
        self._ready: Towers | None = None
        self._fingerprint: str | None = None
        self._loading = threading.Lock()
        # Hugging Face's fast tokenizers fail with "Already borrowed" when two threads use one at once.
        self._tokenizing = threading.Lock()
        # Whether the model was handed over, and so cannot be loaded again.
        self._is_given = False

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_loading", "_tokenizing")}
        return kept if self._is_given else {**kept, "_ready": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _loading=threading.Lock(), _tokenizing=threading.Lock())

    @abstractmethod
    def _load(self) -> Towers:
        """Open the model, or raise `guardalign_guardrails.errors.EncoderUnavailable` with a remedy."""

    @property
    def name(self) -> str:
        """What a user writes to get this encoder."""
        return self._name

    @property
    def logit_scale(self) -> float:
        """Inverse temperature the model was trained with: exp of its ``logit_scale``; loads the model."""
        return self._towers().logit_scale

    @property
    def side(self) -> int:
        """Longer side in pixels of the image tower's input; loads the model."""
        return max(self._towers().size)

    @property
    def default_regions(self) -> RegionConfig:
        """The whole image and a 4x4 grid of crops."""
        return RegionConfig(method="grid", scales=(1, 4))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, architecture, tokenization and preprocessing, the same wherever weights lie.

        Loads the model and reads all of its weights once, well under a second per gigabyte.
        """
        towers = self._towers()
        if self._fingerprint is None:
            with self._tokenizing:
                tokens = {key: ids.tolist() for key, ids in towers.tokenize([_PROBE]).items()}
            settings = {"mean": towers.mean, "std": towers.std, "size": towers.size, "resize": "bicubic squash"}
            self._fingerprint = fingerprint(towers.module, {**settings, "tokens": tokens})
        return self._fingerprint

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts.

        Args:
            texts: Any number of texts; each is cut to the length the model reads.

        Returns:
            Unit rows, shape [len(texts), d], float32, on the CPU.

        Raises:
            EncoderUnavailable: If packages or weights are missing.
        """
        towers = self._towers()
        # One forward pass of an empty text is how an empty batch learns d.
        batches = [self._text_batch(towers, batch) for batch in batched(list(texts) or [""], self._batch_size)]
        return torch.cat(batches)[: len(texts)]

    def encode_crops(self, crops: Sequence[Crop]) -> Tensor:
        """Encode crops, each squashed whole to the model's input.

        Args:
            crops: Any number of rectangles.

        Returns:
            Unit rows, shape [len(crops), d], float32, on the CPU.

        Raises:
            EncoderUnavailable: If packages or weights are missing.
        """
        if not crops:
            return self.encode_texts([])
        towers = self._towers()
        return torch.cat([self._crop_batch(towers, batch) for batch in batched(crops, self._batch_size)])

    def encode_map(self, images: Sequence[Image.Image], resolution: int | None = None) -> list[Tensor]:
        """Feature map of each image, one forward pass each.

        Args:
            images: RGB images of any size.
            resolution: Side in pixels of the square the image is resized to; None for the encoder's own.

        Returns:
            One map per image, shape [rows, columns, k], float32, on the CPU, not normalised.

        Raises:
            EncoderUnavailable: If packages or weights are missing, or the model has no dense features.
            ValueError: If the model's cells do not tile ``resolution``.
        """
        towers = self._towers()
        size = towers.size if resolution is None else (resolution, resolution)
        grid = self._grid(towers, size)
        area = (towers.size[0] * towers.size[1]) / (size[0] * size[1])
        # A pass over larger images takes fewer of them, so that memory stays what batch_size promised.
        most = max(1, int(self._batch_size * min(1.0, area)))
        whole = [Crop(image, (0.0, 0.0, float(image.width), float(image.height))) for image in images]
        return [
            cells.reshape(*grid, -1) for batch in batched(whole, most) for cells in self._map_batch(towers, batch, size)
        ]

    def embed(self, map_features: Tensor) -> Tensor:
        """Carry map features, or means of them, to the joint space.

        Args:
            map_features: Shape [n, k].

        Returns:
            Unit rows, shape [n, d], float32, on the CPU.

        Raises:
            EncoderUnavailable: If packages or weights are missing.
        """
        if not len(map_features):
            return self.encode_texts([])
        towers = self._towers()
        batches = torch.split(map_features, self._batch_size * _ROWS_PER_CROP)
        return torch.cat([self._embed_batch(towers, rows) for rows in batches])

    def _towers(self) -> Towers:
        if self._ready is None:
            with self._loading:
                if self._ready is None:
                    self._ready = self._load()
        return self._ready

    def _grid(self, towers: Towers, size: tuple[int, int]) -> tuple[int, int]:
        if towers.cell is None:
            raise EncoderUnavailable(f"{self._name} has no dense features; use regions method 'grid'.")
        if min(size) < towers.cell or size[0] % towers.cell or size[1] % towers.cell:
            raise ValueError(f"{self._name} takes resolutions in multiples of {towers.cell} pixels, not {size[0]}.")
        return size[0] // towers.cell, size[1] // towers.cell

    def _text_batch(self, towers: Towers, texts: list[str]) -> Tensor:
        with self._tokenizing:
            tokens = towers.tokenize(texts)
        with torch.inference_mode():
            return _unit(towers.text_features({key: ids.to(towers.device) for key, ids in tokens.items()}))

    def _crop_batch(self, towers: Towers, crops: list[Crop]) -> Tensor:
        pixels = crop_batch(crops, towers.size, towers.mean, towers.std)
        with torch.inference_mode():
            return _unit(towers.image_features(pixels.to(towers.device, towers.dtype)))

    def _map_batch(self, towers: Towers, crops: list[Crop], size: tuple[int, int]) -> list[Tensor]:
        pixels = crop_batch(crops, size, towers.mean, towers.std)
        with torch.inference_mode():
            cells = towers.map_features(pixels.to(towers.device, towers.dtype)).float().cpu()
        # A copy made outside inference mode is an ordinary tensor, which callers may use in autograd.
        return [image.clone() for image in cells]

    def _embed_batch(self, towers: Towers, rows: Tensor) -> Tensor:
        with torch.inference_mode():
            return _unit(towers.embed(rows.to(towers.device, towers.dtype)))


def pick_device(device: torch.device | None) -> torch.device:
    """Return ``device``, or CUDA when there is one, else the CPU."""
    return device or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def first_line(error: BaseException) -> str:
    """Name an error in one short line, for a message of ours that wraps it."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:_REPORT_LENGTH]}" if text else type(error).__name__


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features.float(), dim=-1).cpu()
