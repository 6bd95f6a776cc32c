"""Image URLs → bytes, without letting a URL reach what it should not. Knows nothing of images, policy or frameworks."""

from __future__ import annotations

from guardalign_guardrails.fetch.fetcher import Fetcher
from guardalign_guardrails.policy.fetch import FetchRules

__all__ = ["FetchRules", "Fetcher"]
