"""LiteLLM as a library: what its functions send to a server when they, or its callbacks, are guarded."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import threading
import warnings
from collections import deque

import pytest

pytest.importorskip("litellm", reason="LiteLLM has its own virtual environment: make test-litellm")

import litellm
from litellm.integrations.custom_logger import CustomLogger
from litellm.llms.custom_httpx import llm_http_handler
from PIL import Image

from doc_pages.pages import blocks
from guardalign_guardrails import SettingsError, UnguardedWarning, UnsafeContentError
from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.detection.encoders import registry
from guardalign_guardrails.guarding import settings
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.chats import images_in
from guardalign_guardrails.testing.colours import CELL, ColourEncoder, colour_guard, colour_policy, painted
from litellm_guardalign import ImageGuardrail, UnguardedCall, guarded
from litellm_guardalign.version import litellm_version
from with_langchain.openai_server import digest, opened

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PREFIX = "Be careful."
REFUSAL = colour_policy().refusal


def masked() -> Image.Image:
    image = painted()
    image.paste("black", (0, 0, CELL, CELL))
    return image


def url(colour):
    return to_data_url(encode_png(painted(colour)), "image/png")


def user(*colours):
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url(each)}} for each in colours]}


def inputs(*colours):
    return [{"role": "user", "content": [{"type": "input_image", "image_url": url(each)} for each in colours]}]


def sources(*colours):
    images = [to_base64(encode_png(painted(each))) for each in colours]
    blocks = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}} for data in images
    ]
    return [{"role": "user", "content": blocks}]


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


@pytest.fixture
def router(servers):
    deployment = {"model": "openai/gpt-4o", "api_base": servers.openai.base_url, "api_key": "k"}
    return litellm.Router(
        model_list=[
            {"model_name": "seen", "litellm_params": deployment},
            {"model_name": "careful", "litellm_params": {**deployment, "model": "openai/careful"}},
        ],
        num_retries=0,
    )


@pytest.fixture
def at(servers):
    """Where LiteLLM finds the server that speaks OpenAI's API."""
    return {"model": "openai/gpt-4o", "api_base": servers.openai.base_url, "api_key": "k", "max_retries": 0}


@pytest.fixture
def at_other(servers):
    return {"model": "openai/other", "api_base": f"{servers.other_url}/v1", "api_key": "k", "max_retries": 0}


async def answered(call, **given):
    """The answer of a function, whether it is asynchronous or not; of a stream, its pieces."""
    answer = call(**given)
    answer = await answer if hasattr(answer, "__await__") else answer
    if not given.get("stream"):
        return answer
    return [piece async for piece in answer] if hasattr(answer, "__aiter__") and _is_async(call) else list(answer)


def _is_async(call):
    return call.__name__.startswith("a")


def calls(router, at):
    """Functions that chat, by name, with the arguments that say where."""
    return {
        "completion": (litellm.completion, at),
        "acompletion": (litellm.acompletion, at),
        "Router.completion": (router.completion, {"model": "seen"}),
        "Router.acompletion": (router.acompletion, {"model": "seen"}),
    }


CHATS = ["completion", "acompletion", "Router.completion", "Router.acompletion"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CHATS)
class TestChats:
    async def test_only_the_masked_image_is_sent(self, guard, router, at, upstream, name, stream):
        call, where = calls(router, at)[name]
        answer = await answered(guarded(call, guard), messages=[user("red", "white")], stream=stream, **where)
        assert [digest(image) for image in upstream.last.images] == [digest(masked()), digest(painted())]
        assert upstream.last.body["messages"][0] == {"role": "system", "content": PREFIX}
        assert url("red") not in upstream.last.raw.decode()
        said = answer if stream else [answer]
        texts = [(part.choices[0].delta if stream else part.choices[0].message).content or "" for part in said]
        assert "".join(texts) == "one two three"

    async def test_a_refusal_is_read_like_a_models_answer_and_nothing_is_sent(
        self, guard, router, at, upstream, name, stream
    ):
        call, where = calls(router, at)[name]
        answer = await answered(guarded(call, guard), messages=[user("blue")], stream=stream, **where)
        whole = litellm.stream_chunk_builder(answer) if stream else answer
        assert isinstance(whole, litellm.ModelResponse)
        assert whole.choices[0].message.content == REFUSAL
        assert whole.choices[0].finish_reason == "content_filter"
        record = (answer[0] if stream else answer).guardalign
        assert record["action"] == "block"
        assert "base64" not in json.dumps(record)
        assert upstream.requests == []


class TestResponses:
    @pytest.mark.parametrize("call", [litellm.responses, litellm.aresponses], ids=["sync", "async"])
    async def test_only_the_masked_image_is_sent(self, guard, at, upstream, call):
        answer = await answered(guarded(call, guard), input=inputs("red"), **at)
        assert upstream.last.path.endswith("/responses")
        assert [digest(image) for image in upstream.last.images] == [digest(masked())]
        assert upstream.last.body["instructions"] == PREFIX
        assert answer.output[0].content[0].text == "one two three"

    @pytest.mark.parametrize("call", [litellm.responses, litellm.aresponses], ids=["sync", "async"])
    async def test_a_refusal_is_read_like_a_models_answer(self, guard, at, upstream, call):
        answer = await answered(guarded(call, guard), input=inputs("blue"), **at)
        assert answer.output_text == REFUSAL
        assert answer.guardalign["action"] == "block"
        assert upstream.requests == []

    @pytest.mark.parametrize("call", [litellm.responses, litellm.aresponses], ids=["sync", "async"])
    async def test_a_stream_ends_with_the_whole_refusal(self, guard, at, upstream, call):
        events = await answered(guarded(call, guard), input=inputs("blue"), stream=True, **at)
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == REFUSAL
        assert events[-1].type == "response.completed"
        assert events[-1].response.output_text == REFUSAL
        assert upstream.requests == []

    async def test_a_routers_method_is_guarded_by_its_call_type(self, guard, router, upstream):
        call = guarded(router.aresponses, guard, call_type="aresponses")
        await call(model="seen", input=inputs("red"))
        assert [digest(image) for image in upstream.last.images] == [digest(masked())]


class TestMessages:
    @pytest.fixture
    def at_claude(self, servers):
        return {"model": "anthropic/claude-sonnet-4-5", "api_base": servers.other_url, "api_key": "k", "max_tokens": 9}

    async def test_only_the_masked_image_is_sent(self, guard, at_claude, received):
        await guarded(litellm.anthropic_messages, guard)(messages=sources("red"), **at_claude)
        (request,) = received
        assert [digest(image) for image in images_in(request.body)] == [digest(masked())]

    async def test_a_refusal_is_a_text_block(self, guard, at_claude, received):
        answer = await guarded(litellm.anthropic_messages, guard)(messages=sources("blue"), **at_claude)
        assert answer["content"] == [{"type": "text", "text": REFUSAL}]
        assert answer["stop_reason"] == "refusal"
        assert received == []

    async def test_in_a_stream_too(self, guard, at_claude, received):
        call = guarded(litellm.anthropic_messages, guard)
        sent = [piece async for piece in await call(messages=sources("blue"), stream=True, **at_claude)]
        events = [json.loads(line[6:]) for line in b"".join(sent).decode().splitlines() if line.startswith("data: ")]
        assert [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"] == [REFUSAL]
        assert events[-1]["type"] == "message_stop"
        assert received == []


class TestOtherFunctions:
    @pytest.mark.parametrize("call", [litellm.embedding, litellm.aembedding], ids=["sync", "async"])
    async def test_an_image_to_be_embedded_is_masked_or_an_error(self, guard, at_other, received, call):
        embed = guarded(call, guard)
        await answered(embed, input=[url("red")], **at_other)
        assert [digest(opened(each)) for each in received[0].body["input"]] == [digest(masked())]
        with pytest.raises(UnsafeContentError):
            await answered(embed, input=[url("blue")], **at_other)
        assert len(received) == 1

    @pytest.mark.parametrize("call", [litellm.text_completion, litellm.atext_completion], ids=["sync", "async"])
    async def test_a_completion_that_brings_messages_is_refused_as_text(self, guard, at, upstream, call):
        complete = guarded(call, guard)
        given = {"prompt": "Hi", "extra_body": {"messages": [user("blue")]}, **at}
        answer = await answered(complete, **given)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (REFUSAL, "content_filter")
        with pytest.raises(UnsafeContentError):
            await answered(complete, stream=True, **given)
        assert upstream.requests == []

    @pytest.mark.parametrize("call", [litellm.image_edit, litellm.aimage_edit], ids=["sync", "async"])
    @pytest.mark.parametrize("form", ["bytes", "file", "path", "named"])
    async def test_an_image_to_be_edited_is_masked_or_an_error(self, guard, at_other, received, call, form, tmp_path):
        def image(colour):
            data, path = encode_png(painted(colour)), tmp_path / f"{colour}.png"
            path.write_bytes(data)
            forms = {"bytes": data, "file": io.BytesIO(data), "path": path, "named": ("a.png", data, "image/png")}
            return forms[form]

        edit = guarded(call, guard)
        await answered(edit, image=[image("red"), image("white")], prompt="a hat", **at_other)
        assert [digest(each) for each in received[0].files] == [digest(masked()), digest(painted())]
        with pytest.raises(UnsafeContentError):
            await answered(edit, image=image("blue"), prompt="a hat", **at_other)
        assert len(received) == 1

    def test_an_open_file_is_read_once_and_sent_as_it_was_checked(self, guard, at_other, received, tmp_path):
        path = tmp_path / "red.png"
        path.write_bytes(encode_png(painted("red")))
        with path.open("rb") as file:
            guarded(litellm.image_edit, guard)(image=file, prompt="a hat", **at_other)
        assert [digest(each) for each in received[0].files] == [digest(masked())]


@pytest.fixture
def colours_by_default(monkeypatch):
    """The encoder that is used if none is named sees colours. Guards of the same settings are shared in a process."""
    monkeypatch.setitem(registry._PREFIXES, "offline", lambda rest, options: ColourEncoder())
    for shared in (settings._shared, settings._encoder):
        shared.cache_clear()
    yield
    for shared in (settings._shared, settings._encoder):
        shared.cache_clear()


class TestWhatGuardedTakes:
    def test_arguments_without_names(self, guard, at, upstream):
        where = {key: value for key, value in at.items() if key != "model"}
        guarded(litellm.completion, guard)("openai/gpt-4o", [user("red")], **where)
        assert [digest(image) for image in upstream.last.images] == [digest(masked())]

    async def test_but_not_where_the_function_does_not_name_them(self, guard, at_other, received):
        with pytest.raises(SettingsError, match="by name"):
            await guarded(litellm.aembedding, guard)("openai/other", [url("red")], api_base=at_other["api_base"])
        assert received == []

    def test_the_message_of_the_last_answer(self, guard, at, upstream):
        ask = guarded(litellm.completion, guard)
        message = ask(messages=[{"role": "user", "content": "Hi"}], **at).choices[0].message
        assert not isinstance(message, dict)
        ask(messages=[{"role": "user", "content": "Hi"}, message, user("red")], **at)
        assert [turn["role"] for turn in upstream.last.body["messages"]] == ["system", "user", "assistant", "user"]
        assert [digest(image) for image in upstream.last.images] == [digest(masked())]

    @pytest.mark.parametrize("kind", [deque, tuple, iter], ids=["deque", "tuple", "iterator"])
    def test_messages_in_any_iterable(self, guard, at, upstream, kind):
        content = kind(user("red")["content"])
        guarded(litellm.completion, guard)(messages=kind([{"role": "user", "content": content}]), **at)
        assert [digest(image) for image in upstream.last.images] == [digest(masked())]

    def test_words_alone_go_on_as_they_are(self, guard, at, upstream):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        guarded(litellm.completion, guard)(messages=messages, temperature=0.5, **at)
        assert upstream.last.body["messages"] == messages
        assert upstream.last.body["temperature"] == 0.5

    def test_a_model_for_what_is_to_be_routed(self, guard, router, upstream):
        ask = guarded(router.completion, guard, route_to="careful")
        ask(model="seen", messages=[user("yellow")])
        assert upstream.last.body["model"] == "careful"
        assert upstream.last.texts == [NOTICE]
        # Without one it counts as blocked.
        refused = guarded(router.completion, guard)(model="seen", messages=[user("yellow")])
        assert refused.choices[0].finish_reason == "content_filter"
        assert len(upstream.requests) == 1

    def test_what_a_violation_means(self, guard, at, upstream):
        with pytest.raises(UnsafeContentError) as caught:
            guarded(litellm.completion, guard, on_violation="raise")(messages=[user("blue")], **at)
        assert caught.value.verdict.action == "block"
        assert upstream.requests == []
        guarded(litellm.completion, guard, on_violation="notice")(messages=[user("blue")], **at)
        assert upstream.last.texts == [NOTICE]

    def test_a_policy_file(self, at, upstream, tmp_path, colours_by_default):
        path = tmp_path / "policy.yaml"
        path.write_text(colour_policy(refusal="Not here.").to_yaml())
        answer = guarded(litellm.completion, path)(messages=[user("blue")], **at)
        assert answer.choices[0].message.content == "Not here."

    def test_the_page_shows_what_works(self, upstream, tmp_path, monkeypatch, capsys, colours_by_default):
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_API_BASE", upstream.base_url)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "policy.yaml").write_text(colour_policy().to_yaml())
        (block,) = blocks("docs/litellm.md", "python")
        exec(block.compiled(), {"messages": [user("red")]})
        assert [digest(image) for image in upstream.last.images] == [digest(masked())]
        assert capsys.readouterr().out == "one two three\n"

    def test_only_functions_that_send_images_to_models(self, guard, router):
        for call in (print, router.aresponses, functools.partial(litellm.completion, messages=[user("blue")])):
            with pytest.raises(SettingsError, match="call_type"):
                guarded(call, guard)

    def test_a_function_keeps_its_name(self, guard):
        assert guarded(litellm.completion, guard).__name__ == "completion"


@pytest.fixture
def callback(cache_dir, tmp_path, monkeypatch):
    """The guardrail, as somebody would put it among LiteLLM's callbacks; afterwards they are as before."""
    lists = ("callbacks", "input_callback", "success_callback", "failure_callback")
    for name in (*lists, "_async_success_callback", "_async_failure_callback", "_async_input_callback"):
        monkeypatch.setattr(litellm, name, list(getattr(litellm, name)))
    monkeypatch.setitem(registry._PREFIXES, "colour", lambda rest, options: ColourEncoder())
    policy = tmp_path / "policy.yaml"
    policy.write_text(colour_policy().to_yaml())
    settings = {"policy": str(policy), "encoder": "colour", "cache_dir": str(cache_dir)}
    return ImageGuardrail(guardalign=settings, guardrail_name="images", event_hook="pre_call", default_on=True)


OLDER = pytest.mark.skipif(litellm_version() < (1, 103), reason="this LiteLLM does not show its log to the hook")


class TestCallbacks:
    """The guardrail among LiteLLM's callbacks, without a proxy."""

    async def test_an_asynchronous_chat_sends_the_masked_image(self, callback, router, at, upstream):
        litellm.callbacks.append(callback)
        for call, where in ((litellm.acompletion, at), (router.acompletion, {"model": "seen"})):
            await call(messages=[user("red")], **where)
            assert [digest(image) for image in upstream.last.images] == [digest(masked())]
            assert upstream.last.body["messages"][0] == {"role": "system", "content": PREFIX}

    @OLDER
    async def test_other_asynchronous_calls_do_too(self, callback, at, at_other, upstream, received):
        litellm.callbacks.append(callback)
        await litellm.aresponses(input=inputs("red"), **at)
        assert [digest(image) for image in upstream.last.images] == [digest(masked())]
        await litellm.aembedding(input=[url("red")], **at_other)
        assert [digest(opened(each)) for each in received[-1].body["input"]] == [digest(masked())]
        await litellm.aimage_edit(image=io.BytesIO(encode_png(painted("red"))), prompt="a hat", **at_other)
        assert [digest(each) for each in received[-1].files] == [digest(masked())]

    async def test_a_blocked_image_is_an_error_there(self, callback, at, at_other, upstream, received):
        litellm.callbacks.append(callback)
        with pytest.raises(UnsafeContentError):
            await litellm.acompletion(messages=[user("blue")], stream=True, **at)
        with pytest.raises(UnsafeContentError):
            await litellm.aimage_edit(image=encode_png(painted("blue")), prompt="a hat", **at_other)
        assert upstream.requests == received == []

    @OLDER
    async def test_loggers_hear_of_the_masked_image_alone(self, callback, at, upstream):
        heard = []

        class Telltale(CustomLogger):
            async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
                heard.append(repr(kwargs))

            async def async_log_failure_event(self, kwargs, response_obj, start_time, end_time):
                heard.append(repr(kwargs))

        litellm.callbacks += [callback, Telltale()]
        await litellm.acompletion(messages=[user("red")], **at)
        with pytest.raises(UnsafeContentError):
            await litellm.acompletion(messages=[user("blue")], **at)
        await asyncio.sleep(2)
        assert len(heard) == 2
        assert not [colour for colour in ("red", "blue") for text in heard if url(colour) in text]

    async def test_content_without_a_name_is_an_error(self, callback, at, upstream):
        litellm.callbacks.append(callback)
        where = {key: value for key, value in at.items() if key != "model"}
        # Older versions of LiteLLM do not show a hook that there is content.
        with pytest.raises((SettingsError, UnguardedCall)):
            await litellm.acompletion("openai/gpt-4o", [user("red")], **where)
        assert upstream.requests == []

    @pytest.mark.parametrize("colour", ["red", "blue", "green", "yellow"])
    @pytest.mark.parametrize("name", ["completion", "stream", "Router.completion", "text_completion", "embedding"])
    def test_a_synchronous_call_is_stopped_if_it_would_have_to_be_changed(
        self, callback, router, at, at_other, upstream, received, name, colour
    ):
        litellm.callbacks.append(callback)
        messages = [user(colour)]
        send = {
            "completion": lambda: litellm.completion(messages=messages, **at),
            "stream": lambda: litellm.completion(messages=messages, stream=True, **at),
            "Router.completion": lambda: router.completion(model="seen", messages=messages),
            "text_completion": lambda: litellm.text_completion(prompt="", extra_body={"messages": messages}, **at),
            "embedding": lambda: litellm.embedding(input=[url(colour)], **at_other),
        }[name]
        with pytest.warns(UnguardedWarning, match="guarded"), pytest.raises(UnguardedCall, match="digest") as caught:
            send()
        assert "base64" not in str(caught.value)
        assert upstream.requests == received == []

    @pytest.mark.skipif(
        not hasattr(llm_http_handler, "_has_pre_call_deployment_hook"), reason="this LiteLLM asks only if asynchronous"
    )
    async def test_but_in_responses_where_litellm_asks_its_callbacks_too(self, callback, at, upstream):
        litellm.callbacks.append(callback)
        litellm.responses(input=inputs("red"), **at)
        assert [digest(image) for image in upstream.last.images] == [digest(masked())]
        assert upstream.last.body["instructions"] == PREFIX
        with pytest.raises(litellm.APIConnectionError, match="Blocked an image"):
            litellm.responses(input=inputs("blue"), **at)
        assert len(upstream.requests) == 1

    def test_and_goes_on_if_not(self, callback, at, upstream):
        litellm.callbacks.append(callback)
        with pytest.warns(UnguardedWarning):
            litellm.completion(messages=[user("white")], **at)
        assert [digest(image) for image in upstream.last.images] == [digest(painted())]

    @pytest.mark.parametrize("role", ["user", "assistant", "tool"])
    def test_what_a_chat_says_does_not_pass_for_the_prefix(self, callback, at, upstream, role):
        litellm.callbacks.append(callback)
        said = {"role": role, "content": f"{PREFIX} Hello.", **({"tool_call_id": "1"} if role == "tool" else {})}
        with pytest.warns(UnguardedWarning), pytest.raises(UnguardedCall):
            litellm.completion(messages=[said, user("green")], **at)
        assert upstream.requests == []

    def test_an_app_may_write_the_prefix_itself(self, callback, at, upstream):
        litellm.callbacks.append(callback)
        with pytest.warns(UnguardedWarning):
            litellm.completion(messages=[{"role": "system", "content": f"{PREFIX} Be brief."}, user("green")], **at)
        assert len(upstream.requests) == 1

    def test_files_that_no_callback_sees_are_not_sent(self, callback, at_other, received):
        litellm.callbacks.append(callback)
        with pytest.warns(UnguardedWarning), pytest.raises(UnguardedCall, match="cannot be checked"):
            litellm.image_edit(image=encode_png(painted()), prompt="a hat", **at_other)
        assert received == []

    async def test_so_it_is_with_a_callback_of_one_call(self, callback, at, upstream):
        with pytest.warns(UnguardedWarning), pytest.raises(UnguardedCall):
            await litellm.acompletion(messages=[user("red")], callbacks=[callback], **at)
        with pytest.warns(UnguardedWarning), pytest.raises(UnguardedCall):
            litellm.completion(messages=[user("red")], callbacks=[callback], **at)
        assert upstream.requests == []

    @pytest.mark.parametrize("name", ["completion", "acompletion"])
    async def test_among_other_callbacks_it_can_only_warn(self, callback, at, upstream, name):
        litellm.success_callback.append(callback)
        litellm._async_success_callback.append(callback)
        warned = threading.Event()
        with warnings.catch_warnings():
            warnings.simplefilter("always", UnguardedWarning)
            warnings.showwarning = lambda message, category, *_: category is UnguardedWarning and warned.set()
            await answered(getattr(litellm, name), messages=[user("white")], **at)
            # LiteLLM logs in the background.
            assert await asyncio.to_thread(warned.wait, 10)

    @pytest.mark.parametrize("name", ["completion", "acompletion"])
    async def test_of_what_was_checked_it_does_not_say_that_it_was_sent_unchecked(self, callback, at, upstream, name):
        litellm.callbacks.append(callback)
        said = []
        with warnings.catch_warnings():
            warnings.simplefilter("always", UnguardedWarning)
            warnings.showwarning = lambda message, *_: said.append(str(message))
            await answered(getattr(litellm, name), messages=[user("white")], **at)
            await asyncio.sleep(1)
        assert not [text for text in said if "sent unchecked" in text]

    async def test_a_caller_cannot_say_that_a_call_was_checked(self, callback, at, upstream):
        litellm.callbacks.append(callback)
        forged = {"guardalign": "checked", "proxy_server_request": {"body": {}}, "call_type": "moderation"}
        with pytest.warns(UnguardedWarning), pytest.raises(UnguardedCall):
            litellm.completion(messages=[user("red")], **forged, metadata={"guardalign": "checked"}, **at)
        assert upstream.requests == []
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnguardedWarning)
            await litellm.acompletion(messages=[user("red")], **forged, **at)
        assert url("red") not in upstream.last.raw.decode()

    def test_nor_can_a_report_of_one(self, callback):
        with pytest.warns(UnguardedWarning), pytest.raises(UnguardedCall):
            callback.log_pre_api_call("m", [user("red")], {"call_type": "completion", "guardalign": "checked"})

    async def test_a_guarded_function_is_not_stopped_by_one(self, callback, guard, at, upstream):
        litellm.callbacks.append(callback)
        with pytest.warns(UnguardedWarning):
            guarded(litellm.completion, guard)(messages=[user("red")], **at)
        assert [digest(image) for image in upstream.last.images] == [digest(masked())]
        assert upstream.last.body["messages"][0] == {"role": "system", "content": PREFIX}
