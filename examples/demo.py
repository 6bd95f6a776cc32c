"""Six images, one guard, two ways to use it: ``guard | model`` and ``guard.route(safe, unsafe)``.

Runs on a laptop without network, GPU or API key: the offline encoder looks, a small fake model says what it received.
Run: ``python examples/demo.py --out out/demo``.
"""

from __future__ import annotations

import argparse
import base64
import logging
import mimetypes
import os
import time
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
from langchain_core.messages import BaseMessage, HumanMessage  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402
from rich.table import Table  # noqa: E402

from guardalign_guardrails import Verdict  # noqa: E402
from guardalign_guardrails.explain import heat_map  # noqa: E402
from guardalign_guardrails.images import decode  # noqa: E402
from langchain_guardalign import GuardReport, ImageGuard  # noqa: E402

HERE = Path(__file__).parent
STYLES = {"allow": "green", "flag": "yellow", "prefix": "yellow", "mask": "cyan", "route": "magenta", "block": "red"}


def question(image: Path) -> list[BaseMessage]:
    """The image as a chat would send it."""
    block = {
        "type": "image",
        "base64": base64.b64encode(image.read_bytes()).decode(),
        "mime_type": mimetypes.guess_type(image.name)[0],
    }
    return [HumanMessage([{"type": "text", "text": "What do you see?"}, block])]


def where(verdict: Verdict) -> str:
    """The masked area, or the hottest region, in pixels."""
    boxes = verdict.masks or (max(verdict.regions, key=lambda region: region.score).box,)
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[2] for box in boxes), max(box[3] for box in boxes)
    return f"{left:.0f},{top:.0f} - {right:.0f},{bottom:.0f}"


def how_sure(verdict: Verdict) -> str:
    score = f"score {verdict.score:.2f}"
    return score if verdict.p_value is None else f"p = {verdict.p_value:.3f} ({score})"


def save_images(image: Path, report: GuardReport, out: Path) -> None:
    """The heat map, and the image that the model got if it is not the original."""
    (verdict,) = report.verdicts
    heat_map(decode(image).flattened, verdict).save(out / f"{image.stem}_heat.png")
    if verdict.action == "mask":
        block = report.output[-1].content[-1]
        (out / f"{image.stem}_masked.png").write_bytes(base64.b64decode(block["base64"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Show what GuardAlign does to six images on their way to a model.")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for heat maps and masked images")
    parser.add_argument("--images", type=Path, default=HERE / "images", help="folder of images to use instead")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console()

    guard = ImageGuard(HERE / "policy.yaml")
    model = ReportingModel()
    images = sorted(path for path in arguments.images.iterdir() if path.suffix in (".jpg", ".png"))
    questions = [question(image) for image in images]

    with console.status("Loading the offline encoder and the policy's anchors"):
        guard.guard.prepare()
    started = time.perf_counter()
    answers = (guard | model).batch(questions)
    took = time.perf_counter() - started

    table = Table(title="guard | model", title_style="bold", row_styles=["", "dim"])
    for heading in ("image", "what", "where (px)", "how sure", "action", "what the model says"):
        table.add_column(heading, overflow="fold")
    for image, asked, answer in zip(images, questions, answers, strict=True):
        report = guard.inspect(asked)
        (verdict,) = report.verdicts
        found = ("-", "-") if verdict.action == "allow" else (str(verdict.category), where(verdict))
        action = f"[{STYLES[verdict.action]}]{verdict.action}[/]"
        table.add_row(image.name, *found, how_sure(verdict), action, escape(str(answer.content)))
        save_images(image, report, arguments.out)
    console.print(table)
    console.print(f"{len(images)} images checked in one batch, {took:.1f} s on {os.cpu_count()} CPU cores.\n")

    console.print("[bold]guard.route(safe, unsafe)[/]: what the policy will not mask goes to another model, streamed")
    route = guard.route(safe=model, unsafe=ReportingModel(opening="(careful model) I was handed"))
    for image, asked in zip(images, questions, strict=True):
        console.print(f"  {image.name}: ", end="")
        for chunk in route.stream(asked):
            console.print(chunk.content, end="", markup=False, highlight=False)
        console.print()
    console.print(f"\nHeat maps and masked images are in {arguments.out}/")


if __name__ == "__main__":
    main()
