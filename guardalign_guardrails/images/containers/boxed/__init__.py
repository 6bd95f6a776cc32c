"""Formats made of boxes: AVIF and HEIC (items in a media file) and JPEG 2000."""

from __future__ import annotations

from guardalign_guardrails.images.containers.boxed.heif import heif_format, read_avif, read_heif
from guardalign_guardrails.images.containers.boxed.jp2 import read_jp2

__all__ = ["heif_format", "read_avif", "read_heif", "read_jp2"]
