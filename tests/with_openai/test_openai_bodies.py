"""Images and the prefix wherever a request can hold them, and what must be left alone."""

from __future__ import annotations

import contextlib
import json

import pytest
from openai import NotFoundError
from openai_ways import MASKED, PREFIX, chat_block, images, item_block, prefixes, same, url, user

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.content.payload import to_data_url
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import colour_guard, colour_policy, painted
from openai_guardalign import guard_client

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


class TestPrefix:
    @pytest.mark.parametrize("when", ["finding", "image", "always"])
    def test_it_arrives_once_in_each_request_of_a_chat(self, simple, server, cache_dir, when):
        client = guard_client(simple.client(server), colour_guard(cache_dir, prefix_when=when))
        chat = [{"role": "developer", "content": "Be brief."}]
        for turn in range(5):
            chat += [user(simple.content(*([painted("green", shade=turn)] if turn % 2 == 0 else [])))]
            chat += [{"role": "assistant", "content": simple.ask(client, chat).text}]
            assert prefixes(server.last) == 1
        body = server.last.body
        if simple.api == "chat":
            assert body["messages"][0] == {"role": "developer", "content": f"{PREFIX}\n\nBe brief."}
        else:
            assert body["instructions"] == PREFIX

    def test_it_is_not_put_where_it_is_already(self, plain, server, checks):
        client = guard_client(guard_client(plain, checks), checks)
        image = painted("red")
        client.chat.completions.create(
            model="m", messages=[{"role": "system", "content": PREFIX}, user([chat_block(image)])]
        )
        client.responses.create(model="m", input=[user([item_block(image)])], instructions=f"{PREFIX}\n\nBe brief.")
        assert [prefixes(request) for request in server.requests] == [1, 1]
        assert server.last.body["instructions"] == f"{PREFIX}\n\nBe brief."

    @pytest.mark.parametrize("content", ["words", "blocks"])
    def test_it_may_head_what_the_user_says(self, simple, server, cache_dir, content):
        client = guard_client(simple.client(server), colour_guard(cache_dir, prefix_when="always"), placement="user")
        simple.ask(
            client, [{"role": "system", "content": "Be brief."}, user("hi" if content == "words" else simple.content())]
        )
        system, said = server.last.turns
        assert system["content"] == "Be brief."
        kind = "text" if simple.api == "chat" else "input_text"
        expected = f"{PREFIX}\n\nhi" if content == "words" else [{"type": kind, "text": PREFIX}, *simple.content()]
        assert said["content"] == expected

    def test_words_alone_get_it_too_if_it_is_always_due(self, plain, server, cache_dir):
        checks = colour_guard(cache_dir, prefix_when="always")
        guard_client(plain, checks).responses.create(model="m", input="hi")
        assert (server.last.body["instructions"], server.last.body["input"]) == (PREFIX, "hi")
        guard_client(plain, checks, placement="user").responses.create(model="m", input="hi")
        assert server.last.body["input"] == [user(f"{PREFIX}\n\nhi")]
        guard_client(plain, checks, placement="user").responses.create(model="m", input=[])
        assert server.last.body["input"] == [user(PREFIX)]

    def test_it_does_not_replace_the_instructions_of_a_stored_prompt(self, plain, server, checks):
        prompt = {"id": "pmpt_1", "variables": {"photo": item_block(painted("red")), "image": "a cat"}}
        guard_client(plain, checks).responses.create(model="m", prompt=prompt, input="hi")
        assert "instructions" not in server.last.body
        assert server.last.body["input"] == [{"role": "system", "content": PREFIX}, user("hi")]
        assert same(*images(server.last), MASKED)
        assert server.last.body["prompt"]["variables"]["image"] == "a cat"


class TestItems:
    """What the input of Responses can hold besides messages."""

    def sent(self, plain, server, checks, *items, **options):
        guard_client(plain, checks, **options).responses.create(model="m", input=list(items))
        return server.last.body["input"]

    def test_images_from_functions_are_masked(self, plain, server, checks):
        for kind in ("function_call_output", "custom_tool_call_output"):
            output = {"type": kind, "call_id": "1", "output": [item_block(painted("red"))]}
            self.sent(plain, server, checks, user("look"), output)
            assert same(*images(server.last), MASKED)

    def test_a_blocked_one_is_a_notice_and_the_run_goes_on(self, plain, server, checks):
        output = {"type": "function_call_output", "call_id": "1", "output": [item_block(painted("blue"))]}
        sent = self.sent(plain, server, checks, user("look"), output)
        assert sent[1] == {**output, "output": [{"type": "input_text", "text": NOTICE}]}

    @pytest.mark.parametrize("colour", ["red", "blue"])
    def test_a_screenshot_stays_one(self, plain, server, checks, colour):
        call = {
            "type": "computer_call",
            "id": "c",
            "call_id": "1",
            "action": {"type": "screenshot"},
            "status": "completed",
        }
        shot = {"type": "computer_screenshot", "image_url": url(painted(colour))}
        output = {"type": "computer_call_output", "call_id": "1", "output": shot}
        sent = self.sent(plain, server, checks, user("look"), call, output)
        assert sent[1] == call
        assert sent[2]["output"].keys() == shot.keys()
        (image,) = images(server.last)
        assert same(image, MASKED) if colour == "red" else not image.getbbox()

    def test_an_image_the_model_made_is_checked(self, plain, server, checks):
        made = {"type": "image_generation_call", "id": "ig_1", "status": "completed"}
        encoded = url(painted("red")).rpartition(",")[2]
        sent = self.sent(plain, server, checks, user("draw"), {**made, "result": encoded}, user("again"))
        # By its id the API may find the original.
        assert "ig_1" not in json.dumps(sent)
        assert encoded not in json.dumps(sent)
        assert sent[1]["role"] == "user"
        assert [same(image, MASKED) for image in images(server.last)] == [True]
        harmless = {**made, "result": url(painted("white")).rpartition(",")[2]}
        assert self.sent(plain, server, checks, user("draw"), harmless, user("again"))[1] == harmless
        named = self.sent(plain, server, checks, user("draw"), made, user("again"))
        assert named[1] == {"role": "assistant", "content": UNCHECKED_NOTICE}

    def test_what_cannot_be_opened_follows_the_policy(self, plain, server, cache_dir):
        named = user([{"type": "input_image", "file_id": "file-1"}])
        elsewhere = user([{"type": "input_image", "image_url": "https://example.org/a.png"}])
        paper = user([{"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}])
        strict = guard_client(plain, colour_guard(cache_dir))
        lenient = guard_client(plain, colour_guard(cache_dir, failure={"uninspectable": "allow"}))
        for message in (named, elsewhere, paper):
            refused = strict.responses.create(model="m", input=[message])
            assert refused.output_text == colour_policy().refusal_unchecked
        assert server.requests == []
        for message in (named, elsewhere, paper):
            lenient.responses.create(model="m", input=[message])
            assert server.last.body["input"] == [message]

    def test_an_image_tools_mask_stays_as_it_is_or_is_an_error(self, plain, server, checks):
        client = guard_client(plain, checks)

        def draw(**mask):
            tool = {"type": "image_generation", **mask}
            return client.responses.create(model="m", input="draw", tools=[tool])

        hole = painted("white").convert("RGBA")
        hole.paste((255, 255, 255, 0), (40, 40, 60, 60))
        for mask in ({}, {"input_image_mask": {"image_url": to_data_url(encode_png(hole), "image/png")}}):
            draw(**mask)
            assert server.last.body["tools"] == [{"type": "image_generation", **mask}]
        for written in (lambda image: {"image_url": url(image)}, url):
            with pytest.raises(UnsafeContentError):
                draw(input_image_mask=written(painted("red")))
            assert draw(input_image_mask=written(painted("blue"))).output_text == checks.policy.refusal
        assert draw(input_image_mask={"file_id": "file-1"}).output_text == checks.policy.refusal_unchecked
        assert len(server.requests) == 2

    def test_the_models_own_calls_and_lists_of_tools_are_words(self, plain, server, checks):
        schema = {"properties": {"image": {"type": "file"}}}
        items = [
            user("go"),
            {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "gAAA"},
            {"type": "function_call", "call_id": "1", "name": "look", "arguments": '{"image": "a.png"}'},
            {"type": "function_call_output", "call_id": "1", "output": "data:image/png;base64, says a text"},
            {"type": "mcp_list_tools", "id": "m", "server_label": "s", "tools": [{"input_schema": schema}]},
            {"type": "apply_patch_call", "call_id": "2", "operation": {"type": "create_file", "diff": "+"}},
            {"type": "item_reference", "id": "msg_1"},
        ]
        assert self.sent(plain, server, checks, *items) == items


class TestMessages:
    """What the messages of chat completions can hold."""

    def test_tool_and_earlier_images_are_masked_or_a_notice_and_never_refused(self, plain, server, checks):
        chat = [
            user([chat_block(painted("blue"))]),
            {
                "role": "assistant",
                "content": None,
                "audio": {"id": "a1"},
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
            },
            {
                "role": "tool",
                "tool_call_id": "1",
                "content": [{"type": "text", "text": "shot"}, chat_block(painted("red"))],
            },
            user("And now?"),
        ]
        answer = guard_client(plain, checks).chat.completions.create(model="m", messages=chat)
        assert answer.choices[0].message.content == "one two three"
        _, first, second, third, last = server.last.body["messages"]
        assert first["content"] == [{"type": "text", "text": NOTICE}]
        assert (second, last) == (chat[1], chat[3])
        assert third["content"][0] == {"type": "text", "text": "shot"}
        assert [same(image, MASKED) for image in images(server.last)] == [True]

    def test_images_beside_the_content_are_found(self, plain, server, checks):
        # As some hosts hand out what a model drew.
        drawn = {"role": "assistant", "content": "Here.", "images": [chat_block(painted("red"))], "audio": {"id": "a"}}
        guard_client(plain, checks).chat.completions.create(model="m", messages=[user("draw"), drawn, user("again")])
        sent = server.last.body["messages"][2]
        assert {**sent, "images": []} == {**drawn, "images": []}
        assert same(*images(server.last), MASKED)

    def test_images_in_extra_json_are_found_too(self, plain, server, checks):
        client = guard_client(plain, checks)
        client.chat.completions.create(
            model="m", messages=[user("hi")], extra_body={"messages": [user([chat_block(painted("red"))])]}
        )
        assert same(*images(server.last), MASKED)

    def test_so_are_those_of_a_request_made_by_hand(self, plain, server, checks):
        body = {"model": "m", "messages": [user([chat_block(painted("red"))])]}
        client = guard_client(plain, checks)
        client.post("/chat/completions", cast_to=object, body=body)
        client.post(
            "/chat/completions",
            cast_to=object,
            content=json.dumps(body).encode(),
            options={"headers": {"Content-Type": "application/json"}},
        )
        assert [same(*images(request), MASKED) for request in server.requests] == [True, True]
        with pytest.raises(UnsafeContentError):
            client.post("/chat/completions", cast_to=object, content=b"\x1f\x8b not JSON")

    @pytest.mark.parametrize("path", ["/chat/completions/", "/Chat/Completions"])
    def test_however_its_path_is_written(self, plain, server, checks, path):
        body = {"model": "m", "messages": [user([chat_block(painted("red"))])]}
        with contextlib.suppress(NotFoundError):
            guard_client(plain, checks).post(path, cast_to=object, body=body)
        assert same(*images(server.last), MASKED)

    def test_one_of_two_meanings_is_an_error(self, plain, server, checks):
        unsafe = json.dumps([user([chat_block(painted("blue"))])])
        content = f'{{"model": "m", "messages": {unsafe}, "messages": [{{"role": "user", "content": "hi"}}]}}'
        with pytest.raises(UnsafeContentError):
            guard_client(plain, checks).post("/chat/completions", cast_to=object, content=content.encode())
        assert server.requests == []

    def test_half_a_character_stays_half_a_character(self, plain, server, checks):
        content = json.dumps({"model": "m", "messages": [user([chat_block(painted("red"))])], "user": "\ud800"})
        guard_client(plain, checks).post("/chat/completions", cast_to=object, content=content.encode())
        assert server.last.body["user"] == "\ud800"
        assert same(*images(server.last), MASKED)
