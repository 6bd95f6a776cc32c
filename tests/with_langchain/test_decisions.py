"""The example of a decision model: on cores that have none it says so; else every kind of question is answered."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAS_DECISIONS = importlib.util.find_spec("langchain_core.decisions") is not None

SCRIPT = """
import asyncio, pathlib, sys, warnings
warnings.filterwarnings("ignore")
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.decisions import Box, Choice, Noul, Score
from langchain_core.messages import HumanMessage, ToolMessage
from guardalign_guardrails.detection.reference import make_profile
from guardalign_guardrails.testing.chats import image_block
from guardalign_guardrails.testing.colours import colour_guard, painted
from decision_model import ImageDecisionModel

guard = colour_guard(pathlib.Path(sys.argv[1]))
model = ImageDecisionModel(guard=guard)
ask = {
    "unsafe": Noul(instructions="?"),
    "which": Choice(instructions="?", criteria={"safe": None, "red_things": None, "blue_things": None}),
    "how": Score(instructions="?", criteria=["allow", "mask", "block"]),
    "where": Box(instructions="?"),
}

def both(state, questions=ask):
    first = model.invoke({"state": state, "questions": questions})
    second = asyncio.run(model.ainvoke({"state": state, "questions": questions}))
    assert first.answers == second.answers
    return first

def content(*colours):
    return [{"type": "text", "text": "look"}, image_block(painted(*colours))]

red = both([HumanMessage(content("red"))])
assert red.nouls["unsafe"].noul == 1.0
assert red.choices["which"].choice == "red_things", red
assert abs(sum(red.choices["which"].probabilities.values()) - 1) < 1e-9
assert red.scores["how"].score == 1.0
box = red.boxes["where"].box
assert (box.top, box.left, box.bottom, box.right) == (0.0, 0.0, 0.25, 0.25), box

clean = both({"chat": [HumanMessage(content())], "note": "words"})
assert clean.nouls["unsafe"].noul == 0.0
assert clean.choices["which"].choice == "safe"
assert clean.scores["how"].score == 0.0

nested = both({"turns": [ToolMessage(content("blue"), tool_call_id="t")]})
assert (nested.choices["which"].choice, nested.scores["how"].score) == ("blue_things", 2.0)

far = both([{"type": "image", "url": "https://example.org/a.png"}])
assert far.nouls["unsafe"].noul == 1.0 and far.boxes["where"].confidence is None

words = both("words", {"unsafe": ask["unsafe"], "which": ask["which"]})
assert words.nouls["unsafe"].noul == 0.0 and words.choices["which"].choice == "safe"

for question, state in (
    (Choice(instructions="?", criteria={"billing": None, "safe": None}), "words"),
    (Choice(instructions="?", criteria={"red_things": None}), "words"),
    (Score(instructions="?", criteria=["calm", "angry"]), "words"),
    (Box(instructions="?"), "words"),
):
    try:
        both(state, {"q": question})
    except ValueError:
        continue
    raise AssertionError(question)

heard = []
class Listener(BaseCallbackHandler):
    def on_chain_start(self, serialized, inputs, **_): heard.append(repr(inputs))
    def on_llm_start(self, serialized, prompts, **_): heard.append(repr(prompts))
    def on_chain_end(self, outputs, **_): heard.append(repr(outputs))
model.invoke({"state": [HumanMessage(content("red"))], "questions": ask}, {"callbacks": [Listener()]})
assert heard and "iVBOR" not in "".join(heard) and "image omitted" in "".join(heard), heard
print("all answered")
"""


@pytest.mark.skipif(HAS_DECISIONS, reason="this core has decision models")
def test_on_a_core_without_decision_models_the_error_names_the_version_that_has_them():
    done = run("examples/decision_model.py")
    assert done.returncode == 1
    assert "langchain-core 1.8" in done.stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    folders = [str(ROOT), str(ROOT / "integrations"), str(ROOT / "examples")]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(not HAS_DECISIONS, reason="needs langchain-core 1.8")
class TestOnACoreThatHasThem:
    def test_every_question_is_answered(self, tmp_path):
        done = run("-c", SCRIPT, str(tmp_path))
        assert (done.returncode, done.stdout.strip()) == (0, "all answered"), done.stderr[-2000:]

    def test_the_example_finds_the_pistol(self):
        done = run("examples/decision_model.py")
        assert (done.returncode, done.stderr) == (0, "")
        cat, pistol = done.stdout.splitlines()
        assert "safe, allow" in cat
        assert "weapons, mask" in pistol
