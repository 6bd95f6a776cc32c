"""The demo runs as the README says and shows what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guardalign_guardrails.actions import LADDER

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_demo_masks_the_pistol_and_explains_every_image(tmp_path):
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "examples/demo.py", "--out", str(out)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")]),
            "COLUMNS": "160",
            "NO_COLOR": "1",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    images = sorted(path for path in (ROOT / "examples" / "images").iterdir() if path.suffix != ".md")
    lines = done.stdout.splitlines()
    rows = {image.name: next(line.split() for line in lines if f" {image.name} " in line) for image in images}
    actions = {name: next(action for action in LADDER if action in row) for name, row in rows.items()}
    assert actions["cat.jpg"] == actions["coffee.jpg"] == "allow"
    assert {actions["drill.png"], actions["photographer.jpg"]} <= {"allow", "flag", "prefix"}
    assert (actions["coffee_and_pistol.jpg"], actions["rifle.png"]) == ("mask", "route")
    assert "(careful model) I was handed the words" in done.stdout
    assert {path.name for path in out.iterdir()} == {
        *(f"{image.stem}_heat.png" for image in images),
        "coffee_and_pistol_masked.png",
    }
    masked = np.asarray(Image.open(out / "coffee_and_pistol_masked.png"))
    plain = np.asarray(Image.open(ROOT / "examples" / "images" / "coffee_and_pistol.jpg"))
    assert masked.shape == plain.shape
    # The middle of the pistol is black, the saucer on the other side is as it was.
    assert masked[300, 450].max() == 0
    assert np.array_equal(masked[:150, :280], plain[:150, :280])


def test_every_example_image_is_small_and_has_a_stated_source():
    folder = ROOT / "examples" / "images"
    stated = (folder / "SOURCES.md").read_text()
    for path in folder.iterdir():
        if path.suffix == ".md":
            continue
        assert f"`{path.name}`" in stated
        assert path.stat().st_size < 120_000
        assert max(Image.open(path).size) <= 640
