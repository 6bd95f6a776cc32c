"""Masking does not end with the first mask: what is unsafe still is covered too, and what cannot be is escalated."""

from __future__ import annotations

import pytest

from guardalign_guardrails import Guard
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
