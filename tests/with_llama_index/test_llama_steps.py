"""Each step is taken once for each image and call: counted around the real functions, in whatever module calls them."""

from __future__ import annotations

import base64
import sys
from collections import Counter

import pytest
from llama_images import KINDS, ask, data_url, png
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.schema import ImageNode
from llama_index.core.tools.types import AsyncBaseTool, ToolMetadata, ToolOutput
from llama_models import RecordingLLM
from llama_nodes import b64

from guardalign_guardrails.content import walk
from guardalign_guardrails.guarding import guard as guarding
from guardalign_guardrails.images import files
from guardalign_guardrails.testing.chats import canary
from llama_index_guardalign import GuardedLLM, guard_tool, screen_chat
from llama_index_guardalign.chat import blocks
from llama_index_guardalign.nodes import images

STEPS = {
    "from base64": base64.b64decode,
    "to base64": base64.b64encode,
    "find": walk.find,
    "find bare": walk.find_loose,
    "find in node": images.find_images,
    "read file": files.read_named_file,
    "decode": guarding.decode,
    "convert": blocks.plain_of,
}
# A first version of document blocks crossed base64 six times, and of data URLs four times.
LOCAL = {"a stream", "a path", "raw bytes put in later", "a document on disk"}
FILES = {"a path", "a document on disk"}
NESTED = {"a citable source", "a citation"}


class Returning(AsyncBaseTool):
    """A tool that returns the very same output each time."""

    def __init__(self, raw):
        is_block = isinstance(raw, ImageBlock)
        self.output = ToolOutput("t", blocks=[raw] if is_block else [], raw_input={}, raw_output=raw)

    @property
    def metadata(self) -> ToolMetadata:
        return ToolMetadata(description="x", name="t")

    def call(self, *args, **kwargs) -> ToolOutput:
        return self.output

    async def acall(self, *args, **kwargs) -> ToolOutput:
        return self.output


@pytest.fixture
def counted(monkeypatch):
    """Counts the steps that are taken from now on."""

    def start() -> Counter[str]:
        counts: Counter[str] = Counter()
        for name, plain in STEPS.items():

            def step(*args, name=name, plain=plain, **kwargs):
                # The beginning of a text is tried as base64; an image is longer.
                if "base64" not in name or len(args[0]) > 100:
                    counts[name] += 1
                return plain(*args, **kwargs)

            for module in list(sys.modules.values()):
                if vars(module).get(plain.__name__) is plain:
                    monkeypatch.setattr(module, plain.__name__, step)
        return counts

    return start


def base64_of(kind: str, colour: str) -> dict[str, int]:
    """How often an image crosses base64: once out of a block that holds it, once into a block that gets another."""
    into = {"red": 1, "white": int(kind in LOCAL - {"raw bytes put in later"}), "blue": 0}[colour]
    # Bytes that are not base64 are only tried as such.
    out_of = int(kind not in LOCAL - {"raw bytes put in later"})
    return {name: count for name, count in (("from base64", out_of), ("to base64", into)) if count}


@pytest.mark.parametrize("colour", ["white", "red", "blue"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_a_chat(guard, counted, tmp_path, kind, colour):
    message = ChatMessage(blocks=[TextBlock(text="x"), KINDS[kind](canary(colour, number=1), tmp_path)])
    guard.prepare()
    counts = counted()
    screen_chat(guard, [message])
    assert counts == {
        **base64_of(kind, colour),
        **({"read file": 1} if kind in FILES else {}),
        # What is beside a message's blocks is searched as well.
        "find": 1,
        "find bare": 1,
        "decode": 1,
        "convert": 1 + int(kind in NESTED),
    }


def test_a_chat_through_an_llm(guard, counted):
    messages = [ask(canary("red", number=1)), ask(canary("white", number=2), canary("green", number=3))]
    llm = GuardedLLM(llm=RecordingLLM(), guard=guard)
    guard.prepare()
    counts = counted()
    llm.chat(messages)
    assert counts == {"from base64": 3, "to base64": 1, "find": 2, "find bare": 2, "decode": 3, "convert": 2}


@pytest.mark.parametrize("colour", ["white", "red", "blue"])
@pytest.mark.parametrize("make", [lambda image: image, png, data_url, lambda image: {"deep": [{"photo": png(image)}]}])
def test_a_bare_image_of_a_tool_is_found_once(guard, counted, make, colour):
    tool = guard_tool(Returning(make(canary(colour, number=1))), guard)
    guard.prepare()
    counts = counted()
    tool.call()
    assert counts["find bare"] == counts["decode"] == 1


@pytest.mark.parametrize("colour", ["white", "red", "blue"])
@pytest.mark.parametrize(
    "make", [lambda image: ImageBlock(image=png(image)), lambda image: ImageNode(image=b64(image), text="a photo")]
)
def test_a_block_or_node_of_a_tool(guard, counted, make, colour):
    tool = guard_tool(Returning(make(canary(colour, number=1))), guard)
    guard.prepare()
    counts = counted()
    tool.call()
    assert (counts["from base64"], counts["to base64"], counts["decode"]) == (1, int(colour == "red"), 1)
    assert counts["find bare"] == 0
    assert counts["find in node"] <= 1
