"""A policy's texts as features, encoded once.

The bank is kept in memory by the guard and on disk between runs, keyed by encoder and policy, so that start-up does not
encode hundreds of sentences again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from guardalign_guardrails.detection.array_cache import cached
from guardalign_guardrails.detection.encoders.base import Encoder
from guardalign_guardrails.policy import Anchors, Policy


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
        return torch.split(self.features[: self.unsafe_count], list(self.sizes))

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
        cache_dir: Folder of the cache, made if missing; None for no disk cache.

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
    features = cached(
        path, len(texts), lambda: torch.cat([_encode(group, policy.templates, encoder) for group in groups])
    )
    return AnchorBank(features, tuple(policy.categories), sizes, texts)


def _encode(anchors: Anchors, templates: Sequence[str], encoder: Encoder) -> Tensor:
    """One unit row an anchor: concepts averaged over templates (prompt ensembling, Radford et al. 2021)."""
    filled = [template.replace("{}", concept) for concept in anchors.concepts for template in templates]
    encoded = encoder.encode_texts([*filled, *anchors.descriptions])
    concepts = encoded[: len(filled)].view(len(anchors.concepts), len(templates), encoded.shape[-1]).mean(1)
    return torch.nn.functional.normalize(torch.cat([concepts, encoded[len(filled) :]]), dim=-1)
