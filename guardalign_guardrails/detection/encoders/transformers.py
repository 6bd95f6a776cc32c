"""CLIP, SigLIP and SigLIP2 through Hugging Face transformers: for checkpoints that open_clip does not read.

Dense features need no patching: CLIP by the value path of its last layer (MaskCLIP, Zhou et al. 2022, arXiv
2112.01071), SigLIP by running its attention-pooling head on each token alone. Remote code is never run.
No pretrained model could be downloaded where this was written: it was exercised with small random models saved to and
loaded from local folders, with transformers 5.23.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guardalign_guardrails.detection.encoders.two_tower import Towers, TwoTowerEncoder, first_line, pick_device
from guardalign_guardrails.errors import EncoderUnavailable

_INSTALL = "transformers is not installed; run: pip install 'guardalign-guardrails[transformers]'"


class TransformersEncoder(TwoTowerEncoder):
    """Text and image features of a CLIP, SigLIP or SigLIP2 checkpoint in the layout of transformers."""

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
        local_files_only: bool = False,
        name: str | None = None,
    ) -> None:
        """Remember what to load; the first call that needs the model loads it.

        Args:
            model: Folder or repository name with model, tokenizer and image processor.
            revision: Commit, tag or branch of the repository; None for its default.
            device: Where to run; None for CUDA when there is one, else the CPU.
            dtype: Floating-point type to run in.
            batch_size: Most texts or crops in one forward pass.
            local_files_only: Never ask the network, not even whether a cached file is the latest.
            name: What to call this encoder; None for ``transformers:MODEL``.
        """
        super().__init__(name or f"transformers:{model}", device=device, dtype=dtype, batch_size=batch_size)
        self._model = str(model)
        self._revision = revision
        self._local_files_only = local_files_only

    @classmethod
    def from_modules(
        cls, model: nn.Module, tokenizer: Any, image_processor: Any, name: str, *, batch_size: int = 64
    ) -> TransformersEncoder:
        """Wrap a model that is already in memory, on its device and in its precision.

        Args:
            model: ``CLIPModel``, ``SiglipModel`` or ``Siglip2Model``; put into eval mode.
            tokenizer: Its tokenizer.
            image_processor: Its image processor, read for ``image_mean`` and ``image_std``.
            name: What to call this encoder.
            batch_size: Most texts or crops in one forward pass.

        Returns:
            An encoder that has nothing left to load.

        Raises:
            EncoderUnavailable: If the model is of another kind.
        """
        encoder = cls(name, name=name, batch_size=batch_size)
        encoder._is_given = True
        encoder._ready = _wrap(name, model.eval(), tokenizer, image_processor, _scale(model))
        return encoder

    def _load(self) -> Towers:
        try:
            from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
        except ImportError as error:
            raise EncoderUnavailable(_INSTALL) from error
        source: dict[str, Any] = {
            "revision": self._revision,
            "local_files_only": self._local_files_only,
            "trust_remote_code": False,
        }
        try:
            config = AutoConfig.from_pretrained(self._model, **source)
            _family(self._name, config)
            # Loaded wide even to run narrow, so that the temperature is not rounded.
            model, report = AutoModel.from_pretrained(
                self._model, config=config, dtype=torch.float32, output_loading_info=True, **source
            )
            tokenizer = AutoTokenizer.from_pretrained(self._model, **source)
            images = AutoImageProcessor.from_pretrained(self._model, **source)
        except EncoderUnavailable:
            raise
        except Exception as error:
            raise EncoderUnavailable(
                f"{self._name} could not be loaded ({first_line(error)}); fetch it once with network access, or give "
                "a folder saved with save_pretrained: transformers:path/to/folder"
            ) from error
        # transformers fills gaps with random weights and a warning, which a guardrail must never run on.
        gaps = sorted(report["missing_keys"]) + [str(key) for key in report.get("mismatched_keys", ())]
        if gaps:
            raise EncoderUnavailable(
                f"{self._name} lacks {len(gaps)} of its weights (first: {gaps[0]}); give a complete checkpoint."
            )
        logit_scale = _scale(model)
        model = model.to(pick_device(self._device), self._dtype).eval()
        return _wrap(self._name, model, tokenizer, images, logit_scale)


@dataclass
class _HubTowers(Towers):
    tokenizer: Any

    @abstractmethod
    def vision_inputs(self, pixels: Tensor) -> dict[str, Any]:
        """What the vision tower takes for pixels of shape [n, 3, height, width]."""

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        length = self.module.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens}

    def text_features(self, tokens: dict[str, Tensor]) -> Tensor:
        return _pooled(self.module.get_text_features(**tokens))

    def image_features(self, pixels: Tensor) -> Tensor:
        return _pooled(self.module.get_image_features(**self.vision_inputs(pixels)))


class _ClipTowers(_HubTowers):
    def __post_init__(self) -> None:
        super().__post_init__()
        encoder = self.module.vision_model.encoder
        # A second encoder over the same layers, less the last: no copied weights, and the model stays as it is. Its own
        # layers are made on the meta device, where they cost nothing, and dropped.
        with torch.device("meta"):
            self._trunk = type(encoder)(encoder.config)
        self._trunk.layers = encoder.layers[:-1]
        self._trunk.eval()

    def vision_inputs(self, pixels: Tensor) -> dict[str, Any]:
        own = tuple(pixels.shape[-2:]) == (self.module.config.vision_config.image_size,) * 2
        return {"pixel_values": pixels, "interpolate_pos_encoding": not own}

    def map_features(self, pixels: Tensor) -> Tensor:
        """Encode patches the MaskCLIP way: in the last layer a patch attends to its own value only.

        Args:
            pixels: Shape [n, 3, height, width].

        Returns:
            Shape [n, rows * columns, d], not normalised.
        """
        model = self.module
        vision = model.vision_model
        x = vision.pre_layrnorm(vision.embeddings(**self.vision_inputs(pixels)))
        x = self._trunk(inputs_embeds=x).last_hidden_state[:, 1:]
        last = vision.encoder.layers[-1]
        x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
        x = x + last.mlp(last.layer_norm2(x))
        cells: Tensor = model.visual_projection(vision.post_layernorm(x))
        return cells


class _SiglipTowers(_HubTowers):
    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """Tokenize as SigLIP was trained: lower case, padded to full length, and no attention mask."""
        length = self.module.config.text_config.max_position_embeddings
        lower = [text.lower() for text in texts]
        tokens = self.tokenizer(lower, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return {"input_ids": tokens["input_ids"]}

    def vision_inputs(self, pixels: Tensor) -> dict[str, Any]:
        own = tuple(pixels.shape[-2:]) == (self.module.config.vision_config.image_size,) * 2
        return {"pixel_values": pixels, "interpolate_pos_encoding": not own}

    def map_features(self, pixels: Tensor) -> Tensor:
        """Tokens of the patches, before the pooling head.

        Args:
            pixels: Shape [n, 3, height, width].

        Returns:
            Shape [n, rows * columns, k].
        """
        tokens: Tensor = self.module.vision_model(**self.vision_inputs(pixels)).last_hidden_state
        return tokens

    def embed(self, features: Tensor) -> Tensor:
        """Run the pooling head on each token alone: a softmax over one key is 1, so this is its value path, exactly.

        Values are linear in tokens, so the mean of some tokens gives what the head makes of them all alike.

        Args:
            features: Tokens or means of tokens, shape [n, k].

        Returns:
            Shape [n, d], not normalised.
        """
        pooled: Tensor = self.module.vision_model.head(features.unsqueeze(1))
        return pooled


class _NaflexTowers(_SiglipTowers):
    def vision_inputs(self, pixels: Tensor) -> dict[str, Any]:
        """Cut pixels into the flat patches of NaFlex, colours last, no padding."""
        n, colours, height, width = pixels.shape
        side: int = self.module.config.vision_config.patch_size
        rows, columns = height // side, width // side
        patches = pixels.view(n, colours, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
        return {
            "pixel_values": patches.reshape(n, rows * columns, -1),
            "pixel_attention_mask": torch.ones(n, rows * columns, dtype=torch.int32, device=pixels.device),
            "spatial_shapes": torch.tensor([[rows, columns]], device=pixels.device).expand(n, -1),
        }


_FAMILIES: dict[str, Callable[..., _HubTowers]] = {
    "clip": _ClipTowers,
    "siglip": _SiglipTowers,
    "siglip2": _NaflexTowers,
}
"""``model_type`` → towers. Fixed-resolution SigLIP2 checkpoints say "siglip"; "siglip2" are the NaFlex ones."""


def _family(name: str, config: Any) -> Callable[..., _HubTowers]:
    if config.model_type not in _FAMILIES:
        raise EncoderUnavailable(
            f"{name} is a '{config.model_type}' model; those of type {', '.join(_FAMILIES)} can be used here."
        )
    return _FAMILIES[config.model_type]


def _wrap(name: str, model: Any, tokenizer: Any, images: Any, logit_scale: float) -> Towers:
    config = model.config
    towers = _family(name, config)
    vision = config.vision_config
    # NaFlex has a number of patches instead of a size; a square of them is a shape it was trained on too.
    side = int(vision.num_patches**0.5) if config.model_type == "siglip2" else vision.image_size // vision.patch_size
    # Where patches do not tile the input (SigLIP's 384 by 14), the convolution would ignore a strip at the border.
    pixels = side * vision.patch_size
    mean, std = images.image_mean, images.image_std
    return towers(
        module=model,
        size=(pixels, pixels),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        logit_scale=logit_scale,
        cell=vision.patch_size,
        tokenizer=tokenizer,
    )


def _pooled(output: Any) -> Tensor:
    """Unwrap features: transformers 5 returns them inside a model output, older versions as a tensor."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def _scale(model: Any) -> float:
    return float(model.logit_scale.detach().float().exp().flatten()[0])
