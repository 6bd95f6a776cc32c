"""Masks of requests that edit images: they say by their transparency what may be edited.

The guard's own opaque reading cannot take the place of one. It stays as it is where all that can be seen in it was
scored and may pass; one that would have to change may not go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from guardalign_guardrails.content.dialect import Path
from guardalign_guardrails.content.payload import Ambiguous, read_bytes
from guardalign_guardrails.verdict import Verdict

MASKS: Final = frozenset({"input_image_mask", "markup", "mask"})
"""Keys under which requests have them, in lower case."""


def is_mask(path: Path) -> bool:
    """Whether the value at a path of a body is a mask: a member of the body, or a setting of a tool."""
    key = next((step for step in path if step != "extra_body"), None)
    return str(key).lower() in MASKS or path[-1:] == ("input_image_mask",)


def may_stay(value: Any, verdicts: Sequence[Verdict]) -> bool:
    """Whether a mask may go on as it came, although the guard would write another image for it.

    Args:
        value: Of the body.
        verdicts: On all images in it.
    """
    return _is_plain(value) and all(map(_is_seen, verdicts))


def _is_seen(verdict: Verdict) -> bool:
    """Whether nothing but its transparency leaves open what a model sees.

    The image over black, over white and without its transparency was scored.
    """
    return verdict.delivery == "original" or (
        verdict.delivery == "canonical" and set(verdict.delivery_reasons) == {"alpha"}
    )


def _is_plain(value: Any) -> bool:
    """Whether every server reads the same image from a value: its bytes, or unambiguous base64."""
    data = value.get("image_url") if isinstance(value, Mapping) else value
    return isinstance(data, bytes | str) and not isinstance(read_bytes(data, len(data)), Ambiguous | str)
