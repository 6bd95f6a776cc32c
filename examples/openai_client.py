"""OpenAI's own client behind the guard, under two policies: one only adds the safety prefix, one masks as well.

Uses ``gpt-4o`` if OPENAI_API_KEY is set; otherwise a small local stand-in answers what it received, so that it runs
without network or key. Run: ``python examples/openai_client.py``.
"""

from __future__ import annotations

import base64
import json
import logging
import mimetypes
import os
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

# Before torch and transformers are imported: a demo has no use for their progress bars and advice.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

from demo_image import described  # noqa: E402
from openai import DefaultHttpxClient, OpenAI  # noqa: E402
from rich.console import Console  # noqa: E402

from guardalign_guardrails import Guard, Policy, Verdict  # noqa: E402
from openai_guardalign import guard_client  # noqa: E402

HERE = Path(__file__).parent
# What the SDK sends by: httpx, from openai 3 on HTTPX.
HTTPX = import_module(DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
PREFIX_ONLY = "extends: default\nsources: {user: {at_most: prefix}}"
IMAGES = ("cat.jpg", "coffee_and_pistol.jpg", "rifle.png")


def client() -> OpenAI:
    """OpenAI's client if there is a key, else one whose requests end in this file."""
    if os.environ.get("OPENAI_API_KEY"):
        return OpenAI()
    return OpenAI(api_key="none", http_client=HTTPX.Client(transport=HTTPX.MockTransport(report)))


def report(request: Any) -> Any:
    """Answer a request with what it brought."""
    body = json.loads(request.content)
    image = next(part["image_url"] for part in body["input"][0]["content"] if part["type"] == "input_image")
    seen = described(base64.b64decode(image.partition(",")[2]))
    text = f"I received an image of {seen}, with the instructions {body.get('instructions')!r}."
    content = [{"type": "output_text", "text": text}]
    message = {"type": "message", "id": "msg_1", "role": "assistant", "content": content}
    return HTTPX.Response(200, json={"id": "resp_1", "object": "response", "output": [message]})


def question(image: str) -> list[Any]:
    """One turn of the user."""
    encoded = base64.b64encode((HERE / "images" / image).read_bytes()).decode()
    url = f"data:{mimetypes.guess_type(image)[0]};base64,{encoded}"
    content = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": url}]
    return [{"role": "user", "content": content}]


def main() -> None:
    console = Console()
    policies = {"prefix only": Policy.from_yaml(PREFIX_ONLY), "prefix and masks": Policy.load(HERE / "policy.yaml")}
    for name, policy in policies.items():
        found: list[Verdict] = []
        with console.status("Loading the offline encoder and the policy's anchors"):
            guard = Guard(policy)
            guard.prepare()
        guarded = guard_client(client(), guard, on_verdicts=found.extend)
        console.rule(name)
        for image in IMAGES:
            response = guarded.responses.create(model="gpt-4o", input=question(image))
            console.print(f"{image} [dim]{found[-1].action}[/]: ", end="")
            console.print(response.output_text, markup=False, highlight=False)


if __name__ == "__main__":
    main()
