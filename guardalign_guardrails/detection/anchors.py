"""A policy's texts as features, encoded once.

The bank is kept in memory by the guard and on disk between runs, keyed by encoder and policy, so that start-up does not
encode hundreds of sentences again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guardalign_guardrails.detection.encoders.base import Encoder
from guardalign_guardrails.policy import Anchors, Policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AnchorBank:
    """Anchor features of one policy under one encoder.

    Attributes:
        features: Unit-length rows, categories in order, then benign, shape [A, d].
        names: Category keys, in order.
        sizes: Number of anchors of each category.
        texts: What each anchor says, length A.
    """

    features: Tensor
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    texts: tuple[str, ...]

    @property
    def unsafe_count(self) -> int:
        """Number of unsafe anchors; the benign ones follow them."""
        return sum(self.sizes)

    @cached_property
    def categories(self) -> tuple[Tensor, ...]:
        """Features of each category's anchors, shape [N_c, d] each."""
        return torch.split(self.features[: self.unsafe_count], self.sizes)

    @cached_property
    def groups(self) -> Tensor:
        """Membership of the anchors in the categories, 0 or 1, shape [C, A]; benign anchors are in none."""
        owner = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))
        groups = torch.zeros(len(self.sizes), len(self.features))
        groups[owner, torch.arange(self.unsafe_count)] = 1.0
        return groups

    @cached_property
    def centroids(self) -> Tensor:
        """Mean anchor of each category (GuardAlign eq. 7), not normalised, shape [C, d]."""
        return torch.stack([anchors.mean(0) for anchors in self.categories])


def build_bank(policy: Policy, encoder: Encoder, cache_dir: Path | None = None) -> AnchorBank:
    """Encode a policy's anchors, or read them from the disk cache.

    Args:
        policy: Whose anchors.
        encoder: With what.
        cache_dir: Folder of the cache, made if missing; None for no disk cache. A cache that cannot be read or
            written is passed over with a warning: it saves time, nothing else.

    Returns:
        The bank.
    """
    groups: list[Anchors] = [*policy.categories.values(), policy.benign]
    texts = tuple(text for group in groups for text in group.texts)
    sizes = tuple(len(group.texts) for group in policy.categories.values())
    path = None
    if cache_dir is not None:
        key = hashlib.sha256(f"{encoder.fingerprint}:{policy.anchor_fingerprint}".encode()).hexdigest()
        path = cache_dir / "anchors" / f"{key[:32]}.npy"
    features = _read(path, len(texts)) if path else None
    if features is None:
        features = torch.cat([_encode(group, policy.templates, encoder) for group in groups])
        if path:
            _write(path, features)
    return AnchorBank(features, tuple(policy.categories), sizes, texts)


def _encode(anchors: Anchors, templates: Sequence[str], encoder: Encoder) -> Tensor:
    """One unit row an anchor: concepts averaged over templates (prompt ensembling, Radford et al. 2021)."""
    filled = [template.replace("{}", concept) for concept in anchors.concepts for template in templates]
    encoded = encoder.encode_texts([*filled, *anchors.descriptions])
    concepts = encoded[: len(filled)].view(len(anchors.concepts), len(templates), encoded.shape[-1]).mean(1)
    return torch.nn.functional.normalize(torch.cat([concepts, encoded[len(filled) :]]), dim=-1)


def _read(path: Path, count: int) -> Tensor | None:
    try:
        stored = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.warning("Anchor cache entry %s is unreadable (%s) and is made anew.", path.name, type(error).__name__)
        return None
    if stored.ndim != 2 or stored.shape[0] != count or not np.isfinite(stored).all():
        logger.warning("Anchor cache entry %s does not fit and is made anew.", path.name)
        return None
    return torch.from_numpy(stored)


def _write(path: Path, features: Tensor) -> None:
    """Write beside the target and rename, so that no reader ever sees half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, features.numpy(), allow_pickle=False)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        logger.warning("The anchor cache cannot be written (%s); anchors are encoded at each start.", error.strerror)
