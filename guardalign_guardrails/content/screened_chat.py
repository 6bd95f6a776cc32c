"""Screens whole chats: who says what, which images may pass, and who answers.

Every adapter that stands in front of a model goes through here: it gives roles and contents, and gets sanitised
contents and a decision. Message classes, the place of the prefix and the form of a refusal are the adapter's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from guardalign_guardrails.content.chat import ChatDecision, OnViolation, decide_chat, sources
from guardalign_guardrails.content.screen import Screened, Turn, ascreen, screen
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.verdict import Verdict


@dataclass(frozen=True)
class ScreenedChat:
    """A chat that was screened.

    Attributes:
        turns: One for each turn that came in.
        decision: Who answers, and whether the safety prefix is due.
    """

    turns: tuple[Screened, ...]
    decision: ChatDecision

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts, in reading order."""
        return tuple(verdict for turn in self.turns for verdict in turn.verdicts)

    @property
    def is_marked(self) -> bool:
        """Whether an image in it says that a guard has masked it before."""
        return any(turn.is_marked for turn in self.turns)


def screen_chats(
    guard: Guard, chats: Sequence[Sequence[Turn]], *, on_violation: OnViolation = "refuse", can_route: bool = False
) -> list[ScreenedChat]:
    """Check chats; as many of them make one batch as have, together, no more images than one call may have.

    Args:
        guard: Checks, and fetches if its policy says so.
        chats: Turns in order. A message with something beside its content makes several turns of one role.
        on_violation: What a blocked image of the current user turn means.
        can_route: Whether there is a model for chats whose severest action is ``route``; they are blocked otherwise.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile.
    """
    sourced = [_with_sources(chat) for chat in chats]
    parts = _parts(sourced, guard.policy.failure.max_images)
    screened = iter([one for part in parts for one in screen(guard, part)])
    return [_chat(guard.policy, chat, screened, on_violation, can_route=can_route) for chat in sourced]


async def ascreen_chats(
    guard: Guard, chats: Sequence[Sequence[Turn]], *, on_violation: OnViolation = "refuse", can_route: bool = False
) -> list[ScreenedChat]:
    """`screen_chats` without blocking the event loop."""
    sourced = [_with_sources(chat) for chat in chats]
    parts = _parts(sourced, guard.policy.failure.max_images)
    screened = iter([one for part in parts for one in await ascreen(guard, part)])
    return [_chat(guard.policy, chat, screened, on_violation, can_route=can_route) for chat in sourced]


def _with_sources(chat: Sequence[Turn]) -> Sequence[Turn]:
    if all(turn.source is not None for turn in chat):
        return chat
    pairs = zip(chat, sources([turn.role for turn in chat]), strict=True)
    return [turn if turn.source is not None else replace(turn, source=source) for turn, source in pairs]


def _parts(chats: Sequence[Sequence[Turn]], most: int | None) -> list[list[Turn]]:
    """The turns of whole chats, in order, as many together as have at most so many images; a chat alone may have more.

    A chat must not be over the budget because of others.
    """
    parts: list[list[Turn]] = []
    count = 0
    for chat in chats:
        images = sum(len(turn.media) for turn in chat)
        if not parts or (most is not None and count + images > most):
            parts.append([])
            count = 0
        parts[-1].extend(chat)
        count += images
    return parts


def _chat(
    policy: Policy, turns: Sequence[Turn], screened: Iterator[Screened], on_violation: OnViolation, *, can_route: bool
) -> ScreenedChat:
    results = tuple(next(screened) for _ in turns)
    decision = decide_chat(
        policy,
        [turn.role for turn in turns],
        [result.verdicts for result in results],
        on_violation=on_violation,
        can_route=can_route,
        is_marked=any(result.is_marked for result in results),
    )
    return ScreenedChat(results, decision)
