"""Scaling attacks: images that show a model something else than a person. Detection, renderings, and low-pass."""

from guardalign_guardrails.images.scaling.detector import ScaledPair, ScalingFinding, find_scaling
from guardalign_guardrails.images.scaling.lowpass import quiet, renderings

__all__ = ["ScaledPair", "ScalingFinding", "find_scaling", "quiet", "renderings"]
