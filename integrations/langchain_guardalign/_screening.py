"""From model inputs to reports: open, check all images of all inputs in one batch, put results back.

Knows no runnable and no callback. Sync and async differ in one line, the call to the guard; the rest is shared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, convert_to_messages
from langchain_core.prompt_values import ChatPromptValue, PromptValue

from guardalign_guardrails import Action, Checked, Guard, Source, Verdict
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.policy import severest
from langchain_guardalign._data_url import Reason
from langchain_guardalign._media import Found, Path, find_media
from langchain_guardalign._rewrite import block_at, text_in_place_of, with_blocks, with_prefix, with_verdicts

NOTICE: Final = "[image removed by the safety policy]"
"""What a model reads where an image was blocked."""

_OMITTED: Final = "[image omitted from the trace]"

Blocks = dict[int, dict[Path, dict[str, Any]]]
"""New blocks by message and place."""


@dataclass(frozen=True)
class GuardReport:
    """What a guard made of one input.

    Attributes:
        output: The sanitised input, of the type that came in; the very same object if nothing changed.
        verdicts: One for each place that stands for an image or other media, in reading order.
        action: The severest action taken, ``allow`` if there was no image.
    """

    output: LanguageModelInput = field(repr=False)
    verdicts: tuple[Verdict, ...]
    action: Action

    def event(self) -> dict[str, Any]:
        """The report as plain data without pixels, regions or text."""
        return {"action": self.action, "verdicts": [verdict.summary() for verdict in self.verdicts]}


@dataclass(frozen=True)
class _Opened:
    """One input with its images' bytes, or the reasons why there are none."""

    original: LanguageModelInput
    messages: list[BaseMessage]
    found: list[Found]
    payloads: list[bytes | Reason]

    def images(self) -> Iterator[tuple[bytes, Source]]:
        for found, payload in zip(self.found, self.payloads, strict=True):
            if isinstance(payload, bytes):
                yield payload, found.source


def screen(guard: Guard, inputs: Sequence[LanguageModelInput]) -> list[GuardReport | Exception]:
    """Check model inputs; all images of all of them make one batch.

    Returns:
        One report per input, or the error that makes an input unreadable.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile.
    """
    opened = _open_all(guard, inputs)
    images, sources = _batch(opened)
    return _close_all(guard, opened, guard.check_batch(images, sources))


async def ascreen(guard: Guard, inputs: Sequence[LanguageModelInput]) -> list[GuardReport | Exception]:
    """`screen` without blocking the event loop."""
    opened = await asyncio.to_thread(_open_all, guard, inputs)
    images, sources = _batch(opened)
    return await asyncio.to_thread(_close_all, guard, opened, await guard.acheck_batch(images, sources))


def without_images(value: Any) -> Any:
    """A model input as it may be traced: every image, looked at or not, is a few words."""
    try:
        messages = _messages(value)
    except (TypeError, ValueError):
        return f"[{type(value).__name__}]"
    blocks: Blocks = {}
    for found in find_media(messages):
        old = block_at(messages[found.message], found.path)
        blocks.setdefault(found.message, {})[found.path] = text_in_place_of(old, _OMITTED)
    return _like(value, messages, [with_blocks(m, blocks.get(i, {})) for i, m in enumerate(messages)])


def _open_all(guard: Guard, inputs: Sequence[LanguageModelInput]) -> list[_Opened | Exception]:
    opened: list[_Opened | Exception] = []
    for value in inputs:
        try:
            messages = _messages(value)
        except (TypeError, ValueError) as error:
            opened.append(error)
            continue
        found = find_media(messages)
        opened.append(_Opened(value, messages, found, [place.read(guard.limits.max_bytes) for place in found]))
    return opened


def _batch(opened: Sequence[_Opened | Exception]) -> tuple[list[bytes], list[Source]]:
    pairs = [pair for item in opened if isinstance(item, _Opened) for pair in item.images()]
    return [image for image, _ in pairs], [source for _, source in pairs]


def _close_all(
    guard: Guard, opened: Sequence[_Opened | Exception], checked: Sequence[Checked]
) -> list[GuardReport | Exception]:
    results = iter(checked)
    return [_close(guard, item, results) if isinstance(item, _Opened) else item for item in opened]


def _close(guard: Guard, opened: _Opened, results: Iterator[Checked]) -> GuardReport:
    if not opened.found:
        return GuardReport(opened.original, (), "allow")
    checked = [
        next(results) if isinstance(payload, bytes) else guard.uninspectable(payload, found.source)
        for found, payload in zip(opened.found, opened.payloads, strict=True)
    ]
    blocks: Blocks = {}
    verdicts: dict[int, list[Verdict]] = {}
    for found, result in zip(opened.found, checked, strict=True):
        verdicts.setdefault(found.message, []).append(result.verdict)
        if result.verdict.action in ("mask", "route", "block"):
            old = block_at(opened.messages[found.message], found.path)
            blocks.setdefault(found.message, {})[found.path] = _replacement(old, found, result)
    messages = [
        with_verdicts(with_blocks(message, blocks.get(index, {})), verdicts.get(index, []))
        for index, message in enumerate(opened.messages)
    ]
    if any(result.verdict.action == "prefix" for result in checked):
        messages = with_prefix(messages, guard.policy.prefix)
    return GuardReport(
        _like(opened.original, opened.messages, messages),
        tuple(result.verdict for result in checked),
        severest(*(result.verdict.action for result in checked)),
    )


def _replacement(old: Any, found: Found, result: Checked) -> dict[str, Any]:
    if result.verdict.action == "mask" and result.image is not None and found.write is not None:
        return found.write(encode_png(result.image))
    return text_in_place_of(old, NOTICE)


def _messages(value: LanguageModelInput) -> list[BaseMessage]:
    """The messages a chat model would make of an input; none for plain text, which holds no image.

    Raises:
        TypeError: The input is not of a type that chat models take.
        ValueError: An element cannot be read as a message.
    """
    if isinstance(value, str):
        return []
    if isinstance(value, PromptValue):
        return value.to_messages()
    if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"A guard takes a string, a prompt value or a list of messages, not {type(value).__name__}.")
    try:
        return convert_to_messages(value)
    except Exception as error:  # noqa: BLE001  whatever it is, its text quotes the message
        kind = type(error).__name__
    raise ValueError(f"The input cannot be read as chat messages ({kind}); pass messages or (role, content) pairs.")


def _like(value: Any, before: Sequence[BaseMessage], after: Sequence[BaseMessage]) -> Any:
    """``after`` as what the input was; the input itself if no message changed."""
    if len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True)):
        return value
    if isinstance(value, ChatPromptValue):
        return value.model_copy(update={"messages": list(after)})
    if isinstance(value, PromptValue):
        return ChatPromptValue(messages=list(after))
    # What did not change stays as it was written, be it a tuple or a dict.
    added = len(after) - len(before)
    kept = [old if new is message else new for old, message, new in zip(value, before, after[added:], strict=True)]
    elements: list[Any] = [*after[:added], *kept]
    return tuple(elements) if isinstance(value, tuple) else elements


def unpack(report: GuardReport | Exception) -> GuardReport:
    """The report, or its error raised."""
    if isinstance(report, Exception):
        raise report
    return report


def offender(report: GuardReport) -> Verdict | None:
    """The verdict that keeps an input from a model that was not made for it; None if there is none."""
    return next((v for action in ("block", "route") for v in report.verdicts if v.action == action), None)
