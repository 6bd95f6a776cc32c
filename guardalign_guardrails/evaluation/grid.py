"""Compares safety settings: the conditions of an evaluation, and a model's answers under each of them.

Answers are written to a file as they come, each under a digest of all that it depends on, so that a run that was
interrupted goes on where it ended. Nothing is classified here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pydantic import ValidationError

from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.config import CalibrationConfig, Placement, SafetyPrefix
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.errors import EvaluationError
from guardalign_guardrails.evaluation.prompts import LabelledPrompt

Queries = Literal["instruction", "instruction+generated"]
Target = float | Literal["shallow"]

QUERIES: Final[tuple[Queries, ...]] = get_args(Queries)
NO_PREFIX: Final = SafetyPrefix(text="")

_NOTE: Final = (
    "Answers of a language model to prompts that may be harmful. The prompts are not in this file, but answers can be "
    "as bad as they are: keep it private and delete it when it is no longer needed."
)


@dataclass(frozen=True)
class Condition:
    """Safety settings to compare.

    Attributes:
        prefix: The safety prefix; `NO_PREFIX` for none.
        calibration: Settings of attention calibration; None without it.
    """

    prefix: SafetyPrefix
    calibration: CalibrationConfig | None = None

    @property
    def payload(self) -> dict[str, Any]:
        """The settings as plain data."""
        has_prefix = bool(self.prefix.text.strip())
        return {
            "prefix": {"text": self.prefix.text.strip(), "placement": self.prefix.placement} if has_prefix else None,
            "calibration": None if self.calibration is None else self.calibration.model_dump(mode="json"),
        }

    @property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of its payload."""
        return _digest(self.payload)[:12]

    @property
    def reference(self) -> Condition:
        """The condition that calibration is compared with: the same prefix without it."""
        return Condition(self.prefix)

    @property
    def prefill(self) -> str:
        """The text that every answer begins with: the prefix, if its place is the start of the answer."""
        return self.prefix.text.strip() if self.prefix.placement == "response" else ""

    @property
    def name(self) -> str:
        """A short name; prefixes of the same placement share one. Generated tokens are calibrated unless it says so."""
        if not self.prefix.text.strip():
            return "no prefix"
        place, calibration = self.prefix.placement, self.calibration
        if calibration is None:
            return f"{place}, prefix alone"
        dose = f"gamma {calibration.gamma:g}" if calibration.target is None else f"target {calibration.target}"
        band = f"layers {calibration.layers[0]:.2g}-{calibration.layers[1]:.2g}"
        rows = "" if calibration.queries == "instruction+generated" else ", prompt rows"
        return f"{place}, {dose}, {band}{rows}"


def conditions(
    *,
    prefixes: Sequence[str],
    placements: Sequence[Placement],
    gammas: Sequence[float] = (),
    targets: Sequence[Target] = (),
    bands: Sequence[tuple[float, float]] = ((1 / 3, 2 / 3),),
    queries: Sequence[Queries] = QUERIES,
    most_gamma: float = 4.0,
) -> list[Condition]:
    """List the conditions: no prefix, then each prefix in each place, alone and with every calibration.

    Conditions that cannot differ are listed once: a gamma of 0 is the prefix alone, and a prefix at the start of the
    answer comes after all instruction tokens, so that only generated tokens can attend to it.

    Args:
        prefixes: Texts.
        placements: Where they go.
        gammas: Fixed strengths.
        targets: Shares of attention to reach. Left out at the start of the answer, where no instruction token has any.
        bands: Layers as fractions of the depth.
        queries: Whose attention is changed.
        most_gamma: The largest strength that a target may take.

    Raises:
        EvaluationError: A setting is out of range.
    """
    found = [Condition(NO_PREFIX)]
    doses: list[dict[str, Any]] = [{"gamma": gamma, "target": None} for gamma in gammas if gamma]
    doses += [{"gamma": most_gamma, "target": target} for target in targets]
    try:
        for text, place in itertools.product(prefixes, placements):
            prefix = SafetyPrefix(text=text, placement=place)
            found.append(Condition(prefix))
            for dose, band, rows in itertools.product(doses, bands, queries):
                if place != "response" or (rows == "instruction+generated" and dose["target"] is None):
                    found.append(Condition(prefix, CalibrationConfig(layers=band, queries=rows, **dose)))
    except ValidationError as error:
        # Its own text would quote the settings.
        faults = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise EvaluationError(f"A setting is out of range: {faults}.") from None
    return list({condition.digest: condition for condition in found}.values())


@dataclass(frozen=True)
class Answered:
    """A model's answer to a prompt under a condition.

    Attributes:
        prompt: Digest of the prompt.
        condition: Digest of the condition.
        text: The answer; begins with the condition's prefill.
        reason: Why it ends.
        tokens: Generated.
        seconds: Its share of the time of the batch that it was part of.
    """

    prompt: str
    condition: str
    text: str = field(repr=False)
    reason: str
    tokens: int
    seconds: float


class AnswerFile:
    """Answers on disk, by what they depend on.

    Args:
        path: A JSONL file; made if it is not there. A last line that was cut off is dropped.

    Raises:
        EvaluationError: It cannot be read or written, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Answered] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._load()
            else:
                path.write_text(json.dumps({"note": _NOTE}) + "\n", encoding="utf-8")
        except OSError as error:
            why = (error.strerror or type(error).__name__).lower()
            raise EvaluationError(f"{path}: {why}; choose another place for the answers.") from error

    def get(self, key: str) -> Answered | None:
        """The answer of a key; None if there is none yet."""
        return self._known.get(key)

    def add(self, answers: Sequence[tuple[str, Answered]]) -> None:
        """Add answers with their keys."""
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"key": key, **asdict(answer)}) + "\n" for key, answer in answers)
        self._known.update(answers)

    def _load(self) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            first, *rows = map(json.loads, whole.decode().splitlines() or [""])
            if first.get("note") != _NOTE:
                raise ValueError
            self._known = {row.pop("key"): Answered(**row) for row in rows}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise EvaluationError(f"{self._path}: it is no file of answers; choose another place for them.") from None
        if len(whole) < len(content):
            self._path.write_bytes(whole)


def run(
    model: CalibratedLVLM,
    prompts: Sequence[LabelledPrompt],
    grid: Sequence[Condition],
    file: AnswerFile,
    *,
    max_new_tokens: int = 48,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[Answered]:
    """Answer every prompt under every condition by greedy decoding; answers that are known already are reused.

    Args:
        model: Answers as a variant of itself for each condition.
        prompts: The prompts.
        grid: The conditions.
        file: Keeps the answers.
        max_new_tokens: Most tokens of an answer.
        batch_size: Prompts in one generation. Padding can turn near ties another way, so an answer may differ by a few
            words between sizes.
        advance: Called with how many more answers there are.

    Yields:
        Answers, condition after condition.

    Raises:
        GuardAlignError: The model cannot be calibrated this way, or cannot take a prompt.
    """
    settings = GenerationSettings(max_new_tokens=max_new_tokens, temperature=0)
    # Prompts of like length are together, to save padding.
    ordered = sorted(prompts, key=lambda prompt: len(prompt.text))
    for condition in grid:
        keys = {prompt.digest: _key(model, prompt, condition, settings) for prompt in ordered}
        missing = [prompt for prompt in ordered if file.get(keys[prompt.digest]) is None]
        advance(len(ordered) - len(missing))
        if missing:
            variant = model.variant(calibration=condition.calibration, prefix=condition.prefix)
            for first in range(0, len(missing), batch_size):
                chunk = missing[first : first + batch_size]
                answers = _answered(variant, chunk, condition, settings)
                file.add([(keys[answer.prompt], answer) for answer in answers])
                advance(len(chunk))
        for prompt in prompts:
            known = file.get(keys[prompt.digest])
            assert known is not None  # noqa: S101  it was just added
            yield known


def _answered(
    model: CalibratedLVLM, prompts: Sequence[LabelledPrompt], condition: Condition, settings: GenerationSettings
) -> list[Answered]:
    began = time.perf_counter()
    answers = model.batch([prompt.text for prompt in prompts], settings=settings)
    each = (time.perf_counter() - began) / len(prompts)
    return [
        Answered(
            prompt.digest,
            condition.digest,
            answer.text,
            answer.finish_reason,
            answer.usage.completion_tokens,
            round(each, 4),
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _key(model: CalibratedLVLM, prompt: LabelledPrompt, condition: Condition, settings: GenerationSettings) -> str:
    identity = model.identity
    known = {name: identity[name] for name in ("model", "revision", "dtype")}
    return _digest({**known, "prompt": prompt.text, **condition.payload, "max_new_tokens": settings.max_new_tokens})


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
