"""Chat-level decision: where the content of each message came from, who answers, and whether the prefix is due.

The verdicts of the current user turn decide. Blocked images of earlier turns, of tools, of models and of the app's own
system message are replaced by a notice, and the chat goes on: else one blocked image would end it for good. It knows
roles and verdicts only; `screened_chat` puts it together with the screening of contents.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from guardalign_guardrails.actions import Action, Source
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.verdict import Verdict

Role = Literal["system", "user", "assistant", "tool"]
"""Who says a message; an app's own instructions are ``system``, also where a provider calls them ``developer``."""

OnViolation = Literal["refuse", "notice", "raise"]
"""What a blocked image of the current user turn means: the policy's refusal answers and no model is asked, a model
answers with a notice in the image's place, or `UnsafeContentError` is raised."""

Placement = Literal["system", "user"]
"""Where the prefix goes: to the head of an app's own instructions, or of the first message of the user, for models that
know no system message."""

PlacementSetting = Literal["auto", "system", "user"]
"""A component's ``placement``: ``auto`` asks `placement_for` for the model that answers."""

HandledBy = Literal["model", "route", "refusal", "error"]
"""Who answers a chat: the model, the one for routed chats, the policy's refusal, or an error that is raised."""

_GAP: Final = "\n\n"
_TEXT_KINDS: Final = ("text", "input_text")

# Matched anywhere in a name in lower case, so that a provider's path in front of it does not matter.
_WITHOUT_SYSTEM_MESSAGE: Final = (
    # Google's API answers "Developer instruction is not enabled", the chat templates of Gemma 1 and 2 raise; those of
    # Gemma 3 put a system message where the prefix goes anyway.
    re.compile(r"gemma"),
    re.compile(r"(^|[/:._-])o1-(mini|preview)"),
    # "Prompting with images is incompatible with system messages", say its template and the hosts that use it.
    re.compile(r"llama-?3[.p_-]?2.*vision"),
)


@dataclass(frozen=True)
class ChatDecision:
    """The decision on one chat.

    Attributes:
        handled_by: Who answers.
        violation: The verdict that keeps the model from answering; None if it answers.
        is_prefix_due: Whether the model that answers is given the safety prefix.
    """

    handled_by: HandledBy
    violation: Verdict | None
    is_prefix_due: bool


def sources(roles: Sequence[Role]) -> list[Source]:
    """Where the content of each message of a chat came from.

    The last unbroken run of user messages is the current turn of the ``user``, earlier ones are ``history``; messages
    of tools and models are ``tool`` and ``generated`` anywhere; a system message counts as ``user``.
    """
    last = next((i for i in reversed(range(len(roles))) if roles[i] == "user"), 0)
    first = last
    while first > 0 and roles[first - 1] == "user":
        first -= 1
    return [_source(role, is_past=index < first) for index, role in enumerate(roles)]


def first_violation(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The verdict that asks for ``block``, else the one that asks for ``route``; None if there is none."""
    return next((v for action in ("block", "route") for v in verdicts if v.action == action), None)


def decide_chat(
    policy: Policy,
    roles: Sequence[Role],
    by_message: Sequence[Sequence[Verdict]],
    *,
    on_violation: OnViolation = "refuse",
    can_route: bool = False,
    is_marked: bool = False,
) -> ChatDecision:
    """Decide on a chat that was screened.

    Args:
        policy: Says when a prefix is due.
        roles: Of its messages.
        by_message: The verdicts of each.
        on_violation: What a blocked image of the current user turn means.
        can_route: Whether there is a model for chats whose severest action is ``route``; they are blocked otherwise.
        is_marked: Whether an image says that another guard masked it. It asks for the prefix as a masked one does, and
            for nothing else.
    """
    pairs = zip(roles, by_message, strict=True)
    found = first_violation([v for role, own in pairs if role != "system" for v in own if v.source == "user"])
    actions = [verdict.action for own in by_message for verdict in own]
    is_due = is_prefix_due(policy, [*actions, "mask"] if is_marked else actions)
    if found is None:
        return ChatDecision("model", None, is_due)
    if found.action == "route" and can_route:
        return ChatDecision("route", found, is_due)
    if on_violation == "notice":
        return ChatDecision("model", None, is_due)
    return ChatDecision("refusal" if on_violation == "refuse" else "error", found, False)


def _source(role: Role, *, is_past: bool) -> Source:
    if role == "tool":
        return "tool"
    if role == "assistant":
        return "generated"
    return "history" if is_past and role == "user" else "user"


def is_prefix_due(policy: Policy, actions: Sequence[Action]) -> bool:
    """Whether a chat is to be given the safety prefix.

    A masked image asks for it too: the method's two halves work together. One that is not passed on asks for nothing.

    Args:
        policy: Its ``prefix_when`` decides; in monitor mode nothing is given.
        actions: The action on each image of the chat.
    """
    if policy.mode == "monitor" or not policy.prefix.strip():
        return False
    if policy.prefix_when == "finding":
        return "prefix" in actions or "mask" in actions
    return policy.prefix_when == "always" or bool(actions)


def prefixed(text: str, prefix: str) -> str:
    """The text with a prefix at its head, once; the text itself if it begins with it, whatever gap comes next."""
    if _begins_with(text, prefix):
        return text
    return prefix + _GAP + text if text else prefix


def _begins_with(text: object, prefix: str) -> bool:
    if not isinstance(text, str):
        return False
    head, gap = text.lstrip()[: len(prefix)], text.lstrip()[len(prefix) :][:1]
    return head == prefix and not gap.strip()


def _text_of(block: Any) -> Any:
    """The text that a model is given of a block. Of blocks that are no text, clients leave out what is called so."""
    if not isinstance(block, dict):
        return block
    # Bedrock's blocks have no type.
    return block.get("text") if block.get("type", "text") in _TEXT_KINDS else None


def headed(content: Any, prefix: str, *, text_type: str = "text") -> Any:
    """A message's content with a prefix at its head, once.

    Args:
        content: Text, a list of blocks, or None for none.
        prefix: The prefix.
        text_type: The provider's ``type`` of a text block.

    Returns:
        Text for text, a list for a list; the content itself if the prefix is there.
    """
    if content is None or isinstance(content, str):
        return prefixed(content or "", prefix)
    blocks = list(content) if isinstance(content, list | tuple) else [content]
    head = blocks[0] if blocks else None
    if _begins_with(_text_of(head), prefix):
        return content
    return [{"type": text_type, "text": prefix}, *blocks]


def placement_for(model_name: str | None, setting: PlacementSetting = "auto") -> Placement:
    """Where a model wants the prefix: as set, or ``user`` for one that is known to take no system message."""
    if setting != "auto":
        return setting
    name = (model_name or "").lower()
    return "user" if any(pattern.search(name) for pattern in _WITHOUT_SYSTEM_MESSAGE) else "system"
