"""A server on the loopback that hands on every request as it came; what it answers depends on the protocol."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Send = Callable[[bytes], None]
Respond = Callable[[str, bytes, str], tuple[str, Callable[[Send], None]]]
"""Given a request's path, body and content type: the content type of the answer, and a function that sends it."""


@contextmanager
def listening(respond: Respond) -> Iterator[str]:
    """Answer each POST on a free port of 127.0.0.1 until the block ends; yields the server's address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content_type, write = respond(self.path, self.read_body(), self.headers["Content-Type"])
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            # A client may go away before its answer is there.
            with contextlib.suppress(OSError):
                write(self.send)

        def read_body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def send(self, data: bytes) -> None:
            self.wfile.write(data)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    class Listening(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # the default of 5 lets a burst of connections wait a second

    with Listening(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
