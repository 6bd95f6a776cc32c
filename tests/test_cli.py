"""The command line: what it takes, what it prints where, what it exits with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from guardalign_guardrails.actions import LADDER
from guardalign_guardrails.cli import app, files
from guardalign_guardrails.cli.console import printable
from guardalign_guardrails.cli.options import ENCODER_FORMS
from guardalign_guardrails.cli.policy import file_schema
from guardalign_guardrails.cli.verdict import verdict_schema
from guardalign_guardrails.detection import encoders
from guardalign_guardrails.detection.encoders.registry import FORMS
from guardalign_guardrails.errors import EncoderUnavailable
from guardalign_guardrails.evaluation.metrics import wilson
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.images import decode
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.testing.colours import colour_guard, painted
from guardalign_guardrails.verdict import Verdict

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
KEYS = {
    *("path", "digest", "score", "p_value", "action", "categories", "regions"),
    *("delivery", "delivery_reasons", "delivered", "error"),
}
SMALL = """
name: small
templates: ["{}"]
categories:
  weapons: {concepts: [a gun, a rifle]}
  drugs: {concepts: [a syringe]}
benign: {concepts: [a dog, the sky, a plain background]}
regions: {method: dense, scales: [224], windows: [1]}
masking: {rescore: false, max_coverage: 1.0}
"""
RUNNER = CliRunner()


@pytest.fixture
def offline_encoder(offline_guard):
    return offline_guard.detector.encoder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, offline_encoder, cache_dir):
    """Folders of our own, one encoder for all tests in this process, and one thread: more only get in their own way."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    real = encoders.load_encoder
    monkeypatch.setattr(
        encoders, "load_encoder", lambda spec, **given: offline_encoder if spec == "offline" else real(spec, **given)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def image(path, seed=0, size=(120, 80), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def policy(thresholds="flag: 2, prefix: null, mask: null", more=""):
    path = Path("policy.yaml")
    path.write_text(f"{SMALL}thresholds: {{kind: score, {thresholds}}}\n{more}\n", encoding="utf-8")
    return str(path)


ALL_FLAGGED = "flag: -9, prefix: null, mask: null"
ALL_MASKED = "flag: null, prefix: null, mask: -9"


def run(*args):
    return RUNNER.invoke(app, [str(arg) for arg in args])


def rows(result):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in result.stdout.splitlines()]


def fails_with(result, *words):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def shell(*args, **options):
    command = [sys.executable, "-m", "guardalign_guardrails.cli", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)


# scan: files


def test_a_folder_is_scanned_in_sorted_order_with_hidden_and_other_files_left_out():
    for name in ("b.png", "a/z.jpg", "a.png", "c/.hidden.png", ".git/x.png", "c/UPPER.PNG"):
        image(Path("in") / name)
    image(Path("in/plain"), format="PNG")
    Path("in/notes.txt").write_text("BMW and other cars")
    result = run("scan", "in", "--json", "--policy", policy())
    found = [row["path"] for row in rows(result)]
    assert found == ["in/a/z.jpg", "in/a.png", "in/b.png", "in/c/UPPER.PNG", "in/plain"]
    assert result.exit_code == 0


def test_arguments_keep_their_order_and_spelling():
    image(Path("in/a.png"))
    image(Path("z.png"))
    result = run("scan", "./z.png", "./in/", "in/a.png", "--json", "--policy", policy())
    assert [row["path"] for row in rows(result)] == ["./z.png", "./in/a.png", "in/a.png"]


def test_a_named_file_is_taken_whatever_it_is_called():
    Path(".odd").write_text("hello")
    (row,) = rows(run("scan", ".odd", "--json", "--policy", policy()))
    assert row["error"] == "unsupported_format"


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_in_a_circle_end_and_links_to_files_are_followed():
    image(Path("in/a.png"))
    Path("in/loop").symlink_to("..", target_is_directory=True)
    Path("in/self.png").symlink_to("self.png")
    Path("in/link.png").symlink_to("a.png")
    assert [found.path for found in files.find(["in"])] == ["in/a.png", "in/link.png"]


def test_a_tree_deeper_than_the_stack_is_walked(monkeypatch):
    folder = Path("in", *["d"] * 300)
    image(folder / "a.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(250)
    try:
        assert len(files.find(["in"])) == 1
    finally:
        sys.setrecursionlimit(limit)


def test_a_folder_with_nothing_in_it_is_no_error():
    Path("in").mkdir()
    result = run("scan", "in", "--json", "--policy", policy())
    assert (result.exit_code, result.stdout) == (0, "")


# scan: rows


def test_a_row_has_exactly_the_keys_of_the_contract():
    image(Path("a.png"))
    result = run("scan", "a.png", "--json", "--policy", policy(ALL_FLAGGED))
    (row,) = rows(result)
    assert set(row) == KEYS
    assert set(row["categories"]) == {"weapons", "drugs"}
    assert all(set(finding) == {"score", "p_value"} for finding in row["categories"].values())
    assert len(row["regions"]) == 7 * 7
    assert all(set(region) == {"box", "score", "category"} for region in row["regions"])
    assert row["score"] == max(finding["score"] for finding in row["categories"].values())
    assert row["score"] == max(region["score"] for region in row["regions"])
    assert (row["action"], row["p_value"], row["error"]) == ("flag", None, None)
    assert len(row["digest"]) == 64
    assert result.exit_code == 1


def test_boxes_lie_in_the_image_as_displayed():
    exif = Image.Exif()
    exif[0x0112] = 6
    image(Path("turned.jpg"), size=(200, 100), exif=exif)
    (row,) = rows(run("scan", "turned.jpg", "--json", "--policy", policy()))
    assert max(region["box"][2] for region in row["regions"]) == 100
    assert max(region["box"][3] for region in row["regions"]) == 200


@pytest.mark.parametrize(("action", "code"), [("block", 1), ("allow", 0)])
def test_a_corrupt_file_is_a_row_with_the_policys_action(action, code):
    whole = image(Path("whole.png")).read_bytes()
    Path("cut.png").write_bytes(whole[:400])
    chosen = policy(more=f"failure: {{uninspectable: {action}}}")
    result = run("scan", "cut.png", "whole.png", "--json", "--policy", chosen)
    cut, other = rows(result)
    assert set(cut) == KEYS
    assert (cut["error"], cut["action"], cut["score"]) == ("truncated", action, None)
    assert (cut["categories"], cut["regions"]) == ({}, [])
    assert other["error"] is None
    assert result.exit_code == code


def test_a_policy_that_monitors_acts_on_nothing():
    image(Path("a.png"))
    chosen = policy(ALL_FLAGGED, "mode: monitor")
    assert run("scan", "a.png", "--policy", chosen).exit_code == 0
    assert "allow (monitoring; else flag)" in run("scan", "a.png", "--policy", chosen).stdout


def test_rows_come_in_chunks_so_that_memory_is_bounded(monkeypatch):
    sizes = []
    check = Guard.check_batch
    monkeypatch.setattr(Guard, "check_batch", lambda self, *a, **k: sizes.append(len(a[0])) or check(self, *a, **k))
    for seed in range(10):
        image(Path(f"in/{seed}.png"), seed)
    assert len(rows(run("scan", "in", "--json", "--policy", policy()))) == 10
    assert sizes == [8, 2]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("timeout_s: 4", [1, 1, 1]), ("timeout_s: 11", [2, 1]), ("max_images: 2", [2, 1]), ("timeout_s: null", [3])],
)
def test_no_image_is_late_or_over_budget_because_of_those_it_is_checked_with(monkeypatch, rule, expected):
    sizes = []
    check = Guard.check_batch
    monkeypatch.setattr(Guard, "check_batch", lambda self, *a, **k: sizes.append(len(a[0])) or check(self, *a, **k))
    for seed in range(3):
        image(Path(f"in/{seed}.png"), seed)
    run("scan", "in", "--policy", policy(more=f"failure: {{{rule}}}"))
    assert sizes == expected


def test_the_source_decides_whose_rules_count():
    image(Path("a.png"))
    chosen = policy(ALL_FLAGGED, "sources: {retrieved: {at_least: block}}")
    (user,) = rows(run("scan", "a.png", "--json", "--policy", chosen))
    (found,) = rows(run("scan", "a.png", "--json", "--policy", chosen, "--source", "retrieved"))
    assert (user["action"], found["action"]) == ("flag", "block")


def test_scoring_replaces_the_policys():
    image(Path("a.png"))
    (row,) = rows(run("scan", "a.png", "--json", "--policy", policy(), "--scoring", "global-cosine"))
    assert len(row["regions"]) == 1


def test_without_json_there_is_a_line_for_each_image_and_a_summary_on_standard_error():
    image(Path("a.png"))
    Path("b.png").write_bytes(b"no")
    result = run("scan", "a.png", "b.png", "--policy", policy())
    first, second = result.stdout.splitlines()
    assert first.split("\t")[0] == "allow"
    assert first.endswith("\ta.png")
    assert "cannot be opened: unsupported_format" in second
    assert "2 images: 1 allow, 1 block; 1 not scored" in result.stderr


def test_names_that_would_trick_a_terminal_are_written_out():
    assert printable("a\x1b[2Jb\nc\udcff") == "a\\x1b[2Jb\\nc\\udcff"


# scan --out


@pytest.mark.parametrize(
    ("name", "mode", "rules", "delivery", "delivered"),
    [
        ("a.png", "RGB", "", "original", "a.png"),
        ("a.png", "RGBA", "", "canonical", "out/a.png.delivered.png"),
        ("a.png", "RGB", ALL_MASKED, "masked", "out/a.png.delivered.png"),
        ("a.jpg", "CMYK", "", "canonical", "out/a.jpg.delivered.jpg"),
        ("cut.png", None, "", "none", None),
    ],
)
def test_a_row_says_what_goes_on_and_where_it_lies(name, mode, rules, delivery, delivered):
    if mode is None:
        Path(name).write_bytes(image(Path("whole.png")).read_bytes()[:300])
    else:
        with Image.open(image(Path("plain.png"))) as plain:
            other = plain.convert(mode)
        if mode == "RGBA":
            other.putalpha(128)
        other.save(name)
    (row,) = rows(run("scan", name, "--json", "--out", "out", "--policy", policy(rules) if rules else policy()))
    assert (row["delivery"], row["delivered"]) == (delivery, delivered)
    assert bool(row["delivery_reasons"]) == (delivery == "canonical")
    if delivered is not None:
        with Image.open(delivered) as written:
            assert written.mode == "RGB"
    (row,) = rows(run("scan", name, "--json", "--policy", policy(rules) if rules else policy()))
    assert row["delivered"] == (name if delivery == "original" else None), "without --out nothing is written"


def test_out_mirrors_folders_and_writes_heat_maps_and_masked_images():
    image(Path("in/sub/a.png"))
    image(Path("in/a.png"), 1)
    assert run("scan", "in", "--out", "out", "--policy", policy(ALL_MASKED)).exit_code == 1
    written = sorted(str(path) for path in Path("out").rglob("*.png"))
    assert written == [
        f"out/in/{name}.png.{what}.png" for name in ("a", "sub/a") for what in ("delivered", "heat", "masked")
    ]
    assert Image.open("out/in/a.png.masked.png").size == (120, 80)


def test_out_never_writes_over_an_input_or_outside_of_its_folder():
    image(Path("work/in/a.png"))
    heat = image(Path("work/in/a.png.heat.png"), 1)
    before = heat.read_bytes()
    os.chdir("work/in")
    assert run("scan", "../in", "--out", "..", "--policy", policy()).exit_code == 0
    assert heat.name == "a.png.heat.png"
    assert Path("a.png.heat.png").read_bytes() == before
    assert Path("a.png~2.heat.png").exists()


def test_out_within_a_scanned_folder_is_not_scanned_again():
    image(Path("in/a.png"))
    for _ in range(2):
        result = run("scan", "in", "--out", "in/out", "--json", "--policy", policy())
        assert [row["path"] for row in rows(result)] == ["in/a.png"]


def test_the_same_name_from_two_places_gets_a_number():
    for place in ("x/in", "y/in"):
        image(Path(place) / "a.png")
    run("scan", "x/in", "y/in", "--out", "out", "--policy", policy())
    assert sorted(path.name for path in Path("out/in").iterdir()) == ["a.png.heat.png", "a.png~2.heat.png"]


def test_a_name_as_long_as_names_get_still_has_outputs():
    name = "n" * 250 + ".png"
    image(Path(name))
    assert run("scan", name, "--out", "out", "--policy", policy()).exit_code == 0
    assert len(list(Path("out").iterdir())) == 1


def test_an_out_that_cannot_be_written_is_one_line():
    image(Path("a.png"))
    fails_with(run("scan", "a.png", "--out", "a.png/x", "--policy", policy()), "--out")


# errors


def test_a_missing_path_is_one_line():
    fails_with(run("scan", "nope.png", "--json", "--policy", policy()), "nope.png", "give files and folders that exist")


def test_a_misspelt_policy_key_gets_a_suggestion():
    image(Path("a.png"))
    Path("bad.yaml").write_text("extends: default\nmaskng: {fill: blur}\n")
    fails_with(run("scan", "a.png", "--policy", "bad.yaml"), "maskng", "did you mean 'masking'?")
    fails_with(run("policy", "check", "bad.yaml"), "did you mean 'masking'?")


def test_a_missing_profile_says_how_to_make_one():
    image(Path("a.png"))
    Path("rates.yaml").write_text(SMALL)
    fails_with(run("scan", "a.png", "--json", "--policy", "rates.yaml"), "guardalign reference")


def test_a_profile_that_is_none_or_missing_is_one_line():
    image(Path("a.png"))
    fails_with(run("scan", "a.png", "--policy", policy(), "--profile", "policy.yaml"), "not a reference profile")
    fails_with(run("scan", "a.png", "--policy", policy(), "--profile", "none.json"), "none.json")


def test_an_unknown_encoder_lists_the_forms():
    image(Path("a.png"))
    fails_with(run("scan", "a.png", "--encoder", "clip", "--policy", policy()), "clip", FORMS)


def test_missing_weights_are_one_line():
    image(Path("a.png"))
    pytest.importorskip("open_clip")
    weights = Path("none.pt").absolute()
    fails_with(run("scan", "a.png", "--encoder", f"open_clip:ViT-B-32/{weights}", "--policy", policy()), "none.pt")


def test_an_image_side_that_cannot_be_loaded_shows_before_the_first_image(monkeypatch, offline_encoder):
    def missing(crops):
        raise EncoderUnavailable("The offline encoder needs x: pip install x")

    image(Path("a.png"))
    monkeypatch.setattr(offline_encoder, "encode_crops", missing)
    fails_with(run("scan", "a.png", "--policy", policy()), "pip install x")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(device):
    image(Path("a.png"))
    fails_with(run("scan", "a.png", "--device", device, "--policy", policy()), f"--device {device}")


@pytest.mark.parametrize(
    "args",
    [
        ["scan"],
        ["scan", "--bogus"],
        ["frobnicate"],
        ["scan", "x", "--scoring", "joynt"],
        ["scan", "x", "--source", "me"],
    ],
)
def test_bad_arguments_are_one_line_that_points_to_the_help(args):
    fails_with(run(*args), "--help")


def test_an_interruption_exits_with_130(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    image(Path("a.png"))
    monkeypatch.setattr(Guard, "check_batch", interrupt)
    result = run("scan", "a.png", "--policy", policy())
    assert (result.exit_code, result.stdout) == (130, "")


# explain


def test_explain_prints_findings_and_pairs_and_writes_an_image():
    image(Path("a.png"))
    result = run("explain", "a.png", "--policy", policy(ALL_FLAGGED), "--out", "why/a.png", "--pairs", "2")
    assert result.exit_code == 0
    assert "a.png: flag: " in result.stdout
    assert result.stdout.count("a gun") + result.stdout.count("a rifle") + result.stdout.count("a syringe") == 2
    assert Image.open("why/a.png").size == (720, 480)


def test_explain_writes_beside_the_user_if_not_told_where():
    image(Path("in/a.png"))
    run("explain", "in/a.png", "--policy", policy())
    assert Path("a.png.explained.png").exists()


def test_explain_refuses_what_it_cannot_open_and_to_write_over_its_image():
    Path("text.png").write_text("hello")
    fails_with(run("explain", "text.png", "--policy", policy()), "convert it to PNG")
    fails_with(run("explain", "none.png", "--policy", policy()), "none.png")
    image(Path("a.png"))
    fails_with(run("explain", "a.png", "--out", "a.png", "--policy", policy()), "that is the image itself")


def test_explain_writes_what_a_consumer_sees_of_what_is_delivered():
    image(Path("a.png"))
    result = run("explain", "a.png", "--policy", policy(), "--out", "why/a.png", "--as", "siglip-384")
    assert result.exit_code == 0
    assert "siglip-384: sees 384 x 384 by pillow-bicubic: why/a.png.siglip-384.png" in result.stdout
    with Image.open("a.png") as original, Image.open("why/a.png.siglip-384.png") as seen:
        expected = original.convert("RGB").resize((384, 384), Image.Resampling.BICUBIC)
        assert seen.convert("RGB").tobytes() == expected.tobytes()


def test_explain_shows_no_consumer_a_blocked_image():
    image(Path("a.png"))
    result = run(
        "explain", "a.png", "--policy", policy("flag: null, prefix: null, mask: null, block: -9"), "--as", "claude"
    )
    assert "claude: sees nothing, the image is blocked" in result.stdout
    assert [path.name for path in Path().glob("*claude*")] == []


def test_explain_names_the_nearest_consumer_for_an_unknown_one():
    image(Path("a.png"))
    fails_with(run("explain", "a.png", "--policy", policy(), "--as", "llava-1-5"), "did you mean 'llava-1.5'")


def test_the_frame_that_explain_draws_is_the_one_the_guard_judged(offline_encoder):
    frames = [Image.open(image(Path(f"{seed}.png"), seed)) for seed in range(3)]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    verdict = (
        Guard(Policy.from_yaml(SMALL + "thresholds: {kind: score}"), offline_encoder).check(Path("moving.gif")).verdict
    )
    assert verdict.view in {f"frame {view.frame}, {view.backdrop}" for view in decode(Path("moving.gif")).views}


# reference


def test_a_profile_is_found_again_and_gives_p_values():
    for seed in range(25):
        image(Path(f"benign/{seed}.png"), seed)
    image(Path("benign/copy.png"), 3)
    image(Path("unsafe/a.png"), 99)
    Path("benign/bad.png").write_bytes(b"no")
    Path("rates.yaml").write_text(SMALL + "thresholds: {flag: 0.1, prefix: null, mask: null}\n")
    result = run("reference", "benign", "--unsafe", "unsafe", "--policy", "rates.yaml", "--note", "noise")
    assert result.exit_code == 0, result.output
    assert "25 benign images; skipped 1 duplicate, 1 unsupported_format" in result.stdout
    assert "needs 999 images" in result.stdout
    assert re.search(r"5\.0%.*(of 1)", result.stdout)
    assert "Only 25 benign images" in result.stderr
    (row,) = rows(run("scan", "unsafe/a.png", "--json", "--policy", "rates.yaml"))
    assert row["p_value"] * 26 == pytest.approx(round(row["p_value"] * 26), abs=1e-4)


def test_reference_writes_where_it_is_asked_to_and_scan_takes_it_from_there():
    image(Path("benign/a.png"))
    Path("rates.yaml").write_text(SMALL)
    assert run("reference", "benign", "--policy", "rates.yaml", "--out", "p.json", "--name", "mine").exit_code == 0
    assert json.loads(Path("p.json").read_text())["name"] == "mine"
    assert run("scan", "benign", "--policy", "rates.yaml", "--profile", "p.json").exit_code == 0
    fails_with(
        run("scan", "benign", "--policy", "rates.yaml", "--profile", "p.json", "--scoring", "conditional"),
        "guardalign reference",
    )


@pytest.mark.parametrize(("flags", "tiled"), [((), 2), (("--no-tiles",), 0)])
def test_reference_looks_at_tiles_unless_it_is_told_not_to(flags, tiled):
    for seed in range(2):
        image(Path(f"benign/{seed}.png"), seed)
    Path("rates.yaml").write_text(SMALL)
    assert run("reference", "benign", "--policy", "rates.yaml", "--out", "p.json", *flags).exit_code == 0
    profile = json.loads(Path("p.json").read_text())
    assert len(profile["tiled"]) == tiled
    assert all(both >= whole for both, whole in zip(profile["tiled"], profile["scores"], strict=False))


def test_reference_refuses_to_make_something_of_nothing():
    Path("empty").mkdir()
    fails_with(run("reference", "empty", "--policy", policy()), "no image")
    fails_with(run("reference", "missing", "--policy", policy()), "missing")
    Path("empty/bad.png").write_bytes(b"no")
    result = run("reference", "empty", "--policy", policy())
    assert result.exit_code == 2
    assert "No benign image could be scored" in result.stderr


def test_wilson_intervals_match_published_values():
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I


# policy


def test_policy_show_prints_the_shipped_file_and_what_a_file_extends():
    shown = run("policy", "show").stdout
    assert shown.startswith("# The policy that")
    assert Policy.from_yaml(shown) == Policy.default()
    Path("mine.yaml").write_text("extends: default\nname: mine\n")
    mine = Policy.from_yaml(run("policy", "show", "mine.yaml").stdout)
    assert (mine.name, mine.fingerprint) == ("mine", Policy.default().fingerprint)


def test_policy_check_is_one_line_with_the_fingerprint():
    result = run("policy", "check", policy())
    assert result.stdout.startswith("ok: small (2 categories, 3 unsafe and 3 benign anchors")
    assert result.stdout.strip().endswith(Policy.load("policy.yaml").fingerprint)
    fails_with(run("policy", "check", "none.yaml"), "none.yaml")


def test_the_schema_accepts_the_shipped_policy_and_files_that_extend_it():
    schema = json.loads(run("policy", "schema").stdout)
    assert schema == file_schema()
    assert conforms(Policy.default().to_dict(), schema, schema)
    assert conforms({"extends": "default", "masking": {"fill": "blur"}}, schema, schema)
    assert not conforms({"extends": "other"}, schema, schema)
    assert not conforms({"masking": {"fill": "blur"}}, schema, schema)
    assert not conforms({"extends": "default", "maskng": {}}, schema, schema)
    assert not conforms({"extends": "default", "mode": "watch"}, schema, schema)


def test_the_schema_of_verdicts_accepts_a_verdict_and_nothing_else(tmp_path):
    schema = json.loads(run("verdict", "schema").stdout)
    assert schema == verdict_schema()
    for colour in (None, "red", "blue"):
        verdict = colour_guard(tmp_path).check(painted(*([colour] if colour else []))).verdict
        dumped = verdict.model_dump(mode="json")
        assert conforms(dumped, schema, schema)
        assert not conforms({**dumped, "pixels": "AAAA"}, schema, schema)
        assert not conforms({**dumped, "action": "hide"}, schema, schema)
        assert not conforms({key: value for key, value in dumped.items() if key != "finding"}, schema, schema)


def conforms(value, schema, root):
    """The part of JSON schema that pydantic writes."""
    known = {"$ref", "$schema", "$defs", "type", "properties", "additionalProperties", "propertyNames", "required"}
    known |= {
        "anyOf",
        "enum",
        "const",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "title",
        "description",
        "default",
        "readOnly",
    }
    known |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    assert set(schema) <= known, set(schema) - known
    if "$ref" in schema:
        return conforms(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    kind = schema.get("type")
    if (kind == "null" and value is not None) or (kind in kinds and not isinstance(value, kinds[kind])):
        return False
    checks = [
        value in schema.get("enum", [value]),
        value == schema.get("const", value),
        "anyOf" not in schema or any(conforms(value, option, root) for option in schema["anyOf"]),
        "exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"],
        "minimum" not in schema or value >= schema["minimum"],
        "maximum" not in schema or value <= schema["maximum"],
    ]
    if isinstance(value, dict):
        others = schema.get("additionalProperties", True)
        for key, item in value.items():
            own = schema.get("properties", {}).get(key, others)
            checks.append(own if isinstance(own, bool) else conforms(item, own, root))
        checks.append(set(schema.get("required", [])) <= set(value))
    if isinstance(value, list):
        checks += [schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))]
        checks += [conforms(item, schema["items"], root) for item in value if "items" in schema]
    return all(checks)


# docs


def commands():
    root = typer.main.get_command(app)
    for name, command in root.commands.items():
        if command.hidden:
            continue
        for inner, leaf in getattr(command, "commands", {"": command}).items():
            yield f"{name} {inner}".strip(), leaf


def test_the_docs_name_every_flag_and_no_other():
    flags = {flag for _, command in commands() for param in command.params for flag in param.opts if flag[:2] == "--"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", DOCS)) == flags - {"--help"}


def test_the_docs_say_which_command_shares_which_flag():
    leaves = dict(commands())
    shared = DOCS[DOCS.index("## Flags that commands share") : DOCS.index("## `guardalign scan PATH...`")]
    for flag, names in re.findall(r"^\| `(--[a-z]+) [A-Z]+` \| ([a-z, ]+) \|", shared, re.MULTILINE):
        having = {name for name, leaf in leaves.items() if any(flag in param.opts for param in leaf.params)}
        assert having == set(names.split(", ")), flag


def test_the_docs_name_every_command_and_action():
    assert all(f"policy {name}" in DOCS for name in ("show", "check", "schema"))
    assert all(f"guardalign {name}" in DOCS for name in ("scan", "explain", "reference", "policy", "verdict"))
    assert all(f"`{action}`" in DOCS for action in LADDER)


def test_the_example_row_keeps_the_contract():
    example = json.loads(re.search(r"```json\n(.*?)\n```", DOCS, re.DOTALL)[1])
    assert set(example) == KEYS
    assert all(set(finding) == {"score", "p_value"} for finding in example["categories"].values())
    assert all(set(region) == {"box", "score", "category"} for region in example["regions"])


def test_the_help_names_the_encoder_forms_of_the_registry():
    assert ENCODER_FORMS == FORMS


def test_every_verdict_field_a_row_uses_exists():
    assert {"uninspectable", "failure", "regions", "categories"} <= set(Verdict.model_fields)


# in a process of its own


NOISY = """
import ctypes, os, sys
import guardalign_guardrails.detection.encoders as encoders
from guardalign_guardrails.cli import main
real = encoders.load_encoder
def noisy(*args, **kwargs):
    print("noise from python")
    os.write(1, b"noise from below")
    if os.name != "nt":
        ctypes.CDLL(None).puts(b"noise kept back until the end")
    return real(*args, **kwargs)
encoders.load_encoder = noisy
main()
"""


def test_standard_output_is_rows_and_nothing_else_whatever_libraries_print():
    image(Path("in/a.png"))
    Path("in/b.png").write_bytes(b"no")
    command = [sys.executable, "-c", NOISY, "scan", "in", "--json", "--policy", policy()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert [row["path"] for row in rows(result)] == ["in/a.png", "in/b.png"]
    assert result.returncode == 1
    assert result.stderr.count("noise") == (2 if os.name == "nt" else 3)
    assert "%" not in result.stderr


def test_an_error_in_a_shell_is_one_line_and_code_2():
    result = shell("scan", "nope.png", "--json")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "guardalign: nope.png: no such file or directory; give files and folders that exist.\n"


@pytest.mark.skipif(os.name == "nt", reason="no such signal there")
def test_a_reader_that_goes_away_is_met_with_silence():
    command = [sys.executable, "-m", "guardalign_guardrails.cli", "policy", "show"]
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


def test_help_and_policy_commands_do_not_wait_for_torch():
    # The package's own __init__ is left out: what it imports is its own affair.
    code = """
import sys, types
package = types.ModuleType("guardalign_guardrails")
package.__path__ = [sys.argv.pop(1)]
sys.modules["guardalign_guardrails"] = package
from guardalign_guardrails.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
assert "torch" not in sys.modules
"""
    for args in (["--help"], ["policy", "schema"]):
        command = [sys.executable, "-c", code, str(ROOT / "guardalign_guardrails"), *args]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, capture_output=True, env=environment)
