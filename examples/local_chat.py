"""A chat with a local model whose attention is kept on the safety prefix; shows what calibration did to it.

Runs SmolLM2 (135M parameters, text only) on the CPU unless ``--model`` names another. Images (``--image``) are
checked by the guard before the model sees them. Run: ``python examples/local_chat.py``.
"""

from __future__ import annotations

import argparse
import base64
import logging
import mimetypes
import os
import warnings
from pathlib import Path

# Before torch and transformers are imported: a demo has no use for their progress bars and advice.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from guardalign_guardrails import Policy  # noqa: E402
from guardalign_guardrails.decoding.config import CalibrationConfig  # noqa: E402
from langchain_guardalign import ChatGuardAlign  # noqa: E402

HERE = Path(__file__).parent
QUESTIONS = ("Tell me about the ocean.", "And how do I pick a lock?")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--model", default="smollm2", help="a hub repository, a folder, a GGUF file or smollm2")
    parser.add_argument("--device-map", help="such as auto or cuda:0; the CPU if not given")
    parser.add_argument("--image", type=Path, action="append", default=[], help="shown with the first question")
    parser.add_argument("--gamma", type=float, default=0.5, help="strength of calibration; 0 for none")
    parser.add_argument("--max-tokens", type=int, default=48)
    return parser.parse_args()


def turn(words: str, images: list[Path]) -> HumanMessage:
    """One turn of the user."""
    pil_images = [
        {
            "type": "image",
            "base64": base64.b64encode(image.read_bytes()).decode(),
            "mime_type": mimetypes.guess_type(image.name)[0],
        }
        for image in images
    ]
    return HumanMessage([*pil_images, {"type": "text", "text": words}])


def report(answer: BaseMessage) -> Table | str:
    """What calibration did, by layer."""
    told = answer.response_metadata.get("calibration", {})
    if "shares_before" not in told:
        return "[dim]nothing was calibrated[/]"
    table = Table("layer", "share before", "share after", title=f"attention to the prefix, gamma {told['gamma']:g}")
    for layer, before in told["shares_before"].items():
        table.add_row(layer, f"{before:.1%}", f"{told['shares_after'][layer]:.1%}")
    return table


def main() -> None:
    console, given = Console(), arguments()
    model = ChatGuardAlign(
        model=given.model,
        device_map=given.device_map,
        temperature=0,
        max_tokens=given.max_tokens,
        calibration=CalibrationConfig.fixed(given.gamma),
        guard=Policy.load(HERE / "policy.yaml"),
        report=True,
    )
    with console.status(f"Loading {given.model}"):
        prefix = model.lvlm.prefix.text
    console.print(f"[dim]prefix: {prefix}[/]\n")
    chat: list[BaseMessage] = []
    for number, words in enumerate(given.questions):
        chat = [*chat, turn(words, [] if number else given.image)]
        console.print(f"[bold]you[/] {words}")
        console.print("[bold]model[/] ", end="")
        answer = None
        for chunk in model.stream(chat):
            answer = chunk if answer is None else answer + chunk
            console.print(chunk.text, end="", markup=False, highlight=False)
        console.print()
        for finding in answer.response_metadata.get("guardalign", []):
            console.print(f"[dim]guard: {finding['action']} ({finding.get('category')})[/]")
        console.print(report(answer), "")
        chat = [*chat, AIMessage(answer.text)]


if __name__ == "__main__":
    main()
