"""Whatever could not be checked, a developer reads how it can be, and a user does not."""

from __future__ import annotations

import logging
import re
from typing import get_args

import pytest

from guardalign_guardrails import Guard, UnsafeContentError
from guardalign_guardrails.content.payload import Reason
from guardalign_guardrails.content.screen import UNCHECKED_NOTICE
from guardalign_guardrails.fetch.refusals import REMEDIES as OF_FETCHING
from guardalign_guardrails.guarding.guard import uninspectable
from guardalign_guardrails.guarding.remedies import remedy_for
from guardalign_guardrails.images.limits import REMEDIES as OF_DECODING
from guardalign_guardrails.testing.colours import colour_guard, painted

CODES = sorted({*get_args(Reason), *OF_FETCHING, *OF_DECODING, "over_budget", "unsupported_endpoint"})
ELSE = remedy_for("a code of tomorrow", None)


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


@pytest.mark.parametrize("code", CODES)
def test_every_reason_has_a_way_to_have_it_checked_before_the_way_to_let_it_pass(guard, code):
    verdict = uninspectable(guard, code).verdict
    checked, _, unchecked = verdict.remedy.partition("To let such content pass unchecked instead")
    assert len(checked) > 20
    assert "failure.uninspectable" in unchecked
    assert not re.search(r"\ballow\b", checked)
    assert code == "unsupported_block" or verdict.remedy != ELSE
    assert verdict.remedy in str(UnsafeContentError(verdict))
    assert verdict.summary()["remedy"] == verdict.remedy


def test_a_url_names_fetch_and_a_pdf_names_converting(guard):
    assert "fetch.allowed_hosts" in uninspectable(guard, "remote_reference").verdict.remedy
    assert "of a PDF its pages" in guard.check(b"%PDF-1.7 and more").verdict.remedy


@pytest.mark.parametrize(
    ("failure", "rule"), [("timeout", "on_timeout"), ("overloaded", "on_overload"), ("RuntimeError", "on_error")]
)
def test_a_failure_names_the_rule_that_decided(failure, rule):
    assert f"failure.{rule}" in remedy_for(None, failure)


def test_what_was_checked_has_no_remedy(guard):
    assert guard.check(painted("red")).verdict.remedy is None


def test_users_and_models_read_none_of_it(guard):
    verdict = uninspectable(guard, "remote_reference").verdict
    said = guard.policy.refusal_for(verdict) + UNCHECKED_NOTICE
    assert not any(word in said for word in ("fetch", "failure.", "remote", "base64", "allow"))


def test_an_error_without_a_digest_speaks_of_none(guard):
    assert "digest" not in str(UnsafeContentError(uninspectable(guard, "remote_reference").verdict))
    assert "digest" in str(UnsafeContentError(guard.check(b"no image").verdict))


def test_the_log_names_the_reason_and_the_remedy(guard: Guard, caplog):
    with caplog.at_level(logging.WARNING):
        guard.check(b"%PDF-1.7 and more")
        uninspectable(guard, "remote_reference")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "Could not check content (unsupported_format, source user)",
        "Could not check content (remote_reference, source user)",
    ]
    assert "of a PDF its pages" in caplog.text
    assert "fetch.allowed_hosts" in caplog.text


def test_a_chat_that_goes_on_repeats_no_warning(guard: Guard, caplog):
    with caplog.at_level(logging.INFO):
        guard.check(b"%PDF-1.7 and more", source="tool")
        guard.check(b"%PDF-1.7 and more", source="history")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "of a PDF its pages" in caplog.records[1].getMessage()
