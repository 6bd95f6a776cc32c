"""Images behind URLs in a chat: what is scanned is what the model gets."""

from __future__ import annotations

import asyncio

import pytest
from PIL import Image
from tls_server import HOST, raw, redirect, reply

from guardalign_guardrails import Guard
from guardalign_guardrails.content.payload import to_data_url
from guardalign_guardrails.content.screen import UNCHECKED_NOTICE, Turn, ascreen, screen
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard, colour_policy, painted

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

URL = f"https://{HOST}/a.png"
WORDS = {"type": "text", "text": "look"}


def block(url: str = URL) -> dict:
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def inline(image: Image.Image) -> dict:
    return block(to_data_url(encode_png(image), "image/png"))


@pytest.fixture
def guard_of(cache_dir, fetcher_of):
    def make(**policy):
        return Guard(colour_policy(**policy), ColourEncoder(), cache_dir=cache_dir, fetcher=fetcher_of(timeout_s=2))

    return make


@pytest.fixture(params=["sync", "async"])
def screened(request):
    def run(guard, *content):
        turns = [Turn(list(content))]
        (result,) = screen(guard, turns) if request.param == "sync" else asyncio.run(ascreen(guard, turns))
        return result

    return run


def test_a_harmless_image_is_inlined_so_that_the_model_gets_the_scanned_bytes(guard_of, server, screened):
    server.answers["/a.png"] = reply(encode_png(painted()))
    result = screened(guard_of(), WORDS, block())
    assert result.content == [WORDS, inline(painted())]
    assert [verdict.action for verdict in result.verdicts] == ["allow"]


def test_an_unsafe_one_is_masked(guard_of, server, screened):
    server.answers["/a.png"] = reply(encode_png(painted("red")))
    result = screened(guard_of(), block())
    assert [verdict.action for verdict in result.verdicts] == ["mask"]
    assert result.content[0]["image_url"]["detail"] == "low"
    assert URL not in repr(result.content)


def test_the_same_url_twice_is_fetched_once(guard_of, server, screened):
    server.answers["/a.png"] = reply(encode_png(painted()))
    screened(guard_of(), block(), block())
    assert server.paths == ["/a.png"]


def test_a_jpeg_is_inlined_as_a_jpeg(guard_of, server, screened, tmp_path):
    painted().save(tmp_path / "a.jpg")
    server.answers["/a.png"] = reply((tmp_path / "a.jpg").read_bytes(), "200 OK", "Content-Type: image/png")
    result = screened(guard_of(), block())
    assert result.content == [block(to_data_url((tmp_path / "a.jpg").read_bytes(), "image/jpeg"))]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (redirect("https://127.0.0.1/a.png"), "url_address"),
        (redirect("http://img.example.org/a.png"), "url_scheme"),
        (reply(b"", "404 Not Found"), "url_status"),
        (reply(b"<svg/>"), "unsupported_format"),
        (raw(b"HTTP/1.1 200 OK\r\n", *[b"x"] * 40, pause=0.1), "url_timeout"),
    ],
)
def test_what_cannot_be_fetched_or_is_no_image_is_blocked_with_the_reason(guard_of, server, answer, reason):
    server.answers["/a.png"] = answer
    (result,) = screen(guard_of(), [Turn([WORDS, block()])])
    assert [(verdict.action, verdict.uninspectable) for verdict in result.verdicts] == [("block", reason)]
    assert result.content == [WORDS, {"type": "text", "text": UNCHECKED_NOTICE}]


@pytest.mark.parametrize("url", ["https://169.254.169.254/latest", "https://[::1]/a", "gs://bucket/a", "/etc/passwd"])
def test_what_is_not_public_https_is_never_asked_for(guard_of, server, network, url):
    (result,) = screen(guard_of(), [Turn([block(url)])])
    assert result.verdicts[0].action == "block"
    assert (server.requests, network.dialled) == ([], [])


def test_monitor_mode_fetches_and_reports_but_leaves_the_url(guard_of, server, screened):
    server.answers["/a.png"] = reply(encode_png(painted("red")))
    content = [block()]
    result = screened(guard_of(mode="monitor"), *content)
    assert result.content == content
    assert [(v.action, v.proposed) for v in result.verdicts] == [("allow", "mask")]


def test_the_policy_switches_fetching_on(cache_dir):
    assert colour_guard(cache_dir).fetcher is None
    on = colour_guard(cache_dir, fetch={"allowed_hosts": ["img.example.org"]})
    assert on.fetcher.rules.allowed_hosts == ("img.example.org",)
