"""The image and the words that explain a verdict: right place, right numbers, readable for every scoring."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from guardalign_guardrails.detection.reference import Profile, ProfileKey
from guardalign_guardrails.explain import SHARE, HeatScale, headline, heat_map, heat_scale, scored_view
from guardalign_guardrails.images import decode, encode_png
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.policy.detection import RegionConfig, ScoringConfig
from guardalign_guardrails.verdict import CategoryFinding, RegionFinding, Verdict

CYAN = (0, 229, 255)
GREY = Image.new("RGB", (800, 400), (120, 120, 120))


def verdict(scores=(0.1, 0.9), masks=(), **changes):
    """Two regions side by side in an 800 x 400 image."""
    regions = tuple(
        RegionFinding(box=(400.0 * i, 0, 400.0 * (i + 1), 400), score=score, category="weapons")
        for i, score in enumerate(scores)
    )
    best = max(scores)
    fields = {
        "digest": "ab",
        "source": "user",
        "action": "mask",
        "proposed": "mask",
        "score": best,
        "p_value": 0.004,
        "category": "weapons",
        "categories": {"weapons": CategoryFinding(score=best, p_value=0.004, action="mask")},
        "regions": regions,
        "masks": masks,
        "view": "frame 0, plain",
    }
    return Verdict(**{**fields, **changes})


def policy(text, method="conditional"):
    base = Policy.from_yaml(
        "categories: {weapons: {concepts: [a gun]}, drugs: {concepts: [a pill]}}\nbenign: {concepts: [a dog]}\n" + text
    )
    return base.model_copy(update={"scoring": ScoringConfig(method=method)})


def warmth(image, x, y):
    red, _, blue = (int(c) for c in image.getpixel((x, y)))
    return red - blue


def brightness(image, area):
    return float(np.asarray(image.crop(area), float).mean())


def is_cyan(pixel):
    return max(abs(a - b) for a, b in zip(pixel, CYAN, strict=True)) < 8


def test_the_unsafe_side_is_hot_and_the_other_is_not():
    drawn = heat_map(GREY, verdict())
    assert warmth(drawn, 600, 250) > 60 > 20 > warmth(drawn, 200, 250)


def test_the_image_itself_is_left_alone():
    before = GREY.tobytes()
    heat_map(GREY, verdict(masks=((0, 0, 100, 100),)))
    assert GREY.tobytes() == before


def test_small_images_are_enlarged_until_labels_can_be_read():
    small = GREY.resize((80, 40))
    boxes = tuple(r.model_copy(update={"box": tuple(v / 10 for v in r.box)}) for r in verdict().regions)
    drawn = heat_map(small, verdict(regions=boxes))
    assert drawn.size == (720, 360)
    assert warmth(drawn, 540, 225) > 60


def test_what_was_masked_is_outlined_once_however_many_boxes_overlap():
    tangle = tuple((100.0 + i, 100.0, 300.0 + i, 300.0) for i in range(50))
    drawn = heat_map(GREY, verdict(masks=tangle))
    row = [is_cyan(drawn.getpixel((x, 200))) for x in range(800)]
    edges = sum(1 for a, b in itertools.pairwise(row) if b and not a)
    assert edges == 2


def test_an_outline_does_not_cool_what_it_surrounds():
    plain, masked = heat_map(GREY, verdict()), heat_map(GREY, verdict(masks=((410, 10, 790, 390),)))
    assert plain.getpixel((650, 250)) == masked.getpixel((650, 250))


def test_a_mask_that_reaches_the_edge_of_the_image_is_closed():
    drawn = heat_map(GREY, verdict(masks=((0, 0, 800, 400),)))
    assert any(is_cyan(drawn.getpixel((798 - i, 200))) for i in range(6))


def test_masks_that_are_slivers_or_stick_out_draw_without_error():
    heat_map(GREY, verdict(masks=((10.2, 10.2, 10.3, 10.3), (700, 300, 900, 500), (799.9, 399.9, 800, 400))))


def test_scores_of_any_range_use_the_whole_scale_up_to_the_masking_level():
    scale = heat_scale(policy("thresholds: {kind: score, flag: 0.2, prefix: null, mask: 0.4}"), None, "user")
    assert scale == HeatScale(high=0.4)
    assert scale.heats([0.2, 0.3, 0.4, 0.5]) == pytest.approx([0, 0.5, 1, 1.5])


def test_a_harmless_image_stays_below_full_heat():
    scale = HeatScale(high=0.8)
    assert max(scale.heats([0.1, 0.2, 0.3])) < 0.5


def test_rates_become_scores_through_the_profile():
    key = ProfileKey(encoder="e", anchors="a", regions=RegionConfig(), scoring=ScoringConfig(method="conditional"))
    profile = Profile(name="p", encoder_name="e", key=key, scores=tuple(i / 1000 for i in range(999)))
    scale = heat_scale(policy("thresholds: {flag: 0.1, prefix: null, mask: 0.01}"), profile, "user")
    assert scale.high == profile.threshold(0.01)


def test_a_policy_that_only_flags_is_drawn_up_to_its_severest_action():
    scale = heat_scale(policy("thresholds: {kind: score, flag: 0.3, prefix: null, mask: null}"), None, "user")
    assert scale.high == 0.3


def test_shares_of_mass_are_drawn_as_they_are_and_the_paper_up_to_tau():
    assert heat_scale(policy("", "joint"), None, "user") == SHARE
    assert heat_scale(policy("", "paper"), None, "user").high == pytest.approx(-0.42)


def test_one_region_is_hot_or_not():
    assert HeatScale(high=0.5).heats([0.6]) == [1.0]
    assert HeatScale(high=0.5).heats([0.4]) == [0.0]


def test_the_headline_names_action_category_score_and_p_value():
    assert headline(verdict()) == "mask: weapons 0.90 p=0.004"


def test_the_headline_says_what_monitoring_let_pass_and_why_there_is_no_score():
    assert headline(verdict(action="allow")) == "allow (monitoring; else mask): weapons 0.90 p=0.004"
    unread = Verdict(digest="", source="user", action="block", proposed="block", uninspectable="corrupt")
    assert headline(unread) == "block: cannot be opened: corrupt"
    failed = Verdict(digest="", source="user", action="block", proposed="block", failure="timeout")
    assert headline(failed) == "block: not scored: timeout"


def test_the_frame_that_was_judged_is_the_one_that_is_shown(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    path = tmp_path / "two.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    decoded = decode(path)
    names = [f"frame {view.frame}, {view.backdrop}" for view in decoded.views]
    shown = scored_view(decoded, verdict(view=names[-1]))
    assert shown.getpixel((20, 20))[2] > 200


def test_a_verdict_without_regions_still_makes_an_image():
    failed = Verdict(digest="", source="user", action="block", proposed="block", failure="timeout")
    drawn = heat_map(decode(encode_png(GREY)).flattened, failed)
    assert drawn.size == GREY.size
    assert brightness(drawn, (400, 0, 800, 200)) == pytest.approx(120, abs=2)
