"""Turns an encoder's name into an encoder; the one place that does.

Nothing is imported or read here beyond looking whether a path exists: weights load when the encoder is first used. An
encoder that is not available is an error; no other one takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from guardalign_guardrails.detection.encoders.base import Encoder
from guardalign_guardrails.detection.encoders.open_clip import OpenClipEncoder
from guardalign_guardrails.detection.encoders.transformers import TransformersEncoder
from guardalign_guardrails.errors import EncoderUnavailable

Options = dict[str, Any]
"""Of ``device``, ``dtype`` and ``batch_size``, those that were given."""

FORMS = "offline | open_clip:MODEL/TAG | open_clip:MODEL/PATH_TO_WEIGHTS | transformers:REPO_OR_FOLDER | FOLDER"
"""Every way to write an encoder, for messages and help texts."""


def load_encoder(
    spec: str,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
) -> Encoder:
    """Make the encoder of a name.

    Args:
        spec: ``offline``; ``open_clip:MODEL/TAG`` such as ``open_clip:ViT-L-14/openai``; ``open_clip:MODEL/PATH`` with
            a weights file (an absolute path gives two slashes); ``transformers:REPO_OR_FOLDER``; or a folder with a
            ``config.json`` (transformers) or an ``open_clip_config.json`` (open_clip).
        device: Where to run; None for the encoder's own choice.
        dtype: Floating-point type to run in; None for the encoder's own choice.
        batch_size: Most texts or crops in one forward pass; None for the encoder's own choice.

    Returns:
        An encoder that loads its weights on first use.

    Raises:
        EncoderUnavailable: If ``spec`` has none of these forms.
    """
    given: Options = {"device": device, "dtype": dtype, "batch_size": batch_size}
    options = {key: value for key, value in given.items() if value is not None}
    prefix, _, rest = spec.partition(":")
    factory = _PREFIXES.get(prefix)
    encoder = factory(rest, options) if factory else _from_folder(spec, options)
    if encoder is None:
        raise EncoderUnavailable(f"'{spec}' is no encoder; write one of: {FORMS}")
    return encoder


def _offline(rest: str, options: Options) -> Encoder | None:
    if rest:
        return None
    from guardalign_guardrails.detection.encoders.offline import OfflineEncoder

    return OfflineEncoder(**options)


def _open_clip(rest: str, options: Options) -> Encoder | None:
    if rest.startswith(("hf-hub:", "local-dir:")):
        return OpenClipEncoder(rest, None, **options)
    model, _, pretrained = rest.partition("/")
    return OpenClipEncoder(model, pretrained, **options) if model and pretrained else None


def _transformers(rest: str, options: Options) -> Encoder | None:
    return TransformersEncoder(rest, **options) if rest else None


def _from_folder(spec: str, options: Options) -> Encoder | None:
    return next((make(spec, options) for file, make in _FOLDERS.items() if Path(spec, file).is_file()), None)


_PREFIXES: dict[str, Callable[[str, Options], Encoder | None]] = {
    "offline": _offline,
    "open_clip": _open_clip,
    "transformers": _transformers,
}
_FOLDERS: dict[str, Callable[[str, Options], Encoder | None]] = {
    "config.json": _transformers,
    "open_clip_config.json": lambda folder, options: _open_clip(f"local-dir:{folder}", options),
}
