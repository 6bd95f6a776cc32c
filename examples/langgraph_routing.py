"""A LangGraph that sends a case to a model or to a person, by what the guard finds in its images.

The check is one node: it looks once, writes the sanitised messages into the state, and goes where the verdict says.
Runs without network, GPU or API key. Run: ``python examples/langgraph_routing.py``.
"""

from __future__ import annotations

import base64
import logging
import mimetypes
import os
import warnings
from pathlib import Path
from typing import Literal

# Before torch and transformers are imported: a demo has no use for their progress bars and advice.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

from demo_model import ReportingModel  # noqa: E402
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage  # noqa: E402
from langgraph.graph import END, START, MessagesState, StateGraph  # noqa: E402
from langgraph.graph.message import REMOVE_ALL_MESSAGES  # noqa: E402
from langgraph.types import Command  # noqa: E402
from rich.console import Console  # noqa: E402

from langchain_guardalign import ImageGuard  # noqa: E402

HERE = Path(__file__).parent
GUARD = ImageGuard(HERE / "policy.yaml")
MODEL = ReportingModel()


def check(state: MessagesState) -> Command[Literal["answer", "human_review"]]:
    """Look at all images and go on by the severest action; only sanitised messages go on."""
    report = GUARD.inspect(state["messages"])
    goto: Literal["answer", "human_review"] = "human_review" if report.action in ("route", "block") else "answer"
    # All are replaced: a safety prefix that is due belongs in front, and LangGraph would add it to the end.
    return Command(goto=goto, update={"messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), *report.output]})


def answer(state: MessagesState) -> MessagesState:
    """The model's turn."""
    return {"messages": [MODEL.invoke(state["messages"])]}


def human_review(state: MessagesState) -> MessagesState:
    """A person's turn; here they only say that they have it. In an app, `langgraph.types.interrupt` waits for them."""
    return {"messages": [AIMessage("A person will look at this and come back to you.")]}


def main() -> None:
    graph = StateGraph(MessagesState)
    for node in (check, answer, human_review):
        graph.add_node(node)
    graph.add_edge(START, "check")
    graph.add_edge("answer", END)
    graph.add_edge("human_review", END)
    app = graph.compile()

    console = Console()
    with console.status("Loading the offline encoder and the policy's anchors"):
        GUARD.guard.prepare()
    for image in ("cat.jpg", "coffee_and_pistol.jpg", "rifle.png"):
        encoded = base64.b64encode((HERE / "images" / image).read_bytes()).decode()
        block = {"type": "image", "base64": encoded, "mime_type": mimetypes.guess_type(image)[0]}
        message = HumanMessage([{"type": "text", "text": "What do you see?"}, block])
        steps = [name for step in app.stream({"messages": [message]}) for name in step]
        final = app.invoke({"messages": [message]})["messages"][-1]
        console.print(f"[bold]{image}[/] {' → '.join(steps)}: {final.content}", highlight=False)


if __name__ == "__main__":
    main()
