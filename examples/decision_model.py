"""The detector as a LangChain decision model, which answers typed questions about the images in a state.

Routers and other components ask decision models. This one reads no instructions: whatever they say, it answers about
the images in the state under its policy, and refuses questions whose answer would not be that. Copy it into your app.
Needs langchain-core 1.8 (Python 3.11 or newer). Runs without network, GPU or API key.

Run: ``python examples/decision_model.py``.
"""

from __future__ import annotations

import base64
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Before torch and transformers are imported: a demo has no use for their progress bars and advice.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

from langchain_core.messages import BaseMessage, HumanMessage  # noqa: E402
from langchain_core.runnables import RunnableConfig  # noqa: E402

try:
    from langchain_core.decisions import (
        BaseDecisionModel,
        Box,
        BoxAnswer,
        BoxCoordinates,
        Choice,
        ChoiceAnswer,
        ClassifierRequest,
        ClassifierResponse,
        Noul,
        NoulAnswer,
        Question,
        Score,
        ScoreAnswer,
    )
except ImportError:
    sys.exit("Decision models need Python 3.11 and langchain-core 1.8, or newer.")

from guardalign_guardrails import Action, Verdict  # noqa: E402
from guardalign_guardrails.actions import LADDER, severest  # noqa: E402
from guardalign_guardrails.content.redaction import without_images  # noqa: E402
from guardalign_guardrails.content.screen import Screened, Turn, ascreen, screen  # noqa: E402
from guardalign_guardrails.guarding.settings import GuardField  # noqa: E402

HERE = Path(__file__).parent
SAFE = "safe"
"""The label of a choice that stands for none of the policy's categories."""


class ImageDecisionModel(BaseDecisionModel):  # type: ignore[misc]  # unknown to older cores
    """Answers questions about the images in a state.

    - `Noul`: 1 - p of the most suspicious image, the share of benign images that score lower; a rank, not a posterior.
      Without a reference profile 1 or 0, by whether the policy acts. 0 without an image, 1 for one that cannot be
      checked.
    - `Choice`: labels must be the policy's categories and ``safe``; ``safe`` gets what the `Noul` leaves, the
      categories share the rest by their own ranks.
    - `Score`: criteria must be actions of the policy in their order (``allow``, ..., ``block``); all of the
      distribution is on the action proposed.
    - `Box`: around all masked boxes of the most suspicious image, or its hottest region.
    """

    model: str = "guardalign"
    guard: GuardField

    @property
    def _provider(self) -> str:
        return "guardalign"

    def invoke(self, input: ClassifierRequest, config: RunnableConfig | None = None, **_: Any) -> ClassifierResponse:  # noqa: A002  LangChain's name
        """Answer one request; its trace shows text in place of images."""

        def run(_: Any) -> ClassifierResponse:
            return self._classify(input["state"], dict(input["questions"]))

        return self._call_with_config(run, _traced(input), self._traced_config(config), run_type="llm")

    async def ainvoke(
        self,
        input: ClassifierRequest,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        **_: Any,
    ) -> ClassifierResponse:
        """`invoke` without blocking the event loop."""

        async def run(_: Any) -> ClassifierResponse:
            return await self._aclassify(input["state"], dict(input["questions"]))

        return await self._acall_with_config(run, _traced(input), self._traced_config(config), run_type="llm")

    def _classify(self, state: Any, questions: dict[str, Question]) -> ClassifierResponse:
        return self._answers(screen(self.guard.guard, [Turn(_plain(state))]), questions)

    async def _aclassify(self, state: Any, questions: dict[str, Question]) -> ClassifierResponse:
        return self._answers(await ascreen(self.guard.guard, [Turn(_plain(state))]), questions)

    def _answers(self, screened: Sequence[Screened], questions: Mapping[str, Question]) -> ClassifierResponse:
        verdicts = [verdict for result in screened for verdict in result.verdicts]
        categories = list(self.guard.policy.categories)
        answers = {name: _answer(question, verdicts, categories) for name, question in questions.items()}
        return ClassifierResponse(model=self.model, answers=answers)


def _answer(question: Question, verdicts: Sequence[Verdict], categories: Sequence[str]) -> Any:
    worst = max(verdicts, key=_rank, default=None)
    unsafe = 0.0 if worst is None else _rank(worst)
    if isinstance(question, Noul):
        return NoulAnswer(type="noul", noul=unsafe)
    if isinstance(question, Choice):
        return _choice(question, worst, unsafe, categories)
    if isinstance(question, Score):
        return _score(question, severest(*(verdict.proposed for verdict in verdicts)))
    if isinstance(question, Box):
        return _box(worst, unsafe)
    raise ValueError(f"A question of type {type(question).__name__} cannot be answered; ask a Noul, Choice or Box.")


def _rank(verdict: Verdict) -> float:
    """How suspicious an image is, in [0, 1]."""
    if verdict.score is None:
        return 1.0
    if verdict.p_value is None:
        return float(verdict.proposed != "allow")
    return 1.0 - verdict.p_value


def _choice(question: Choice, worst: Verdict | None, unsafe: float, categories: Sequence[str]) -> ChoiceAnswer:
    labels = list(question.criteria)
    strange = [label for label in labels if label != SAFE and label not in categories]
    if strange or SAFE not in labels or len(labels) < 2:
        raise ValueError(
            f"The labels of a choice are '{SAFE}' and categories of the policy ({', '.join(categories)}); "
            f"{len(strange)} of {len(labels)} are neither."
        )
    found = worst.categories if worst else {}
    weights = {}
    for label in labels:
        if label != SAFE:
            finding = found.get(label)
            p_value = finding.p_value if finding else None
            acts = finding is not None and finding.action != "allow"
            weights[label] = 1.0 - p_value if p_value is not None else float(acts)
    total = sum(weights.values())
    if total == 0:
        weights, total = dict.fromkeys(weights, 1.0), float(len(weights))
    shares = {label: unsafe * weights[label] / total if label != SAFE else 1.0 - unsafe for label in labels}
    best = max(shares, key=lambda label: shares[label])
    return ChoiceAnswer(type="choice", choice=best, probabilities=shares, confidence=shares[best])


def _score(question: Score, action: Action) -> ScoreAnswer:
    levels = [name for name in LADDER if name in question.criteria]
    if levels != list(question.criteria):
        raise ValueError(f"The criteria of a score are actions in their order: {', '.join(LADDER)}, or some of them.")
    # An action that is not among them counts as the next severer one, or else as the severest.
    above = [place for place, name in enumerate(levels) if LADDER.index(name) >= LADDER.index(action)]
    place = above[0] if above else len(levels) - 1
    return ScoreAnswer(
        type="score",
        score=float(place),
        legend=dict(enumerate(question.criteria)),
        probabilities={level: float(level == place) for level in range(len(levels))},
        confidence=1.0,
    )


def _box(worst: Verdict | None, unsafe: float) -> BoxAnswer:
    if worst is None:
        raise ValueError("There is no image in the state to find a box in.")
    boxes = list(worst.masks) or [region.box for region in worst.regions if region.score == worst.score]
    width = max((region.box[2] for region in worst.regions), default=0.0)
    height = max((region.box[3] for region in worst.regions), default=0.0)
    if not boxes and worst.regions:
        boxes = [max(worst.regions, key=lambda region: region.score).box]
    if not boxes or not width or not height:
        # One that cannot be judged is suspicious all over.
        whole = BoxCoordinates(top=0.0, bottom=1.0, left=0.0, right=1.0)
        return BoxAnswer(type="box", box=whole, confidence=None)
    edges = BoxCoordinates(
        top=max(0.0, min(box[1] for box in boxes) / height),
        bottom=min(1.0, max(box[3] for box in boxes) / height),
        left=max(0.0, min(box[0] for box in boxes) / width),
        right=min(1.0, max(box[2] for box in boxes) / width),
    )
    return BoxAnswer(type="box", box=edges, confidence=unsafe)


def _plain(state: Any) -> Any:
    """A state as plain content: messages become their contents."""
    if isinstance(state, BaseMessage):
        return state.content
    if isinstance(state, Mapping):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_plain(value) for value in state]
    return state


def _traced(request: ClassifierRequest) -> dict[str, Any]:
    return {"state": without_images(_plain(request["state"])), "questions": dict(request["questions"])}


def main() -> None:
    model = ImageDecisionModel(guard=HERE / "policy.yaml")
    questions = {
        "unsafe": Noul(instructions="Is there unsafe content in an image?"),
        "which": Choice(instructions="Of which kind?", criteria=dict.fromkeys([SAFE, *model.guard.policy.categories])),
        "what to do": Score(instructions="How severe?", criteria=list(LADDER)),
        "where": Box(instructions="Where is it?"),
    }
    for name in ("cat.jpg", "coffee_and_pistol.jpg"):
        image = base64.b64encode((HERE / "images" / name).read_bytes()).decode()
        state = [HumanMessage([{"type": "image", "base64": image, "mime_type": "image/jpeg"}])]
        found = model.invoke({"state": state, "questions": questions})
        box = found.boxes["where"].box
        print(
            f"{name}: unsafe {found.nouls['unsafe'].noul:.3f}, {found.choices['which'].choice}, "
            f"{LADDER[round(found.scores['what to do'].score)]}, from ({box.left:.2f}, {box.top:.2f}) to "
            f"({box.right:.2f}, {box.bottom:.2f})"
        )


if __name__ == "__main__":
    main()
