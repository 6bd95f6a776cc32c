"""Real LiteLLM proxies for tests, in processes of their own, and a server that stands for providers beside OpenAI."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

MASTER_KEY = "sk-test-0123456789abcdef"
PATIENCE_S = 240

_ROOT = Path(__file__).parents[2]
_ANSWERS: dict[str, Any] = {
    "messages": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [{"type": "text", "text": "one"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    },
    "embeddings": {
        "object": "list",
        "model": "m",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    },
    "generateContent": {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "one"}]}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
    },
    # Cohere, and Titan on Bedrock.
    "embed": {"id": "e1", "embeddings": {"float": [[0.5]]}, "texts": [], "meta": {"billed_units": {"input_tokens": 1}}},
    "invoke": {"embedding": [0.5], "inputTextTokenCount": 1},
    "files": {
        "id": "file-1",
        "object": "file",
        "bytes": 1,
        "created_at": 0,
        "filename": "batch.jsonl",
        "purpose": "batch",
        "status": "processed",
    },
    "moderations": {"id": "modr_1", "model": "m", "results": []},
    "edits": {"created": 0, "data": [{"b64_json": "aGk="}]},
    "completions": {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "one"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    },
}


@dataclass(frozen=True)
class Received:
    """A request as it came to a provider."""

    path: str
    content_type: str
    raw: bytes = field(repr=False)

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)

    @property
    def files(self) -> list[Image.Image]:
        """The images of a form."""
        boundary = re.search(r"boundary=([^;]+)", self.content_type)[1].strip('"').encode()
        parts = [part.partition(b"\r\n\r\n") for part in self.raw.split(b"--" + boundary)]
        return [Image.open(io.BytesIO(data[:-2])).convert("RGB") for head, _, data in parts if b"filename=" in head]


@contextmanager
def provider() -> Iterator[tuple[str, list[Received]]]:
    """A server that answers anything at once; its address, and what it is sent."""
    received: list[Received] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(Received(self.path, self.headers["Content-Type"], data))
            # Google's paths end with a colon and a verb, and may have a key.
            verb = re.split("[/:]", self.path.partition("?")[0])[-1]
            answer = json.dumps(_ANSWERS[verb.replace("streamG", "g")]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


@dataclass(frozen=True)
class Proxy:
    """A running proxy.

    Attributes:
        url: Its address.
        log: What it prints.
        told: What its loggers were told, one line each.
    """

    url: str
    log: Path
    told: Path


def started(command: list[str], folder: Path, port: int, **variables: str) -> subprocess.Popen[bytes]:
    """A process whose output goes to a file, with this checkout on its path and no word to the network."""
    environment = {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "integrations")]),
        "LITELLM_MASTER_KEY": MASTER_KEY,
        **variables,
    }
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def proxy_command(config: dict[str, Any], folder: Path, port: int) -> list[str]:
    """How to start a proxy with the colour encoder; its config goes to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    program = Path(__file__).with_name("colour_proxy.py")
    return [sys.executable, str(program), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]


def await_health(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    """Wait until a proxy serves; an assertion fails if it ends instead."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder / "log").read_text()[-4000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).close()
        except OSError:
            time.sleep(0.25)
        else:
            return
    raise AssertionError(f"the proxy did not start:\n{(folder / 'log').read_text()[-4000:]}")


def stopped(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def proxies(configs: dict[str, dict[str, Any]], folder: Path) -> Iterator[dict[str, Proxy]]:
    """Run proxies, one for each config."""
    running = {}
    try:
        for name, config in configs.items():
            port, own = free_port(), folder / name
            command = proxy_command(config, own, port)
            running[name] = (started(command, own, port, TOLD=str(own / "told")), port)
        for name, (process, port) in running.items():
            await_health(process, port, folder / name)
        yield {
            name: Proxy(f"http://127.0.0.1:{port}", folder / name / "log", folder / name / "told")
            for name, (_, port) in running.items()
        }
    finally:
        for process, _ in running.values():
            stopped(process)
