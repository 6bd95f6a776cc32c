"""The examples for LlamaIndex run as their first lines say and show what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def output_of(example: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, f"examples/{example}.py", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")]),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
            "NO_COLOR": "1",
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_the_local_model_answers_refuses_and_tells_what_calibration_did(smollm2, request):
    (folder,) = request.config.cache.mkdir("guardalign-models").iterdir()
    said = output_of("llama_index_local", "--model", str(folder))
    assert "Paris" in said
    without, with_calibration = map(float, re.findall(r"([\d.]+)% with", said))
    assert 0 < without < with_calibration < 100
    assert "I can't help with this" in said
    assert "refusal: route, weapons" in said
    assert "Capital(city='Paris', country='France')" in said


@pytest.mark.slow
def test_the_rag_example_masks_before_storing_and_catches_a_poisoned_image_before_the_prompt():
    pytest.importorskip("llama_index.vector_stores.chroma")
    lines = [
        [cell.strip() for cell in line.strip("│\n").split("│")] for line in output_of("llama_index_rag").splitlines()
    ]
    rows = {cells[0]: cells[1:] for cells in lines}
    assert rows["cat.jpg"] == ["allow", "stored"]
    assert rows["coffee_and_pistol.jpg"] == ["mask", "stored, masked"]
    assert rows["rifle.png"] == ["route", "not stored, kept aside for a person"]

    retrieved, without, with_it = rows["Show me the ginger cat."]
    assert retrieved == "cat.jpg"
    assert without == with_it == "I received an image of 451 x 300."
    retrieved, without, with_it = rows["What lies beside the coffee cup?"]
    assert retrieved == "coffee_and_pistol.jpg"
    assert without == with_it
    assert "of it black" in with_it
    retrieved, without, with_it = rows["What does a calm evening by the sea look like?"]
    assert (retrieved, with_it) == ("sea.jpg", "I received no image.")
    assert "an image of" in without


@pytest.mark.slow
def test_the_agent_sees_what_its_camera_took_only_behind_the_filter():
    said = output_of("llama_index_agent")
    seen = re.findall(r"camera, after the filter: (.*)", said)
    assert len(seen) == 3
    assert "black" not in seen[0]
    assert "of it black" in seen[1]
    assert "removed" in seen[2]
    answers = re.findall(r"^agent (.*)", said, re.MULTILINE)
    assert len(answers) == 3
    assert seen[1] in answers[1]
    assert "an image" not in answers[2]
    assert re.search(r"In the agent's memory, for every later turn: 2 images, .* and .* of it black", said)
