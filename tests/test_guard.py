"""The guard as a whole: verdicts, masks, caching and failures."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from guardalign_guardrails import Guard, Policy, ProfileMissing, Verdict
from guardalign_guardrails.detection.reference import make_profile
from guardalign_guardrails.evaluation.baselines import CosineScorer
from guardalign_guardrails.guarding.guard import uninspectable
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.policy import SourceRule
from guardalign_guardrails.testing.colours import COLOURS, ColourEncoder, colour_guard, colour_policy, painted


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("colours", "action"),
    [((), "allow"), (("magenta",), "flag"), (("green",), "prefix"), (("red",), "mask"), (("yellow",), "route")],
)
def test_each_category_gets_the_action_its_thresholds_ask_for(tmp_path, colours, action):
    assert colour_guard(tmp_path).check(painted(*colours)).verdict.action == action


def test_the_severest_category_decides(tmp_path):
    assert colour_guard(tmp_path).check(painted("red", "magenta", "blue")).verdict.action == "block"


def test_a_mask_covers_the_unsafe_square_and_nothing_else(tmp_path):
    image = painted("white", "red")
    checked = colour_guard(tmp_path).check(png(image))
    before, after = np.asarray(image), np.asarray(Image.open(io.BytesIO(checked.output)))
    is_red = (before == COLOURS["red"]).all(-1)
    assert (after[is_red] == 0).all()
    assert (after[~is_red] == before[~is_red]).all()
    assert checked.verdict.masks == ((16.0, 16.0, 32.0, 32.0),)
    assert checked.verdict.after_masking.is_clean
    assert checked.verdict.after_masking.coverage == pytest.approx(1 / 16)
    assert [region.is_masked for region in checked.verdict.regions].count(True) == 1


def test_the_hottest_region_is_where_the_unsafe_square_is(tmp_path):
    verdict = colour_guard(tmp_path).check(painted("white", "white", "red")).verdict
    best = max(verdict.regions, key=lambda region: region.score)
    assert best.box == (32.0, 32.0, 48.0, 48.0)
    assert best.category == verdict.category == "red_things"
    assert best.score == pytest.approx(verdict.score)
    assert len(verdict.regions) == 16


def test_an_image_that_a_mask_cannot_clean_is_escalated(tmp_path):
    red_fill = {"masking": {"feather": 0.0, "colour": [255, 0, 0], "escalate_to": "route"}}
    checked = colour_guard(tmp_path, **red_fill).check(painted("red"))
    assert checked.verdict.action == "route"
    assert checked.is_blocked
    assert not checked.verdict.after_masking.is_clean
    assert "unsafe still" in checked.verdict.reasons[-1]


def test_a_mask_that_would_cover_too_much_is_escalated(tmp_path):
    guard = colour_guard(tmp_path, masking={"max_coverage": 0.5})
    verdict = guard.check(Image.new("RGB", (64, 64), "red")).verdict
    assert verdict.action == "block"
    assert "cover too much" in verdict.reasons[-1]


def test_monitor_mode_reports_and_lets_pass(tmp_path):
    data = png(painted("blue"))
    checked = colour_guard(tmp_path, mode="monitor").check(data)
    assert (checked.verdict.action, checked.verdict.proposed, checked.is_blocked) == ("allow", "block", False)
    assert checked.output == data


def test_source_rules_cap_and_raise(tmp_path):
    guard = colour_guard(tmp_path, sources={"history": SourceRule(at_most="flag"), "tool": SourceRule(at_least="mask")})
    assert guard.check(painted("blue"), source="history").verdict.action == "flag"
    assert guard.check(painted("magenta"), source="tool").verdict.action == "mask"
    assert guard.check(painted("magenta"), source="user").verdict.action == "flag"


def test_a_batch_is_one_encoder_call_and_keeps_its_order(tmp_path):
    guard = colour_guard(tmp_path)
    images = [painted("magenta"), painted(), painted("yellow"), painted("green")]
    actions = [checked.verdict.action for checked in guard.check_batch(images)]
    assert actions == ["flag", "allow", "route", "prefix"]
    assert len(guard.detector.encoder.calls) == 1


def test_many_images_come_back_in_order_with_their_own_sources(tmp_path):
    guard = colour_guard(tmp_path, sources={"tool": SourceRule(at_least="route")})
    sources = ["tool" if index % 3 == 0 else "user" for index in range(40)]
    checked = guard.check_batch([painted("magenta", shade=index) for index in range(40)], source=sources)
    assert [result.verdict.action for result in checked] == ["route" if s == "tool" else "flag" for s in sources]


def test_the_same_pixels_are_scored_once_whatever_file_they_come_in(tmp_path):
    guard = colour_guard(tmp_path)
    image = painted("red")
    first = guard.check(png(image))
    calls = len(guard.detector.encoder.calls)
    again = guard.check_batch([np.asarray(image), image, png(image)])
    assert len(guard.detector.encoder.calls) == calls
    assert all(checked.verdict.is_cached for checked in again)
    masked = np.asarray(Image.open(io.BytesIO(first.output)))
    assert (again[0].output == masked).all()
    assert (np.asarray(again[1].output) == masked).all()
    assert again[2].output == first.output
    assert {checked.verdict.digest for checked in again} == {first.verdict.digest}


def test_one_cache_serves_guards_with_different_policies_without_mixing_them_up(tmp_path):
    strict = colour_guard(tmp_path)
    mild = Guard(colour_policy(mode="monitor"), ColourEncoder(), cache_dir=tmp_path, cache=strict.cache)
    assert strict.check(painted("blue")).verdict.action == "block"
    assert mild.check(painted("blue")).verdict.action == "allow"
    assert not mild.check(painted("red")).verdict.is_cached


def test_duplicates_within_a_batch_are_encoded_once(tmp_path):
    guard = colour_guard(tmp_path)
    guard.check_batch([painted("magenta")] * 5)
    assert guard.detector.encoder.calls == [17]


def test_an_unsafe_image_hidden_behind_transparency_is_found(tmp_path):
    hidden = painted("red").convert("RGBA")
    hidden.putalpha(0)
    assert colour_guard(tmp_path).check(png(hidden)).verdict.action == "mask"


def test_an_unsafe_last_frame_of_an_animation_is_found_and_masked_as_a_still(tmp_path):
    buffer = io.BytesIO()
    frames = [painted(shade=shade) for shade in range(0, 200, 20)] + [painted("white", "red")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    checked = colour_guard(tmp_path).check(buffer.getvalue())
    assert checked.verdict.action == "mask"
    assert checked.verdict.view.startswith("frame 10")
    assert getattr(Image.open(io.BytesIO(checked.output)), "n_frames", 1) == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"hello", "unsupported_format"), (png(painted("red"))[:-30], "truncated")],
)
@pytest.mark.parametrize("rule", ["block", "mask", "allow"])
def test_an_image_that_cannot_be_opened_is_a_finding_and_the_policy_decides(tmp_path, data, reason, rule):
    guard = colour_guard(tmp_path, failure={"uninspectable": rule})
    checked = guard.check(data)
    assert checked.verdict.action == rule
    assert checked.verdict.uninspectable == reason
    assert checked.verdict.score is None
    assert (checked.is_blocked, checked.verdict.finding) == (rule == "block", "unchecked")
    if rule == "mask":
        assert Image.open(io.BytesIO(checked.output)).getextrema() == ((0, 0), (0, 0), (0, 0))
    elif rule == "allow" and data:
        assert checked.output == data


def test_an_unreadable_file_has_the_digest_of_its_bytes(tmp_path):
    (tmp_path / "x.png").write_bytes(b"junk")
    guard = colour_guard(tmp_path)
    digest = hashlib.sha256(b"junk").hexdigest()
    assert guard.check(tmp_path / "x.png").verdict.digest == guard.check(b"junk").verdict.digest == digest
    assert guard.check(tmp_path / "missing.png").verdict.digest == ""


def test_media_whose_pixels_cannot_be_had_follow_the_same_rule(tmp_path):
    blocked = uninspectable(colour_guard(tmp_path), "remote_reference", "tool")
    assert (blocked.verdict.action, blocked.verdict.uninspectable) == ("block", "remote_reference")
    assert blocked.is_blocked
    masked = uninspectable(colour_guard(tmp_path, failure={"uninspectable": "mask"}), "remote_reference")
    assert Image.open(io.BytesIO(masked.output)).getextrema() == ((0, 0), (0, 0), (0, 0))


def test_reading_a_policy_does_not_load_torch():
    code = "import sys, guardalign_guardrails as g; g.Policy.default(); assert 'torch' not in sys.modules; g.Guard"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_string_is_never_taken_for_a_path(tmp_path):
    assert colour_guard(tmp_path).check(str(tmp_path)).verdict.uninspectable == "wrong_type"


def test_one_broken_image_does_not_touch_its_neighbours(tmp_path):
    verdicts = [c.verdict for c in colour_guard(tmp_path).check_batch([painted("red"), b"junk", painted()])]
    assert [verdict.action for verdict in verdicts] == ["mask", "block", "allow"]


@pytest.mark.parametrize("rule", ["block", "mask", "allow"])
def test_an_encoder_that_fails_is_a_verdict_by_the_failure_rule(tmp_path, rule, caplog):
    guard = colour_guard(tmp_path, failure={"on_error": rule})
    guard.detector.encoder.failure = RuntimeError("secret pixels inside")
    with caplog.at_level(logging.DEBUG):
        verdict = guard.check(painted("red")).verdict
    assert (verdict.action, verdict.failure) == (rule, "RuntimeError")
    assert "secret" not in caplog.text + verdict.model_dump_json()
    guard.detector.encoder.failure = None
    assert guard.check(painted("red")).verdict.action == "mask", "a failure must not be remembered as a verdict"


def test_scores_that_are_not_numbers_are_a_failure_and_never_pass_for_safe(tmp_path):
    class Broken(ColourEncoder):
        def encode_crops(self, crops):
            return super().encode_crops(crops) * float("nan")

    verdict = Guard(colour_policy(), Broken(), cache_dir=tmp_path).check(painted()).verdict
    assert (verdict.action, verdict.failure) == ("block", "ArithmeticError")


def test_scores_of_a_masked_image_that_are_not_numbers_are_a_failure_too(tmp_path):
    class BrokenOnTheMasked(ColourEncoder):
        def encode_crops(self, crops):
            return super().encode_crops(crops) * (float("nan") if len(self.calls) == 2 else 1.0)

    verdict = Guard(colour_policy(), BrokenOnTheMasked(), cache_dir=tmp_path).check(painted("red")).verdict
    assert (verdict.action, verdict.failure) == ("block", "ArithmeticError")


def test_an_image_seen_as_a_users_is_known_when_it_comes_back_as_history(tmp_path):
    guard = colour_guard(tmp_path, sources={"tool": {"at_least": "mask"}})
    guard.check(painted("green"))
    again = guard.check(painted("green"), source="history").verdict
    assert (again.is_cached, again.source, again.action) == (True, "history", "prefix")
    other = guard.check(painted("green"), source="tool").verdict
    assert not other.is_cached, "another rule, another outcome"


def test_bytes_seen_before_are_not_even_decoded_again(tmp_path, monkeypatch):
    guard, data = colour_guard(tmp_path), encode_png(painted("green"))
    first = guard.check(data).verdict
    monkeypatch.setattr("guardalign_guardrails.guarding.guard.decode", lambda *_: pytest.fail("decoded again"))
    again, other = guard.check_batch([data, data], source=["history", "user"])
    fleeting = {"timings", "is_cached", "source"}
    assert again.verdict.model_dump(exclude=fleeting) == first.model_dump(exclude=fleeting)
    assert (again.verdict.source, other.verdict.source, again.verdict.is_cached) == ("history", "user", True)


def test_a_masked_image_that_comes_back_costs_no_encoder_pass(tmp_path):
    guard = colour_guard(tmp_path)
    masked = guard.check(png(painted("red"))).output
    passes = len(guard.detector.encoder.calls)
    again = guard.check(masked, source="history").verdict
    assert (again.is_cached, again.action) == (True, "allow")
    assert len(guard.detector.encoder.calls) == passes


def test_detection_that_takes_too_long_is_a_verdict_by_the_timeout_rule(tmp_path):
    class Slow(ColourEncoder):
        def encode_crops(self, crops):
            time.sleep(0.5)
            return super().encode_crops(crops)

    guard = Guard(colour_policy(failure={"timeout_s": 0.05, "on_timeout": "block"}), Slow(), cache_dir=tmp_path)
    verdict = guard.check(painted()).verdict
    assert (verdict.action, verdict.failure) == ("block", "timeout")


def test_rates_without_a_profile_are_an_error_that_says_how_to_make_one(tmp_path):
    guard = Guard(
        colour_policy(sources={"tool": {"categories": {"red_things": {"flag": 0.05}}}}),
        ColourEncoder(),
        cache_dir=tmp_path,
    )
    with pytest.raises(ProfileMissing, match="guardalign reference"):
        guard.check(painted())


def test_a_profile_of_another_encoder_is_refused(tmp_path):
    guard = colour_guard(tmp_path)
    key = guard.detector.profile_key.model_copy(update={"encoder": "other"})
    wrong = make_profile([0.1], key, name="wrong", encoder_name="other")
    with pytest.raises(ProfileMissing, match="another encoder"):
        Guard(colour_policy(), ColourEncoder(), profile=wrong, cache_dir=tmp_path).check(painted())


def test_with_a_profile_the_verdict_says_how_rare_the_score_is(tmp_path):
    policy = colour_policy(thresholds={"flag": 0.05})
    key = Guard(policy, ColourEncoder(), cache_dir=tmp_path).detector.profile_key
    profile = make_profile([i / 1000 for i in range(99)], key, name="p", encoder_name="colour")
    verdict = Guard(policy, ColourEncoder(), profile=profile, cache_dir=tmp_path).check(painted("red")).verdict
    assert verdict.p_value == pytest.approx(0.01)
    assert verdict.profile == "p"


def test_the_async_twins_give_the_same_verdicts(tmp_path):
    async def run():
        guard = colour_guard(tmp_path)
        one = await guard.acheck(painted("red"))
        many = await guard.acheck_batch([painted("red"), painted("blue")], source=["user", "tool"])
        return one, many

    one, many = asyncio.run(run())
    assert one.verdict.action == "mask"
    assert [checked.verdict.action for checked in many] == ["mask", "block"]
    assert many[1].verdict.source == "tool"


def test_many_threads_get_their_own_verdicts(tmp_path):
    guard = colour_guard(tmp_path)
    wrong = []

    def work(index):
        colour, action = [("red", "mask"), ("blue", "block"), ("magenta", "flag"), ("white", "allow")][index % 4]
        images = [painted("white", colour, shade=index * 5 + shade) for shade in range(5)]
        wrong.extend(index for image in images if guard.check(image).verdict.action != action)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_verdict_is_json_and_survives_it(tmp_path):
    verdict = colour_guard(tmp_path).check(painted("red")).verdict
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    json.dumps(verdict.summary())
    assert "regions" not in verdict.summary()


def test_sources_must_match_images(tmp_path):
    with pytest.raises(ValueError, match="2 images need as many sources"):
        colour_guard(tmp_path).check_batch([painted(), painted()], source=["user"])


def test_no_images_are_no_work(tmp_path):
    assert colour_guard(tmp_path).check_batch([]) == []


def test_anchors_are_read_from_disk_the_second_time(tmp_path):
    class Counting(ColourEncoder):
        texts = 0

        def encode_texts(self, texts):
            Counting.texts += len(texts)
            return super().encode_texts(texts)

    for _ in range(3):
        Guard(colour_policy(), Counting(), cache_dir=tmp_path).check(painted())
    assert Counting.texts == len(colour_policy().categories) + 2


def test_a_damaged_anchor_cache_is_made_anew(tmp_path, caplog):
    colour_guard(tmp_path).check(painted())
    (entry,) = (tmp_path / "anchors").iterdir()
    entry.write_bytes(b"garbage")
    assert colour_guard(tmp_path).check(painted("red")).verdict.action == "mask"
    assert "made again" in caplog.text


@pytest.mark.parametrize("scoring", ["joint", "conditional", CosineScorer("best-region-cosine")])
def test_every_scoring_finds_the_red_square(tmp_path, scoring):
    is_baseline = isinstance(scoring, CosineScorer)
    policy = colour_policy() if is_baseline else colour_policy(scoring={"method": scoring})
    guard = Guard(policy, ColourEncoder(), cache_dir=tmp_path, scorer=scoring if is_baseline else None)
    verdict = guard.check(painted("white", "red")).verdict
    best = max(verdict.regions, key=lambda region: region.score)
    assert (verdict.category, best.box) == ("red_things", (16.0, 16.0, 32.0, 32.0))


def test_the_offline_encoder_scores_a_real_photo_end_to_end(offline_guard):
    rng = np.random.default_rng(0)
    verdict = offline_guard.check(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).verdict
    assert 0 < verdict.score < 1
    assert set(verdict.categories) == set(Policy.default().categories)
    assert len(verdict.regions) == 28 * 28
