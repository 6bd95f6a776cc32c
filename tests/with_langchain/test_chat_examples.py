"""The examples of chats, agents and graphs run as their first lines say and show what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def output_of(example: str, tmp_path: Path) -> str:
    done = subprocess.run(
        [sys.executable, f"examples/{example}.py"],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"},
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")]),
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_the_guarded_chat_masks_refuses_and_goes_on(tmp_path):
    said = output_of("guarded_chat", tmp_path)
    assert "an image of 451 x 300" in said
    assert "of it black" in said
    assert "I can't help with this" in said
    assert "guard: allow, mask, route" in said
    assert "[image removed by the safety policy]" in said.partition("What did I show you first?")[2]


@pytest.mark.slow
def test_the_agent_gets_masked_images_from_its_tool(tmp_path):
    said = output_of("agent_with_image_tool", tmp_path)
    verdicts = [line.partition(": ")[2] for line in said.splitlines() if line.startswith("verdict")]
    assert verdicts == ["allow", "mask", "route"]
    assert "of it black" in said
    assert "the words '[image removed by the safety policy]'" in said


@pytest.mark.slow
def test_the_graph_sends_what_is_too_unsafe_to_a_person(tmp_path):
    lines = dict(line.split(" ", 1) for line in output_of("langgraph_routing", tmp_path).splitlines())
    assert lines["cat.jpg"].startswith("check → answer")
    assert "of it black" in lines["coffee_and_pistol.jpg"]
    assert lines["rifle.png"].startswith("check → human_review")
