"""What the LangChain components cost: on text-only chats, and on images that come back with the history.

    python benchmarks/langchain_overhead.py [--rounds 300]

Every row times a component and the same call without it in turn, in one process, and reports the median difference.
The model answers at once, so what is left is the component's own work. Images are the examples', checked with the
offline encoder and the shipped policy; a prefix, a mask and a block are all among them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from guardalign_guardrails import Guard
from langchain_guardalign import GuardAlignMiddleware, GuardedChatModel, ImageGuard

IMAGES = Path(__file__).parents[1] / "examples" / "images"


class CountingEncoder:
    """Counts the encoder's forward passes, whatever kind they are."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.passes = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encode_map(self, images: Any, resolution: int | None = None) -> Any:
        """Encode and count."""
        self.passes += 1
        return self.inner.encode_map(images, resolution)

    def encode_crops(self, crops: Any) -> Any:
        """Encode and count."""
        self.passes += 1
        return self.inner.encode_crops(crops)


def text_chat(turns: int) -> list[BaseMessage]:
    """A chat of text only; half of the contents are lists of blocks, as providers return them."""
    words = "Some words of a usual length, as a person would write them to a model in a chat. " * 5
    chat: list[BaseMessage] = [SystemMessage("Be brief.")]
    for turn in range(turns):
        content: Any = words if turn % 2 else [{"type": "text", "text": words}]
        chat += [HumanMessage(content), AIMessage(content)]
    return [*chat, HumanMessage("And now?")]


def added_ms(plain: Callable[[], Any], guarded: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Medians of the plain call, the guarded call and their difference, in milliseconds, timed in turn."""
    pairs = []
    for turn in range(rounds + 5):
        started = time.perf_counter()
        plain()
        middle = time.perf_counter()
        guarded()
        done = time.perf_counter()
        if turn >= 5:
            pairs.append(((middle - started) * 1e3, (done - middle) * 1e3))
    return (
        statistics.median(p for p, _ in pairs),
        statistics.median(g for _, g in pairs),
        statistics.median(g - p for p, g in pairs),
    )


def sync(loop: asyncio.AbstractEventLoop, call: Callable[[], Awaitable[Any]]) -> Callable[[], Any]:
    """An async call as a plain one on a loop that is there already."""

    async def run() -> Any:
        return await call()

    return lambda: loop.run_until_complete(run())


def print_text_only(guard: Guard, rounds: int) -> None:
    """Chats without images, short and long."""
    loop = asyncio.new_event_loop()
    print("| text-only, messages | component | without ms | with ms | added ms |\n|---|---|---|---|---|")
    for turns in (1, 10, 50):
        chat = text_chat(turns)
        for name, plain, with_guard in pairs_of_calls(guard, chat, loop):
            without, with_, added = added_ms(plain, with_guard, rounds)
            print(f"| {len(chat)} | {name} | {without:.2f} | {with_:.2f} | {added:.2f} |")
    loop.close()


def pairs_of_calls(
    guard: Guard, chat: list[BaseMessage], loop: asyncio.AbstractEventLoop
) -> list[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    """Each component's name, the call without it and the call with it."""
    model = FakeListChatModel(responses=["ok"])
    runnable = ImageGuard(guard)
    chain = runnable | model
    guarded = GuardedChatModel(model=model, guard=guard)
    plain_agent = create_agent(model, [])
    guarded_agent = create_agent(model, [], middleware=[GuardAlignMiddleware(guard)])
    state: Any = {"messages": chat}

    def plain() -> Any:
        return model.invoke(chat)

    aplain = sync(loop, lambda: model.ainvoke(chat))
    return [
        ("ImageGuard, then model", plain, lambda: chain.invoke(chat)),
        ("ImageGuard, then model, async", aplain, sync(loop, lambda: chain.ainvoke(chat))),
        ("GuardedChatModel", plain, lambda: guarded.invoke(chat)),
        ("GuardedChatModel, async", aplain, sync(loop, lambda: guarded.ainvoke(chat))),
        ("GuardAlignMiddleware", lambda: plain_agent.invoke(state), lambda: guarded_agent.invoke(state)),
    ]


def print_history(guard: Guard, encoder: CountingEncoder) -> None:
    """A chat that gets one image a turn and sends its whole history each time."""
    runnable = ImageGuard(guard)
    chat: list[BaseMessage] = []
    print("\n| turn | images in the chat | new encoder passes | first time ms | again ms, nothing new |")
    print("|---|---|---|---|---|")
    for turn, path in enumerate(sorted(IMAGES.glob("c*.jpg")), start=1):
        block = {"type": "image", "base64": base64.b64encode(path.read_bytes()).decode(), "mime_type": "image/jpeg"}
        chat = [*chat, HumanMessage([{"type": "text", "text": "What is this?"}, block])]
        before, started = encoder.passes, time.perf_counter()
        runnable.invoke(chat)
        first, new = (time.perf_counter() - started) * 1e3, encoder.passes - before
        again = []
        for _ in range(5):
            started = time.perf_counter()
            runnable.invoke(chat)
            again.append((time.perf_counter() - started) * 1e3)
        assert encoder.passes == before + new, "an image seen before must not be encoded again"
        print(f"| {turn} | {turn} | {new} | {first:.0f} | {statistics.median(again):.1f} |")
        chat = [*chat, AIMessage("I see.")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    from guardalign_guardrails.detection.encoders import load_encoder

    encoder = CountingEncoder(load_encoder("offline"))
    guard = Guard(encoder=encoder)
    guard.prepare()
    print(f"{os.cpu_count()} cores, {rounds} rounds, medians\n")
    print_text_only(guard, rounds)
    print_history(guard, encoder)


if __name__ == "__main__":
    main()
