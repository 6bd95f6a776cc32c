"""Finds a model's text decoder and its self-attention modules, for any model family. It changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.distributed import ProcessGroup

from guardalign_guardrails.errors import CalibrationError


@dataclass(frozen=True)
class Decoder:
    """The text half of a model.

    Attributes:
        text_model: The module whose forward runs all decoder layers.
        config: Its config.
        key: Name of that config within the model's; None if it is the model's own.
        attention: Self-attention modules by layer; layers without softmax scores (linear attention) are not in it.
        depth: Number of decoder layers.
    """

    text_model: nn.Module = field(repr=False)
    config: Any = field(repr=False)
    key: str | None
    attention: dict[int, nn.Module] = field(repr=False)
    depth: int

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        heads: int = self.config.num_attention_heads
        return heads

    def past_length(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        """Tokens before a call of the text model."""
        return cached_length(args, kwargs)


def find_decoder(model: Any) -> Decoder:
    """The decoder of a transformers model.

    Raises:
        CalibrationError: The model's attention does not go through transformers' registry, or no decoder is found.
    """
    get_text_config = getattr(getattr(model, "config", None), "get_text_config", None)
    if get_text_config is None:
        raise CalibrationError(f"{type(model).__name__} is no model of a transformers version with a registry.")
    config = get_text_config(decoder=True)
    owners = [m for m in model.modules() if getattr(m, "config", None) is config and _layers(m) is not None]
    if not owners:
        raise CalibrationError(f"{type(model).__name__} has no decoder that can be calibrated.")
    text_model = owners[-1]
    if not getattr(text_model, "_supports_attention_backend", False):
        raise CalibrationError(
            f"{type(text_model).__name__} cannot be calibrated: its attention is not taken from transformers' registry."
        )
    attention = {
        module.layer_idx: module
        for module in text_model.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
        and "Attention" in type(module).__name__
        and "Cross" not in type(module).__name__
        and "Linear" not in type(module).__name__
    }
    key = next((name for name in model.config.sub_configs if getattr(model.config, name, None) is config), None)
    return Decoder(text_model, config, key, dict(sorted(attention.items())), config.num_hidden_layers)


def cross_attention(decoder: Decoder) -> list[nn.Module]:
    """Cross-attention modules that use the same registry; calibration leaves them as they are."""
    return [
        module
        for module in decoder.text_model.modules()
        if "Attention" in type(module).__name__
        and isinstance(getattr(module, "layer_idx", None), int)
        and module not in decoder.attention.values()
    ]


def cached_length(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Tokens in the cache that a text model is called with: a cache of transformers, or tuples of keys and values.

    Tuples are looked for in ``past_key_values`` only, keys of shape [B, G, K, D].
    """
    # By its method: transformers 5.24 renamed the argument, and without the cache calibration would end there.
    cache = next((value for value in (*kwargs.values(), *args) if hasattr(value, "get_seq_length")), None)
    if cache is not None:
        return int(cache.get_seq_length())
    layers = kwargs.get("past_key_values")
    return int(layers[0][0].shape[2]) if layers and layers[0] is not None else 0


def is_split(model: Any) -> bool:
    """Whether each of several processes has some of a model's heads (tensor parallel, by transformers)."""
    return (getattr(model, "tp_size", None) or 1) > 1


def tensor_parallel_group(model: Any) -> ProcessGroup | None:
    """The process group that a model's heads are split over; None if they are not split.

    Raises:
        CalibrationError: They are, and transformers does not say over which.
    """
    if not is_split(model):
        return None
    mesh = getattr(model, "_device_mesh", None)
    if mesh is None:
        raise CalibrationError("The model is split over processes, and transformers does not say over which.")
    group: ProcessGroup = mesh.get_group("tp") if "tp" in (mesh.mesh_dim_names or ()) else mesh.get_group()
    return group


def _layers(module: nn.Module) -> nn.ModuleList | None:
    layers = getattr(module, "layers", None)
    return layers if isinstance(layers, nn.ModuleList) else None
