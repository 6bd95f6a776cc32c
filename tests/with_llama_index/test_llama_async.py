"""While a guard looks at images, the event loop goes on, whatever component asked for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llama_images import ask, png, saved
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import Document, ImageNode, MediaResource, NodeWithScore, QueryBundle
from llama_index.core.tools import FunctionTool
from llama_models import RecordingLLM
from llama_nodes import b64

from guardalign_guardrails import Guard
from guardalign_guardrails.testing.chats import canary
from guardalign_guardrails.testing.colours import ColourEncoder, colour_policy
from llama_index_guardalign import (
    GuardedLLM,
    GuardedReader,
    ImageGuardPostprocessor,
    ImageGuardTransform,
    acheck_query_image,
    ascreen_chat,
    guard_tool,
)

RED = canary("red", number=1)


class Shelf(BaseReader):
    """Has one document, with an image."""

    def lazy_load_data(self, *args: Any, **load_kwargs: Any) -> list[Document]:
        return [Document(image_resource=MediaResource(data=png(RED)))]


class Finder(BaseRetriever):
    """Finds one node, with an image."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=ImageNode(image=b64(RED), text="a photo"), score=0.5)]


def photo() -> ImageBlock:
    """Take a photo."""
    return ImageBlock(image=png(RED))


def engine(guard: Guard) -> RetrieverQueryEngine:
    postprocessor = ImageGuardPostprocessor(guard=guard)
    return RetrieverQueryEngine.from_args(Finder(), llm=RecordingLLM(), node_postprocessors=[postprocessor])


WAYS: dict[str, Callable[[Guard, Path], Awaitable[Any]]] = {
    "a transform": lambda guard, _: ImageGuardTransform(guard=guard).acall([ImageNode(image=b64(RED))]),
    "a reader": lambda guard, _: GuardedReader(reader=Shelf(), guard=guard).aload_data(),
    "a postprocessor": lambda guard, _: ImageGuardPostprocessor(guard=guard).apostprocess_nodes(
        [NodeWithScore(node=ImageNode(image=b64(RED)))]
    ),
    "an engine": lambda guard, _: engine(guard).aquery("birds"),
    "the image of a query": lambda guard, path: acheck_query_image(
        QueryBundle("birds", image_path=str(path)), guard, on_violation="notice"
    ),
    "a tool": lambda guard, _: guard_tool(FunctionTool.from_defaults(photo), guard).acall(),
    "a chat": lambda guard, _: ascreen_chat(guard, [ask(RED)]),
    "an LLM": lambda guard, _: GuardedLLM(llm=RecordingLLM(), guard=guard).achat([ask(RED)]),
    "an LLM's stream": lambda guard, _: GuardedLLM(llm=RecordingLLM(), guard=guard).astream_chat([ask(RED)]),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_the_event_loop_goes_on_while_a_guard_looks(guard, monkeypatch, way, tmp_path):
    loop, did_go_on = asyncio.get_running_loop(), []
    check = guard.checking

    def looking(*args: Any, **sources: Any) -> Any:
        is_loop_going = threading.Event()
        loop.call_soon_threadsafe(is_loop_going.set)
        did_go_on.append(is_loop_going.wait(5))
        return check(*args, **sources)

    monkeypatch.setattr(guard, "checking", looking)
    await way(guard, saved(RED, tmp_path))
    assert did_go_on == [True]


async def test_chats_that_wait_for_a_busy_guard_hold_no_thread_of_the_loop(cache_dir):
    gate = threading.Event()

    class Gated(ColourEncoder):
        def encode_crops(self, crops: Any) -> Any:
            assert gate.wait(20)
            return super().encode_crops(crops)

    guard = Guard(colour_policy(), Gated(), cache_dir=cache_dir, max_concurrent=1)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    tasks = [asyncio.create_task(ascreen_chat(guard, [ask(canary("red", number=n))])) for n in range(5)]

    async def all_wait() -> None:
        while len(guard._admission._queue) < 4:  # noqa: ASYNC110  another thread counts
            await asyncio.sleep(0.001)

    try:
        await asyncio.wait_for(all_wait(), 10)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 10) == "free"
    finally:
        gate.set()
    assert len(await asyncio.gather(*tasks)) == 5
