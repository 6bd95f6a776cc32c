"""A LlamaIndex agent with a tool that returns images: each is checked before memory, events or the model see it.

The LLM is a small local stand-in that calls the tool and says what it received; put any function calling LLM in its
place. Runs without network, GPU or API key. Run: ``python examples/llama_index_agent.py``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from pathlib import Path

# Before torch and transformers are imported: a demo has no use for their progress bars and advice.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

from demo_image import described  # noqa: E402
from demo_llm import ReportingLLM  # noqa: E402
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult  # noqa: E402
from llama_index.core.base.llms.types import ImageBlock  # noqa: E402
from llama_index.core.memory import Memory  # noqa: E402
from llama_index.core.tools import FunctionTool  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402

from guardalign_guardrails import GuardSettings  # noqa: E402
from llama_index_guardalign import GuardedLLM, guard_tool  # noqa: E402

HERE = Path(__file__).parent
PLACES = ("coffee", "coffee_and_pistol", "rifle")


def camera(place: str) -> ImageBlock:
    """Take an image of a place."""
    (path,) = (HERE / "images").glob(f"{place}.*")
    return ImageBlock(image=path.read_bytes())


async def main() -> None:
    console = Console()
    guard = GuardSettings(policy=HERE / "policy.yaml")
    with console.status("Loading the offline encoder and the policy's anchors"):
        guard.prepare()
    agent = FunctionAgent(
        tools=[guard_tool(FunctionTool.from_defaults(camera), guard)],
        llm=GuardedLLM(llm=ReportingLLM(), guard=guard),
        streaming=False,
    )
    memory = Memory.from_defaults(session_id="1")
    for place in PLACES:
        console.print(f"[bold]you[/] What is at {place}?", highlight=False)
        handler = agent.run(f"What is at {place}?", memory=memory)
        async for event in handler.stream_events():
            if isinstance(event, ToolCallResult):
                shown = [
                    described(block.resolve_image().read()) if isinstance(block, ImageBlock) else block.text
                    for block in event.tool_output.blocks
                ]
                console.print(f"[dim]camera, after the filter: {escape(', '.join(shown))}[/]", highlight=False)
        console.print(f"[bold]agent[/] {escape(str(await handler))}", highlight=False)
    kept = [block for message in await memory.aget() for block in message.blocks if isinstance(block, ImageBlock)]
    console.print(
        f"\nIn the agent's memory, for every later turn: {len(kept)} images, "
        f"{' and '.join(described(block.resolve_image().read()) for block in kept)}",
        highlight=False,
    )


if __name__ == "__main__":
    asyncio.run(main())
