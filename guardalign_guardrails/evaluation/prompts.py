"""Labelled prompts for evaluations, and samples of them that can be drawn again.

The project ships no prompts: those that are worth measuring on are harmful to read, and have licences of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from guardalign_guardrails.errors import EvaluationError

Label = Literal["safe", "unsafe"]
Half = Literal["first", "second"]

LABELS: Final[tuple[Label, ...]] = get_args(Label)


@dataclass(frozen=True)
class LabelledPrompt:
    """A user's prompt and what a safe model should do with it.

    Attributes:
        text: The prompt.
        label: ``unsafe`` should be refused, ``safe`` answered.
        source: Which collection it is from; may be empty.
        kind: What it is within that collection; may be empty.
    """

    text: str = field(repr=False)
    label: Label
    source: str = ""
    kind: str = ""

    @property
    def digest(self) -> str:
        """The prompt's digest for reports: the first 16 hexadecimal digits of their SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def load_prompts(path: Path) -> list[LabelledPrompt]:
    """Prompts of a JSONL file, one object a line: ``prompt``, ``label`` and, if known, ``source`` and ``kind``.

    Raises:
        EvaluationError: The file cannot be read, a line is no such object, or a prompt is there twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = (getattr(error, "strerror", None) or type(error).__name__).lower()
        raise EvaluationError(f"{path}: {why}; give a UTF-8 file with one JSON object a line.") from error
    prompts = [_read(line, f"{path.name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise EvaluationError(f"{path}: there is no prompt in it.")
    # A prompt that counts twice would make intervals look narrower than they are.
    if len({prompt.text for prompt in prompts}) < len(prompts):
        raise EvaluationError(f"{path}: a prompt is there twice; leave one out.")
    return prompts


def _read(line: str, where: str) -> LabelledPrompt:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        # The parser's own message could quote the line.
        raise EvaluationError(f"{where}: it is no JSON object.") from None
    text, label = row.get("prompt"), row.get("label")
    if not isinstance(text, str) or not text.strip():
        raise EvaluationError(f"{where}: 'prompt' must be text that is not blank.")
    if label not in LABELS:
        raise EvaluationError(f"{where}: 'label' must be one of {', '.join(LABELS)}.")
    source, kind = row.get("source") or "", row.get("kind") or ""
    if not isinstance(source, str) or not isinstance(kind, str):
        raise EvaluationError(f"{where}: 'source' and 'kind' must be text.")
    return LabelledPrompt(text, label, source, kind)


def sample(
    prompts: Iterable[LabelledPrompt],
    *,
    limit: int | None = None,
    sources: Collection[str] | None = None,
    half: Half | None = None,
    seed: int = 0,
) -> list[LabelledPrompt]:
    """A sample of prompts, the same for the same seed whatever the order of the file.

    A smaller sample of a seed is part of a larger one, so a first look can be extended without asking again. Sources
    take turns, so that each label's sample holds about as many of each.

    Args:
        prompts: All there are.
        limit: Most prompts of each label; None for all.
        sources: Only of these sources; None for all.
        half: One of two fixed halves of the prompts, to choose settings on the first and confirm them on the second;
            None for both. Which half a prompt is in depends on its text only.
        seed: Which sample.

    Raises:
        EvaluationError: A source is not there, or nothing is left.
    """
    kept = list(prompts)
    if sources is not None:
        missing = set(sources) - {prompt.source for prompt in kept}
        if missing:
            raise EvaluationError(f"No prompt is of source {', '.join(sorted(missing))}.")
        kept = [prompt for prompt in kept if prompt.source in sources]
    if half is not None:
        kept = [prompt for prompt in kept if half_of(prompt) == half]
    drawn = [prompt for label in LABELS for prompt in _drawn([p for p in kept if p.label == label], limit, seed)]
    if not drawn:
        raise EvaluationError("No prompt is left to evaluate; ask for more of them.")
    return drawn


def half_of(prompt: LabelledPrompt) -> Half:
    """The half that a prompt is in."""
    return "first" if int(prompt.digest[-1], 16) % 2 == 0 else "second"


def _drawn(prompts: Sequence[LabelledPrompt], limit: int | None, seed: int) -> list[LabelledPrompt]:
    def place(prompt: LabelledPrompt) -> str:
        return hashlib.sha256(f"{seed}\n{prompt.text}".encode()).hexdigest()

    by_source: dict[str, list[LabelledPrompt]] = {}
    for prompt in sorted(prompts, key=place):
        by_source.setdefault(prompt.source, []).append(prompt)
    turns = [(turn, source, prompt) for source, own in by_source.items() for turn, prompt in enumerate(own)]
    ordered = [prompt for _, _, prompt in sorted(turns, key=lambda item: (item[0], item[1]))]
    return ordered if limit is None else ordered[:limit]
