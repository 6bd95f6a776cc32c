"""A chat with a hosted model behind the guard: masked images and the safety prefix go over the wire, nothing else.

Uses ``gpt-4o`` if OPENAI_API_KEY is set and ``langchain-openai`` is installed; otherwise a small local stand-in answers
what it received, so that it runs without network or key. Run: ``python examples/guarded_chat.py``.
"""

from __future__ import annotations

import base64
import logging
import mimetypes
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

from demo_model import ReportingModel  # noqa: E402
from langchain_core.language_models import BaseChatModel  # noqa: E402
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage  # noqa: E402
from langchain_core.output_parsers import StrOutputParser  # noqa: E402
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder  # noqa: E402
from rich.console import Console  # noqa: E402

from guardalign_guardrails import Guard  # noqa: E402
from langchain_guardalign import GuardedChatModel, ImageGuard  # noqa: E402

HERE = Path(__file__).parent
QUESTIONS = (
    ("cat.jpg", "What do you see?"),
    ("coffee_and_pistol.jpg", "And what is on this table?"),
    ("rifle.png", "What would this cost?"),
    (None, "Thank you. What did I show you first?"),
)


def hosted_model() -> BaseChatModel:
    """GPT-4o if there is a key, else the stand-in."""
    if os.environ.get("OPENAI_API_KEY"):
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model="gpt-4o")
    return ReportingModel()


def turn(image: str | None, words: str) -> HumanMessage:
    """One turn of the user."""
    if image is None:
        return HumanMessage(words)
    encoded = base64.b64encode((HERE / "images" / image).read_bytes()).decode()
    pil_image = {"type": "image", "base64": encoded, "mime_type": mimetypes.guess_type(image)[0]}
    return HumanMessage([{"type": "text", "text": words}, pil_image])


def main() -> None:
    console = Console()
    guard = Guard(HERE / "policy.yaml")
    with console.status("Loading the offline encoder and the policy's anchors"):
        guard.prepare()
    model = GuardedChatModel(model=hosted_model(), guard=guard)
    prompt = ChatPromptTemplate.from_messages([("system", "Answer in one sentence."), MessagesPlaceholder("chat")])
    chain = prompt | model | StrOutputParser()

    chat: list[BaseMessage] = []
    for image, words in QUESTIONS:
        chat = [*chat, turn(image, words)]
        console.print(f"[bold]you[/] {words} [dim]{image or ''}[/]")
        console.print("[bold]model[/] ", end="")
        answer = ""
        for token in chain.stream({"chat": chat}):
            answer += token
            console.print(token, end="", markup=False, highlight=False)
        console.print()
        actions = [verdict.action for verdict in ImageGuard(guard).inspect(chat).verdicts]
        console.print(f"[dim]guard: {', '.join(actions) or 'no image'}[/]\n")
        chat = [*chat, AIMessage(answer)]


if __name__ == "__main__":
    main()
