"""The kinds of request that LiteLLM serves, and the client's part of a request's data."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from guardalign_guardrails.content.bodies import Form
from guardalign_guardrails.images.containers import sniff
from litellm_guardalign.version import litellm_version

_ALWAYS: Final = (0, 0)
_NEVER: Final = (1_000_000, 0)


@dataclass(frozen=True)
class RequestKind:
    """One kind of request.

    Attributes:
        form: How its body is read.
        refused_since: First version of LiteLLM that answers it with a refusal a client can read.
        streamed_since: First version that does so in a stream.
    """

    form: Form
    refused_since: tuple[int, int] = _NEVER
    streamed_since: tuple[int, int] = _NEVER


_CHAT: Final = RequestKind("chat", _ALWAYS, (1, 93))
_RESPONSES: Final = RequestKind("responses", (1, 105), (1, 105))
_CALLS: Final[Mapping[str, RequestKind]] = {
    "acompletion": _CHAT,
    "completion": _CHAT,
    "acompact_responses": RequestKind("responses"),
    "aresponses": _RESPONSES,
    "responses": _RESPONSES,
    "anthropic_messages": RequestKind("messages", _ALWAYS),
    # LiteLLM makes chats of them for models that complete nothing else.
    "atext_completion": RequestKind("chat", _ALWAYS),
    "text_completion": RequestKind("chat", _ALWAYS),
}
# Sound; and callers of a moderation API want it to see the image as it is.
_WITHOUT_IMAGES: Final = frozenset(
    {
        "amoderation",
        "aspeech",
        "atranscription",
        "moderation",
        "speech",
        "transcription",
    }
)
_OF_THE_PROXY: Final = frozenset({"guardrails", "metadata", "proxy_server_request", "secret_fields"})


def kind_of(call_type: str) -> RequestKind | None:
    """The kind of a request; None for one whose model sees no image."""
    return None if call_type in _WITHOUT_IMAGES else _CALLS.get(call_type, RequestKind("other"))


def can_refuse(kind: RequestKind, data: Mapping[str, Any]) -> bool:
    """Whether LiteLLM can answer a request with a refusal, in a stream if the client wants one."""
    return litellm_version() >= (kind.streamed_since if data.get("stream") else kind.refused_since)


def body_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The body that the client sent, with uploaded files as bytes."""
    return {
        key: _as_bytes(value)
        for key, value in data.items()
        if key not in _OF_THE_PROXY and not key.startswith("litellm_")
    }


def changes(data: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The values to replace in a request's data.

    Args:
        data: The data.
        before: Its `body_of`.
        after: That body, sanitised.
    """
    return {key: _like(data.get(key), value) for key, value in after.items() if before.get(key) is not value}


def _as_bytes(value: Any) -> Any:
    if isinstance(value, io.BytesIO):
        return value.getvalue()
    is_upload = isinstance(value, list) and any(isinstance(each, io.BytesIO) for each in value)
    return [_as_bytes(each) for each in value] if is_upload else value


def _like(old: Any, new: Any) -> Any:
    """Bytes as the file they were; LiteLLM reads a file's type from its name."""
    if isinstance(old, io.BytesIO) and isinstance(new, bytes):
        if new == old.getvalue():
            return old
        file = io.BytesIO(new)
        file.name = f"image.{(sniff(new) or 'bin').lower()}"
        return file
    if isinstance(old, list) and isinstance(new, list) and any(isinstance(each, io.BytesIO) for each in old):
        return [_like(each, other) for each, other in zip(old, new, strict=True)]
    return new
