"""The page of the table: docs/parity.md, made from what the first adapter does and held by all of them.

python tests/parity/page.py
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/with_llama_index"), str(ROOT / "integrations"), str(ROOT)]

from adapters import ADAPTERS, Run  # noqa: E402
from conversations import CONVERSATIONS, Said  # noqa: E402
from items import ECOSYSTEMS, ITEMS  # noqa: E402

from guardalign_guardrails import Guard  # noqa: E402
from guardalign_guardrails.testing.colours import ColourEncoder, colour_policy  # noqa: E402

PAGE = ROOT / "docs/parity.md"
HEAD = """# What every adapter does alike

Made by `python tests/parity/page.py`; `tests/parity` holds every adapter to it, over real HTTP where there is any.
Images are those of a policy in which a colour calls for an action. LiteLLM is held to it by `make test-litellm`.

## The same conversation through each adapter

Each of {count} adapters does what the second column says, with the same verdicts and the same pixels: {names}.

| conversation | what happens |
|---|---|
"""
ITEMS_HEAD = """
## What is not one conversation

| | {names} |
|---|{rules}|
"""


def outcome(run: Run, deliveries: list[str]) -> str:
    """What became of a conversation.

    Args:
        run: What arrived.
        deliveries: What the guard said of each image, in any order.
    """
    if run.images is None:
        return "refused"
    words = {"original": "as it came", "masked": "masked", "canonical": "the guard's own reading", "none": "a notice"}
    images = [
        words[name] for name in ("original", "masked", "canonical", "none") for each in deliveries if each == name
    ]
    return ", ".join([*images, *(["prefix"] if run.prefixes else [])]) or "nothing to check"


def outcomes(page: str) -> dict[str, str]:
    """What a page says of each conversation."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    return {name: said for name, said in rows if name in CONVERSATIONS}


def items_table() -> str:
    """The second table."""
    head = ITEMS_HEAD.format(names=" | ".join(ECOSYSTEMS), rules="---|" * (len(ECOSYSTEMS) - 1) + "---")
    return head + "".join(f"| {item} | {' | '.join(map(_cell, cells.values()))} |\n" for item, cells in ITEMS.items())


def _cell(place: str) -> str:
    path, _, _ = place.partition("::")
    return f"[{Path(path).stem}](../{path})" if path.startswith(("tests/", "docs/")) else place


def write() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        guard = Guard(colour_policy(), ColourEncoder(), cache_dir=Path(folder))
        rows = [f"| {name} | {_outcome(guard, said)} |\n" for name, said in CONVERSATIONS.items()]
    names = ", ".join(f"`{adapter.__name__}`" for adapter in ADAPTERS)
    PAGE.write_text(HEAD.format(count=len(ADAPTERS), names=names) + "".join(rows) + items_table(), encoding="utf-8")


def _outcome(guard: Guard, conversation: list[Said]) -> str:
    from adapters import _langchain_messages

    from langchain_guardalign.screening import screen

    (screened,) = screen(guard, [_langchain_messages(conversation)])
    return outcome(ADAPTERS[0](guard, conversation), [verdict.delivery for verdict in screened.verdicts])


if __name__ == "__main__":
    write()
