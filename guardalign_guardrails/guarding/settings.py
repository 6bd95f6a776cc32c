"""Settings to a guard, made once per settings.

Frameworks rebuild their components from settings for every call, copy and process; without this each would load the
encoder's weights again and start with an empty verdict cache.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from guardalign_guardrails.detection.encoders import Encoder, load_encoder
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.policy import Policy


@lru_cache(maxsize=8)
def guard_for(policy: str, encoder: str, profile: Path | None, cache_dir: Path | None) -> Guard:
    """The guard for a policy (as JSON), an encoder's name, a profile and a cache folder."""
    return Guard(Policy.from_yaml(policy), _encoder(encoder), profile=profile, cache_dir=cache_dir)


@lru_cache(maxsize=2)
def _encoder(name: str) -> Encoder:
    return load_encoder(name)
