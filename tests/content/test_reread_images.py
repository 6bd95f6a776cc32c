"""Where the guard's own reading of an image goes on: every dialect gets its very bytes, under their own media type."""

from __future__ import annotations

import base64
import io
import json

import pytest
from block_matrix import ELSEWHERE, READABLE
from PIL import Image

from content.reread_images import CHANGING_TYPE, REREAD, SEE_THROUGH, TURNED, opened, original_pixels, pixels_of, seen
from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.content.bodies import screen_body
from guardalign_guardrails.content.dialect import Reading
from guardalign_guardrails.content.payload import read_data_url, to_base64, to_data_url
from guardalign_guardrails.content.screen import UNCHECKED_NOTICE, Turn, screen
from guardalign_guardrails.content.screened_chat import screen_chats
from guardalign_guardrails.content.walk import MediaBlock, find
from guardalign_guardrails.testing.colours import colour_guard, painted

LIMIT = 10_000_000
WORDS = {"type": "text", "text": "look"}
MARK = {"type": "ephemeral"}
HTTP = "https://images.example/a"


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


def block(data: bytes, **more):
    return {"type": "image", "base64": to_base64(data), "mime_type": "image/jpeg", **more}


@pytest.mark.parametrize("mime", CHANGING_TYPE)
@pytest.mark.parametrize("name", READABLE)
class TestEveryDialect:
    def test_is_written_with_the_very_bytes_and_their_media_type(self, name, mime, guard):
        data = CHANGING_TYPE[mime]
        (found,) = find([READABLE[name](data)])
        # Some dialects bring decoded images, which have a reading of their own.
        expected = guard.check(found.reading.read(LIMIT))
        (result,) = screen(guard, [Turn([WORDS, READABLE[name](data)])])
        assert [(v.action, v.delivery) for v in result.verdicts] == [("allow", "canonical")]
        (written,) = find(result.content)
        payload = written.reading.read(LIMIT)
        if isinstance(payload, Image.Image):
            assert seen(payload) == seen(expected.pixels)
        else:
            assert expected.mime_type == mime
            assert result.content == [WORDS, READABLE[name](expected.output)]
            assert payload == expected.output
            assert pixels_of(payload) == seen(expected.pixels)

    def test_keeps_what_was_written_when_it_comes_back(self, name, mime, guard):
        (first,) = screen(guard, [Turn([WORDS, READABLE[name](CHANGING_TYPE[mime])])])
        (again,) = screen(guard, [Turn(first.content)])
        assert again.content is first.content
        assert [verdict.delivery for verdict in again.verdicts] == ["original"]


@pytest.mark.parametrize("mime", CHANGING_TYPE)
@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_was_elsewhere_is_written_with_its_own_media_type(name, mime, guard):
    given, _, make = ELSEWHERE[name]
    (found,) = find([given])
    output = guard.check(CHANGING_TYPE[mime]).output
    assert found.reading.write(output, mime) == make(output)


class TestNames:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("holiday.webp", "holiday.jpg"),
            ("holiday.JPEG", "holiday.JPEG"),
            ("holiday.jpg", "holiday.jpg"),
            ("scan.2024.tif", "scan.2024.jpg"),
            ("holiday", "holiday.jpg"),
            (None, None),
        ],
    )
    def test_a_files_name_ends_with_what_it_is(self, guard, before, after):
        given = {"type": "input_file", "filename": before, "file_data": to_data_url(TURNED, "image/jpeg")}
        (result,) = screen(guard, [Turn([given])])
        assert result.content[0]["filename"] == after


class TestTheChat:
    @pytest.mark.parametrize("name", REREAD)
    def test_holds_the_pixels_that_were_scored_and_never_the_originals(self, guard, name):
        data = REREAD[name]
        (result,) = screen(guard, [Turn([block(data)])])
        (verdict,) = result.verdicts
        assert (verdict.action, verdict.delivery, verdict.finding) == ("allow", "canonical", "none")
        written = base64.b64decode(result.content[0]["base64"])
        assert pixels_of(written) == seen(guard.check(data).pixels)
        assert pixels_of(written)[1] != original_pixels(data)
        assert (result.is_changed, result.withheld) == (True, ())

    @pytest.mark.parametrize("way", ["in its file", "in memory"])
    def test_holds_a_turned_pil_image_upright(self, guard, way):
        image = opened(TURNED)
        if way == "in memory":
            # Without the file's own tag, which a copy would know.
            image = Image.frombytes("RGB", image.size, image.tobytes())
            image.getexif()[0x0112] = 6
        expected = guard.check(image)
        (result,) = screen(guard, [Turn([{"type": "image", "image": image}])])
        written = result.content[0]["image"]
        assert [verdict.delivery for verdict in result.verdicts] == ["canonical"]
        assert (written.size, written.getexif().get(0x0112, 1)) == ((48, 64), 1)
        assert seen(written) == seen(expected.pixels)

    def test_keeps_prompt_cache_marks_and_ids(self, guard):
        (result,) = screen(guard, [Turn([block(SEE_THROUGH, cache_control=MARK, id="a", index=3)])])
        assert [result.content[0][key] for key in ("cache_control", "id", "index")] == [MARK, "a", 3]

    def test_gets_no_prefix_for_the_guards_own_reading_alone(self, guard):
        (chat,) = screen_chats(guard, [[Turn([block(SEE_THROUGH)])]])
        assert (chat.decision.handled_by, chat.decision.is_prefix_due) == ("model", False)

    def test_is_left_alone_in_monitor_mode_which_says_what_would_have_gone_on(self, cache_dir):
        guard, content = colour_guard(cache_dir, mode="monitor"), [block(TURNED)]
        (result,) = screen(guard, [Turn(content)])
        assert result.content is content
        assert [(v.delivery, v.delivery_proposed) for v in result.verdicts] == [("original", "canonical")]

    def test_is_left_alone_where_the_policy_delivers_originals_of_its_source(self, cache_dir):
        guard, content = colour_guard(cache_dir, sources={"tool": {"delivery": "original"}}), [block(TURNED)]
        ours, tools = screen(guard, [Turn(content), Turn(content, "tool")])
        assert (ours.is_changed, tools.content is content) == (True, True)

    def test_an_animation_becomes_an_animated_png_and_pages_stay_pages(self, guard):
        frames = [painted(shade=shade) for shade in (0, 90, 200)]
        for name, mime in (("GIF", "image/png"), ("TIFF", "image/tiff")):
            buffer = io.BytesIO()
            frames[0].save(buffer, name, save_all=True, append_images=frames[1:])
            (result,) = screen(guard, [Turn([block(buffer.getvalue())])])
            assert result.content[0]["mime_type"] == mime
            with Image.open(io.BytesIO(base64.b64decode(result.content[0]["base64"]))) as written:
                assert getattr(written, "n_frames", 1) == len(result.verdicts[0].frames_seen) > 1


class TestWhatCannotBeWritten:
    """Nothing else can stand there, so the image is withheld, whatever it shows."""

    @pytest.fixture
    def result(self, guard):
        class Fixed(Turn):
            def find(self):
                return [MediaBlock((0,), Reading(lambda _: TURNED))]

        (result,) = screen(guard, [Fixed([block(TURNED)])])
        return result

    def test_is_withheld_with_the_notice_for_what_could_not_be_checked(self, result):
        assert result.content == [{"type": "text", "text": UNCHECKED_NOTICE}]
        assert list(result.withheld) == list(result.verdicts)

    def test_says_that_nothing_goes_on_and_why(self, result):
        (verdict,) = result.verdicts
        assert (verdict.action, verdict.delivery, verdict.delivery_proposed) == ("allow", "none", "none")
        assert verdict.delivery_reasons
        assert "no canonical image can be written" in verdict.reasons[-1]

    def test_raises_an_error_that_names_the_reason_and_the_remedy(self, result):
        text = str(UnsafeContentError(result.verdicts[0]))
        assert all(part in text for part in ("orientation", "masked_dir", "originals"))
        assert "things" not in text


class TestBodies:
    """Requests as plain data, as the integrations for OpenAI and LiteLLM hand them in."""

    @pytest.mark.parametrize("name", REREAD)
    def test_chats_responses_and_messages_hold_the_same_image(self, guard, name):
        data, output = REREAD[name], guard.check(REREAD[name]).output
        mime = guard.check(data).mime_type
        url, new_url = to_data_url(data, "image/webp"), to_data_url(output, mime)
        bodies = {
            "chat": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}),
            "responses": ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}),
            "other": {"image": url, "images": [url]},
        }
        for form, body in bodies.items():
            screened = screen_body(guard, body, form)
            assert json.dumps(screened.body) == json.dumps(body).replace(url, new_url)
            assert screened.decision.handled_by == "model"
        source = {"type": "base64", "media_type": "image/webp", "data": to_base64(data)}
        message = {"role": "user", "content": [{"type": "image", "source": source, "cache_control": MARK}]}
        screened = screen_body(guard, {"messages": [message]}, "messages")
        (content,) = screened.body["messages"][0]["content"]
        assert content["source"] == {"type": "base64", "media_type": mime, "data": to_base64(output)}
        assert content["cache_control"] == MARK

    def test_uploaded_bytes_stay_bytes(self, guard):
        screened = screen_body(guard, {"image": TURNED, "images": [SEE_THROUGH, TURNED]}, "other")
        outputs = [guard.check(data).output for data in (SEE_THROUGH, TURNED)]
        assert (screened.body["image"], screened.body["images"]) == (outputs[1], outputs)

    def test_a_data_url_that_a_tool_returns_as_text_is_replaced(self, guard):
        message = {"role": "tool", "content": to_data_url(TURNED, "image/jpeg"), "tool_call_id": "c"}
        screened = screen_body(guard, {"messages": [message]}, "chat")
        written = read_data_url(screened.body["messages"][0]["content"], LIMIT)
        assert written == guard.check(TURNED).output
