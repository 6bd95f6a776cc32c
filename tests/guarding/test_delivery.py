"""Which pixels go on: the image as it came if it has one reading, else the guard's own, which is what was scored."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from guardalign_guardrails import Guard, Policy, UnsafeContentError
from guardalign_guardrails.detection.reference import Looks, make_profile
from guardalign_guardrails.guarding.decide import decide, mask_thresholds
from guardalign_guardrails.guarding.delivery import Sight, plan_delivery
from guardalign_guardrails.images import DecodedImage, View, decode
from guardalign_guardrails.images.canonical import encode_canonical, shrunk
from guardalign_guardrails.testing.colours import COLOURS, ColourEncoder, colour_guard, colour_policy, painted

REACH = 896


def encoded(image, name="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def turned_tag(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def see_through(*colours):
    image = painted(*colours).convert("RGBA")
    image.putpixel((1, 60), (255, 255, 255, 0))
    return image


def scene(*size):
    """A smooth image without any of the colours that call for an action."""
    across, down = np.meshgrid(np.linspace(0, 3, size[0]), np.linspace(0, 2, size[1]))
    grey = 200 + 40 * np.sin(across) * np.cos(down)
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2).astype(np.uint8))


ONE_READING = {
    "PNG": encoded(painted()),
    "JPEG": encoded(painted(), "JPEG"),
    "palette PNG": encoded(painted().quantize(8)),
    "gray PNG": encoded(painted().convert("L")),
    "lossless WebP": encoded(painted(), "WEBP", lossless=True),
}
SEVERAL_READINGS = {
    "see-through PNG": encoded(see_through()),
    "turned JPEG": encoded(painted().resize((64, 48)), "JPEG", exif=turned_tag(6)),
    "16-bit PNG": encoded(Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))),
    "animated GIF": encoded(painted(), "GIF", save_all=True, append_images=[painted(shade=90), painted(shade=200)]),
}


class TestWhatGoesOn:
    @pytest.mark.parametrize("name", ONE_READING)
    def test_an_image_with_one_reading_goes_on_as_it_came(self, cache_dir, name):
        result = colour_guard(cache_dir).check(ONE_READING[name])
        assert (result.verdict.delivery, result.verdict.delivery_reasons) == ("original", ())
        assert result.output == ONE_READING[name]

    @pytest.mark.parametrize("name", SEVERAL_READINGS)
    def test_an_image_with_several_readings_goes_on_as_the_guard_reads_it(self, cache_dir, name):
        data = SEVERAL_READINGS[name]
        result = colour_guard(cache_dir).check(data)
        assert (result.verdict.action, result.verdict.delivery) == ("allow", "canonical")
        assert result.verdict.delivery_reasons
        with Image.open(io.BytesIO(result.output)) as written:
            assert (written.mode, written.size) == ("RGB", decode(data).size)
            assert set(written.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "duration", "loop"} | {
                "bbox",
                "default_image",
                "blend",
                "disposal",
            }
        assert decode(result.output).flattened.tobytes() == result.pixels.tobytes()

    @pytest.mark.parametrize("name", [*ONE_READING, *SEVERAL_READINGS])
    def test_the_same_image_goes_on_as_the_same_bytes(self, cache_dir, name):
        data = (ONE_READING | SEVERAL_READINGS)[name]
        guard = colour_guard(cache_dir)
        first, second, other = guard.check(data), guard.check(data), colour_guard(cache_dir).check(data)
        assert second.verdict.is_cached
        assert first.output == second.output == other.output
        assert first.mime_type == second.mime_type

    def test_what_goes_on_is_known_when_it_comes_back(self, cache_dir):
        guard = colour_guard(cache_dir)
        output = guard.check(SEVERAL_READINGS["see-through PNG"]).output
        again = guard.check(output)
        assert again.verdict.is_cached
        assert (again.verdict.delivery, again.output) == ("original", output)

    @pytest.mark.parametrize("name", SEVERAL_READINGS)
    def test_a_known_image_is_written_again_and_not_looked_at_again(self, cache_dir, monkeypatch, name):
        guard = colour_guard(cache_dir)
        first = guard.check(SEVERAL_READINGS[name])
        for step in ("find_scaling", "with_tiles", "renderings"):
            monkeypatch.setattr(f"guardalign_guardrails.guarding.delivery.{step}", None)
        again = guard.check(SEVERAL_READINGS[name])
        assert (again.verdict.failure, again.verdict.is_cached) == (None, True)
        assert again.output == first.output

    def test_pil_images_and_arrays_go_on_in_their_own_form(self, cache_dir):
        guard = colour_guard(cache_dir)
        image, array = guard.check(see_through()).output, guard.check(np.asarray(see_through())).output
        assert (image.mode, array.shape, array.dtype) == ("RGB", (64, 64, 3), np.uint8)
        assert guard.check(painted()).verdict.delivery == "original"

    def test_a_jpeg_stays_a_jpeg_with_full_colour_and_a_png_a_png(self, cache_dir):
        guard = colour_guard(cache_dir)
        lossy = guard.check(SEVERAL_READINGS["turned JPEG"])
        assert lossy.mime_type == "image/jpeg"
        with Image.open(io.BytesIO(lossy.output)) as image:
            assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
        assert guard.check(SEVERAL_READINGS["see-through PNG"]).mime_type == "image/png"

    def test_the_scored_pixels_are_those_of_the_encoded_reading(self, cache_dir, monkeypatch):
        """The decoded JPEG differs from the pixels that were encoded; what a model decodes is what was scored."""
        seen = []
        guard = colour_guard(cache_dir)
        detect = guard.detector.detect
        monkeypatch.setattr(guard.detector, "detect", lambda images: seen.extend(images) or detect(images))
        result = guard.check(encoded(scene(80, 60), "JPEG", exif=turned_tag(3)))
        delivered = decode(result.output).flattened.tobytes()
        assert any(image.tobytes() == delivered for image in seen)

    def test_frames_of_another_size_are_scored_and_left_out(self, cache_dir):
        frames = [painted(), painted(shade=120), painted("blue").crop((0, 0, 64, 40))]
        image = DecodedImage(
            views=tuple(View(frame, index) for index, frame in enumerate(frames)),
            size=(64, 64),
            format="GIF",
            frame_count=3,
            digest="d",
            departures=("animation",),
            frames_seen=(0, 1, 2),
        )
        plan = plan_delivery(image, "auto", Sight(REACH, 4, ()))
        assert "frame_size" in plan.record.reasons
        assert decode(plan.data).frame_count == 2
        assert [view.pixels.size for view in plan.views] == [(64, 64), (64, 64), (64, 40)]
        assert [view.is_delivered for view in plan.views] == [True, True, False]

    @pytest.mark.parametrize(("rule", "action"), [("block", "block"), ("allow", "allow")])
    def test_what_cannot_be_written_anew_is_a_failure_of_that_image_alone(self, cache_dir, monkeypatch, rule, action):
        def broken(*args, **kwargs):
            raise OSError("no room for <content>")

        monkeypatch.setattr("guardalign_guardrails.guarding.delivery.encode_canonical", broken)
        guard = colour_guard(cache_dir, failure={"on_error": rule})
        odd, plain = guard.check_batch([SEVERAL_READINGS["see-through PNG"], ONE_READING["PNG"]])
        assert (odd.verdict.failure, odd.verdict.action, odd.verdict.finding) == ("OSError", action, "unchecked")
        assert plain.output == ONE_READING["PNG"]

    def test_blocked_images_deliver_nothing(self, cache_dir):
        result = colour_guard(cache_dir).check(encoded(see_through("blue")))
        assert (result.verdict.delivery, result.verdict.delivery_proposed) == ("none", "none")
        with pytest.raises(UnsafeContentError):
            _ = result.output

    def test_a_verdict_that_says_nothing_of_delivery_delivers_nothing(self, cache_dir):
        result = colour_guard(cache_dir).check(ONE_READING["PNG"])
        silent = type(result)(result.verdict.model_copy(update={"delivery": "none"}), ONE_READING["PNG"])
        with pytest.raises(UnsafeContentError):
            _ = silent.output
        with pytest.raises(UnsafeContentError):
            _ = silent.pixels

    def test_a_masked_image_is_delivered_as_masked(self, cache_dir):
        result = colour_guard(cache_dir).check(encoded(painted("red")))
        assert (result.verdict.delivery, result.verdict.action) == ("masked", "mask")


class TestThePolicy:
    @pytest.mark.parametrize(
        ("rule", "data", "delivery"),
        [
            ("canonical", ONE_READING["PNG"], "canonical"),
            ("canonical", SEVERAL_READINGS["see-through PNG"], "canonical"),
            ("original", SEVERAL_READINGS["see-through PNG"], "original"),
            ("auto", ONE_READING["PNG"], "original"),
        ],
    )
    def test_a_policy_can_always_or_never_deliver_its_own_reading(self, cache_dir, rule, data, delivery):
        result = colour_guard(cache_dir, delivery=rule).check(data)
        assert result.verdict.delivery == delivery
        assert decode(result.output).size == decode(data).size
        if delivery == "original":
            assert result.output == data

    def test_a_source_can_have_a_rule_of_its_own(self, cache_dir):
        guard = colour_guard(cache_dir, sources={"tool": {"delivery": "canonical"}})
        data = ONE_READING["PNG"]
        assert guard.check(data, source="tool").verdict.delivery == "canonical"
        assert guard.check(data, source="user").verdict.delivery == "original"

    def test_monitoring_delivers_originals_and_says_what_it_would_have_delivered(self, cache_dir):
        guard = colour_guard(cache_dir, mode="monitor")
        for data, proposed in ((SEVERAL_READINGS["see-through PNG"], "canonical"), (encoded(painted("red")), "masked")):
            for _ in range(2):
                result = guard.check(data)
                assert (result.verdict.delivery, result.verdict.delivery_proposed) == ("original", proposed)
                assert result.output == data

    def test_while_monitoring_known_bytes_are_not_decoded_again_and_pixels_are_the_originals(
        self, cache_dir, monkeypatch
    ):
        guard = colour_guard(cache_dir, mode="monitor")
        data = SEVERAL_READINGS["turned JPEG"]
        (kept,) = guard.check_batch([data], keep_pixels=True)
        assert kept.pixels.tobytes() == decode(data).flattened.tobytes()
        monkeypatch.setattr("guardalign_guardrails.guarding.guard.decode", None)
        assert guard.check(data).output == data

    @pytest.mark.parametrize(("rule", "delivery"), [("block", "none"), ("mask", "masked"), ("allow", "original")])
    def test_what_cannot_be_opened_is_delivered_as_the_failure_rule_says(self, cache_dir, rule, delivery):
        verdict = colour_guard(cache_dir, failure={"uninspectable": rule}).check(b"no image").verdict
        assert (verdict.delivery, verdict.looked_at) == (delivery, None)


class TestEveryReadingCounts:
    def test_what_shows_on_one_backdrop_only_is_found(self, cache_dir):
        image = Image.new("RGBA", (64, 64), (0, 0, 255, 0))
        image.paste((255, 255, 255, 255), (0, 0, 8, 8))
        verdict = colour_guard(cache_dir).check(encoded(image)).verdict
        assert verdict.action == "block"
        assert verdict.view == "frame 0, plain"

    def test_a_category_with_thresholds_of_its_own_counts_in_whichever_view_it_shows(self, cache_dir):
        """The view with the highest score is not the only one whose categories count."""
        loud, quiet = painted(*["magenta"] * 4), Image.new("RGB", (64, 64), "white")
        quiet.paste(COLOURS["blue"], (0, 0, 16, 12))
        pages = encoded(loud, "TIFF", save_all=True, append_images=[quiet])
        assert colour_guard(cache_dir).check(encoded(quiet)).verdict.action == "block"
        assert colour_guard(cache_dir).check(pages).verdict.action == "block"


class NearSighted(ColourEncoder):
    """Sees 64 pixels at one look, so that large images can be small."""

    side = 16


def near_sighted(cache_dir, **changes):
    return Guard(colour_policy(**changes), NearSighted(), cache_dir=cache_dir)


class TestLargeImages:
    """One look sees 64 pixels, four tiles 120."""

    def test_more_than_was_looked_at_is_not_delivered(self, cache_dir):
        data = encoded(scene(600, 400), "JPEG")
        result = near_sighted(cache_dir).check(data)
        assert (result.verdict.delivery, result.verdict.delivery_reasons) == ("canonical", ("larger_than_checked",))
        assert max(result.pixels.size) == result.verdict.looked_at == 120
        assert decode(result.output).size == result.pixels.size == (120, 80)

    @pytest.mark.parametrize("size", [(65, 40), (120, 120), (40, 119)])
    def test_what_was_looked_at_in_tiles_goes_on_as_it_came(self, cache_dir, size):
        data = encoded(scene(*size))
        result = near_sighted(cache_dir).check(data)
        assert (result.verdict.delivery, result.verdict.looked_at) == ("original", max(size))
        assert result.output == data

    def test_without_tiles_an_image_is_delivered_as_large_as_one_look_sees(self, cache_dir):
        result = near_sighted(cache_dir, max_tiles=0).check(encoded(scene(90, 60)))
        assert max(decode(result.output).size) == result.verdict.looked_at == 64

    def test_consumers_that_take_small_images_get_small_ones(self, cache_dir):
        result = colour_guard(cache_dir, consumers=["siglip-384"]).check(encoded(scene(900, 60)))
        assert max(decode(result.output).size) == REACH

    def test_an_unknown_consumer_is_an_error_of_the_policy(self):
        with pytest.raises(ValueError, match=r"llava-1\.5"):
            colour_policy(consumers=["lava-1.5"])

    def test_what_is_too_small_for_the_whole_is_found_in_a_tile(self, cache_dir):
        image = Image.new("RGB", (112, 112), "white")
        # The last cell of the last tile, and not half of a cell of the whole.
        image.paste(COLOURS["red"], (96, 96, 112, 112))
        assert colour_guard(cache_dir).check(encoded(image)).verdict.action == "allow"
        result = near_sighted(cache_dir).check(encoded(image))
        assert result.verdict.action == "mask"
        assert result.verdict.view == "frame 0, plain, tile 4 of 4"
        assert result.verdict.masks
        for left, top, *_ in result.verdict.masks:
            assert min(left, top) > 56
        assert not (np.asarray(result.pixels) == COLOURS["red"]).all(-1).any()

    def test_a_mask_lies_where_it_belongs_in_the_smaller_image_that_goes_on(self, cache_dir):
        image = Image.new("RGB", (480, 480), "white")
        image.paste(COLOURS["red"], (0, 0, 120, 120))
        result = near_sighted(cache_dir).check(encoded(image))
        assert result.verdict.delivery == "masked"
        assert max(box[2] for box in result.verdict.masks) >= 120, "boxes are in pixels of the image as displayed"
        pixels = np.asarray(result.pixels)
        assert result.pixels.size == (120, 120)
        assert (pixels[:28, :28] == 0).all()
        assert not (pixels == COLOURS["red"]).all(-1).any()

    def test_more_than_was_looked_at_goes_on_as_it_came_only_where_the_policy_says_original(self, cache_dir):
        data = encoded(scene(180, 120), "JPEG")
        (result,) = near_sighted(cache_dir, delivery="original").check_batch([data], keep_pixels=True)
        assert (result.verdict.delivery, result.verdict.delivery_reasons) == ("original", ("larger_than_checked",))
        assert result.output == data
        assert result.pixels.size == (180, 120)

    @pytest.mark.parametrize("cells", [4, 8])
    def test_a_collage_is_looked_at_cell_by_cell_or_not_delivered_at_that_scale(self, cache_dir, cells):
        side = 32
        sheet = scene(cells * side, cells * side)
        sheet.paste(COLOURS["red"], (side, side, 2 * side, 2 * side))
        result = near_sighted(cache_dir).check(encoded(sheet))
        assert result.is_blocked or result.verdict.action == "mask" or max(result.pixels.size) <= 120


class TestRates:
    """P-values of images that were looked at several times."""

    PROFILE = make_profile(
        [i / 1000 for i in range(200)],
        ColourEncoder and Guard(colour_policy(), ColourEncoder()).detector.profile_key,
        name="benign",
        encoder_name="colour",
        tiled=[i / 1000 + 0.1 for i in range(200)],
    )

    def test_two_readings_make_a_score_half_as_rare(self):
        assert self.PROFILE.p_value(0.199) == pytest.approx(2 / 201)
        assert self.PROFILE.p_value(0.199, Looks(readings=2)) == pytest.approx(4 / 201)
        assert self.PROFILE.p_value(0.0, Looks(readings=2)) == 1.0

    def test_tiles_are_compared_with_tiles(self):
        assert self.PROFILE.p_value(0.299, Looks(tiles=4)) == pytest.approx(2 / 201)
        assert self.PROFILE.p_value(0.299, Looks(tiles=5)) == pytest.approx(4 / 201)

    def test_without_tiles_in_the_profile_each_tile_counts_as_a_look(self):
        plain = self.PROFILE.model_copy(update={"tiled": ()})
        assert plain.p_value(0.199, Looks(tiles=4)) == pytest.approx(10 / 201)

    @pytest.mark.parametrize("looks", [Looks(), Looks(2), Looks(3, 4), Looks(1, 9)])
    @pytest.mark.parametrize("rate", [0.01, 0.02, 0.05, 0.3])
    def test_a_score_reaches_the_threshold_exactly_when_its_p_value_reaches_the_rate(self, looks, rate):
        threshold = self.PROFILE.threshold(rate, looks)
        for score in [i / 1000 for i in range(320)]:
            assert (score >= threshold) == (self.PROFILE.p_value(score, looks) <= rate)

    def test_an_image_cannot_have_so_many_readings_that_nothing_is_a_finding(self):
        policy = Policy.from_yaml(
            "extends: default\ncategories: {weapons: {concepts: [a gun]}}\nthresholds: {flag: 0.05, mask: 0.02}"
        )
        scores = [0.0] * len(policy.categories)
        scores[0] = 0.9
        for readings in (1, 4, 24, 1000):
            looks = Looks(readings)
            assert decide(scores, policy, self.PROFILE, "user", looks).action == "mask", readings
            assert min(mask_thresholds(policy, self.PROFILE, "user", looks)) < 0.9


class TestTheCanonicalReading:
    def test_it_is_never_enlarged_and_its_shape_stays(self):
        assert shrunk(scene(40, 30), 100).size == (40, 30)
        assert shrunk(scene(400, 300), 100).size == (100, 75)
        assert shrunk(scene(5000, 2), 100).size == (100, 1)

    def test_it_averages_what_it_shrinks(self):
        checks = Image.fromarray(np.tile([[0, 255], [255, 0]], (512, 512)).astype(np.uint8)).convert("RGB")
        values = np.asarray(shrunk(checks, 256))
        assert values[8:-8, 8:-8].min() > 120
        assert values[8:-8, 8:-8].max() < 135

    def test_it_has_no_metadata(self):
        image = painted("red")
        image.info["icc_profile"], image.info["comment"] = b"profile", b"comment"
        for is_lossy in (True, False):
            data = encode_canonical([image], is_lossy=is_lossy)
            assert b"profile" not in data
            assert b"comment" not in data
            assert not decode(data).departures

    def test_several_frames_are_an_animation_and_several_pages_are_pages(self):
        frames = [painted("red"), painted("blue")]
        assert decode(encode_canonical(frames, is_lossy=True)).frame_count == 2
        pages = decode(
            encode_canonical([painted("red"), painted("blue").resize((10, 80))], is_lossy=True, is_paged=True)
        )
        assert (pages.format, pages.frame_count) == ("TIFF", 2)
        assert [view.pixels.size for view in pages.views] == [(64, 64), (10, 80)]
