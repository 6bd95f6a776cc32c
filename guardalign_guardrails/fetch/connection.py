"""The sockets: they go to addresses that were checked, and end by the deadline.

A name is looked up here, once per connection, every answer is checked, and the very address that was checked is dialled
as a literal, so that a name cannot point elsewhere between check and use. TLS still verifies the name. Needs httpcore.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

import httpcore

from guardalign_guardrails.fetch.addresses import Address, check
from guardalign_guardrails.fetch.deadline import Deadline, Lookups
from guardalign_guardrails.fetch.refusals import refusal
from guardalign_guardrails.policy.fetch import FetchRules
from guardalign_guardrails.policy.hosts import is_address

Resolve: TypeAlias = Callable[[str, int], Iterable[str]]
"""A host name and port → its addresses as text, best first. May block and may raise OSError."""

# A name may have any number of addresses; so many of them are tried.
_MAX_TRIED: Final = 4


def system_resolve(host: str, port: int) -> list[str]:
    """Addresses of a host by the system's resolver, in its order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Connector:
    """What all fetches of one fetcher share: how names are looked up and servers verified."""

    def __init__(self, rules: FetchRules, tls: ssl.SSLContext | None = None, resolve: Resolve | None = None) -> None:
        """Take the rules, and None for the usual authorities and the system's resolver."""
        self.rules = rules
        self.tls = tls or httpcore.default_ssl_context()
        self._resolve = resolve or system_resolve
        self._lookups = Lookups()

    def backend(self, deadline: Deadline, allowance: int) -> CheckedBackend:
        """What makes the connections of one fetch.

        Args:
            deadline: By which everything ends.
            allowance: Most bytes to read from one connection, headers and framing included.
        """
        return CheckedBackend(self, deadline, allowance)

    def addresses(self, host: str, port: int, deadline: Deadline) -> list[Address]:
        """Where a host may be connected to, best first.

        Raises:
            FetchRefused: ``url_address`` if any of its addresses is one that may not be, ``url_unreachable`` if it has
                none, ``url_timeout``.
        """
        answers = [host]
        if not is_address(host):
            answers = self._lookups.run(lambda: list(self._resolve(host, port)), deadline)
        may_be_private = host in self.rules.private_hosts
        # All are checked, also those that are not tried: a name with a private address is not trusted with another.
        addresses = list(dict.fromkeys(check(answer, may_be_private=may_be_private) for answer in answers))
        if not addresses:
            raise refusal("url_unreachable")
        return addresses[:_MAX_TRIED]


class CheckedBackend(httpcore.NetworkBackend):
    """Connects one fetch: TCP to checked addresses only, no unix sockets."""

    def __init__(self, connector: Connector, deadline: Deadline, allowance: int) -> None:
        """Made by `Connector.backend`."""
        self._connector = connector
        self._deadline = deadline
        self._allowance = allowance
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to one of the host's addresses if all of them may be connected to.

        Raises:
            FetchRefused: ``url_address``, ``url_unreachable`` or ``url_timeout``.
        """
        addresses = self._connector.addresses(host, port, self._deadline)
        for place, address in enumerate(addresses):
            share = self._deadline.left() / (len(addresses) - place)
            try:
                stream = self._sockets.connect_tcp(str(address), port, timeout=share)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
            return CheckedStream(stream, self._connector.tls, self._deadline, self._allowance)
        self._deadline.left()
        raise refusal("url_unreachable")


class CheckedStream(httpcore.NetworkStream):
    """A connection on which every step gets the time that is left, and only so many bytes are read."""

    def __init__(self, stream: httpcore.NetworkStream, tls: ssl.SSLContext, deadline: Deadline, allowance: int) -> None:
        """Made by `CheckedBackend.connect_tcp`."""
        self._stream = stream
        self._tls = tls
        self._deadline = deadline
        self._allowance = allowance

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what has come.

        Raises:
            FetchRefused: ``url_timeout`` or ``too_large``.
        """
        data = self._stream.read(max_bytes, timeout=self._deadline.left())
        self._allowance -= len(data)
        if self._allowance < 0:
            raise refusal("too_large")
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of ``buffer``.

        Raises:
            FetchRefused: ``url_timeout``.
        """
        self._stream.write(buffer, timeout=self._deadline.left())

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Go on under TLS, verified by this stream's own context and not by the one given.

        Raises:
            FetchRefused: ``url_timeout``.
        """
        try:
            stream = self._stream.start_tls(self._tls, server_hostname, timeout=self._deadline.left())
        except BaseException:
            self.close()
            raise
        return CheckedStream(stream, self._tls, self._deadline, self._allowance)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore wants to know of the connection."""
        return self._stream.get_extra_info(info)
