"""A real TLS server on the loopback, and a name service and dial that lead to it, for the fetcher's tests."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpcore
import trustme

PUBLIC = "93.184.216.34"
HOST = "img.example.org"

Answer = Callable[[socket.socket], None]


def reply(body: bytes = b"", status: str = "200 OK", *headers: str, length: int | None = None) -> Answer:
    """An answer with a content-length, true unless another is given."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body) if length is None else length}", "", ""]
    return raw("\r\n".join(lines).encode() + body)


def redirect(location: str, status: int = 302) -> Answer:
    return reply(b"", f"{status} Moved", f"Location: {location}")


def raw(*pieces: bytes, pause: float = 0.0) -> Answer:
    """An answer of exactly these bytes, with a pause after each piece."""

    def answer(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)

    return answer


def drip(text: bytes, pause: float) -> Answer:
    """An answer of one byte at a time."""
    return raw(*(text[i : i + 1] for i in range(len(text))), pause=pause)


@dataclass
class TlsServer:
    """Answers each path as told, 404 otherwise; notes what it was asked."""

    authority: trustme.CA
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[bytes] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    port: int = 0

    @property
    def paths(self) -> list[str]:
        return [request.split(b" ")[1].decode() for request in self.requests]

    @contextlib.contextmanager
    def running(self) -> Iterator[TlsServer]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(HOST, "cdn.example.org", "media.internal", PUBLIC, "127.0.0.1").configure_cert(
            context
        )
        context.sni_callback = lambda _, name, __: self.names.append(name)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            thread = threading.Thread(target=self._accept, args=(listener, context), daemon=True)
            thread.start()
            yield self
            # Wakes the blocked accept, which closing alone does not.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _accept(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._serve, args=(connection, context), daemon=True).start()

    def _serve(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        with connection, contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                if not (piece := secure.recv(65536)):
                    return
                request += piece
            self.requests.append(request)
            asked = request.split(b" ")[1].decode()
            answer = self.answers.get(asked) or self.answers.get(asked.partition("?")[0])
            (answer or reply(b"nothing here", "404 Not Found"))(secure)


@dataclass
class Network:
    """Stands in for the world: answers names as told, and leads every dialled address to the server."""

    server: TlsServer
    answers: dict[str, list[list[str]]] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    dialled: list[tuple[str, int]] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    _connect: Callable[..., httpcore.NetworkStream] = httpcore.SyncBackend.connect_tcp

    def resolve(self, host: str, port: int) -> list[str]:
        """The next answer for a name; the last one for ever after, a public address if none is given."""
        self.asked.append((host, port))
        answers = self.answers.get(host, [[PUBLIC]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def dial(self, host: str, port: int, timeout: float | None = None, **options: object) -> httpcore.NetworkStream:
        self.dialled.append((host, port))
        if host in self.closed:
            raise httpcore.ConnectError("connection refused")
        if host in self.silent:
            time.sleep(timeout or 0)
            raise httpcore.ConnectTimeout("timed out")
        return self._connect(httpcore.SyncBackend(), "127.0.0.1", self.server.port, timeout=timeout)
