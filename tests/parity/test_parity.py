"""Whichever way a conversation goes, it gets the same verdicts, and the same pixels arrive."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from adapters import ADAPTERS, Adapter, Run
from conversations import CONVERSATIONS, JSON, Promoted, Shown
from items import ECOSYSTEMS, ITEMS
from page import PAGE, ROOT, items_table, outcome, outcomes

from content.reread_images import original_pixels
from guardalign_guardrails import Guard
from guardalign_guardrails.content import screen
from guardalign_guardrails.guarding.guard import uninspectable
from guardalign_guardrails.testing.colours import ColourEncoder, colour_policy

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

STATED = outcomes(PAGE.read_text(encoding="utf-8"))
# It keeps what it changed in the agent's state, and looks again before the model is called.
TWICE = {"langchain_agent"}
# A filter can only raise.
CANNOT_ANSWER = {"openai_agents"}
# Nobody is asked, and the answer is the policy's refusal.
BLOCKED = {"blocked", "routed", "one of two is blocked", "see-through beside one that is blocked", "a forged mark"}
UNCHECKED = {
    "elsewhere",
    "broken",
    "a drawing said to be text",
    "an image in digits said to be text",
    "a PDF said to be text",
}
REFUSED = BLOCKED | UNCHECKED
PREFIXED = {
    "an image alone",
    "masked",
    "prefixed",
    "two images",
    "masked before",
    "masked before, harmless now",
    "a tool shows one to mask",
    "user and tool",
    "the app speaks first",
    "two messages in a row",
    "a tool shows a large one",
    "a tool's text is a data URL to mask",
    "a tool's text is base64 to mask",
    "masked by another guard",
    "the app wrote the prefix",
}
REMOVED = {
    "blocked before",
    "a tool shows one to block",
    "elsewhere before",
    "a tool's text is a data URL to block",
    "a data URL with a long header",
    "a data URL with a fragment",
    "a data URL with a star",
    "two data URLs joined",
    "a tool's text is base64 to block",
}


class Watched(Guard):
    """A guard that remembers what it said."""

    said: list[tuple[Any, ...]]

    def checking(self, images: Sequence[Any], **options: Any) -> Any:
        results = yield from super().checking(images, **options)
        self.said += [_kept(result.verdict) for result in results]
        return results


def _kept(verdict: Any) -> tuple[Any, ...]:
    return (
        verdict.digest,
        verdict.source,
        verdict.action,
        verdict.category or "",
        verdict.uninspectable or "",
        verdict.masks,
        verdict.delivery,
        verdict.delivery_reasons,
        verdict.looked_at or 0,
    )


@pytest.fixture(scope="module")
def guard(cache_dir) -> Iterator[Watched]:
    guard = Watched(colour_policy(), ColourEncoder(), cache_dir=cache_dir)

    def without_bytes(*args: Any, **options: Any) -> Any:
        result = uninspectable(*args, **options)
        guard.said.append(_kept(result.verdict))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "uninspectable", without_bytes)
        yield guard


@pytest.fixture(scope="module")
def first(guard):
    """What became of each conversation by the first adapter, which the others are held against."""
    return {name: _seen(guard, ADAPTERS[0], conversation) for name, conversation in CONVERSATIONS.items()}


def _seen(guard: Watched, adapter: Adapter, conversation: Any) -> tuple[Run, list[tuple[Any, ...]]]:
    guard.said = []
    return adapter(guard, conversation), sorted(guard.said)


def _media(name: str) -> int:
    """How many images and files of a conversation are to be checked."""
    parts = [part for _, parts in CONVERSATIONS[name] for part in parts]
    files = [part for part in parts if not isinstance(part, str | Shown) and name in UNCHECKED]
    return len([part for part in parts if isinstance(part, Shown | Promoted)]) + len(files)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_first_adapter_does_what_the_policy_says(first, name):
    run, said = first[name]
    assert (run.images is None) == (name in REFUSED)
    assert run.prefixes == (name in PREFIXED)
    assert run.notices == (name in REMOVED)
    assert len(said) == _media(name)


def test_every_conversation_with_a_finding_is_accounted_for():
    assert {*REFUSED, *PREFIXED, *REMOVED} <= CONVERSATIONS.keys()


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.__name__)
@pytest.mark.parametrize("name", ["see-through", "large", "turned before"])
def test_no_adapter_passes_on_an_image_with_several_readings_as_it_came(guard, adapter, name):
    shown = [part for _, parts in CONVERSATIONS[name] for part in parts if not isinstance(part, str)]
    run, said = _seen(guard, adapter, CONVERSATIONS[name])
    assert run.images == [guard.check(part.data).pixels.tobytes() for part in shown]
    assert all(pixels != original_pixels(part.data) for part, pixels in zip(shown, run.images, strict=True))
    assert adapter.__name__ in TWICE or all("canonical" in kept for kept in said)


@pytest.mark.parametrize("adapter", ADAPTERS[1:], ids=lambda adapter: adapter.__name__)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_other_adapter_does_the_same(guard, first, adapter, name):
    run, said = _seen(guard, adapter, CONVERSATIONS[name])
    expected, expected_said = first[name]
    if adapter.__name__ in TWICE:
        assert set(said) >= set(expected_said)
    else:
        assert said == expected_said
    assert run.images == expected.images
    assert (run.prefixes, run.notices) == (expected.prefixes, expected.notices)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.__name__)
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_app_that_displays_the_answer_displays_the_refusal(guard, adapter, name):
    run, _ = _seen(guard, adapter, CONVERSATIONS[name])
    refusal = guard.policy.refusal if name in BLOCKED else guard.policy.refusal_unchecked
    assert run.answer == (refusal if adapter.__name__ not in CANNOT_ANSWER else None)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.__name__)
def test_a_tools_json_with_everyday_keys_arrives_as_it_is(guard, adapter):
    run, said = _seen(guard, adapter, CONVERSATIONS["a tool's JSON with everyday keys"])
    assert json.dumps(JSON) in run.sent
    assert not said


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_page_says_what_the_first_adapter_does_and_so_every_other(first, name):
    run, said = first[name]
    assert outcome(run, [kept[6] for kept in said]) == STATED[name]


def test_the_pages_second_table_is_that_of_the_items():
    assert PAGE.read_text(encoding="utf-8").endswith(items_table())


@pytest.mark.parametrize("item", ITEMS)
def test_every_test_that_the_table_names_is_there(item):
    assert tuple(ITEMS[item]) == ECOSYSTEMS
    for place in ITEMS[item].values():
        path, _, name = place.partition("::")
        if path.startswith(("tests/", "docs/")):
            text = (ROOT / path).read_text(encoding="utf-8")
            assert not name or re.search(rf"def {name}\(", text)
