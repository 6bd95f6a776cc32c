"""From chats to sanitised chats, and from model inputs to reports; several of either make one batch of images.

Knows no runnable and no callback. Sync and async differ in one line, the call to the core; the rest is shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.prompt_values import StringPromptValue

from guardalign_guardrails import Action, Guard, Verdict
from guardalign_guardrails.actions import severest
from guardalign_guardrails.content import redaction
from guardalign_guardrails.content import screen as core
from guardalign_guardrails.content.chat import Placement, is_prefix_due, prefixed
from guardalign_guardrails.content.screen import Screened, Turn
from guardalign_guardrails.verdict import event_of
from langchain_guardalign.messages import like, messages_of, sources
from langchain_guardalign.rewrite import with_prefix, with_verdicts


@dataclass(frozen=True)
class ScreenedChat:
    """What became of a list of messages.

    Attributes:
        messages: One for each that came in; the very same object if nothing changed.
        by_message: The verdicts of each, in reading order; empty for a message without media.
    """

    messages: list[BaseMessage] = field(repr=False)
    by_message: list[tuple[Verdict, ...]]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts in reading order."""
        return tuple(verdict for own in self.by_message for verdict in own)


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
        return event_of(self.verdicts)


def screen_chats(
    guard: Guard, chats: Sequence[Sequence[BaseMessage]], *, artifacts: bool = False
) -> list[ScreenedChat]:
    """Check chats; all images of all of them make one batch.

    Args:
        guard: What checks.
        chats: Message lists. Nothing is added to them: the prefix is the caller's (`with_prefix`).
        artifacts: Whether images in the artifacts of tool messages are checked and replaced too.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile.
    """
    turns = _turns(chats, artifacts=artifacts)
    return _chats(chats, turns, core.screen(guard, [turn for _, turn in turns]))


async def ascreen_chats(
    guard: Guard, chats: Sequence[Sequence[BaseMessage]], *, artifacts: bool = False
) -> list[ScreenedChat]:
    """`screen_chats` without blocking the event loop."""
    turns = _turns(chats, artifacts=artifacts)
    return _chats(chats, turns, await core.ascreen(guard, [turn for _, turn in turns]))


def screen(
    guard: Guard, inputs: Sequence[LanguageModelInput], *, artifacts: bool = False, placement: Placement = "system"
) -> list[GuardReport | Exception]:
    """Check model inputs; all images of all of them make one batch.

    Returns:
        One report per input, or the error that makes an input unreadable.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile.
    """
    read = [_read(value) for value in inputs]
    chats = screen_chats(guard, [messages for messages in read if isinstance(messages, list)], artifacts=artifacts)
    return _reports(guard, inputs, read, iter(chats), placement)


async def ascreen(
    guard: Guard, inputs: Sequence[LanguageModelInput], *, artifacts: bool = False, placement: Placement = "system"
) -> list[GuardReport | Exception]:
    """`screen` without blocking the event loop."""
    read = [_read(value) for value in inputs]
    messages = [messages for messages in read if isinstance(messages, list)]
    return _reports(guard, inputs, read, iter(await ascreen_chats(guard, messages, artifacts=artifacts)), placement)


def without_images(value: Any) -> Any:
    """A model input as it may be traced: every image, looked at or not, is a few words."""
    messages = _read(value)
    if isinstance(messages, Exception):
        return f"[{type(value).__name__}]"
    return like(value, messages, [traced(message) for message in messages])


def traced(message: BaseMessage) -> BaseMessage:
    """A message as it may be traced; itself if there is no image in it. An artifact is no part of a trace."""
    update: dict[str, Any] = {}
    if (content := redaction.without_images(message.content)) is not message.content:
        update["content"] = content
    if isinstance(message, ToolMessage) and message.artifact is not None:
        update["artifact"] = None
    return message.model_copy(update=update) if update else message


def unpack(report: GuardReport | Exception) -> GuardReport:
    """The report, or its error raised."""
    if isinstance(report, Exception):
        raise report
    return report


def _turns(chats: Sequence[Sequence[BaseMessage]], *, artifacts: bool) -> list[tuple[tuple[int, int, str], Turn]]:
    """All contents and artifacts, each with chat, message and attribute it belongs to."""
    turns = []
    for number, chat in enumerate(chats):
        for index, (message, source) in enumerate(zip(chat, sources(chat), strict=True)):
            turns.append(((number, index, "content"), Turn(message.content, source)))
            if artifacts and isinstance(message, ToolMessage) and message.artifact is not None:
                turns.append(((number, index, "artifact"), Turn(message.artifact, source, is_loose=True)))
    return turns


def _chats(
    chats: Sequence[Sequence[BaseMessage]],
    turns: Sequence[tuple[tuple[int, int, str], Turn]],
    screened: Sequence[Screened],
) -> list[ScreenedChat]:
    results = [ScreenedChat(list(chat), [()] * len(chat)) for chat in chats]
    for ((number, index, attribute), turn), result in zip(turns, screened, strict=True):
        if not result.verdicts:
            continue
        chat = results[number]
        if result.content is not turn.content:
            chat.messages[index] = chat.messages[index].model_copy(update={attribute: result.content})
        chat.by_message[index] += result.verdicts
    for chat in results:
        for index, verdicts in enumerate(chat.by_message):
            chat.messages[index] = with_verdicts(chat.messages[index], verdicts)
    return results


def _read(value: LanguageModelInput) -> list[BaseMessage] | Exception:
    try:
        return messages_of(value)
    except (TypeError, ValueError) as error:
        return error


def _reports(
    guard: Guard,
    inputs: Sequence[LanguageModelInput],
    read: Sequence[list[BaseMessage] | Exception],
    chats: Iterator[ScreenedChat],
    placement: Placement,
) -> list[GuardReport | Exception]:
    return [
        before if isinstance(before, Exception) else _report(guard, value, before, next(chats), placement)
        for value, before in zip(inputs, read, strict=True)
    ]


def _report(
    guard: Guard,
    value: LanguageModelInput,
    before: Sequence[BaseMessage],
    chat: ScreenedChat,
    placement: Placement,
) -> GuardReport:
    actions = [verdict.action for verdict in chat.verdicts]
    if not is_prefix_due(guard.policy, actions):
        output = like(value, before, chat.messages)
    elif isinstance(value, str):
        output = prefixed(value, guard.policy.prefix.strip())
    elif isinstance(value, StringPromptValue):
        output = value.model_copy(update={"text": prefixed(value.text, guard.policy.prefix.strip())})
    else:
        output = like(value, before, with_prefix(chat.messages, guard.policy.prefix, placement))
    return GuardReport(output, chat.verdicts, severest(*actions))
