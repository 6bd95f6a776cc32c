"""The RAG example runs as its first lines say, shows what it promises, and calls nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Ends the example at once, so that no library can swallow the refusal.
OFFLINE = """
import os, sys

def refuse(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and not isinstance(arguments[1], (str, bytes))):
        os.write(2, b"the example wants the network")
        os._exit(3)

sys.addaudithook(refuse)
"""


@pytest.mark.slow
def test_the_example_masks_before_storing_and_catches_a_poisoned_image_before_the_prompt(tmp_path):
    pytest.importorskip("langchain_chroma")
    pytest.importorskip("langchain_classic")
    (tmp_path / "sitecustomize.py").write_text(OFFLINE)
    done = subprocess.run(
        [sys.executable, "examples/rag_with_images.py"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "integrations")]),
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
    lines = [[cell.strip() for cell in line.strip("│\n").split("│")] for line in done.stdout.splitlines()]
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
    assert "Kept aside at retrieval: sea.jpg, weapons, action route." in done.stdout
