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
