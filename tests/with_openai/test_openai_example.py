"""The example of the OpenAI client runs as its first lines say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_one_policy_gives_the_prefix_alone_and_the_other_masks_as_well(tmp_path):
    done = subprocess.run(
        [sys.executable, "examples/openai_client.py"],
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
    _, prefix_only, masks = re.split(r"─+ prefix (?:only|and masks) ─+\n", done.stdout)
    assert "of it black" not in prefix_only
    instructions = [line.rpartition("the instructions ")[2] for line in prefix_only.splitlines()]
    assert instructions == ["None.", "'As an AI assistant,'.", "'As an AI assistant,'."]
    assert re.search(r"coffee_and_pistol.jpg mask: .* of it black, with the instructions 'As an AI assistant,'", masks)
    assert "rifle.png route: I can't help with this" in masks
