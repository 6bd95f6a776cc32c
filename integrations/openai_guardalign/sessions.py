"""For sessions of openai-agents: a blocked image of a turn that nobody answered goes out no more.

A run stores what the user said before anything checks it. If a filter or a guardrail ends the run, no answer follows,
and to everybody who reads the session the next message of the user belongs to the same turn: the blocked image would
end that run too, and every later one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from agents import OpenAIConversationsSession, TResponseInputItem
from agents.memory import Session, SessionABC

from guardalign_guardrails.content.bodies import BodyRules, ascreen_body
from guardalign_guardrails.errors import SettingsError
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from openai_guardalign.bound import Bound

Items = list[TResponseInputItem]

SessionInput = Callable[[Items, Items], Awaitable[Items]]
"""What ``RunConfig.session_input_callback`` takes."""

# As a filter reads it.
_RULES: Final = BodyRules("notice", reads_text=True)


def session_input(guard: GuardLike = None) -> SessionInput:
    """For ``RunConfig.session_input_callback``: runs get the session's history without what may not pass.

    Unsafe images of earlier turns are masked or replaced by a notice, also those of a turn that nobody answered. What
    the user says now is left to an `input_filter` or a guardrail. What is stored stays as it came; use a
    `GuardedSession` where it must not.

    Args:
        guard: A guard, or what makes one: a policy, the path of a policy file, settings, None for the shipped policy.

    Raises:
        PolicyError: The policy file cannot be read.
        SettingsError: ``guard`` is nothing that makes a guard.
    """
    return Bound(_joined, GuardSettings.of(guard))


class GuardedSession(SessionABC):
    """Wraps a session so that it neither stores nor gives back what may not pass.

    Unsafe images are masked or replaced by a notice when they are added, and once more when they are read, so that what
    was stored before is safe to read too. The current run still decides on what the user says by itself: it keeps its
    own input. Everything else of the session is reached through this one.

    Args:
        session: Another session. One that OpenAI keeps is known to the SDK by its class and cannot be wrapped; give it
            a guarded client, and use `session_input`. A session that compacts goes around a guarded one.
        guard: See `session_input`.

    Raises:
        PolicyError: The policy file cannot be read.
        SettingsError: ``guard`` is nothing that makes a guard, or the session cannot be wrapped.
    """

    def __init__(self, session: Session, guard: GuardLike = None) -> None:
        if isinstance(session, OpenAIConversationsSession):
            raise SettingsError(
                "OpenAI keeps this session, and the SDK knows it by its class. Give it a guarded client "
                "(OpenAIConversationsSession(openai_client=guard_client(...))), and use session_input."
            )
        self.session, self.settings = session, GuardSettings.of(guard)

    def __getattr__(self, name: str) -> Any:
        # While a copy is made there is no session yet.
        if name in ("session", "settings"):
            raise AttributeError(name)
        return getattr(self.session, name)

    @property
    def session_id(self) -> str:  # type: ignore[override]
        """The wrapped session's."""
        return self.session.session_id

    @property
    def session_settings(self) -> Any:  # type: ignore[override]
        """The wrapped session's."""
        return getattr(self.session, "session_settings", None)

    async def get_items(self, limit: int | None = None) -> Items:
        """The stored items without what may not pass; see ``Session``."""
        return await _sanitised(self.settings, await self.session.get_items(limit))

    async def add_items(self, items: Items) -> None:
        """Store items without what may not pass."""
        await self.session.add_items(await _sanitised(self.settings, items))

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the last item and give it back, without what may not pass."""
        item = await self.session.pop_item()
        return None if item is None else (await _sanitised(self.settings, [item]))[0]

    async def clear_session(self) -> None:
        """Remove all items."""
        await self.session.clear_session()


async def _joined(settings: GuardSettings, history: Items, new: Items) -> Items:
    for item, safe in zip(history, await _sanitised(settings, history), strict=True):
        if safe is not item:
            # In place: an item of another identity counts as one of the new turn, and would be stored once more.
            old = cast("dict[str, Any]", item)
            old.clear()
            old.update(safe)
    return [*history, *new]


async def _sanitised(settings: GuardSettings, items: Items) -> Items:
    """The items, each the very same object if nothing in it changed."""
    screened = await ascreen_body(settings.guard, {"input": items}, "responses", _RULES)
    return cast("Items", screened.body["input"])
