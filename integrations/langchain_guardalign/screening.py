"""From model inputs to sanitised ones: an input is read once, its images are looked for once, several make one batch.

Knows no runnable and no callback. The core screens chats; this brings LangChain's messages to it and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.prompt_values import StringPromptValue

from guardalign_guardrails import Action, Guard, Policy, Verdict
from guardalign_guardrails.actions import Source, severest
from guardalign_guardrails.content import screened_chat as core
from guardalign_guardrails.content.chat import ChatDecision, OnViolation, Placement, prefixed, sources
from guardalign_guardrails.content.dialect import Path, Reading
from guardalign_guardrails.content.payload import to_data_url
from guardalign_guardrails.content.redaction import with_text_at, without_images
from guardalign_guardrails.content.screen import Screened, Turn
from guardalign_guardrails.content.screened_chat import ScreenedChat
from guardalign_guardrails.content.walk import MediaBlock
from guardalign_guardrails.verdict import event_of
from langchain_guardalign.artifacts import Artifacts, is_checked, plain_of, restored
from langchain_guardalign.messages import like, messages_of, role, text_like
from langchain_guardalign.rewrite import with_prefix, with_verdicts
from langchain_guardalign.tool_outputs import TOOL_OUTPUTS, outputs_of, taken_back, with_outputs

_SCREENSHOT: Final = "computer_call_output"


@dataclass
class ModelInput:
    """A model input as messages; `screen` fills in what it finds.

    Attributes:
        value: The input as it came.
        read: The messages that a chat model would make of it; none for plain text that is no image.
        turns: Their contents, what a model's tools left beside them, and artifacts if those are checked; each with the
            message and attribute it belongs to.
        messages: The messages, sanitised once they are screened; the very same objects where nothing changed.
        by_message: The verdicts of each message, in reading order; empty for a message without media.
        shown: Where images stand in contents: message and path.
        has_more: Whether a message has what is no part of a trace beside its content: an artifact, images of a tool.
        is_marked: Whether an image in it says that a guard has masked it before.
        decision: Who answers; None before the input is screened, or if it cannot be read.
        error: Why the input cannot be read; None if it can.
    """

    value: Any = field(repr=False)
    read: list[BaseMessage] = field(repr=False)
    turns: list[tuple[int, str, Turn]] = field(repr=False)
    messages: list[BaseMessage] = field(repr=False)
    by_message: list[tuple[Verdict, ...]]
    shown: Sequence[tuple[int, Path]] = field(default=(), repr=False)
    has_more: bool = False
    is_marked: bool = False
    decision: ChatDecision | None = None
    error: Exception | None = None

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts in reading order."""
        return tuple(verdict for own in self.by_message for verdict in own)

    @property
    def violation(self) -> Verdict:
        """The verdict that keeps the model from answering; not to be asked for where a model answers."""
        if self.decision is None or self.decision.violation is None:
            raise ValueError("there is no violation")
        return self.decision.violation

    @property
    def shown_input(self) -> Any:
        """The screened input as the run of what was chosen shows it: sanitised, without a prefix."""
        return text_like(self.value, self.messages) if isinstance(self.value, str) else self.messages

    def without_images(self) -> Any:
        """The input as it may be traced: text in place of every image, no artifacts."""
        if self.error is not None:
            return f"[{type(self.value).__name__}]"
        if not self.shown and not self.has_more:
            return self.value
        return like(self.value, self.read, self.traced_messages())

    def traced_messages(self) -> list[BaseMessage]:
        """The messages as they may be traced; each itself if there is no image in it."""
        paths: dict[int, list[Path]] = {}
        for index, path in self.shown:
            paths.setdefault(index, []).append(path)
        return [_traced(message, paths.get(index, ())) for index, message in enumerate(self.messages)]


@dataclass(frozen=True)
class GuardReport:
    """What a guard found in one input, and the input without what the policy forbids.

    Attributes:
        output: The sanitised input, of the type that came in; the very same object if nothing changed.
        verdicts: One for each place that stands for an image or other media, in reading order.
        action: The severest action taken, ``allow`` if there was no image.
        screened: The input after the check, as messages.
    """

    output: LanguageModelInput = field(repr=False)
    verdicts: tuple[Verdict, ...]
    action: Action
    screened: ModelInput = field(repr=False, compare=False)

    def event(self) -> dict[str, Any]:
        """The report as plain data without pixels, regions or text."""
        return event_of(self.verdicts)


def read_input(value: LanguageModelInput | ModelInput, *, artifacts: Artifacts = "mcp") -> ModelInput:
    """Read a model input and look for its images, unless that is done already.

    Args:
        value: The input. What cannot be read becomes an input with an ``error``.
        artifacts: In which artifacts of tool messages images are checked too.
    """
    if isinstance(value, ModelInput):
        return value
    try:
        messages = messages_of(value)
    except (TypeError, ValueError) as error:
        return ModelInput(value, [], [], [], [], error=error)
    roles = [role(message) for message in messages]
    turns: list[tuple[int, str, Turn]] = []
    shown: list[tuple[int, Path]] = []
    has_more = False
    for index, (message, own, source) in enumerate(zip(messages, roles, sources(roles), strict=True)):
        turn = (_screenshot(message, source) if own == "tool" else None) or Turn(message.content, source, False, own)
        turns.append((index, "content", turn))
        if turn.media:
            shown += [(index, block.path) for block in turn.media]
        if (outputs := outputs_of(message)) is not None:
            beside = Turn(outputs, source, role=own)
            turns.append((index, TOOL_OUTPUTS, beside))
            has_more = has_more or bool(beside.media)
        if own == "tool" and (artifact := getattr(message, "artifact", None)) is not None:
            has_more = True
            if is_checked(artifact, artifacts):
                turns.append((index, "artifact", Turn(plain_of(artifact), source, role=own, is_data=True)))
    return ModelInput(value, messages, turns, messages, [()] * len(messages), shown, has_more)


def screen(
    guard: Guard,
    inputs: Sequence[LanguageModelInput | ModelInput],
    *,
    artifacts: Artifacts = "mcp",
    on_violation: OnViolation = "refuse",
    can_route: bool = False,
) -> list[ModelInput]:
    """Check inputs; all images of all of them make one batch.

    Args:
        guard: Checks.
        inputs: Inputs, read or not; those that cannot be read come back with their ``error``.
        artifacts: In which artifacts of tool messages images are checked too.
        on_violation: What a blocked image of the current user turn means for the decision.
        can_route: Whether something handles inputs whose severest action is ``route``; they are blocked otherwise.

    Returns:
        The inputs with sanitised messages, verdicts and a decision. No prefix is added.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile.
    """
    read = [read_input(value, artifacts=artifacts) for value in inputs]
    chats = core.screen_chats(guard, _chats(read), on_violation=on_violation, can_route=can_route)
    return list(map(_screened, read, chats))


async def ascreen(
    guard: Guard,
    inputs: Sequence[LanguageModelInput | ModelInput],
    *,
    artifacts: Artifacts = "mcp",
    on_violation: OnViolation = "refuse",
    can_route: bool = False,
) -> list[ModelInput]:
    """`screen` without blocking the event loop."""
    read = [read_input(value, artifacts=artifacts) for value in inputs]
    chats = await core.ascreen_chats(guard, _chats(read), on_violation=on_violation, can_route=can_route)
    return list(map(_screened, read, chats))


def report_of(policy: Policy, screened: ModelInput, placement: Placement) -> GuardReport | Exception:
    """The report on a screened input; the error of one that cannot be read."""
    if screened.error is not None:
        return screened.error
    verdicts = screened.verdicts
    action = severest(*(verdict.action for verdict in verdicts))
    return GuardReport(output_of(policy, screened, placement), verdicts, action, screened)


def output_of(policy: Policy, screened: ModelInput, placement: Placement, *, is_traced: bool = False) -> Any:
    """A screened input in the type that came in, with the prefix if it is due.

    Args:
        policy: Has the prefix.
        screened: The input.
        placement: Where the prefix goes.
        is_traced: Whether it is for a trace, which shows no image.
    """
    value, messages = screened.value, screened.traced_messages() if is_traced else screened.messages
    if screened.decision is None or not screened.decision.is_prefix_due:
        return like(value, screened.read, messages)
    if isinstance(value, str):
        return prefixed(text_like(value, messages), policy.prefix.strip())
    if isinstance(value, StringPromptValue):
        text = prefixed(text_like(value.text, messages), policy.prefix.strip())
        return value.model_copy(update={"text": text})
    return like(value, screened.read, with_prefix(messages, policy.prefix, placement))


@dataclass
class _Screenshot(Turn):
    """The answer to a computer call, for which OpenAI takes an image and nothing else, not even a notice."""

    def find(self) -> list[MediaBlock]:
        """Look for the image, in whose place only another one may stand."""
        return [replace(block, reading=self._reading(block)) for block in super().find()]

    def _reading(self, block: MediaBlock) -> Reading:
        # LangChain's OpenAI client takes text for the URL of an image.
        write = to_data_url if isinstance(self.content, str) else block.reading.write
        return replace(block.reading, write=write, takes_text=False)


def _screenshot(message: BaseMessage, source: Source) -> Turn | None:
    """The content of a tool message that LangChain's OpenAI client takes for a screenshot."""
    if not isinstance(message, ToolMessage) or message.additional_kwargs.get("type") != _SCREENSHOT:
        return None
    is_url = isinstance(message.content, str)
    return _Screenshot(message.content, source, is_loose=is_url, role="tool", under=("image_url",) if is_url else ())


def _traced(message: BaseMessage, paths: Sequence[Path]) -> BaseMessage:
    update: dict[str, Any] = {"content": with_text_at(message.content, paths)} if paths else {}
    if isinstance(message, ToolMessage) and message.artifact is not None:
        update["artifact"] = None
    if (outputs := outputs_of(message)) is not None and (shown := without_images(outputs)) is not outputs:
        update["additional_kwargs"] = with_outputs(message, shown)
    return message.model_copy(update=update) if update else message


def _chats(inputs: Sequence[ModelInput]) -> list[list[Turn]]:
    return [[turn for _, _, turn in one.turns] for one in inputs]


def _screened(one: ModelInput, chat: ScreenedChat) -> ModelInput:
    if one.error is not None:
        return one
    one.decision = chat.decision
    one.is_marked = chat.is_marked
    if not any(result.verdicts for result in chat.turns):
        return one
    messages, by_message = list(one.read), list(one.by_message)
    shown: list[tuple[int, Path]] = []
    for (index, attribute, _), result in zip(one.turns, chat.turns, strict=True):
        if result.is_changed:
            messages[index] = messages[index].model_copy(update=_update(messages[index], attribute, result))
        by_message[index] += result.verdicts
        if attribute == "content":
            shown += [(index, path) for path in _shown(result)]
    one.messages = [with_verdicts(message, own) for message, own in zip(messages, by_message, strict=True)]
    one.by_message, one.shown = by_message, shown
    return one


def _update(message: BaseMessage, attribute: str, result: Screened) -> dict[str, Any]:
    """The fields of a message that hold what was changed."""
    before, after = result.turn.content, result.content
    if attribute == "artifact":
        return {"artifact": restored(getattr(message, "artifact", None), before, after)}
    if isinstance(message, AIMessage):
        after = taken_back(before, after)
    return {"additional_kwargs": with_outputs(message, after)} if attribute == TOOL_OUTPUTS else {"content": after}


def _shown(result: Screened) -> list[Path]:
    """Where an image still stands: it was not withheld, or a black one had to take its place."""
    withheld = {id(verdict) for verdict in result.withheld}
    return [
        block.path
        for block, verdict in zip(result.turn.media, result.verdicts, strict=True)
        if id(verdict) not in withheld or (block.reading.write is not None and not block.reading.takes_text)
    ]
