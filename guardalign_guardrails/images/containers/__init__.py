"""File headers read by ourselves, before Pillow sees a byte.

An image's size, its frames and its metadata are where decoders are attacked: headers that lie, directories that point
everywhere, comments longer than the image. Each module here walks one format, refuses what is out of bounds, and
hands on only the parts that make pixels. Nothing here decodes pixels.
"""

from __future__ import annotations

from guardalign_guardrails.images.containers.common import Container
from guardalign_guardrails.images.containers.inspect import announces_image, inspect, media_type, sniff

__all__ = ["Container", "announces_image", "inspect", "media_type", "sniff"]
