"""The demo runs as the README says and shows what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guardalign_guardrails import Guard, Policy
from guardalign_guardrails.actions import LADDER
from guardalign_guardrails.testing.colours import colour_guard, painted

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


@pytest.fixture
def make_strip(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import make_strip

    return make_strip


def test_the_strip_shows_the_image_its_heat_map_and_what_the_model_gets(make_strip, cache_dir, tmp_path):
    painted("red").save(tmp_path / "red.png")
    (_, sent), (caption, heat), (_, received) = make_strip.panels(colour_guard(cache_dir), tmp_path / "red.png")
    assert caption == "the guard finds red_things"
    assert sent.getpixel((5, 5)) == (255, 0, 0)
    assert max(heat.size) > max(sent.size)
    assert received.getpixel((5, 5)) == (0, 0, 0)
    assert received.getpixel((40, 40)) == sent.getpixel((40, 40))
    sheet = make_strip.strip([("one", sent), ("two", heat), ("three", received)])
    assert sheet.size == (
        3 * make_strip.PANEL_WIDTH + 2 * make_strip.GAP,
        make_strip.PANEL_WIDTH + make_strip.CAPTION_HEIGHT,
    )


@pytest.mark.slow
def test_the_strip_of_the_readme_is_what_the_script_draws(make_strip, offline_guard):
    guard = Guard(Policy.load(ROOT / "examples" / "policy.yaml"), offline_guard.detector.encoder)
    drawn = np.asarray(make_strip.strip(make_strip.panels(guard, make_strip.IMAGE)), dtype=np.int16)
    shown = np.asarray(Image.open(make_strip.OUT), dtype=np.int16)
    assert shown.shape == drawn.shape
    # What is left is JPEG's.
    assert np.abs(shown - drawn).mean() < 4


def test_every_example_image_is_small_and_has_a_stated_source():
    folder = ROOT / "examples" / "images"
    stated = (folder / "SOURCES.md").read_text()
    for path in folder.iterdir():
        if path.suffix == ".md":
            continue
        assert f"`{path.name}`" in stated
        assert path.stat().st_size < 120_000
        assert max(Image.open(path).size) <= 640
