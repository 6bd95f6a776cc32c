"""What came of a call of a client, and what of an image is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from with_clients.matrix_images import pixels, shows
from with_clients.provider_servers import ProviderServer
from with_clients.wire_images import carries, images_in


@dataclass(frozen=True)
class Sent:
    """What came of a call.

    Attributes:
        body: The request as it came to the server; None if there was none.
        answer: What the model answered; None if it raised.
        error: What it raised.
    """

    body: bytes | None = field(repr=False)
    answer: Any = None
    error: Exception | None = None


def sent_by(server: ProviderServer, ask: Callable[[], Any]) -> Sent:
    """What one call sends to a server."""
    server.requests.clear()
    answer = error = None
    try:
        answer = ask()
    except Exception as raised:  # noqa: BLE001  a client may raise anything
        error = raised
    bodies = [request.raw for request in server.requests]
    assert len(bodies) <= 1
    return Sent(bodies[0] if bodies else None, answer, error)


def arrives(sent: Sent, image: bytes) -> bool:
    """Whether an image's pixels are in a request."""
    return sent.body is not None and pixels(image) in [found.tobytes() for found in images_in(sent.body)]


def fails_alike(guarded: Sent, bare: Sent) -> bool:
    """Whether a guarded client raises what the bare one raises, and sends nothing."""
    return guarded.body is None and type(guarded.error) is type(bare.error)


def shows_nothing_of(sent: Sent, image: bytes, colour: tuple[int, int, int]) -> bool:
    return sent.body is None or not (
        carries(sent.body, image) or any(shows(found, colour) for found in images_in(sent.body))
    )
