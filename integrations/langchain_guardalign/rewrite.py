"""Puts results back into messages: the safety prefix and the verdict records.

Nothing is changed in place, and what needs no change comes back as the very same object, which keeps ids, prompt
caches and equality intact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from guardalign_guardrails import Verdict
from guardalign_guardrails.content.chat import Placement, headed

VERDICTS_KEY: Final = "guardalign"
"""Where in a message's ``response_metadata`` its verdicts are. Chat models do not send that mapping to a provider."""

Message = TypeVar("Message", bound=BaseMessage)

# These differ from run to run; a message whose findings are the same must stay the same object.
_FLEETING: Final = ("timings", "is_cached")


def with_verdicts(message: Message, verdicts: Sequence[Verdict]) -> Message:
    """The message with its findings on record; itself if there are none, or if they are on record.

    An image that does not go on as it came is on record too. Older records stay: of an image that was masked or
    removed, or that another guard checked, nothing else is left.
    """
    findings = [
        verdict.summary() for verdict in verdicts if verdict.finding != "none" or verdict.delivery != "original"
    ]
    if not findings:
        return message
    old = message.response_metadata.get(VERDICTS_KEY)
    known = old if isinstance(old, list) else []
    record = [{key: value for key, value in finding.items() if key not in _FLEETING} for finding in findings]
    new = [entry for entry in record if entry not in known]
    if not new:
        return message
    metadata = {**message.response_metadata, VERDICTS_KEY: [*known, *new]}
    return message.model_copy(update={"response_metadata": metadata})


def with_prefix(messages: Sequence[BaseMessage], prefix: str, placement: Placement = "system") -> list[BaseMessage]:
    """The messages with the safety prefix, once: where it is already, it is not put again.

    Args:
        messages: A chat.
        prefix: The safety prefix; nothing is done if it is blank.
        placement: ``system`` for the head of the first system message, which is made if there is none: it outranks
            whatever the user says after it, and chat templates that allow one at all allow one, in front. ``user`` for
            the head of the first human message, for models that know no system message; of all human messages the
            first is the one that stays the same from turn to turn, as providers' prompt caches need it.
    """
    prefix = prefix.strip()
    result = list(messages)
    kind = SystemMessage if placement == "system" else HumanMessage
    place = next((i for i, message in enumerate(messages) if isinstance(message, kind)), None)
    if not prefix:
        return result
    if place is None:
        return [kind(prefix), *result]
    old = result[place]
    content = headed(old.content, prefix)
    result[place] = old if content is old.content else old.model_copy(update={"content": content})
    return result
