"""Whichever way a conversation goes, it gets the same verdicts, and the same pixels arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from adapters import ADAPTERS, Adapter
from conversations import CONVERSATIONS

from content.reread_images import original_pixels
from guardalign_guardrails import Guard
from guardalign_guardrails.content import screen
from guardalign_guardrails.guarding.guard import uninspectable
from guardalign_guardrails.testing.colours import ColourEncoder, colour_policy

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

REFUSED = {
    "blocked",
    "routed",
    "one of two is blocked",
    "see-through beside one that is blocked",
    "elsewhere",
    "broken",
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


def _seen(guard: Watched, adapter: Adapter, conversation: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    guard.said = []
    arrived = adapter(guard, conversation)
    return arrived, sorted(guard.said)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_first_adapter_does_what_the_policy_says(first, name):
    arrived, said = first[name]
    assert (arrived is None) == (name in REFUSED)
    assert len(said) == sum(not isinstance(part, str) for _, parts in CONVERSATIONS[name] for part in parts)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.__name__)
@pytest.mark.parametrize("name", ["see-through", "large", "turned before"])
def test_no_adapter_passes_on_an_image_with_several_readings_as_it_came(guard, adapter, name):
    shown = [part for _, parts in CONVERSATIONS[name] for part in parts if not isinstance(part, str)]
    arrived, said = _seen(guard, adapter, CONVERSATIONS[name])
    assert arrived == [guard.check(part.data).pixels.tobytes() for part in shown]
    assert all(pixels != original_pixels(part.data) for part, pixels in zip(shown, arrived, strict=True))
    assert all("canonical" in kept for kept in said)


@pytest.mark.parametrize("adapter", ADAPTERS[1:], ids=lambda adapter: adapter.__name__)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_other_adapter_does_the_same(guard, first, adapter, name):
    arrived, said = _seen(guard, adapter, CONVERSATIONS[name])
    assert said == first[name][1]
    assert arrived == first[name][0]
