"""Reads an agent's messages together with the verdicts on them: who sent what, what is due, what to report.

It changes nothing and calls no guard. An agent's state keeps earlier checks as verdict records in its messages,
wherever an app stores it. Records are hints only: one can add a prefix, send a turn to another model or end it, and
never lets anything pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from pydantic import ValidationError

from guardalign_guardrails import Policy, Verdict
from guardalign_guardrails.actions import LADDER, Action
from guardalign_guardrails.content.chat import first_violation, is_prefix_due
from langchain_guardalign.rewrite import VERDICTS_KEY
from langchain_guardalign.screening import ModelInput


@dataclass(frozen=True)
class AgentRules:
    """What reading an agent's messages depends on.

    Attributes:
        policy: What the guard enforces.
        fingerprint: The policy's; costly enough to be kept.
        can_route: Whether there is a model for what the action ``route`` sends away.
        is_kept: Whether what a check changes stays in the agent's state.
    """

    policy: Policy
    fingerprint: str
    can_route: bool
    is_kept: bool


@dataclass(frozen=True)
class Review:
    """What a check means for the agent.

    Attributes:
        before: The messages as they were.
        messages: The sanitised messages; the very same objects if nothing changed.
        violation: The verdict that keeps the current user turn from the model; None if none does. An image of a tool,
            of the model or of an earlier turn is never one: the user did not send it just now, and a web page could
            stop every agent that reads it. Such an image is replaced, and the turn goes on.
        is_routed: Whether an image of this turn sends it to the other model.
        is_prefix_due: Whether the model is to be given the safety prefix.
        new_verdicts: Verdicts that were not reported before.
    """

    before: list[BaseMessage] = field(repr=False)
    messages: list[BaseMessage] = field(repr=False)
    violation: Verdict | None
    is_routed: bool
    is_prefix_due: bool
    new_verdicts: tuple[Verdict, ...]


def review(rules: AgentRules, screened: ModelInput, *, is_first_look: bool) -> Review:
    """What a check of an agent's messages means for it.

    Args:
        rules: By what to read.
        screened: The messages after the check.
        is_first_look: Whether no other hook of the same middleware saw them in this step.
    """
    before = screened.read
    is_routed = rules.can_route and "route" in _actions_of_turn(rules, screened)
    actions = [verdict.action for verdict in screened.verdicts]
    actions += [entry["action"] for message in before for entry in _records(message)]
    actions += ["mask"] if screened.is_marked else []
    return Review(
        before=before,
        messages=screened.messages,
        violation=_violation(rules, screened),
        is_routed=is_routed,
        is_prefix_due=is_prefix_due(rules.policy, actions),
        new_verdicts=tuple(_new_verdicts(rules, screened, is_first_look=is_first_look)),
    )


def refused(messages: Sequence[BaseMessage]) -> Verdict | None:
    """The verdict of the refusal that the messages end with; None if they do not end with one.

    Whatever policy refused: the policy may have been edited since a thread stopped here.
    """
    if not messages or not isinstance(messages[-1], AIMessage):
        return None
    for entry in _records(messages[-1]):
        if entry["action"] in ("block", "route") and entry.get("source") == "user":
            return _read(entry)
    return None


def _violation(rules: AgentRules, screened: ModelInput) -> Verdict | None:
    return first_violation(
        [
            verdict
            for message, own in zip(screened.read, screened.by_message, strict=True)
            if isinstance(message, HumanMessage)
            for verdict in own
            if verdict.source == "user" and not (rules.can_route and verdict.action == "route")
        ]
    )


def _actions_of_turn(rules: AgentRules, screened: ModelInput) -> Iterator[Action]:
    """What this guard does and, by the records, did about the images of the current user turn and what followed."""
    first = next((index for index, _, turn in screened.turns if (turn.role, turn.source) == ("user", "user")), 0)
    for message, own in zip(screened.read[first:], screened.by_message[first:], strict=True):
        yield from (verdict.action for verdict in own)
        yield from (
            entry["action"] for entry in _records(message) if entry.get("policy_fingerprint") == rules.fingerprint
        )


def _records(message: BaseMessage) -> list[dict[str, Any]]:
    """The verdict records of a message that can be read as such."""
    entries = message.response_metadata.get(VERDICTS_KEY)
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, dict) and entry.get("action") in LADDER]


def _read(entry: dict[str, Any]) -> Verdict | None:
    """The verdict of a record; None if it was not written from one."""
    try:
        return Verdict.model_validate(entry)
    except ValidationError:
        return None


def _new_verdicts(rules: AgentRules, screened: ModelInput, *, is_first_look: bool) -> Iterator[Verdict]:
    """Verdicts on what came since the model's last message, on what was changed for good, and on what was scored now.

    An agent goes round and round with the same messages; without this each round would report each image again. Tool
    results are reported when they come.
    """
    last = max((i for i, message in enumerate(screened.read) if isinstance(message, AIMessage)), default=0)
    triples = zip(screened.read, screened.messages, screened.by_message, strict=True)
    for index, (old, new, own) in enumerate(triples):
        is_new = is_first_look and index >= last and not isinstance(old, ToolMessage)
        is_changed = rules.is_kept and rules.policy.mode == "enforce" and new is not old
        if is_new or is_changed or any(verdict.score is not None and not verdict.is_cached for verdict in own):
            yield from own
