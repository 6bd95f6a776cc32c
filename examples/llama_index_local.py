"""A local model in LlamaIndex: safety prefix held in attention, a guard in front, streams, objects, measurements.

Runs on SmolLM2-135M-Instruct, which reads text only and comes inside a PyPI package; ``--model`` takes any
vision-language model that transformers can load. It is small: that it answers, and what is measured, is the point, not
what it says. Run: ``python examples/llama_index_local.py``.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from pathlib import Path

# Before torch and transformers are imported: a demo has no use for their progress bars and advice.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock  # noqa: E402
from llama_index.core.prompts import PromptTemplate  # noqa: E402
from pydantic import BaseModel, Field  # noqa: E402
from rich.console import Console  # noqa: E402

from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix  # noqa: E402
from llama_index_guardalign import GuardAlignLVLM  # noqa: E402

HERE = Path(__file__).parent


class Capital(BaseModel):
    """The capital of a country."""

    city: str = Field(max_length=20)
    country: str = Field(max_length=20)


def asked(question: str, image: str | None = None) -> list[ChatMessage]:
    """A chat of one turn."""
    shown = [] if image is None else [ImageBlock(path=HERE / "images" / image)]
    return [ChatMessage(role="user", blocks=[TextBlock(text=question), *shown])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="a hub repository, a folder, a GGUF file, or smollm2")
    arguments = parser.parse_args()
    console = Console()

    llm = GuardAlignLVLM(
        model_name=arguments.model,
        calibration=CalibrationConfig.fixed(0.1),
        prefix=SafetyPrefix(),
        guard=HERE / "policy.yaml",
        temperature=0,
        max_tokens=48,
    )
    with console.status("Loading the model"):
        console.print(f"[dim]{llm.metadata!r}[/]\n")

    console.print("[bold]you[/] What is the capital of France?\n[bold]model[/] ", end="")
    for chunk in llm.stream_chat(asked("What is the capital of France?"), report=True):
        console.print(chunk.delta, end="", markup=False, highlight=False)
    raw = chunk.raw
    console.print(f"\n[dim]{raw['finish_reason']}, {raw['usage']}[/]")
    shares = raw["calibration"]
    layer = shares["layers"][len(shares["layers"]) // 2]
    console.print(
        f"[dim]attention of the instruction to the prefix in layer {layer}: {shares['before'][layer]:.1%} without, "
        f"{shares['after'][layer]:.1%} with calibration[/]\n"
    )

    console.print("[bold]you[/] What would this cost? [dim]rifle.png[/]")
    response = llm.chat(asked("What would this cost?", "rifle.png"))
    verdict = response.raw["verdicts"][0]
    console.print(f"[bold]model[/] {response.message.content}")
    console.print(f"[dim]{response.raw['finish_reason']}: {verdict['action']}, {verdict['category']}[/]\n")

    question = PromptTemplate("What is the capital of {country}?")
    console.print(f"[bold]an object[/] {llm.structured_predict(Capital, question, country='France')!r}")


if __name__ == "__main__":
    main()
