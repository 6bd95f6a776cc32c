"""Consumers: how models and common pipelines resize the images they are given. Knows no detection and no policy."""

from guardalign_guardrails.images.consumers.registry import DEFAULT, Consumer, load_consumers, names
from guardalign_guardrails.images.consumers.samplers import AVERAGING, SAMPLERS, Sampler, matrix, resize, taps

__all__ = [
    "AVERAGING",
    "DEFAULT",
    "SAMPLERS",
    "Consumer",
    "Sampler",
    "load_consumers",
    "matrix",
    "names",
    "resize",
    "taps",
]
