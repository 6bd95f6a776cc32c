"""CLIP-family models through open_clip: what to deploy with.

Crops go through the model's own image path. Dense features follow MaskCLIP (Zhou et al. 2022, arXiv 2112.01071): the
last attention is replaced by its value path, which keeps each cell's own meaning and needs no training and no patching.
No pretrained CLIP could be downloaded where this was written: it was exercised with small random models and with
weights saved to and loaded from local files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from guardalign_guardrails.detection.encoders.two_tower import Towers, TwoTowerEncoder, first_line, pick_device
from guardalign_guardrails.errors import EncoderUnavailable

_INSTALL = "open_clip is not installed; run: pip install 'guardalign-guardrails[open-clip]'"
_SCHEMAS = ("hf-hub:", "local-dir:")
"""Prefixes of model names that bring their own weights."""


class OpenClipEncoder(TwoTowerEncoder):
    """Text and image features of an open_clip model.

    Weights published by OpenAI, and a few others, need the QuickGELU activation. A tag says so and is obeyed; a weights
    *file* says nothing, so name the architecture that fits it, such as ``ViT-L-14-quickgelu``.
    """

    def __init__(
        self,
        model: str = "ViT-L-14",
        pretrained: str | None = "openai",
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
        name: str | None = None,
    ) -> None:
        """Remember what to load; the first call that needs the model loads it.

        Args:
            model: Architecture known to open_clip, or ``local-dir:PATH`` or ``hf-hub:REPO``.
            pretrained: Tag of published weights, or a local weights file; None with a prefix, which brings its own.
            device: Where to run; None for CUDA when there is one, else the CPU.
            dtype: Floating-point type to run in.
            batch_size: Most texts or crops in one forward pass.
            name: What to call this encoder; None for ``open_clip:MODEL/PRETRAINED``.
        """
        own_weights = model.startswith(_SCHEMAS)
        spec = f"open_clip:{model}" if own_weights else f"open_clip:{model}/{pretrained}"
        super().__init__(name or spec, device=device, dtype=dtype, batch_size=batch_size)
        self._model = model
        self._pretrained = None if own_weights else pretrained

    @classmethod
    def from_modules(
        cls,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        size: int | tuple[int, int],
        name: str,
        *,
        batch_size: int = 64,
    ) -> OpenClipEncoder:
        """Wrap a model that is already in memory, on its device and in its precision.

        Args:
            model: What ``open_clip.create_model`` returns; put into eval mode.
            tokenizer: What ``open_clip.get_tokenizer`` returns.
            mean: Colour mean of the model's preprocessing.
            std: Colour standard deviation of the model's preprocessing.
            size: Input size in pixels, or height and width.
            name: What to call this encoder.
            batch_size: Most texts or crops in one forward pass.

        Returns:
            An encoder that has nothing left to load.

        Raises:
            EncoderUnavailable: If open_clip is not installed.
        """
        encoder = cls(name=name, batch_size=batch_size)
        encoder._is_given = True
        encoder._ready = _wrap(model.eval(), tokenizer, mean, std, size, _scale(model))
        return encoder

    def _load(self) -> Towers:
        try:
            import open_clip
        except ImportError as error:
            raise EncoderUnavailable(_INSTALL) from error
        quick_gelu = self._check(open_clip)
        try:
            model = open_clip.create_model(
                self._model,
                self._pretrained,
                device="cpu",
                force_quick_gelu=quick_gelu,
                # open_clip otherwise goes on with random weights, which a guardrail must never do.
                require_pretrained=True,
            )
            tokenizer = open_clip.get_tokenizer(self._model)
        except Exception as error:
            raise EncoderUnavailable(
                f"{self._name} could not be loaded ({first_line(error)}); fetch it once with network access, or give "
                "a local weights file: open_clip:MODEL/path/to/weights.safetensors"
            ) from error
        logit_scale = _scale(model)
        model = model.to(pick_device(self._device), self._dtype).eval()
        shape = model.visual.preprocess_cfg
        return _wrap(model, tokenizer, shape["mean"], shape["std"], shape["size"], logit_scale)

    def _check(self, library: Any) -> bool:
        """Refuse names open_clip does not know, with the ones it does; say whether the tag needs QuickGELU."""
        if self._model.startswith(_SCHEMAS):
            return False
        if library.get_model_config(self._model) is None:
            raise EncoderUnavailable(
                f"open_clip has no model '{self._model}'; see open_clip.list_models(), such as ViT-L-14 or ViT-B-32."
            )
        tag = library.get_pretrained_cfg(self._model, self._pretrained or "")
        if not tag and not (self._pretrained and Path(self._pretrained).is_file()):
            tags = ", ".join(library.list_pretrained_tags_by_model(self._model)) or "none"
            raise EncoderUnavailable(
                f"{self._name}: '{self._pretrained}' is neither a weights file nor a tag of {self._model} "
                f"(its tags: {tags})."
            )
        return bool(tag.get("quick_gelu", False))


@dataclass
class _OpenClipTowers(Towers):
    tokenizer: Callable[[list[str]], Tensor]
    dense: Callable[[Any, Tensor], Tensor] | None

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        return {"text": self.tokenizer(texts)}

    def text_features(self, tokens: dict[str, Tensor]) -> Tensor:
        features: Tensor = self.module.encode_text(tokens["text"])
        return features

    def image_features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.module.encode_image(pixels)
        return features

    def map_features(self, pixels: Tensor) -> Tensor:
        if self.dense is None:
            raise EncoderUnavailable("This model has no dense features; use regions method 'grid'.")
        return self.dense(self.module.visual, pixels)


def vit_cells(visual: Any, pixels: Tensor) -> Tensor:
    """Joint-space features of the patches of open_clip's VisionTransformer, the MaskCLIP way.

    All blocks but the last run as usual; in the last, the attention output of a patch becomes the output projection of
    its own value. Residuals, MLP, final norm and projection stay. Position embeddings are interpolated as open_clip
    does when it loads a checkpoint at another size (bicubic, antialiased).

    Args:
        visual: The vision tower.
        pixels: Shape [n, 3, height, width], sides multiples of the patch.

    Returns:
        Shape [n, rows * columns, d], not normalised.
    """
    x = visual.conv1(pixels)
    positions = _positions(visual.positional_embedding, visual.grid_size, (x.shape[-2], x.shape[-1]))
    x = x.flatten(2).transpose(1, 2)
    summary = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([summary, x], dim=1) + positions.to(x.dtype))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    x = x[:, 1:]
    width = x.shape[-1]
    attention = last.attn
    value = functional.linear(last.ln_1(x), attention.in_proj_weight[-width:], attention.in_proj_bias[-width:])
    x = x + last.ls_1(attention.out_proj(value))
    cells: Tensor = visual.ln_post(x + last.ls_2(last.mlp(last.ln_2(x))))
    return cells if visual.proj is None else cells @ visual.proj


def resnet_cells(visual: Any, pixels: Tensor) -> Tensor:
    """Joint-space features of the cells of CLIP's ResNet, the MaskCLIP way.

    The attention pool becomes two pointwise layers, its value and output projections. As in MaskCLIP its position
    embeddings are left out, so any multiple of 32 pixels will do.

    Args:
        visual: The vision tower.
        pixels: Shape [n, 3, height, width], sides multiples of 32.

    Returns:
        Shape [n, rows * columns, d], not normalised.
    """
    x = visual.stem(pixels)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = stage(x)
    pool = visual.attnpool
    cells: Tensor = pool.c_proj(pool.v_proj(x.flatten(2).transpose(1, 2)))
    return cells


def _positions(table: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    if grid == wanted:
        return table
    cells = table[1:].float().reshape(1, *grid, -1).permute(0, 3, 1, 2)
    cells = functional.interpolate(cells, size=wanted, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:1].float(), cells.flatten(2).transpose(1, 2)[0]])


def _wrap(
    model: Any,
    tokenizer: Callable[[list[str]], Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    size: int | Sequence[int],
    logit_scale: float,
) -> Towers:
    try:
        from open_clip.modified_resnet import ModifiedResNet
        from open_clip.transformer import VisionTransformer
    except ImportError as error:
        raise EncoderUnavailable(_INSTALL) from error
    height, width = (size, size) if isinstance(size, int) else (size[0], size[1])
    visual: Any = model.visual
    dense: Callable[[Any, Tensor], Tensor] | None = None
    cell: int | None = None
    if isinstance(visual, ModifiedResNet):
        dense, cell = resnet_cells, 32
    elif isinstance(visual, VisionTransformer):
        patch = visual.patch_size
        # Where patches do not tile the input, the convolution would ignore a strip at the right and bottom.
        height, width = height // patch[0] * patch[0], width // patch[1] * patch[1]
        if patch[0] == patch[1] and _has_value_path(visual):
            dense, cell = vit_cells, patch[0]
    return _OpenClipTowers(
        module=model,
        size=(height, width),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        logit_scale=logit_scale,
        cell=cell,
        tokenizer=tokenizer,
        dense=dense,
    )


def _has_value_path(visual: Any) -> bool:
    """Say whether the last block is plain attention: CoCa's pooler and normed or scaled attention are not."""
    attention = visual.transformer.resblocks[-1].attn
    return visual.attn_pool is None and isinstance(attention, nn.MultiheadAttention) and attention.batch_first


def _scale(model: Any) -> float:
    return float(model.logit_scale.detach().float().exp().flatten()[0])
