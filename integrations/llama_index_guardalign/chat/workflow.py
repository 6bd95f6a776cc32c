"""A step that checks the images of a chat, for workflows: who goes on from there is the workflow's to say."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.workflow import Event, Workflow, step
from pydantic import Field

from guardalign_guardrails import Action
from guardalign_guardrails.actions import severest
from guardalign_guardrails.content.chat import Placement, decide_chat
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from guardalign_guardrails.verdict import event_of
from llama_index_guardalign.chat.messages import role_of, with_prefix
from llama_index_guardalign.chat.screening import ascreen_chat
from llama_index_guardalign.events import announce

_COMPONENT = "add_guard_step"


class CheckImages(Event):
    """Asks for a check.

    Attributes:
        messages: A chat; the last run of user messages is the current turn.
    """

    messages: list[ChatMessage]


class ImagesPassed(Event):
    """A chat may go to a model.

    Attributes:
        messages: The chat, sanitised, with the safety prefix if it is due; the very same ones where nothing changed.
        action: The severest action taken: a blocked image of an earlier turn is a notice by now.
        verdicts: One for each image, without regions.
    """

    messages: list[ChatMessage]
    action: Action = "allow"
    verdicts: list[dict[str, Any]] = Field(default_factory=list)


class ImagesBlocked(Event):
    """An image of the current user turn is not to reach the model.

    Attributes:
        messages: The chat, with a notice in the image's place: for a reviewer, or for another model.
        action: ``route`` or ``block``.
        refusal: What the policy answers.
        verdicts: One for each image, without regions.
    """

    messages: list[ChatMessage]
    action: Action
    refusal: str
    verdicts: list[dict[str, Any]] = Field(default_factory=list)


def add_guard_step(
    workflow: type[Workflow],
    guard: GuardLike = None,
    *,
    placement: Placement = "system",
    num_workers: int = 4,
) -> None:
    """Add a step to a workflow's class: `CheckImages` in, `ImagesPassed` or `ImagesBlocked` out.

    Args:
        workflow: The class; it needs steps that send the one and take the others.
        guard: A ready guard, a policy or settings; None for the policy that ships with the package.
        placement: Where the prefix goes: ``system``, or ``user`` for models that know no system message.
        num_workers: Most checks at the same time.
    """
    settings = GuardSettings.of(guard)

    @step(workflow=workflow, num_workers=num_workers)
    async def check_images(ev: CheckImages) -> ImagesPassed | ImagesBlocked:
        chat = await ascreen_chat(settings.guard, ev.messages)
        announce(_COMPONENT, chat.verdicts)
        decided = decide_chat(
            settings.policy, [role_of(message) for message in chat.messages], chat.by_message, can_route=True
        )
        told = event_of(chat.verdicts)["verdicts"]
        if decided.violation is not None:
            return ImagesBlocked(
                messages=chat.messages, action=decided.violation.action, refusal=settings.policy.refusal, verdicts=told
            )
        messages = chat.messages
        if decided.is_prefix_due:
            messages = with_prefix(messages, settings.policy.prefix, placement, MessageRole.SYSTEM)
        action = severest(*(verdict.action for verdict in chat.verdicts))
        return ImagesPassed(messages=messages, action=action, verdicts=told)
