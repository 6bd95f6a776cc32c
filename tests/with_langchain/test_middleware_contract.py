"""The guard's middleware keeps what every middleware that guards images must keep, under each of its settings.

Those of `test_contracts` are the ones that every run checks.
"""

from __future__ import annotations

import pytest

from langchain_guardalign.agents.middleware import GuardAlignMiddleware
from langchain_guardalign.testing.middleware_contract import MiddlewareContract

pytestmark = pytest.mark.slow


class TestRefusing(MiddlewareContract):
    def make(self, guard):
        return GuardAlignMiddleware(guard)

    def make_second(self, guard):
        return GuardAlignMiddleware(guard, name="second")


class TestRaising(TestRefusing):
    def make(self, guard):
        return GuardAlignMiddleware(guard, on_violation="raise")


class TestNoticingWithoutPersistence(TestRefusing):
    persists = False

    def make(self, guard):
        return GuardAlignMiddleware(guard, on_violation="notice", persist=False)


class TestWithArtifacts(TestRefusing):
    checks_artifacts = True

    def make(self, guard):
        return GuardAlignMiddleware(guard, artifacts=True)
