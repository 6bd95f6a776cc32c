"""Fetching over real TLS on the loopback: what comes through, what is cut off, and that no refusal tells the URL."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
import ssl
import sys
import threading
import traceback

import httpcore
import pytest
from tls_server import HOST, PUBLIC, drip, raw, redirect, reply

from guardalign_guardrails.errors import FetchRefused, FetchUnavailable
from guardalign_guardrails.fetch import Fetcher, FetchRules, deadline

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.filterwarnings("error::ResourceWarning")]

BODY = b"\x89PNG an image's bytes"
URL = f"https://{HOST}"


@pytest.fixture
def fetcher(fetcher_of):
    return fetcher_of(timeout_s=5)


def reason(fetcher, url, max_bytes=None):
    with pytest.raises(FetchRefused) as caught:
        fetcher.fetch(url, max_bytes)
    return caught.value.reason


# What comes through


def test_an_image_is_fetched_from_the_checked_address_under_the_hosts_name(fetcher, network, server):
    assert fetcher.fetch(f"{URL}/a.png") == BODY
    assert network.asked == [(HOST, 443)]
    assert network.dialled == [(PUBLIC, 443)]
    assert server.names == [HOST]


def test_a_request_says_nothing_about_who_asks(fetcher, server, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:1")
    server.answers["/b"] = reply(b"", "302 Found", "Location: /a.png?x=y#z", "Set-Cookie: a=b")
    assert fetcher.fetch(f"{URL}/b?token=1#part") == BODY
    assert server.paths == ["/b?token=1", "/a.png?x=y"]
    assert sorted(server.requests[-1].decode().split("\r\n")[1:-2]) == [
        "accept-encoding: identity",
        "accept: image/*",
        "connection: close",
        f"host: {HOST}",
        "user-agent: guardalign-guardrails",
    ]


def test_a_store_of_ones_own_is_fetched_from_at_its_private_address(server, trust):
    rules = FetchRules(allowed_hosts=(), private_hosts=("media.internal",), timeout_s=5)
    fetcher = Fetcher(rules, ssl_context=trust, resolve=lambda host, port: ["127.0.0.1"])
    assert fetcher.fetch(f"https://Media.Internal:{server.port}/a.png") == BODY
    assert server.names == ["media.internal"]
    assert f"host: media.internal:{server.port}".encode() in server.requests[0]
    assert fetcher.rules is rules


def test_a_store_may_be_given_by_its_address(server, trust):
    fetcher = Fetcher(FetchRules(private_hosts=("127.0.0.1",), timeout_s=5), ssl_context=trust)
    assert fetcher.fetch(f"https://127.0.0.1:{server.port}/a.png") == BODY


def test_an_address_in_the_url_is_not_looked_up(fetcher, network):
    assert fetcher.fetch(f"https://{PUBLIC}/a.png") == BODY
    assert network.asked == []
    assert network.dialled == [(PUBLIC, 443)]


def test_the_systems_resolver_is_the_default(trust):
    assert reason(Fetcher(FetchRules(timeout_s=5), ssl_context=trust), "https://localhost/") == "url_address"


def test_the_next_address_is_tried_when_one_does_not_answer(fetcher, network):
    network.answers[HOST] = [["2606:4700::1111", PUBLIC]]
    network.closed = {"2606:4700::1111"}
    assert fetcher.fetch(f"{URL}/a.png") == BODY
    assert network.dialled == [("2606:4700::1111", 443), (PUBLIC, 443)]


def test_an_address_that_stays_silent_leaves_time_for_the_next(fetcher_of, network):
    network.answers[HOST] = [["2606:4700::1111", PUBLIC]]
    network.silent = {"2606:4700::1111"}
    assert fetcher_of(timeout_s=1).fetch(f"{URL}/a.png") == BODY
    network.silent.add(PUBLIC)
    assert reason(fetcher_of(timeout_s=0.2), f"{URL}/a.png") == "url_timeout"


def test_a_body_without_length_is_read_to_its_end(fetcher, server):
    server.answers["/chunked"] = raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n"
    )
    server.answers["/old"] = raw(b"HTTP/1.0 200 OK\r\n\r\nabcdef")
    assert fetcher.fetch(f"{URL}/chunked") == fetcher.fetch(f"{URL}/old") == b"abcdef"


def test_no_more_is_taken_than_a_length_that_lies_low_says(fetcher, server):
    server.answers["/low"] = reply(b"x" * 10_000, length=10)
    assert fetcher.fetch(f"{URL}/low", max_bytes=100) == b"x" * 10


async def test_it_runs_beside_an_event_loop(fetcher):
    outcomes = await asyncio.gather(*(asyncio.to_thread(fetcher.fetch, f"{URL}/a.png") for _ in range(4)))
    assert outcomes == [BODY] * 4


# Addresses


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fe80::1%lo"]
)
def test_a_name_with_an_address_that_is_not_public_is_refused(fetcher, network, address):
    network.answers[HOST] = [[address]]
    assert reason(fetcher, f"{URL}/a.png") == "url_address"
    assert network.dialled == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "0x7f000001",
        "0x7f.0.0.1",
        "2130706433",
        "0177.0.0.1",
        "017700000001",
        "0",
        "0.0.0.0",
        "\uff11\uff12\uff17.0.0.1",
        "127\u30020\u30020\u30021",
        "%31%32%37.0.0.1",
        "[::1]",
        "[::]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1%25lo]",
        "169.254.169.254",
        "[fd00:ec2::254]",
    ],
)
def test_an_address_of_ones_own_is_refused_in_every_spelling(fetcher, network, host):
    network.answers[host] = [["127.0.0.1"]]
    assert reason(fetcher, f"https://{host}/a.png") in {"url_address", "url_malformed"}
    assert network.dialled == []


@pytest.mark.parametrize("answers", [[PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC], [PUBLIC] * 9 + ["10.0.0.1"]])
def test_one_private_answer_among_public_ones_is_enough(fetcher, network, answers):
    network.answers[HOST] = [answers]
    assert reason(fetcher, f"{URL}/a.png") == "url_address"
    assert network.dialled == []


def test_a_name_that_changes_its_address_gains_nothing(fetcher, network, server):
    server.answers["/hop"] = redirect("/a.png")
    network.answers[HOST] = [[PUBLIC], ["127.0.0.1"]]
    # Asked once, checked, and dialled as it was checked: the second answer never counts for the first connection.
    assert fetcher.fetch(f"{URL}/a.png") == BODY
    assert network.asked == [(HOST, 443)]
    assert network.dialled == [(PUBLIC, 443)]
    # The next connection asks anew and checks anew.
    network.answers[HOST] = [[PUBLIC], ["127.0.0.1"]]
    assert reason(fetcher, f"{URL}/hop") == "url_address"
    assert len(network.asked) == 3
    assert network.dialled == [(PUBLIC, 443)] * 2


def test_a_name_without_addresses_is_unreachable(fetcher, network):
    network.answers[HOST] = [[]]
    assert reason(fetcher, URL) == "url_unreachable"


def test_a_private_address_may_only_be_had_by_its_own_name(fetcher_of, network):
    network.answers = {HOST: [["127.0.0.1"]], "media.internal": [["169.254.169.254"]]}
    fetcher = fetcher_of(private_hosts=["media.internal"])
    assert reason(fetcher, URL) == reason(fetcher, "https://media.internal/") == "url_address"
    assert network.dialled == []


# Redirects


def test_a_redirect_to_another_host_is_followed_over_a_connection_of_its_own(fetcher, network, server):
    network.answers["cdn.example.org"] = [["8.8.8.8"]]
    server.answers["/hop"] = redirect("//cdn.example.org/a.png", 307)
    assert fetcher.fetch(f"{URL}/hop") == BODY
    assert network.dialled == [(PUBLIC, 443), ("8.8.8.8", 443)]
    assert server.names == [HOST, "cdn.example.org"]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://127.0.0.1/a.png", "url_address"),
        ("https://inner.test/a.png", "url_address"),
        ("https://[::1]/a.png", "url_address"),
        ("https://2130706433/a.png", "url_malformed"),
        (f"http://{HOST}/a.png", "url_scheme"),
        ("file:///etc/passwd", "url_scheme"),
        (f"https://user:pass@{HOST}/a.png", "url_malformed"),
        (f"https://{HOST}:22/", "url_port"),
        ("/loop", "url_redirects"),
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_checked_before_it_is_followed(fetcher, network, server, location, expected, status):
    network.answers["inner.test"] = [["10.0.0.1"]]
    server.answers["/loop"] = redirect(location, status)
    assert reason(fetcher, f"{URL}/loop") == expected
    assert set(network.dialled) == {(PUBLIC, 443)}


def test_so_many_redirects_are_followed_and_no_more(fetcher_of, server):
    server.answers |= {f"/{hop}": redirect(f"/{hop + 1}") for hop in range(3)}
    server.answers["/3"] = reply(BODY)
    assert fetcher_of(max_redirects=3).fetch(f"{URL}/0") == BODY
    assert reason(fetcher_of(max_redirects=2), f"{URL}/0") == "url_redirects"
    assert reason(fetcher_of(max_redirects=0), f"{URL}/2") == "url_redirects"


def test_the_allowed_hosts_hold_for_redirects_too(fetcher_of, network, server):
    server.answers["/hop"] = redirect("https://cdn.example.org/a.png")
    assert reason(fetcher_of(allowed_hosts=[HOST]), f"{URL}/hop") == "url_host"
    assert fetcher_of(allowed_hosts=["*.example.org"]).fetch(f"{URL}/hop") == BODY


# Answers that are not taken


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reply(BODY, "404 Not Found"), "url_status"),
        (reply(BODY, "206 Partial Content"), "url_status"),
        (reply(BODY, "500 Error"), "url_status"),
        (reply(b"", "304 Not Modified"), "url_status"),
        (reply(b"", "302 Found"), "url_status"),
        (raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), "url_unreachable"),
        (reply(gzip.compress(BODY), "200 OK", "Content-Encoding: gzip"), "url_encoding"),
        (reply(BODY, "200 OK", "Content-Encoding: identity", "Content-Encoding: BR"), "url_encoding"),
        (reply(b""), "url_empty"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "url_empty"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc"), "url_unreachable"),
        (reply(BODY, length=len(BODY) + 1), "url_unreachable"),
        (reply(BODY, "200 OK", "Content-Length: 3"), "url_unreachable"),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n"), "url_unreachable"),
        (raw(b"SSH-2.0-OpenSSH\r\n"), "url_unreachable"),
        (raw(), "url_unreachable"),
    ],
)
def test_an_answer_that_is_no_plain_image_is_refused(fetcher, server, answer, expected):
    server.answers["/bad"] = answer
    assert reason(fetcher, f"{URL}/bad") == expected


def test_identity_is_no_encoding(fetcher, server):
    server.answers["/plain"] = reply(BODY, "200 OK", "Content-Encoding: Identity")
    assert fetcher.fetch(f"{URL}/plain") == BODY


def test_a_length_above_the_limit_is_refused_before_the_body_is_read(fetcher, server):
    # A body that never comes: waiting for it would end as url_timeout.
    server.answers["/big"] = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", pause=0.2)
    assert reason(fetcher, f"{URL}/big", max_bytes=1000) == "too_large"


@pytest.mark.parametrize(
    "answer",
    [
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"64\r\n" + b"x" * 100 + b"\r\n"] * 50),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"7d0\r\n" + b"x" * 2000),
        raw(b"HTTP/1.0 200 OK\r\n\r\n", *[b"x" * 100] * 50),
    ],
)
def test_a_body_above_the_limit_is_cut_off_whatever_the_header_says(fetcher, server, answer):
    server.answers["/big"] = answer
    assert reason(fetcher, f"{URL}/big", max_bytes=1000) == "too_large"


def test_a_body_of_just_the_limit_is_taken(fetcher, server):
    server.answers["/just"] = reply(b"x" * 1000)
    assert len(fetcher.fetch(f"{URL}/just", max_bytes=1000)) == 1000
    assert reason(fetcher, f"{URL}/just", max_bytes=999) == "too_large"


def test_the_rules_limit_cannot_be_raised_by_the_caller(fetcher_of, server):
    server.answers["/just"] = reply(b"x" * 1000)
    assert reason(fetcher_of(max_bytes=999), f"{URL}/just", max_bytes=2000) == "too_large"


@pytest.mark.parametrize("piece", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"])
def test_answers_before_the_answer_are_counted_too(fetcher, server, piece):
    server.answers["/endless"] = raw(*[piece * 1000] * 100)
    assert reason(fetcher, f"{URL}/endless", max_bytes=1000) == "too_large"


def test_much_framing_around_little_image_is_cut_off(fetcher, server):
    server.answers["/framed"] = raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"1;" + b"e" * 10_000 + b"\r\nx\r\n"] * 100
    )
    assert reason(fetcher, f"{URL}/framed", max_bytes=1000) == "too_large"


# TLS


def test_a_certificate_of_another_name_is_refused(fetcher, network, server):
    assert reason(fetcher, "https://wrong.example.org/a.png") == "url_unreachable"
    assert network.dialled == [(PUBLIC, 443)]
    assert server.requests == []


def test_a_certificate_of_an_unknown_authority_is_refused(network, server):
    assert reason(Fetcher(FetchRules(timeout_s=5), resolve=network.resolve), f"{URL}/a.png") == "url_unreachable"
    assert server.requests == []


def test_a_context_that_verifies_nothing_is_refused():
    context = ssl.create_default_context()
    context.check_hostname = False
    with pytest.raises(ValueError, match="must verify"):
        Fetcher(FetchRules(), ssl_context=context)


def test_the_context_given_is_left_as_it_is(fetcher, trust, monkeypatch):
    # httpcore sets the protocols for each connection, while other threads may be shaking hands.
    changed = []
    monkeypatch.setattr(ssl.SSLContext, "set_alpn_protocols", lambda context, _: changed.append(context))
    assert fetcher.fetch(f"{URL}/a.png") == BODY
    assert trust not in changed


# The deadline. Without one for all together, each of these would end well: no single step takes long.


def test_a_body_that_drips_is_cut_off(fetcher_of, server):
    server.answers["/slow"] = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n", *[b"x"] * 40, pause=0.03)
    assert reason(fetcher_of(timeout_s=0.4), f"{URL}/slow") == "url_timeout"


def test_headers_that_drip_are_cut_off(fetcher_of, server):
    server.answers["/slow"] = drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", pause=0.03)
    assert reason(fetcher_of(timeout_s=0.4), f"{URL}/slow") == "url_timeout"


def test_redirects_share_the_deadline(fetcher_of, server):
    late = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /%d\r\n\r\n"
    server.answers |= {f"/{hop}": raw(b"", late % (hop + 1), pause=0.15) for hop in range(10)}
    server.answers["/10"] = reply(BODY)
    assert reason(fetcher_of(timeout_s=0.5, max_redirects=20), f"{URL}/0") == "url_timeout"


def test_a_server_that_never_shakes_hands_is_left(trust):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        rules = FetchRules(private_hosts=("127.0.0.1",), timeout_s=0.3)
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        assert reason(Fetcher(rules, ssl_context=trust), url) == "url_timeout"


def test_a_resolver_that_hangs_is_left_and_only_so_many_may(network, trust, monkeypatch):
    monkeypatch.setattr(deadline, "_MAX_LOOKUPS", 2)
    release, started = threading.Event(), []

    def resolve(host, port):
        started.append(host)
        release.wait(30)
        return [PUBLIC]

    fetcher = Fetcher(FetchRules(timeout_s=0.2), ssl_context=trust, resolve=resolve)
    try:
        outcomes = fetcher.fetch_all([f"https://h{i}.example.org/" for i in range(5)])
        assert {outcome.reason for outcome in outcomes.values()} == {"url_timeout"}
        assert len(started) == 2
    finally:
        release.set()
    fetcher = Fetcher(FetchRules(timeout_s=5), ssl_context=trust, resolve=resolve)
    assert [fetcher.fetch(f"{URL}/a.png") for _ in range(3)] == [BODY] * 3


# Many at once


def test_each_url_of_a_batch_is_fetched_once(fetcher, server):
    server.answers["/b.png"] = reply(b"other")
    urls = [f"{URL}/a.png", f"{URL}/b.png", f"{URL}/a.png", f"{URL}/none", "http://x"]
    outcomes = fetcher.fetch_all(urls)
    assert list(outcomes) == [urls[0], urls[1], urls[3], urls[4]]
    assert outcomes[urls[0]] == BODY
    assert outcomes[urls[1]] == b"other"
    assert (outcomes[urls[3]].reason, outcomes[urls[4]].reason) == ("url_status", "url_scheme")
    assert sorted(server.paths) == ["/a.png", "/b.png", "/none"]
    assert fetcher.fetch_all([]) == {}


def test_urls_beyond_the_limit_are_refused_without_a_look(fetcher_of, network):
    urls = [f"{URL}/a.png?{i}" for i in range(4)] * 2
    outcomes = fetcher_of(max_urls=3).fetch_all(urls)
    assert len(outcomes) == 4
    assert outcomes[urls[3]].reason == "too_many_urls"
    assert len(network.dialled) == 3


def test_a_batch_is_fetched_at_the_same_time(fetcher_of, server):
    # Each answer waits for all the others: one after another they would never come.
    together = threading.Barrier(16)

    def answer(connection):
        together.wait(5)
        reply(BODY)(connection)

    server.answers |= {f"/{i}": answer for i in range(16)}
    outcomes = fetcher_of().fetch_all([f"{URL}/{i}" for i in range(16)], max_bytes=100)
    assert list(outcomes.values()) == [BODY] * 16


# What is told


CANARY = "canary-7f3a"


def broken(host, port):
    raise OSError(f"cannot resolve {host}")


def odd(host, port):
    raise KeyError(host)


@pytest.mark.parametrize(
    ("path", "resolve"),
    [
        ("/missing", None),
        ("/hop", None),
        ("/gzip", None),
        ("/garbage", None),
        ("/cut", None),
        ("/away", None),
        ("/big", None),
        ("/x", broken),
        ("/x", odd),
        ("/x", lambda host, port: ["10.0.0.1"]),
        ("/x", lambda host, port: [host]),
        ("/x y", None),
        ("/x", lambda host, port: ["8.8.8.8"]),
    ],
)
@pytest.mark.parametrize("host", [f"{CANARY}.example.org", HOST])
def test_nothing_of_the_url_is_told(network, server, trust, caplog, host, path, resolve):
    caplog.set_level(logging.DEBUG)
    network.closed = {"8.8.8.8"}
    query = f"?token={CANARY}"
    server.answers = {
        f"/hop{query}": redirect(f"/hop{query}"),
        f"/gzip{query}": reply(CANARY.encode(), "200 OK", f"Content-Encoding: {CANARY}"),
        f"/garbage{query}": raw(f"{CANARY} garbage\r\n\r\n".encode()),
        f"/cut{query}": reply(CANARY.encode(), length=1000),
        f"/away{query}": redirect(f"https://{CANARY}.test:99/{CANARY}"),
        f"/big{query}": reply(CANARY.encode() * 100),
    }
    fetcher = Fetcher(FetchRules(timeout_s=5), ssl_context=trust, resolve=resolve or network.resolve)
    url = f"https://{host}{path}{query}"
    with pytest.raises(FetchRefused) as caught:
        fetcher.fetch(url, 500)
    (from_batch,) = fetcher.fetch_all([url], 500).values()
    for error in (caught.value, from_batch):
        assert error.__cause__ is None
        assert error.__context__ is None
        assert CANARY not in str(error) + repr(error) + repr(error.args)
        assert CANARY not in "".join(traceback.format_exception(error))
        assert host not in str(error)
    assert CANARY not in caplog.text
    assert HOST not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("httpcore")]


def test_a_successful_fetch_is_not_logged_but_others_use_of_httpcore_is(fetcher, network, caplog):
    caplog.set_level(logging.DEBUG)
    fetcher.fetch(f"{URL}/a.png")
    assert HOST not in caplog.text
    network.closed = {"other.test"}
    with pytest.raises(httpcore.ConnectError):
        httpcore.request("GET", "http://other.test/")
    assert "other.test" in caplog.text


def test_a_missing_package_is_named(monkeypatch):
    import guardalign_guardrails.fetch as package

    for name in ("connection", "exchange"):
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
        monkeypatch.delattr(package, name, raising=False)
    monkeypatch.setitem(sys.modules, "httpcore", None)
    with pytest.raises(FetchUnavailable, match=r'pip install "guardalign-guardrails\[fetch\]"'):
        Fetcher(FetchRules())
