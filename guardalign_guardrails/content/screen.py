"""From contents to sanitised contents: open, fetch, check all images of all of them in one batch, put results back.

What every integration shares. It knows content as plain data and the guard; messages, callbacks, prefixes and refusals
are the integrations' own. The async way is the sync one in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from PIL import Image

from guardalign_guardrails.actions import Source
from guardalign_guardrails.content.payload import Ambiguous, Payload, Remote
from guardalign_guardrails.content.rewrite import block_at, text_in_place_of, with_blocks
from guardalign_guardrails.content.walk import Slot, find, find_loose
from guardalign_guardrails.errors import FetchRefused
from guardalign_guardrails.guarding.guard import Guard, uninspectable
from guardalign_guardrails.guarding.result import CheckResult
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.containers import sniff
from guardalign_guardrails.verdict import Verdict

NOTICE: Final = "[image removed by the safety policy]"
"""What a model reads where an unsafe image was."""

UNCHECKED_NOTICE: Final = "[content removed: the safety policy could not check it]"
"""What a model reads where something was that could not be checked."""

OMITTED: Final = "[image omitted from the trace]"
"""What a trace shows in place of an image."""

_BLACK: Final = (64, 64)


@dataclass(frozen=True)
class Turn:
    """The content of one message.

    Attributes:
        content: Text, a list of blocks, or a block: plain data as a provider takes it.
        source: Where it came from.
        is_loose: Whether it is a value of an app's own making, with bare images in it, rather than chat content.
    """

    content: Any = field(repr=False)
    source: Source = "user"
    is_loose: bool = False

    def find(self) -> list[Slot]:
        """Where in it there is media."""
        return find_loose(self.content) if self.is_loose else find(self.content)


@dataclass(frozen=True)
class Screened:
    """What became of one turn.

    Attributes:
        content: The sanitised content; the very same object if nothing changed.
        verdicts: One for each place that stands for an image or other media, in reading order.
        withheld: Those of them in whose place a notice, or a black image, stands now.
    """

    content: Any = field(repr=False)
    verdicts: tuple[Verdict, ...] = ()
    withheld: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class _Place:
    """One slot of one turn, with what was found in it, and whether a model may find something else there."""

    turn: int
    slot: Slot
    source: Source
    payload: bytes | Image.Image | str
    is_open: bool = False


def screen(guard: Guard, turns: Sequence[Turn]) -> list[Screened]:
    """Check turns; all images of all of them make one batch.

    An image is masked in its own dialect, replaced by a notice or, where only an image may stand, by a black one
    (``route``, ``block``), or stays. One that stays is inlined if it was fetched, and written anew if its text can be
    read in two ways, so that a model sees the very bytes that were checked.

    Args:
        guard: Checks, and fetches if its policy says so.
        turns: Contents with their sources, of one chat or of several.

    Returns:
        One result per turn, in order.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
    """
    return _screened(guard, turns, [turn.find() for turn in turns])


async def ascreen(guard: Guard, turns: Sequence[Turn]) -> list[Screened]:
    """`screen` without blocking the event loop."""
    slots = [turn.find() for turn in turns]
    if not any(slots):
        return _screened(guard, turns, slots)
    # One thread from beginning to end: a call that hands over thrice waits thrice behind all others.
    return await asyncio.to_thread(_screened, guard, turns, slots)


def notice_for(verdict: Verdict) -> str:
    """What a model reads in the place of what is withheld."""
    return UNCHECKED_NOTICE if verdict.finding == "unchecked" else NOTICE


def without_images(content: Any, text: str = OMITTED) -> Any:
    """Content as it may be traced: every image, looked at or not, is a few words; itself if there is none."""
    return with_blocks(
        content, {slot.path: text_in_place_of(block_at(content, slot.path), text) for slot in find(content)}
    )


def _screened(guard: Guard, turns: Sequence[Turn], slots: Sequence[Sequence[Slot]]) -> list[Screened]:
    """`screen`, once it is known where images are."""
    if not any(slots):
        return [Screened(turn.content) for turn in turns]
    places = _open(guard, turns, slots)
    images, sources = _images(places)
    checked = guard.check_batch(images, source=sources)
    return _close(guard, turns, places, checked)


def _open(guard: Guard, turns: Sequence[Turn], slots: Sequence[Sequence[Slot]]) -> list[_Place]:
    read = [(index, slot, slot.reading.read(guard.limits.max_bytes)) for index, own in enumerate(slots) for slot in own]
    fetched = _fetch(guard, [payload for _, _, payload in read])
    return [_place(index, turns[index].source, slot, payload, fetched) for index, slot, payload in read]


def _place(
    turn: int, source: Source, slot: Slot, payload: Payload, fetched: Mapping[str, bytes | FetchRefused]
) -> _Place:
    if not isinstance(payload, Remote):
        return _Place(turn, slot, source, payload, is_open=isinstance(payload, Ambiguous))
    answer = fetched.get(payload.url)
    if isinstance(answer, bytes) and slot.reading.write is not None:
        return _Place(turn, slot, source, answer, is_open=True)
    return _Place(turn, slot, source, answer.reason if isinstance(answer, FetchRefused) else "remote_reference")


def _fetch(guard: Guard, payloads: Sequence[Payload]) -> Mapping[str, bytes | FetchRefused]:
    urls = [payload.url for payload in payloads if isinstance(payload, Remote)]
    if not urls or guard.fetcher is None:
        return {}
    return guard.fetcher.fetch_all(urls, guard.limits.max_bytes)


def _images(places: Sequence[_Place]) -> tuple[list[bytes | Image.Image], list[Source]]:
    pairs = [(place.payload, place.source) for place in places if not isinstance(place.payload, str)]
    return [image for image, _ in pairs], [source for _, source in pairs]


def _close(
    guard: Guard, turns: Sequence[Turn], places: Sequence[_Place], checked: Sequence[CheckResult]
) -> list[Screened]:
    results = iter(checked)
    blocks: list[dict[tuple[Any, ...], object]] = [{} for _ in turns]
    verdicts: list[list[Verdict]] = [[] for _ in turns]
    withheld: list[list[Verdict]] = [[] for _ in turns]
    for place, result in zip(places, _in_order(guard, places, results), strict=True):
        verdicts[place.turn].append(result.verdict)
        if _is_withheld(place, result):
            withheld[place.turn].append(result.verdict)
        old = block_at(turns[place.turn].content, place.slot.path)
        new = _replacement(old, place, result, is_enforced=guard.policy.mode == "enforce")
        if new is not None:
            blocks[place.turn][place.slot.path] = new
    return [
        Screened(with_blocks(turn.content, new), tuple(own), tuple(out))
        for turn, new, own, out in zip(turns, blocks, verdicts, withheld, strict=True)
    ]


def _in_order(guard: Guard, places: Sequence[_Place], results: Iterator[CheckResult]) -> Iterator[CheckResult]:
    for place in places:
        if isinstance(place.payload, str):
            yield uninspectable(guard, place.payload, place.source)
        else:
            yield next(results)


def _replacement(block: Any, place: _Place, result: CheckResult, *, is_enforced: bool) -> object:
    """What takes a block's place; None if it stays."""
    write = place.slot.reading.write
    if _is_withheld(place, result):
        if write is not None and not place.slot.reading.takes_text:
            return write(encode_png(Image.new("RGB", _BLACK)), "image/png")
        return text_in_place_of(block, notice_for(result.verdict))
    if write is None:
        return None
    if result.verdict.action == "mask":
        return write(_encoded(result), result.mime_type)
    if place.is_open and isinstance(place.payload, bytes) and is_enforced and sniff(place.payload) is not None:
        return write(_encoded(result), result.mime_type)
    return None


def _is_withheld(place: _Place, result: CheckResult) -> bool:
    """Whether nothing of an image is passed on: it is blocked, or cannot be masked where it stands."""
    return result.is_blocked or (result.verdict.action == "mask" and place.slot.reading.write is None)


def _encoded(result: CheckResult) -> bytes:
    output = result.output
    return output if isinstance(output, bytes) else encode_png(Image.fromarray(np.asarray(output)))
