"""Request bodies of hosted models' APIs: what of them a provider may be sent."""

from __future__ import annotations

import asyncio
import copy
import json

import pytest

from guardalign_guardrails.content.bodies import BodyRules, ascreen_body, screen_body, with_prefix
from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.mask import with_mark
from guardalign_guardrails.testing.chats import images_in
from guardalign_guardrails.testing.colours import CELL, colour_guard, painted

PREFIX = "Be careful."
URL_SAFE = str.maketrans("+/", "-_")
FORMS = ["chat", "responses", "messages"]


def png(*colours: str) -> bytes:
    return encode_png(painted(*colours))


def url(*colours: str) -> str:
    return to_data_url(png(*colours), "image/png")


def masked() -> bytes:
    """What is left of a red square."""
    image = painted()
    image.paste("black", (0, 0, CELL, CELL))
    return with_mark(encode_png(image))


def block(form: str, colour: str) -> dict:
    """An image as an API takes it."""
    return {
        "chat": {"type": "image_url", "image_url": {"url": url(colour), "detail": "low"}},
        "responses": {"type": "input_image", "image_url": url(colour), "detail": "low"},
        "messages": {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": to_base64(png(colour))},
        },
    }[form]


def user(*content) -> dict:
    return {"role": "user", "content": list(content)}


def body(form: str, *messages: dict, **more) -> dict:
    """A body with some messages."""
    return {"model": "m", "input" if form == "responses" else "messages": list(messages), **more}


def chat_of(form: str, a_body) -> list:
    return a_body["input" if form == "responses" else "messages"]


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


@pytest.fixture(params=["sync", "async"])
def screened(request, guard):
    """Screens a body, in both ways."""
    if request.param == "sync":
        return lambda *args: screen_body(guard, *args)
    return lambda *args: asyncio.run(ascreen_body(guard, *args))


class TestImages:
    @pytest.mark.parametrize("form", FORMS)
    def test_an_unsafe_one_is_masked_in_the_apis_own_dialect_and_nothing_else_changes(self, screened, form):
        before = body(form, user(block(form, "red"), block(form, "white")), temperature=0)
        kept = copy.deepcopy(before)
        result = screened(before, form, BodyRules())
        expected = json.loads(json.dumps(kept).replace(to_base64(png("red")), to_base64(masked())))
        assert chat_of(form, result.body)[-1] == chat_of(form, expected)[0]
        assert result.body["temperature"] == 0
        assert before == kept
        assert [verdict.action for verdict in result.verdicts] == ["mask", "allow"]

    @pytest.mark.parametrize("form", FORMS)
    def test_a_body_of_which_all_may_pass_is_the_very_same_object(self, screened, form):
        before = body(form, user(block(form, "white"), block(form, "magenta")))
        assert screened(before, form, BodyRules()).body is before

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(("on_violation", "handled_by"), [("refuse", "refusal"), ("raise", "error")])
    def test_a_blocked_one_keeps_the_model_from_answering(self, screened, form, on_violation, handled_by):
        result = screened(body(form, user(block(form, "blue"))), form, BodyRules(on_violation))
        assert result.decision.handled_by == handled_by
        assert images_in(result.body) == []

    @pytest.mark.parametrize("form", FORMS)
    def test_a_routed_one_is_a_notice_for_the_other_model(self, screened, form):
        result = screened(body(form, user(block(form, "yellow"))), form, BodyRules(route_to="other"))
        kind = "input_text" if form == "responses" else "text"
        assert result.decision.handled_by == "route"
        assert chat_of(form, result.body) == [user({"type": kind, "text": NOTICE})]

    @pytest.mark.parametrize("form", FORMS)
    def test_a_blocked_one_of_an_earlier_turn_stops_no_chat(self, screened, form):
        said = {"role": "assistant", "content": "I see."}
        result = screened(body(form, user(block(form, "blue")), said, user(block(form, "white"))), form, BodyRules())
        assert result.decision.handled_by == "model"
        assert [verdict.source for verdict in result.verdicts] == ["history", "user"]

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("odd", [lambda text: text.replace("A", "%41"), lambda text: text.translate(URL_SAFE)])
    def test_a_harmless_one_whose_text_others_may_read_otherwise_is_written_anew(self, screened, form, odd):
        plain = to_base64(png("magenta"))
        assert odd(plain) != plain
        before = json.loads(json.dumps(body(form, user(block(form, "magenta")))).replace(plain, odd(plain)))
        assert screened(before, form, BodyRules()).body == body(form, user(block(form, "magenta")))

    @pytest.mark.parametrize(
        "beside",
        [
            {"annotations": [{"type": "file", "file": {"hash": "h", "content": [block("chat", "red")]}}]},
            {"provider_specific_fields": {"tool_results": [{"type": "x", "content": [block("messages", "red")]}]}},
        ],
        ids=["a file that OpenRouter took apart", "blocks that LiteLLM hands on"],
    )
    def test_one_that_is_shown_along_with_a_message_is_masked(self, screened, beside):
        message = {"role": "assistant", "content": "I see.", **beside}
        result = screened(body("chat", message, user()), "chat", BodyRules())
        assert to_base64(png("red")) not in json.dumps(result.body)
        assert to_base64(masked()) in json.dumps(result.body)
        assert [verdict.source for verdict in result.verdicts] == ["generated"]

    def test_notes_on_a_message_are_no_images(self, screened):
        notes = [{"type": "file_citation", "file_id": "f"}, {"type": "file", "file": {"hash": "h"}}]
        before = body("chat", {"role": "assistant", "content": "x", "annotations": notes}, user())
        assert screened(before, "chat", BodyRules()).body is before

    @pytest.mark.parametrize("key", ["image", "images"])
    @pytest.mark.parametrize("value", [{"type": "image_url", "image_url": {"url": url("red")}}, url("red")])
    def test_one_beside_a_messages_content_is_masked(self, screened, key, value):
        message = {"role": "assistant", "content": "Look.", key: [value]}
        result = screened(body("chat", message), "chat", BodyRules())
        assert to_base64(masked()) in json.dumps(result.body)
        assert [verdict.source for verdict in result.verdicts] == ["generated"]


class TestToolResults:
    def test_in_chat_completions_they_are_messages(self, screened):
        result = screened(
            body("chat", user(), {"role": "tool", "tool_call_id": "1", "content": [block("chat", "blue")]}),
            "chat",
            BodyRules(),
        )
        assert result.decision.handled_by == "model"
        assert result.body["messages"][1]["content"] == [{"type": "text", "text": NOTICE}]

    @pytest.mark.parametrize(("colour", "after"), [("red", "masked"), ("blue", NOTICE)])
    @pytest.mark.parametrize("said", [str, lambda text: [{"type": "text", "text": text}]])
    def test_words_that_are_an_images_data_url_are_one(self, screened, colour, after, said):
        # For Gemini, LiteLLM makes an image of them.
        after = said(to_data_url(masked(), "image/png") if after == "masked" else after)
        in_chat = {"role": "tool", "tool_call_id": "1", "content": said(url(colour))}
        in_responses = {"type": "function_call_output", "call_id": "1", "output": said(url(colour))}
        in_messages = {"type": "tool_result", "tool_use_id": "1", "content": said(url(colour))}
        (*_, new) = screened(body("chat", user(), in_chat), "chat").body["messages"]
        assert new == {**in_chat, "content": after}
        (*_, new) = screened(body("responses", user(), in_responses), "responses").body["input"]
        assert new == {**in_responses, "output": after}
        (*_, new) = screened(body("messages", user(in_messages)), "messages").body["messages"]
        assert new == user({**in_messages, "content": after})

    @pytest.mark.parametrize("size", [3, 30])
    def test_so_are_words_in_pieces(self, screened, size):
        pieces = [{"type": "input_text", "text": text} for text in (url("red")[:size], url("red")[size:])]
        output = {"type": "function_call_output", "call_id": "1", "output": pieces}
        (_, new) = screened(body("responses", user(), output), "responses").body["input"]
        assert url("red")[size:] not in json.dumps(new)

    def test_words_that_begin_like_one_are_words(self, screened):
        said = [
            {"role": "tool", "tool_call_id": "1", "content": text} for text in ("data:image/png;base64, eh?", "Data: 5")
        ]
        before = body("chat", user(), *said)
        assert screened(before, "chat", BodyRules()).body is before

    def test_a_code_interpreters_image_leaves_a_log(self, screened):
        outputs = [{"type": "image", "url": url("blue")}, {"type": "logs", "logs": "1"}]
        item = {"type": "code_interpreter_call", "id": "ci_1", "code": "draw()", "outputs": outputs}
        (new,) = screened(body("responses", item), "responses", BodyRules()).body["input"]
        assert new == {**item, "outputs": [{"type": "logs", "logs": NOTICE}, outputs[1]]}

    @pytest.mark.parametrize("colour", ["blue", "red"])
    def test_in_responses_they_are_items(self, screened, colour):
        call = {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"}
        output = {"type": "function_call_output", "call_id": "1", "output": [block("responses", colour)]}
        result = screened(body("responses", user(), call, output), "responses", BodyRules())
        (new,) = result.body["input"][2]["output"]
        expected = {"type": "input_text", "text": NOTICE}
        if colour == "red":
            expected = {**block("responses", "white"), "image_url": to_data_url(masked(), "image/png")}
        assert new == expected
        assert result.decision.handled_by == "model"
        assert [verdict.source for verdict in result.verdicts] == ["tool"]

    def test_a_screenshot_stays_a_screenshot(self, screened):
        output = {"type": "computer_screenshot", "image_url": url("blue")}
        item = {"type": "computer_call_output", "call_id": "1", "output": output}
        result = screened(body("responses", item), "responses", BodyRules())
        new = result.body["input"][0]["output"]
        assert new["type"] == "computer_screenshot"
        assert new["image_url"] != url("blue")

    def test_in_anthropics_messages_they_are_blocks_beside_the_users_words(self, screened):
        tool_result = {"type": "tool_result", "tool_use_id": "1", "content": [block("messages", "blue")]}
        message = user(tool_result, block("messages", "white"))
        result = screened(body("messages", message), "messages", BodyRules())
        assert result.decision.handled_by == "model"
        assert [verdict.source for verdict in result.verdicts] == ["tool", "user"]
        assert result.body["messages"][0]["content"] == [
            {**tool_result, "content": [{"type": "text", "text": NOTICE}]},
            block("messages", "white"),
        ]

    def test_a_users_blocked_image_beside_them_still_stops_the_chat(self, screened):
        tool_result = {"type": "tool_result", "tool_use_id": "1", "content": "done"}
        result = screened(body("messages", user(tool_result, block("messages", "blue"))), "messages", BodyRules())
        assert result.decision.handled_by == "refusal"

    def test_an_image_beside_a_message_with_one_is_found(self, screened):
        message = {**user({"type": "tool_result", "tool_use_id": "1", "content": "done"}), "images": [url("red")]}
        result = screened(body("messages", message), "messages", BodyRules())
        assert result.body["messages"][0]["images"] == [to_data_url(masked(), "image/png")]

    def test_a_generated_image_that_is_blocked_leaves_an_item_that_responses_take(self, screened):
        item = {"type": "image_generation_call", "id": "ig_1", "result": to_base64(png("blue"))}
        (new,) = screened(body("responses", item), "responses", BodyRules()).body["input"]
        assert new == {"role": "assistant", "content": NOTICE}

    @pytest.mark.parametrize("write", [to_base64, lambda data: to_data_url(data, "image/png")], ids=["base64", "URL"])
    def test_one_that_is_masked_is_sent_without_the_id_by_which_the_api_may_find_the_original(self, screened, write):
        item = {"type": "image_generation_call", "id": "ig_1", "output_format": "png", "result": write(png("red"))}
        (new,) = screened(body("responses", item), "responses", BodyRules()).body["input"]
        image = {"type": "input_image", "image_url": to_data_url(masked(), "image/png")}
        assert new == {"role": "user", "content": [image]}


class TestWhatElseIsInABody:
    """Servers merge ``extra_body`` over a body, and proxies send a fallback's messages in place of the body's."""

    @pytest.mark.parametrize("form", FORMS)
    def test_messages_within_extra_body_are_screened(self, screened, form):
        inner = body(form, user(block(form, "red")))
        result = screened(body(form, user(block(form, "white")), extra_body=inner), form, BodyRules())
        assert to_base64(png("red")) not in json.dumps(result.body)
        assert to_base64(masked()) in json.dumps(result.body["extra_body"])
        assert screened(body(form, extra_body=body(form, user(block(form, "blue")))), form).decision.violation

    @pytest.mark.parametrize("form", FORMS)
    def test_a_fallbacks_messages_are_screened(self, screened, form):
        fallbacks = ["other", {"model": "x", **body(form, user(block(form, "red")))}]
        result = screened(body(form, user(), fallbacks=fallbacks), form, BodyRules())
        assert to_base64(png("red")) not in json.dumps(result.body)
        assert result.body["fallbacks"][0] == "other"

    def test_the_variables_of_a_stored_prompt_are_screened(self, screened):
        prompt = {"id": "p", "variables": {"photo": block("responses", "red"), "name": "Ada"}}
        result = screened({"model": "m", "prompt": prompt}, "responses", BodyRules())
        assert result.body["prompt"]["variables"]["photo"]["image_url"] == to_data_url(masked(), "image/png")
        assert result.body["prompt"]["variables"]["name"] == "Ada"

    def test_a_mask_for_the_image_tool_that_cannot_be_read_stops_the_chat(self, screened):
        tool = {"type": "image_generation", "input_image_mask": {"file_id": "file_1"}}
        assert (
            screened(body("responses", user(), tools=[tool]), "responses", BodyRules()).decision.violation is not None
        )
        later = {"type": "additional_tools", "role": "developer", "tools": [tool]}
        assert screened(body("responses", later, user()), "responses", BodyRules()).decision.violation is not None

    def test_the_schema_of_a_tool_is_no_image(self, screened):
        properties = {"image": {"type": "string"}, "file": {"type": "object"}}
        tool = {"type": "function", "function": {"name": "look", "parameters": {"properties": properties}}}
        before = body("chat", user(block("chat", "white")), tools=[tool], response_format={"image": {}})
        assert screened(before, "chat", BodyRules()).body is before


class TestOtherBodies:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (png("red"), masked()),
            (url("red"), to_data_url(masked(), "image/png")),
            (to_base64(png("red")), to_base64(masked())),
        ],
        ids=["bytes", "data URL", "base64"],
    )
    @pytest.mark.parametrize("key", ["image", "input_reference"])
    def test_an_image_to_be_edited_is_masked_however_it_is_written(self, screened, key, before, after):
        assert screened({"prompt": "a hat", key: [before]}, "other", BodyRules()).body[key] == [after]
        assert screened({"prompt": "a hat", key: before}, "other", BodyRules()).body[key] == after

    @pytest.mark.parametrize("key", ["mask", "markup", "Mask"])
    @pytest.mark.parametrize("written", [bytes, to_base64, lambda data: to_data_url(data, "image/png")])
    def test_a_mask_of_an_edit_keeps_its_transparency_or_is_an_error(self, screened, key, written):
        """Its transparency is what it says, so that no opaque image can take its place."""

        def mask(colour, hole=(40, 40, 60, 60)):
            image = painted(colour).convert("RGBA")
            image.paste((255, 255, 255, 0), hole)
            return written(encode_png(image))

        forms = (lambda mask: {key: mask}, lambda mask: {key: [mask]}, lambda mask: {"extra_body": {key: mask}})
        for form in forms:
            given = {"image": png("white"), **form(mask("white"))}
            result = screened(given, "other", BodyRules())
            assert result.body is given
            assert result.decision.violation is None
            assert [verdict.delivery for verdict in result.verdicts].count("canonical") == 1
            for colour in ("red", "blue"):
                refused = screened({"image": png("white"), **form(mask(colour))}, "other", BodyRules()).decision
                assert (refused.handled_by, refused.violation.action in ("mask", "block")) == ("error", True)

    def test_one_from_which_servers_may_read_another_image_is_an_error(self, screened):
        image = painted("white").convert("RGBA")
        image.putalpha(0)
        for change in (lambda text: text.replace("/", "_").replace("+", "-") + "%3D", lambda text: "%69" + text[1:]):
            text = change(to_base64(encode_png(image)))
            assert (
                screened({"mask": f"data:image/png;base64,{text}"}, "other", BodyRules()).decision.handled_by == "error"
            )

    @pytest.mark.parametrize("value", [b"no image", "https://example.org/a.png", object()])
    def test_one_that_cannot_be_looked_at_is_an_error(self, screened, value):
        assert screened({"image": value}, "other", BodyRules()).decision.handled_by == "error"

    def test_an_image_to_be_embedded_is_masked(self, screened):
        before = {"input": ["words", url("red"), block("chat", "red")]}
        words, bare, inner = screened(before, "other", BodyRules()).body["input"]
        assert [words, bare] == ["words", to_data_url(masked(), "image/png")]
        assert inner["image_url"]["url"] == bare

    @pytest.mark.parametrize("nested", [False, True])
    @pytest.mark.parametrize(
        "value", ["gs://bucket/a.png", " S3://bucket/a ", "https://generativelanguage.googleapis.com/v1beta/files/a"]
    )
    def test_a_stored_file_of_which_a_proxy_makes_an_image_to_be_embedded_is_an_error(self, screened, value, nested):
        for before in ({"input": value}, {"input": ["words", value]}):
            before = {"extra_body": before} if nested else before
            assert screened(before, "other", BodyRules()).decision.handled_by == "error"

    def test_texts_and_links_to_be_embedded_stay(self, screened):
        for value in ("https://example.org/a.png", "Is gs:// a scheme?", "gs://a and s3://b"):
            before = {"input": [value], "cached": "gs://bucket/a"}
            assert screened(before, "other", BodyRules()).body is before

    def test_texts_to_be_embedded_may_be_very_many_numbers(self, screened):
        before = {"input": [[1] * 500] * 500}
        assert screened(before, "other", BodyRules()).body is before

    @pytest.mark.parametrize("value", ["data:,{}", "data: a dog,{}"])
    def test_one_whose_data_url_does_not_say_what_it_is_is_an_error(self, screened, value):
        # Some servers read no more of it than what follows the comma.
        before = {"input": [value.format(to_base64(png("white")))]}
        assert screened(before, "other", BodyRules()).decision.handled_by == "error"

    def test_an_uploaded_video_is_an_error(self, screened):
        assert screened({"video": b"\0\0\0\x18ftypmp42", "prompt": "a hat"}, "other").decision.handled_by == "error"

    @pytest.mark.parametrize("colour", ["blue", "yellow"])
    @pytest.mark.parametrize("on_violation", ["refuse", "raise", "notice"])
    def test_there_is_no_place_for_a_refusal_or_a_notice(self, screened, colour, on_violation):
        result = screened({"input": [url(colour)]}, "other", BodyRules(on_violation, route_to="other"))
        assert result.decision.handled_by == "error"

    def test_geminis_parts_are_masked(self, screened):
        part = {"inline_data": {"mime_type": "image/png", "data": to_base64(png("red"))}}
        result = screened({"contents": [{"role": "user", "parts": [part]}]}, "other", BodyRules())
        (new,) = result.body["contents"][0]["parts"]
        assert new["inline_data"]["data"] == to_base64(masked())


class TestPrefix:
    @pytest.mark.parametrize("role", ["system", "developer"])
    @pytest.mark.parametrize(
        "content", [f"{PREFIX} Be brief.", [{"type": "input_text", "text": f"{PREFIX}\n\nBe brief."}]]
    )
    def test_that_an_app_wrote_into_a_message_of_responses_is_not_written_into_the_instructions_too(
        self, role, content
    ):
        chat = {"input": [{"role": role, "content": content}, user()]}
        assert with_prefix(chat, "responses", PREFIX, "system") is chat
        other = {"input": [user(), {"role": role, "content": "Be brief."}]}
        assert with_prefix(other, "responses", PREFIX, "system")["instructions"] == PREFIX

    @pytest.mark.parametrize(
        ("form", "placement", "before", "after"),
        [
            (
                "chat",
                "system",
                {"messages": [user()]},
                {"messages": [{"role": "system", "content": PREFIX}, user()]},
            ),
            (
                "chat",
                "system",
                {"messages": [user(), {"role": "developer", "content": "Be brief."}]},
                {"messages": [user(), {"role": "developer", "content": f"{PREFIX}\n\nBe brief."}]},
            ),
            (
                "chat",
                "user",
                {"messages": [{"role": "user", "content": "Hi"}]},
                {"messages": [{"role": "user", "content": f"{PREFIX}\n\nHi"}]},
            ),
            ("responses", "system", {"input": "Hi"}, {"input": "Hi", "instructions": PREFIX}),
            (
                "responses",
                "system",
                {"input": [user()], "instructions": "Be brief."},
                {"input": [user()], "instructions": f"{PREFIX}\n\nBe brief."},
            ),
            (
                "responses",
                "system",
                {"prompt": {"id": "p"}},
                {"prompt": {"id": "p"}, "input": [{"role": "system", "content": PREFIX}]},
            ),
            (
                "responses",
                "user",
                {"input": "Hi"},
                {"input": [{"role": "user", "content": f"{PREFIX}\n\nHi"}]},
            ),
            (
                "responses",
                "user",
                {"input": [user()]},
                {"input": [user({"type": "input_text", "text": PREFIX})]},
            ),
            ("messages", "system", {"messages": [user()]}, {"messages": [user()], "system": PREFIX}),
            (
                "messages",
                "system",
                {"messages": [], "system": [{"type": "text", "text": "Be brief."}]},
                {
                    "messages": [],
                    "system": [{"type": "text", "text": PREFIX}, {"type": "text", "text": "Be brief."}],
                },
            ),
            ("messages", "user", {"messages": [user()]}, {"messages": [user({"type": "text", "text": PREFIX})]}),
            ("other", "system", {"input": "Hi"}, {"input": "Hi"}),
        ],
    )
    def test_it_goes_where_the_api_wants_it_once(self, form, placement, before, after):
        kept = copy.deepcopy(before)
        new = with_prefix(before, form, PREFIX, placement)
        assert new == after
        assert before == kept
        assert with_prefix(new, form, PREFIX, placement) is new

    @pytest.mark.parametrize("form", FORMS)
    def test_a_masked_image_asks_for_it(self, screened, form):
        assert PREFIX in json.dumps(screened(body(form, user(block(form, "red"))), form, BodyRules()).body)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(
        ("model", "colour", "place"),
        [
            ("gpt-4o", "red", "system"),
            ("google/gemma-3-4b-it", "red", "user"),
            ("google/gemma-3-4b-it", "green", "user"),
        ],
    )
    def test_it_goes_where_the_model_of_the_body_wants_it(self, screened, form, model, colour, place):
        before = {**body(form, user(block(form, colour))), "model": model}
        auto, chosen = (screened(before, form, BodyRules(placement=setting)).body for setting in ("auto", place))
        assert auto == chosen
        assert PREFIX in json.dumps(auto)
        other = "user" if place == "system" else "system"
        assert screened(before, form, BodyRules(placement=other)).body != auto

    @pytest.mark.parametrize("form", FORMS)
    def test_it_goes_where_the_model_of_a_routed_body_wants_it(self, cache_dir, form):
        guard = colour_guard(cache_dir, prefix_when="always")
        before = {**body(form, user(block(form, "yellow"))), "model": "gpt-4o"}
        for route_to, place in (("gemma-3", "user"), ("gpt-5", "system")):
            auto, chosen = (
                screen_body(guard, before, form, BodyRules(route_to=route_to, placement=setting))
                for setting in ("auto", place)
            )
            assert auto.decision.handled_by == "route"
            assert auto.body == chosen.body

    def test_it_goes_where_the_model_of_a_fallback_wants_it(self, screened):
        fallbacks = [{"model": "gemma-3", "messages": [user(block("chat", "red"))]}]
        new = screened({**body("chat", user()), "model": "gpt-4o", "fallbacks": fallbacks}, "chat", BodyRules()).body
        assert [message["role"] for message in new["messages"]] == ["system", "user"]
        assert [message["role"] for message in new["fallbacks"][0]["messages"]] == ["user"]

    @pytest.mark.parametrize(
        ("form", "inner"),
        [
            ("chat", {"messages": [user()]}),
            ("responses", {"instructions": "Be rude."}),
            ("messages", {"system": "Be rude."}),
        ],
    )
    def test_what_replaces_an_apps_instructions_has_it_as_well(self, form, inner):
        new = with_prefix(body(form, user(), extra_body=inner), form, PREFIX)
        assert PREFIX in json.dumps(new["extra_body"])
        assert with_prefix(body(form, user(), extra_body={"seed": 1}), form, PREFIX)["extra_body"] == {"seed": 1}


def test_monitoring_finds_and_changes_nothing(cache_dir):
    guard = colour_guard(cache_dir, mode="monitor")
    before = body("chat", user(block("chat", "blue"), block("chat", "red")), extra_body={"image": url("red")})
    result = screen_body(guard, before, "chat", BodyRules("raise"))
    assert result.body is before
    assert result.decision.handled_by == "model"
    assert [verdict.proposed for verdict in result.verdicts] == ["block", "mask", "mask"]
