"""How content that was not checked can be had checked, by the code of why it was not.

For developers: errors, logs and verdicts say it. What users and models read says nothing of it, because an attacker
reads that too. Letting it pass is no remedy; where that is set comes last.
"""

from __future__ import annotations

from typing import Final

from guardalign_guardrails.fetch.refusals import REMEDIES as OF_FETCHING
from guardalign_guardrails.images.limits import REMEDIES as OF_DECODING

_OF_CONTENT: Final = {
    "file_reference": "Send the file's own bytes, as base64 or a data URL, instead of an id or a path.",
    "malformed": "Send it as standard base64 or as a data URL with a media type.",
    "no_locator": "Give the block exactly one place where its image is.",
    "several_locators": "Give the block exactly one place where its image is.",
    "remote_reference": "Let the policy fetch it (fetch.allowed_hosts, docs/fetch.md), or send it as base64.",
    "too_complex": "Nest the content less deeply, or send its images in blocks of their own.",
    "unsupported_block": "Convert it to images and send these (of a PDF its pages, of a video frames, as PNG or JPEG).",
    "unsupported_endpoint": "Send it to an endpoint whose requests are read, or check it with Guard.check before.",
    "over_budget": "Send fewer images at once, or raise failure.max_images.",
}
_OF_FAILURES: Final = {
    "overloaded": "Try again later; or raise failure.max_waiting, failure.max_wait_s or the guard's max_concurrent.",
    "timeout": "Try again later, or raise failure.timeout_s.",
}
_REMEDIES: Final = {
    **OF_DECODING,
    **OF_FETCHING,
    **_OF_CONTENT,
    "unsupported_format": (
        "Convert it to PNG or JPEG (of a PDF its pages, of a video frames; HEIC needs the extra heif)."
    ),
}
_ELSE: Final = "See the log for the error and try again."
_LAST: Final = " To let such content pass unchecked instead, see failure.{rule} in the policy."
_RULES: Final = {"overloaded": "on_overload", "timeout": "on_timeout"}


def remedy_for(uninspectable: str | None, failure: str | None) -> str:
    """What a developer can do to have it checked.

    Args:
        uninspectable: Code of why it could not be opened; None if it could.
        failure: Why detection failed, an error's class name, ``timeout`` or ``overloaded``; None if it did not.
    """
    if uninspectable is None:
        rule = _RULES.get(failure or "", "on_error")
        return _OF_FAILURES.get(failure or "", _ELSE) + _LAST.format(rule=rule)
    return _REMEDIES.get(uninspectable, _OF_CONTENT["unsupported_block"]) + _LAST.format(rule="uninspectable")
