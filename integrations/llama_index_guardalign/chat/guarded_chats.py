"""Chats and prompts of an LLM with a guard in front: who answers, with what, and who is told.

For hosted models, of which only the input can be changed: masks and the safety prefix are the half of GuardAlign that
needs no access to a model's inside. The wrapped LLM's own call is the only one that is traced, with sanitised messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from pydantic import Field, SerializeAsAny, model_validator
from typing_extensions import Self

from guardalign_guardrails import UnsafeContentError, Verdict
from guardalign_guardrails.content.chat import OnViolation, Placement, decide_chat, is_prefix_due, prefixed
from guardalign_guardrails.errors import SettingsError
from guardalign_guardrails.guarding.settings import GuardField, GuardSettings
from llama_index_guardalign.chat.messages import role_of, with_prefix, without_images
from llama_index_guardalign.chat.refusal import Refusal, with_record
from llama_index_guardalign.chat.screening import ScreenedChat, ascreen_chat, screen_chat
from llama_index_guardalign.events import announce
from llama_index_guardalign.spans import atraced, not_spanned, traced

# Engines set them on the LLM they are given, and mean the one that is called.
_OF_WHOEVER_IS_CALLED: Final = ("callback_manager", "rate_limiter")

# What `predict` reads; set on the wrapped LLM, it counts for the guarded one as well.
_OF_THE_WRAPPED_LLM: Final = (
    "completion_to_prompt",
    "messages_to_prompt",
    "output_parser",
    "pydantic_program_mode",
    "query_wrapper_prompt",
    "system_prompt",
)


# How LLM classes of the past were given them.
_IMAGES_BESIDE_A_PROMPT: Final = ("image_documents", "images")


@dataclass(frozen=True)
class Way:
    """Where a chat goes, and as what.

    Attributes:
        messages: What is to be answered, sanitised.
        verdicts: What was found in it.
        llm: Who answers; None if the policy refuses.
        violation: Why it refuses.
    """

    messages: list[ChatMessage] = field(repr=False)
    verdicts: tuple[Verdict, ...]
    llm: LLM | None = None
    violation: Verdict | None = None


class GuardedChats(FunctionCallingLLM):
    """The half of `GuardedLLM` that knows no tools and no objects; see there."""

    llm: SerializeAsAny[LLM]
    guard: GuardField = Field(default_factory=GuardSettings)
    on_violation: OnViolation = "refuse"
    route_to: SerializeAsAny[LLM] | None = None
    placement: Placement = "system"

    @model_validator(mode="after")
    def _speaks_as_the_wrapped_llm(self) -> Self:
        for name in _OF_THE_WRAPPED_LLM:
            if name not in self.model_fields_set:
                object.__setattr__(self, name, getattr(self.llm, name))
        if "callback_manager" in self.model_fields_set and self.callback_manager.handlers:
            self._hand_on("callback_manager")
        if self.rate_limiter is not None:
            self._hand_on("rate_limiter")
        return self

    @property
    def metadata(self) -> LLMMetadata:
        """The wrapped LLM's."""
        own = self.llm.metadata
        is_calling = own.is_function_calling_model and isinstance(self.llm, FunctionCallingLLM)
        return own.model_copy(update={"is_function_calling_model": is_calling})

    def to_payload(self) -> dict[str, Any]:
        """What traces of a refusal are told."""
        return {"class_name": self.class_name(), **self.metadata.model_dump()}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _OF_WHOEVER_IS_CALLED:
            self._hand_on(name)

    def _hand_on(self, name: str) -> None:
        for llm in (self.llm, self.route_to):
            if llm is not None:
                setattr(llm, name, getattr(self, name))

    # Chats

    @not_spanned
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat.

        Raises:
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``.
            GuardAlignError: The guard cannot work: no encoder, no profile.
        """
        way = self._way(messages)
        if way.llm is None:
            return traced(self, "chat", without_images(messages), kwargs, self._refusal(way).response)
        return with_record(way.llm.chat(way.messages, **kwargs), way.verdicts)

    @not_spanned
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat` as it comes; the chat is checked before this returns."""
        way = self._way(messages)
        if way.llm is None:
            return traced(self, "stream_chat", without_images(messages), kwargs, self._refusal(way).stream)
        return way.llm.stream_chat(way.messages, **kwargs)

    @not_spanned
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` without blocking the event loop."""
        way = await self._away(messages)
        if way.llm is None:
            return await atraced(self, "achat", without_images(messages), kwargs, self._refusal(way).aresponse)
        return with_record(await way.llm.achat(way.messages, **kwargs), way.verdicts)

    @not_spanned
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` without blocking the event loop."""
        way = await self._away(messages)
        if way.llm is None:
            return await atraced(self, "astream_chat", without_images(messages), kwargs, self._refusal(way).astream)
        return await way.llm.astream_chat(way.messages, **kwargs)

    # Prompts, in which there is no image

    @not_spanned
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The wrapped LLM's, with the prefix if it is always due.

        Raises:
            SettingsError: Images are given beside the prompt.
        """
        return self.llm.complete(self._prompt(prompt, kwargs), formatted=formatted, **kwargs)

    @not_spanned
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete` as it comes."""
        return self.llm.stream_complete(self._prompt(prompt, kwargs), formatted=formatted, **kwargs)

    @not_spanned
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete`, async."""
        return await self.llm.acomplete(self._prompt(prompt, kwargs), formatted=formatted, **kwargs)

    @not_spanned
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete`, async."""
        return await self.llm.astream_complete(self._prompt(prompt, kwargs), formatted=formatted, **kwargs)

    # How it decides

    def _way(self, messages: Sequence[ChatMessage]) -> Way:
        """Check a chat and decide on it."""
        return self._decided(screen_chat(self.guard.guard, messages))

    async def _away(self, messages: Sequence[ChatMessage]) -> Way:
        """`_way` without blocking the event loop."""
        return self._decided(await ascreen_chat(self.guard.guard, messages))

    def _decided(self, chat: ScreenedChat) -> Way:
        policy = self.guard.guard.policy
        announce(self.class_name(), chat.verdicts)
        decided = decide_chat(
            policy,
            [role_of(message) for message in chat.messages],
            chat.by_message,
            on_violation=self.on_violation,
            can_route=self.route_to is not None,
        )
        if decided.violation is not None and decided.handled_by == "error":
            raise UnsafeContentError(decided.violation)
        if decided.handled_by == "refusal":
            return Way(chat.messages, chat.verdicts, violation=decided.violation)
        llm = self.route_to if decided.handled_by == "route" and self.route_to is not None else self.llm
        messages = chat.messages
        if decided.is_prefix_due:
            messages = with_prefix(messages, policy.prefix, self.placement, llm.metadata.system_role)
        return Way(messages, chat.verdicts, llm)

    def _refusal(self, way: Way) -> Refusal:
        return Refusal(self.guard.guard.policy.refusal, way.verdicts)

    def _prompt(self, prompt: str, options: Mapping[str, Any]) -> str:
        if any(options.get(name) for name in _IMAGES_BESIDE_A_PROMPT):
            raise SettingsError("Images beside a prompt are not guarded; give them as blocks of a message to chat.")
        policy = self.guard.policy
        return prefixed(prompt, policy.prefix.strip()) if is_prefix_due(policy, []) else prompt
