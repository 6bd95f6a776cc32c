"""Rules of fetching: hosts in one spelling, URLs read one way, and a page that says the same as the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guardalign_guardrails.errors import FetchRefused
from guardalign_guardrails.fetch import FetchRules
from guardalign_guardrails.fetch.refusals import REMEDIES
from guardalign_guardrails.fetch.target import MAX_LENGTH, Redirect, Target
from guardalign_guardrails.policy.hosts import normalise

PAGE = (Path(__file__).parents[2] / "docs" / "fetch.md").read_text(encoding="utf-8")


def refused(url, rules=None):
    with pytest.raises(FetchRefused) as caught:
        Target.parse(url, rules or FetchRules())
    return caught.value.reason


def test_rules_survive_yaml_and_json():
    rules = FetchRules(
        allowed_hosts=("*.Example.org", "bücher.example"), private_hosts=("media.internal",), timeout_s=3
    )
    data = rules.model_dump(mode="json")
    assert FetchRules.model_validate(yaml.safe_load(yaml.safe_dump(data))) == rules
    assert FetchRules.model_validate(json.loads(json.dumps(data))) == rules
    assert FetchRules.model_validate({}) == FetchRules()


def test_hosts_of_the_rules_are_kept_in_one_spelling():
    rules = FetchRules(
        allowed_hosts=("IMG.Example.org.", "img.example.org", "Bücher.example", "*.EXAMPLE.com", "[2606::1]")
    )
    assert rules.allowed_hosts == ("img.example.org", "xn--bcher-kva.example", "*.example.com", "2606::1")


@pytest.mark.parametrize(
    "change",
    [
        {"allowed_hosts": ["https://example.org"]},
        {"allowed_hosts": ["example.org/path"]},
        {"allowed_hosts": ["example.org:443"]},
        {"allowed_hosts": ["*"]},
        {"allowed_hosts": ["*example.org"]},
        {"allowed_hosts": ["a.*.org"]},
        {"allowed_hosts": ["*.1.2.3.4"]},
        {"allowed_hosts": ["127.1"]},
        {"allowed_hosts": [""]},
        {"allowed_hosts": "example.org"},
        {"private_hosts": ["*.internal"]},
        {"private_hosts": ["fe80::1%eth0"]},
        {"ports": []},
        {"ports": [0]},
        {"ports": [65536]},
        {"max_bytes": 0},
        {"timeout_s": 0},
        {"timeout_s": float("inf")},
        {"max_redirects": -1},
        {"max_urls": 0},
        {"follow": True},
    ],
)
def test_rules_that_mean_nothing_are_refused(change):
    with pytest.raises(ValidationError):
        FetchRules.model_validate(change)


def test_a_suffix_means_names_below_it_and_nothing_else():
    rules = FetchRules(allowed_hosts=("*.example.org", "exact.test"))
    for host in ("a.example.org", "a.b.example.org", "exact.test"):
        assert rules.allows_host(host)
    for host in ("example.org", "badexample.org", "example.org.evil.test", "a.exact.test"):
        assert not rules.allows_host(host)


def test_no_allowed_host_but_the_own_store_is_a_rule_too():
    rules = FetchRules(allowed_hosts=(), private_hosts=("media.internal",))
    assert rules.allows_host("media.internal")
    assert not rules.allows_host("example.org")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("my_bucket.s3.example.org", "my_bucket.s3.example.org"),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("\uff11\uff12\uff17.0.0.1", "127.0.0.1"),
        ("127\u30020\u30020\u30021", "127.0.0.1"),
        ("8.8.8.8.", "8.8.8.8"),
        ("[::1]", "::1"),
        ("2606:0:0::0001", "2606::1"),
    ],
)
def test_a_host_has_one_spelling(text, host):
    assert normalise(text) == normalise(host) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        ".a",
        "-a.example",
        "a-.example",
        "a b",
        "a%2eb",
        "a/b",
        "a@b",
        "a,b",
        "*.a",
        "a\u0000b",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "ü" * 5000,
        "℀.example",
        "straße.example",
        "a\u200db.example",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0X7F.0.0.1",
        "0177.0.0.1",
        "127.0.0.01",
        "127.0.0.256",
        "1.2.3.4.5",
        "a.1",
        "a.0x",
        "[::1",
        "::1]",
        "[::1%eth0]",
        "fe80::1%1",
        "[v1.a]",
        "[127.0.0.1]",
        "::ffff:1.2.3",
    ],
)
def test_what_can_be_read_two_ways_is_no_host(text):
    with pytest.raises(ValueError, match=r"^(not|an) ") as caught:
        normalise(text)
    assert not text or text not in str(caught.value)


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text):
    try:
        host = normalise(text)
    except ValueError:
        return
    assert normalise(host) == host
    assert host.isascii()


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "authority"),
    [
        ("https://Example.org", "example.org", 443, "/", "example.org"),
        ("HTTPS://example.org:443/a?b=c#d", "example.org", 443, "/a?b=c", "example.org"),
        ("https://example.org:/a%20b;c?d=%2F&e=f+g", "example.org", 443, "/a%20b;c?d=%2F&e=f+g", "example.org"),
        ("https://example.org?q", "example.org", 443, "/?q", "example.org"),
        ("https://example.org/ü/{x}", "example.org", 443, "/%C3%BC/%7Bx%7D", "example.org"),
        ("https://example.org#@evil.test/", "example.org", 443, "/", "example.org"),
        ("https://example.org:8443/", "example.org", 8443, "/", "example.org:8443"),
        ("https://[2606:4700::1]:8443/", "2606:4700::1", 8443, "/", "[2606:4700::1]:8443"),
    ],
)
def test_a_url_is_read_part_by_part(url, host, port, path, authority):
    target = Target.parse(url, FetchRules(ports=(443, 8443)))
    assert (target.host, target.port, target.path, target.authority) == (host, port, path, authority)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "gopher://a",
        "//example.org/",
        "example.org",
        "",
        " https://example.org/",
        "data:image/png;base64," + "A" * 100_000,
        "httpsx://a",
        "wss://a",
    ],
)
def test_only_https_is_fetched(url):
    assert refused(url) == "url_scheme"


@pytest.mark.parametrize(
    "url",
    [
        None,
        b"https://example.org/",
        "https:",
        "https:/example.org/",
        "https:example.org",
        "https://",
        "https:///example.org/",
        "https://user@example.org/",
        "https://user:pass@example.org/",
        "https://@example.org/",
        "https://example.org@evil.test/",
        "https://example.org\\@evil.test/",
        "https://example.org/\r\nHost: evil.test",
        "https://exa\tmple.org/",
        "https://example.org/a b",
        "https://example.org/\u00a0",
        "https://example.org/\u202e",
        "https://example.org/\ud800",
        "https://example.org:443:443/",
        "https://example.org:4 4/",
        "https://example.org:-1/",
        "https://example.org:\uff11/",
        "https://example.org:123456/",
        "https://%65xample.org/",
        "https://[::1/",
        "https://::1/",
        "https://[fe80::1%25eth0]/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://127.1/",
        "https://example.org/" + "a" * MAX_LENGTH,
    ],
)
def test_a_url_that_programs_may_read_differently_is_malformed(url):
    assert refused(url) == "url_malformed"


def test_hosts_off_the_list_and_other_ports_are_refused():
    rules = FetchRules(allowed_hosts=("example.org",), private_hosts=("media.internal",))
    assert refused("https://evil.test/", rules) == "url_host"
    assert refused("https://example.org:8443/", rules) == "url_port"
    assert refused("https://example.org:0/", rules) == "url_port"
    assert refused("https://media.internal:65536/", rules) == "url_port"
    assert Target.parse("https://media.internal:9000/", rules).port == 9000


@pytest.mark.parametrize(
    ("location", "authority", "path"),
    [
        ("/c", "example.org:8443", "/c"),
        ("c?d", "example.org:8443", "/a/c?d"),
        ("?d", "example.org:8443", "/a/b?d"),
        ("//other.test/c", "other.test", "/c"),
        ("https://other.test", "other.test", "/"),
        ("/ü", "example.org:8443", "/%C3%BC"),
    ],
)
def test_a_redirect_is_relative_to_where_it_comes_from(location, authority, path):
    rules = FetchRules(ports=(443, 8443))
    target = Target.parse("https://example.org:8443/a/b?q", rules).follow(Redirect(location.encode()), rules)
    assert (target.authority, target.path) == (authority, path)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        (b"http://example.org/", "url_scheme"),
        (b"file:///etc/passwd", "url_scheme"),
        (b"//user@example.org/", "url_malformed"),
        (b"//0x7f000001/", "url_malformed"),
        (b"\\\\evil.test/", "url_malformed"),
        (b"/\t/evil.test/", "url_malformed"),
        (b"/a b", "url_malformed"),
        (b"/\xff", "url_malformed"),
        (b"//[::1/", "url_malformed"),
        (b"//evil.test/", "url_host"),
        (b"//example.org:22/", "url_port"),
    ],
)
def test_a_redirect_is_checked_like_any_url(location, reason):
    rules = FetchRules(allowed_hosts=("example.org",))
    with pytest.raises(FetchRefused) as caught:
        Target.parse("https://example.org/", rules).follow(Redirect(location), rules)
    assert caught.value.reason == reason


def test_a_target_shows_nothing_of_its_url():
    assert "token" not in repr(Target.parse("https://example.org/?token", FetchRules()))


def test_rules_are_read_without_an_http_package():
    code = "import sys, guardalign_guardrails.fetch; sys.exit('httpcore' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_and_the_error_name_every_reason():
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) >= set(REMEDIES)
    assert set(re.findall(r"``(\w+)``", FetchRefused.__doc__)) == set(REMEDIES)


def test_the_page_shows_the_defaults():
    shown = yaml.safe_load(next(b for b in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "max_bytes" in b))[
        "fetch"
    ]
    assert set(shown) == set(FetchRules.model_fields)
    defaults = FetchRules().model_dump(mode="json")
    for name in set(shown) - {"allowed_hosts", "private_hosts"}:
        assert shown[name] == defaults[name]
