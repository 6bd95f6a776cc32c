"""What the guardrail adds to the latency of a LiteLLM proxy that serves twenty requests at once.

    python benchmarks/litellm_latency.py [--rounds 10] [--at-once 20] [--encoder offline]

One proxy, one run: rounds with the guardrail and without it take turns. The model behind the proxy is a server that
answers at once, so what differs is the guardrail's own work. Images are the examples'; a new one is an example with a
few other pixels, which no cache knows. Run it where LiteLLM is installed (`make test-litellm` makes such a place).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import multiprocessing
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from litellm_guardalign.config import config_of, write

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "examples" / "images"
KEY = f"sk-{secrets.token_hex(16)}"
PATIENCE_S = 300
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()
_new = iter(range(1_000_000))


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def serve_model(port: int) -> None:
    """Stand for a model."""
    _Server(("127.0.0.1", port), _Answering).serve_forever()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def proxy(encoder: str, folder: Path) -> Iterator[str]:
    """The address of a proxy whose guardrail runs for the requests that name it."""
    model_port, port = free_port(), free_port()
    model = multiprocessing.get_context("spawn").Process(target=serve_model, args=(model_port,), daemon=True)
    model.start()
    config = config_of(f"http://127.0.0.1:{model_port}/v1", ["m"], "none", {"encoder": encoder})
    config["guardrails"][0]["litellm_params"]["default_on"] = False
    path = write(config, folder)
    code = "import sys; from litellm.proxy.proxy_cli import run_server; run_server.main(args=sys.argv[1:])"
    command = [sys.executable, "-c", code, "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MASTER_KEY": KEY,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")]),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        await_health(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        process.wait()
        model.terminate()


def await_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/health/liveliness", timeout=5).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise SystemExit(f"The proxy did not start:\n{log.read_text()[-2000:]}")


def block(data: bytes, kind: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}


def example(name: str) -> dict[str, Any]:
    return block((IMAGES / name).read_bytes(), "png" if name.endswith("png") else "jpeg")


def new_photo() -> dict[str, Any]:
    """An example photo that no cache has seen."""
    number = next(_new)
    image = Image.open(IMAGES / ("cat.jpg", "coffee.jpg")[number % 2]).convert("RGB")
    for place in range(3):
        image.putpixel((place * 16, 0), ((number >> (8 * place)) % 256,) * 3)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return block(buffer.getvalue(), "jpeg")


async def one(client: httpx.AsyncClient, url: str, content: Any, is_guarded: bool) -> float:
    """Milliseconds that one request takes."""
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    if is_guarded:
        body["guardrails"] = ["guardalign"]
    data = json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    started = time.perf_counter()
    answer = await client.post(f"{url}/v1/chat/completions", content=data, headers=headers)
    took = (time.perf_counter() - started) * 1e3
    answer.raise_for_status()
    if is_guarded != ("guardalign" in answer.headers.get("x-litellm-applied-guardrails", "")):
        raise SystemExit("The guardrail ran where it should not have, or did not where it should.")
    return took


async def measure(url: str, make: Callable[[], Any], rounds: int, at_once: int) -> tuple[list[float], list[float]]:
    """Latencies without and with the guardrail, rounds taking turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(timeout=PATIENCE_S, limits=limits) as client:
        for turn in range(rounds + 1):
            for is_guarded in (False, True):
                contents = [make() for _ in range(at_once)]
                times = await asyncio.gather(*(one(client, url, content, is_guarded) for content in contents))
                if turn:
                    taken[is_guarded].extend(times)
    return taken


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--encoder", default="offline")
    parser.add_argument("--only", default="", help="the cases whose names contain this")
    options = parser.parse_args()
    safe, masked = example("cat.jpg"), example("coffee_and_pistol.jpg")
    cases: dict[str, Callable[[], Any]] = {
        "words only": lambda: "What is this?",
        "a photo seen before": lambda: [safe],
        "a photo seen before, masked": lambda: [masked],
        "a new photo": lambda: [new_photo()],
    }
    print(f"{os.cpu_count()} cores, {options.encoder} encoder, {options.rounds} rounds of {options.at_once} at once")
    print("\n| request | without: p50 / p95 ms | with: p50 / p95 ms | added: p50 / p95 ms |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, proxy(options.encoder, Path(folder)) as url:
        for name, make in ((name, make) for name, make in cases.items() if options.only in name):
            plain, guarded = asyncio.run(measure(url, make, options.rounds, options.at_once))
            p50, p95 = ((percentile(plain, share), percentile(guarded, share)) for share in (0.5, 0.95))
            print(
                f"| {name} | {p50[0]:.0f} / {p95[0]:.0f} | {p50[1]:.0f} / {p95[1]:.0f} "
                f"| {p50[1] - p50[0]:.0f} / {p95[1] - p95[0]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
