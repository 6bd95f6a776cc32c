"""One request and its answer: an image's bytes, or where to look instead. Follows nothing itself. Needs httpcore."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import httpcore

from guardalign_guardrails.fetch.refusals import refusal
from guardalign_guardrails.fetch.target import Redirect, Target

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

# httpcore sets the protocols of the context it is given for each connection, which is not safe on one that other
# threads shake hands with. It gets this one, which trusts no certificate; `CheckedStream` uses the real one.
_UNUSED_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

_is_fetching: ContextVar[bool] = ContextVar("guardalign_is_fetching", default=False)


def get(target: Target, backend: httpcore.NetworkBackend, limit: int) -> bytes | Redirect:
    """Ask for an image over a connection of its own.

    Args:
        target: What to ask for.
        backend: Makes the connection.
        limit: Most bytes of an image.

    Returns:
        The image's bytes, at least one, or where to look instead.

    Raises:
        FetchRefused: ``url_status``, ``url_encoding``, ``url_empty``, ``too_large``, and what the backend refuses.
        httpcore.NetworkError: The connection broke; ``ProtocolError`` and ``TimeoutException`` likewise.
    """
    url = httpcore.URL(scheme=b"https", host=target.host.encode(), port=target.port, target=target.path.encode())
    headers = [
        (b"host", target.authority.encode()),
        (b"accept", b"image/*"),
        (b"accept-encoding", b"identity"),
        (b"user-agent", b"guardalign-guardrails"),
        (b"connection", b"close"),
    ]
    with (
        _unlogged(),
        httpcore.ConnectionPool(ssl_context=_UNUSED_TLS, network_backend=backend) as pool,
        pool.stream("GET", url, headers=headers) as response,
    ):
        return _read(response, limit)


def _read(response: httpcore.Response, limit: int) -> bytes | Redirect:
    fields = _fields(response)
    if response.status in _REDIRECTS and b"location" in fields:
        return Redirect(fields[b"location"][0])
    if response.status != 200:
        raise refusal("url_status")
    if any(value.strip().lower() not in (b"", b"identity") for value in fields.get(b"content-encoding", ())):
        raise refusal("url_encoding")
    if any(int(value) > limit for value in fields.get(b"content-length", ())):
        raise refusal("too_large")
    body = bytearray()
    # Counted whatever the header says, which may be missing.
    for chunk in response.iter_stream():
        body += chunk
        if len(body) > limit:
            raise refusal("too_large")
    if not body:
        raise refusal("url_empty")
    return bytes(body)


def _fields(response: httpcore.Response) -> dict[bytes, list[bytes]]:
    fields: dict[bytes, list[bytes]] = {}
    for name, value in response.headers:
        fields.setdefault(name.lower(), []).append(value)
    return fields


class _Unlogged(logging.Filter):
    """Drops httpcore's records of our own requests, which name hosts and headers. Records of other users of it stay."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _is_fetching.get()


@contextmanager
def _unlogged() -> Iterator[None]:
    token = _is_fetching.set(True)
    try:
        yield
    finally:
        _is_fetching.reset(token)


for _name in ("httpcore.connection", "httpcore.http11"):
    logging.getLogger(_name).addFilter(_Unlogged())
