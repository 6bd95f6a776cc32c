"""Digests by which two encoders are the same encoder.

Reference profiles are keyed by this digest, so it must change when features would change and must not change when
the same weights are read from another place. Hence it hashes contents and never a path or a name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import nn

_TRAITS = (
    "approximate",
    "attn_pool_type",
    "context_length",
    "eos_id",
    "eos_token_id",
    "eps",
    "final_ln_after_pool",
    "image_size",
    "num_heads",
    "pad_id",
    "padding",
    "patch_size",
    "pool_type",
    "stride",
    "text_eos_id",
    "text_pool_type",
)
"""Settings of modules that change features and leave no trace in the weights.

A fixed list, because everything else in a module's ``__dict__`` varies with the version of its library.
"""


def architecture(module: nn.Module) -> list[list[object]]:
    """Describe what a state dict does not contain: activations, head counts, strides.

    Args:
        module: Any module.

    Returns:
        One JSON-safe entry per layer: path, class name of a leaf, settings.
    """
    layers: list[list[object]] = []
    for path, child in module.named_modules():
        traits = {key: vars(child)[key] for key in _TRAITS if key in vars(child)}
        kind = type(child).__name__ if next(child.children(), None) is None else ""
        if kind or traits:
            layers.append([path, kind, traits])
    return layers


def weights_digest(module: nn.Module) -> str:
    """Hash every tensor of a state dict: name, shape, dtype and all of its bytes.

    Half a second per gigabyte (ViT-B/32, two busy CPU cores); callers keep the result.

    Args:
        module: Any module, on any device.

    Returns:
        SHA-256, hex.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint(module: nn.Module, settings: Mapping[str, object]) -> str:
    """Digest of a model and of everything around it that changes its features.

    Args:
        module: The loaded model, in the precision it runs in.
        settings: JSON-safe facts outside the model: preprocessing, what the tokenizer makes of a probe.

    Returns:
        SHA-256, hex.
    """
    facts = {"weights": weights_digest(module), "architecture": architecture(module), "settings": dict(settings)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
