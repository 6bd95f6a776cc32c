"""Masking does not end with the first mask: what is unsafe still is covered too, and what cannot be is escalated."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guardalign_guardrails import Guard, Policy
from guardalign_guardrails.testing.colours import CELL, COLOURS, ColourEncoder, colour_policy, painted


class OneAtATimeEncoder(ColourEncoder):
    """Sees only the first red square of an image: the next comes to light when that one is covered."""

    def encode_crops(self, crops):
        shown = {id(image): self._with_one_red_square(image) for image, _ in crops}
        return super().encode_crops([(shown[id(image)], box) for image, box in crops])

    @staticmethod
    def _with_one_red_square(image):
        shown, is_seen = image.copy(), False
        for place in range(0, image.width, CELL):
            if image.getpixel((place, place)) == COLOURS["red"]:
                if is_seen:
                    shown.paste("white", (place, place, place + CELL, place + CELL))
                is_seen = True
        return shown


def checked(tmp_path, squares):
    return Guard(colour_policy(), OneAtATimeEncoder(), cache_dir=tmp_path).check(painted(*["red"] * squares)).verdict


@pytest.mark.parametrize("squares", [1, 2, 3])
def test_what_comes_to_light_under_a_mask_is_masked_in_the_next_round(tmp_path, squares):
    verdict = checked(tmp_path, squares)
    assert (verdict.action, verdict.after_masking.rounds) == ("mask", squares)
    assert verdict.after_masking.is_clean
    assert sorted(verdict.masks) == [
        (CELL * place, CELL * place, CELL * (place + 1), CELL * (place + 1)) for place in range(squares)
    ]


def test_an_image_that_three_rounds_do_not_clean_is_escalated(tmp_path):
    verdict = checked(tmp_path, 4)
    assert (verdict.action, verdict.after_masking.rounds) == ("block", 3)
    assert not verdict.after_masking.is_clean


def tipped():
    """A red square with a thin red tip that the guard sees nothing in."""
    image = painted("white", "red")
    image.paste(COLOURS["red"], (2 * CELL, CELL + 4, 2 * CELL + 6, CELL + 8))
    return image


def masks(tmp_path, image, **masking):
    guard = Guard(colour_policy(masking={"feather": 0.0, **masking}), ColourEncoder(), cache_dir=tmp_path)
    verdict = guard.check(image).verdict
    assert verdict.after_masking.is_clean
    return verdict.masks


def test_a_mask_reaches_the_policys_margin_beyond_the_unsafe_square(tmp_path):
    assert masks(tmp_path, painted("white", "red"), margin=0.125) == ((CELL - 8, CELL - 8, 2 * CELL + 8, 2 * CELL + 8),)
    assert masks(tmp_path, painted("white", "red"), margin=0.0) == ((CELL, CELL, 2 * CELL, 2 * CELL),)


def test_the_tip_of_an_object_on_a_plain_ground_is_covered_although_it_scores_clean(tmp_path):
    (mask,) = masks(tmp_path, tipped(), margin=0.0)
    assert mask[0] <= CELL
    assert mask[1] <= CELL
    assert mask[2] >= 2 * CELL + 6
    assert mask[3] >= 2 * CELL


def test_the_tip_stays_where_the_policy_does_not_want_whole_objects(tmp_path):
    assert masks(tmp_path, tipped(), margin=0.0, whole_objects=False) == ((CELL, CELL, 2 * CELL, 2 * CELL),)


def test_the_shipped_policy_leaves_nothing_of_a_drawn_rifle_visible(offline_guard, cache_dir):
    path = Path(__file__).parents[2] / "examples" / "images" / "rifle.png"
    checked = Guard(Policy.default(), offline_guard.detector.encoder, cache_dir=cache_dir).check(path)
    assert checked.verdict.action == "mask"
    is_ink = np.asarray(Image.open(path).convert("L")) < 245
    masked = np.asarray(Image.open(io.BytesIO(checked.output)).convert("RGB"))
    assert is_ink.any()
    assert (masked[is_ink] == 0).all()
