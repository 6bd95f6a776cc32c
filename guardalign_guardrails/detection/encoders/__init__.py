"""Encoders: texts and images into one space. Importing this loads no model library."""

from guardalign_guardrails.detection.encoders.base import Box, Crop, Encoder
from guardalign_guardrails.detection.encoders.open_clip import OpenClipEncoder
from guardalign_guardrails.detection.encoders.registry import load_encoder
from guardalign_guardrails.detection.encoders.transformers import TransformersEncoder

__all__ = ["Box", "Crop", "Encoder", "OpenClipEncoder", "TransformersEncoder", "load_encoder"]
