"""What a check gives back cannot be misread: the naive snippets of users, run, leak nothing."""

from __future__ import annotations

import io
import os
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from guardalign_guardrails import Guard, UnsafeContentError
from guardalign_guardrails.guarding.guard import uninspectable
from guardalign_guardrails.images import ImageLimits, encode_png
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard, colour_policy, painted

FORMS = {
    "bytes": encode_png,
    "bytearray": lambda image: bytearray(encode_png(image)),
    "memoryview": lambda image: memoryview(encode_png(image)),
    "PIL": lambda image: image,
    "array": np.asarray,
}
PASSING = {"allow": (), "flag": ("magenta",), "prefix": ("green",)}
BLOCKED = {"route": "yellow", "block": "blue"}


def pixels(output) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(output)) if isinstance(output, bytes) else output)


@pytest.fixture(params=list(FORMS))
def form(request):
    return FORMS[request.param]


def _value(result, name):
    try:
        return getattr(result, name)
    except UnsafeContentError:
        return "an error"


class TestWhatMayPass:
    @pytest.mark.parametrize("action", list(PASSING))
    def test_is_the_image_itself(self, tmp_path, form, action):
        image = painted(*PASSING[action])
        result = colour_guard(tmp_path).check(form(image))
        assert (result.verdict.action, result.is_blocked) == (action, False)
        assert (pixels(result.output) == np.asarray(image)).all()

    def test_is_masked_in_the_same_form(self, tmp_path, form):
        given = form(painted("red"))
        result = colour_guard(tmp_path).check(given)
        assert isinstance(result.output, type(given) if not isinstance(given, bytearray | memoryview) else bytes)
        assert (pixels(result.output)[:16, :16] == 0).all()
        assert result.mime_type == "image/png"

    def test_are_the_very_bytes_that_were_decoded_though_the_file_changes_later(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(harmless := encode_png(painted()))
        result = colour_guard(tmp_path).check(path)
        path.write_bytes(encode_png(painted("blue")))
        assert result.output == harmless

    def test_is_read_from_a_file_once(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(encode_png(painted("green")))
        opened = []
        guard, plain = colour_guard(tmp_path), os.open
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", lambda name, *rest: opened.append(name) or plain(name, *rest))
            guard.check(path)
        assert opened.count(path) == 1

    def test_is_never_the_callers_own_object(self, tmp_path):
        image, array = painted(), np.asarray(painted()).copy()
        guard = colour_guard(tmp_path)
        first, second = guard.check(image).output, guard.check(array).output
        image.paste("blue", (0, 0, 64, 64))
        array[:] = 0
        assert first is not image
        assert second is not array
        assert (np.asarray(first) == np.asarray(painted())).all()
        assert (second == np.asarray(painted())).all()

    @pytest.mark.parametrize("mode", ["enforce", "monitor"])
    def test_is_a_turned_pil_image_upright_or_as_it_came_where_originals_go_on(self, tmp_path, mode):
        image = painted("magenta").transpose(Image.Transpose.ROTATE_90)
        image.getexif()[0x0112] = 6
        result = colour_guard(tmp_path, mode=mode).check(image)
        assert (result.verdict.delivery, result.verdict.delivery_proposed) == (
            "canonical" if mode == "enforce" else "original",
            "canonical",
        )
        shown, tag = (painted("magenta"), 1) if mode == "enforce" else (image, 6)
        assert (np.asarray(result.output) == np.asarray(shown)).all()
        assert result.output.getexif().get(0x0112, 1) == tag
        assert (np.asarray(result.pixels) == np.asarray(painted("magenta"))).all()

    @pytest.mark.parametrize(("name", "mime"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")])
    def test_says_of_which_type_its_bytes_are(self, tmp_path, name, mime):
        buffer = io.BytesIO()
        painted().save(buffer, name)
        assert colour_guard(tmp_path).check(buffer.getvalue()).mime_type == mime


class TestWhatIsBlocked:
    @pytest.mark.parametrize("action", list(BLOCKED))
    def test_cannot_be_had(self, tmp_path, form, action):
        result = colour_guard(tmp_path).check(form(painted(BLOCKED[action])))
        assert result.is_blocked
        for attribute in ("output", "mime_type"):
            with pytest.raises(UnsafeContentError) as error:
                getattr(result, attribute)
            assert error.value.verdict is result.verdict

    def test_has_no_attribute_that_is_none_for_it_and_for_what_may_pass(self, tmp_path):
        guard = colour_guard(tmp_path)
        blocked, passing = guard.check(painted("blue")), guard.check(painted())
        for name in (name for name in dir(blocked) if not name.startswith("_")):
            assert [_value(result, name) for result in (blocked, passing)] != [None, None], name

    def test_passes_in_monitor_mode_as_it_came_and_the_verdict_says_what_enforcing_would_do(self, tmp_path, form):
        image = painted("blue")
        result = colour_guard(tmp_path, mode="monitor").check(form(image))
        assert (result.is_blocked, result.verdict.action, result.verdict.proposed) == (False, "allow", "block")
        assert (pixels(result.output) == np.asarray(image)).all()

    def test_is_in_no_repr(self, tmp_path):
        result = colour_guard(tmp_path).check(encode_png(painted("blue")))
        assert "PNG" not in repr(result)


class TestNaiveSnippets:
    """What a user writes who has read nothing."""

    SNIPPETS: ClassVar = {
        "output": lambda guard, image: guard.check(image).output,
        "redact": lambda guard, image: guard.redact(image),
        "batch": lambda guard, image: next(result.output for result in guard.check_batch([image])),
        "or": lambda guard, image: guard.check(image).output or image,
        "if not blocked": lambda guard, image: (r := guard.check(image)).is_blocked or r.output,
        "getattr": lambda guard, image: getattr(guard.check(image), "output", image),
    }

    @pytest.mark.parametrize("snippet", list(SNIPPETS))
    @pytest.mark.parametrize("given", [encode_png(painted("blue")), encode_png(painted("yellow")), b"no image", "path"])
    def test_none_of_them_leaks_what_is_blocked(self, tmp_path, snippet, given):
        try:
            passed = self.SNIPPETS[snippet](colour_guard(tmp_path), given)
        except UnsafeContentError:
            return
        assert passed is True, "only the snippet that asks first has anything but an error"

    @pytest.mark.parametrize("snippet", list(SNIPPETS))
    def test_none_of_them_leaks_what_is_masked(self, tmp_path, snippet):
        passed = self.SNIPPETS[snippet](colour_guard(tmp_path), encode_png(painted("red")))
        assert (pixels(passed)[:16, :16] == 0).all()


class TestWhatCannotBeOpened:
    @pytest.mark.parametrize("mode", ["enforce", "monitor"])
    def test_is_passed_on_byte_for_byte_where_the_policy_lets_it_pass(self, tmp_path, mode):
        guard = colour_guard(tmp_path, mode=mode, failure={"uninspectable": "allow"})
        result = guard.check(b"%PDF-1.7")
        assert (result.output, result.mime_type) == (b"%PDF-1.7", "application/octet-stream")
        assert result.verdict.finding == "unchecked"

    def test_is_passed_on_though_it_is_too_large_to_be_opened(self, tmp_path):
        guard = Guard(
            colour_policy(failure={"uninspectable": "allow"}),
            ColourEncoder(),
            cache_dir=tmp_path,
            limits=ImageLimits(max_bytes=10),
        )
        data = encode_png(painted())
        assert guard.check(data).output == data

    @pytest.mark.parametrize("given", ["a string", b""])
    def test_is_an_error_where_there_is_nothing_to_pass_on(self, tmp_path, given):
        result = colour_guard(tmp_path, failure={"uninspectable": "allow"}).check(given)
        assert not result.is_blocked
        with pytest.raises(Exception, match="nothing could be read"):
            _ = result.output

    def test_reads_differently_from_what_is_unsafe(self, tmp_path):
        guard = colour_guard(tmp_path)
        unsafe, unchecked = guard.check(painted("blue")), guard.check(b"%PDF-1.7")
        messages = []
        for result in (unsafe, unchecked):
            with pytest.raises(UnsafeContentError) as error:
                _ = result.output
            messages.append(str(error.value).partition(" (")[0])
        assert messages == ["Blocked an image", "Could not check content"]
        assert [guard.policy.refusal_for(result.verdict) for result in (unsafe, unchecked)] == [
            guard.policy.refusal,
            guard.policy.refusal_unchecked,
        ]
        assert [result.verdict.summary()["finding"] for result in (unsafe, unchecked)] == ["unsafe", "unchecked"]

    def test_says_nothing_of_a_digest_where_nothing_could_be_opened(self, tmp_path):
        verdict = uninspectable(colour_guard(tmp_path), "file_reference", "tool").verdict
        assert str(UnsafeContentError(verdict)).startswith("Could not check content (source tool): file_reference")
        unsafe = colour_guard(tmp_path).check(painted("blue")).verdict
        assert f"(digest {unsafe.digest[:12]}, source user)" in str(UnsafeContentError(unsafe))
