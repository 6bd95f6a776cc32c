"""A memory in which an image that the policy blocks stands for one turn only.

Agents and chat engines put what the user says into a memory, and ask the LLM after that. If the guard raises, or a
network fails, no answer follows, and to everybody who reads the memory the next message of the user belongs to the same
turn: the blocked image would be refused again, and again, for good. This memory knows when a turn ended, since it sees
what is put and what is read.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, Final

from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import BaseMemory, Memory, SimpleComposableMemory
from llama_index.core.storage.chat_store.base_db import MessageStatus
from pydantic import Field, PrivateAttr, SerializeAsAny, model_validator
from typing_extensions import Self

from guardalign_guardrails import Action
from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.settings import GuardField, GuardSettings
from llama_index_guardalign.chat.messages import role_of
from llama_index_guardalign.chat.screening import awithout_blocked, without_blocked
from llama_index_guardalign.unguarded import warn_of_llms_in

_IN_A_PAST_TURN: Final = ("block", "route")
# Agents read the messages of one turn again and again, and another LLM may be at work on what is routed.
_IN_A_READ_TURN: Final = ("block",)


class GuardedMemory(BaseMemory):
    """Wraps a memory so that a blocked image of a turn without an answer becomes a notice when the turn is over.

    The image of the current turn stays for the guarded LLM to decide on, by its own ``on_violation``. The turn is over
    when the user says something else after the messages were read, or when they are read once more. What is stored is
    then rewritten: the notice stands there for good, and the rest is what the wrapped memory would hold.

    LlamaIndex stores no memory with a `Context`; neither is this one. LLMs of the wrapped memory (of a block, summary)
    that are not guarded are warned of with `UnguardedWarning`.

    Attributes:
        memory: Another memory, whose messages can be listed and set.
        guard: The guard of the LLM: a `Guard`, a `Policy`, the path of a policy file, or `GuardSettings`.
    """

    memory: SerializeAsAny[BaseMemory]
    guard: GuardField = Field(default_factory=GuardSettings)

    # Neither holds for messages that were stored before, or set as history: the next message of the user ends the turn,
    # while they may be read as the current turn until then.
    _is_unread: bool = PrivateAttr(default=False)
    _is_read: bool = PrivateAttr(default=False)

    @model_validator(mode="after")
    def _warn_of_llms(self) -> Self:
        warn_of_llms_in(self.memory)
        return self

    @classmethod
    def class_name(cls) -> str:
        """The class's name in dumps."""
        return "GuardedMemory"

    @classmethod
    def from_defaults(cls, memory: BaseMemory | None = None, guard: Any = None, **kwargs: Any) -> Self:
        """A guarded memory around another one, or around a new `Memory`, to which other arguments go."""
        return cls(memory=memory or Memory.from_defaults(**kwargs), guard=guard)

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex leaves out what cannot be pickled, and a copy without its guard would have another one.
        for name in ("guard", "memory"):
            check_pickles(name, getattr(self, name))
        return super().__getstate__()

    @property
    def tokenizer_fn(self) -> Any:
        """The wrapped memory's, which chat engines count their own messages with."""
        return self.memory.tokenizer_fn  # type: ignore[attr-defined]

    # Reading

    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:  # noqa: A002  LlamaIndex's name
        """The wrapped memory's messages for an LLM."""
        if self._is_read:
            self._clean(_IN_A_READ_TURN)
        self._note(is_read=True)
        return self.memory.get(input=input, **kwargs)

    async def aget(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:  # noqa: A002
        """`get` without blocking the event loop."""
        if self._is_read:
            await self._aclean(_IN_A_READ_TURN)
        self._note(is_read=True)
        return await self.memory.aget(input=input, **kwargs)

    def get_all(self) -> list[ChatMessage]:
        """All messages of the wrapped memory."""
        return self.memory.get_all()

    async def aget_all(self) -> list[ChatMessage]:
        """`get_all` without blocking the event loop."""
        return await self.memory.aget_all()

    # Writing

    def put(self, message: ChatMessage) -> None:
        """Add a message; one of the user ends the turn before it, if that was read."""
        self.put_messages([message])

    async def aput(self, message: ChatMessage) -> None:
        """`put` without blocking the event loop."""
        await self.aput_messages([message])

    def put_messages(self, messages: list[ChatMessage]) -> None:
        """Add messages; see `put`."""
        if self._begins_a_turn(messages):
            self._clean(_IN_A_PAST_TURN)
            self._note(is_unread=True)
        self.memory.put_messages(messages)

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        """`put_messages` without blocking the event loop."""
        if self._begins_a_turn(messages):
            await self._aclean(_IN_A_PAST_TURN)
            self._note(is_unread=True)
        await self.memory.aput_messages(messages)

    def set(self, messages: list[ChatMessage]) -> None:
        """Put other messages in the place of all."""
        self._note()
        self.memory.set(messages)

    async def aset(self, messages: list[ChatMessage]) -> None:
        """`set` without blocking the event loop."""
        self._note()
        await self.memory.aset(messages)

    def reset(self) -> None:
        """Forget all messages."""
        self._note()
        self.memory.reset()

    async def areset(self) -> None:
        """`reset` without blocking the event loop."""
        self._note()
        await self.memory.areset()

    # The end of a turn

    def _note(self, *, is_read: bool = False, is_unread: bool = False) -> None:
        self._is_read, self._is_unread = is_read, is_unread

    def _begins_a_turn(self, messages: Sequence[ChatMessage]) -> bool:
        return not self._is_unread and any(role_of(message) == "user" for message in messages)

    def _clean(self, actions: Container[Action]) -> None:
        stored = _stored(self.memory)
        if turn := _last_turn(stored):
            new = without_blocked(self.guard, turn, actions, self.class_name())
            if any(now is not before for now, before in zip(new, turn, strict=True)):
                _store(self.memory, [*stored[: -len(turn)], *new])

    async def _aclean(self, actions: Container[Action]) -> None:
        stored = await _astored(self.memory)
        if turn := _last_turn(stored):
            new = await awithout_blocked(self.guard, turn, actions, self.class_name())
            if any(now is not before for now, before in zip(new, turn, strict=True)):
                await _astore(self.memory, [*stored[: -len(turn)], *new])


def _last_turn(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages of the user after which nobody answered."""
    first = len(messages)
    while first and role_of(messages[first - 1]) == "user":
        first -= 1
    return list(messages[first:])


# What a memory holds, as it holds it: its own `get` may leave messages out, or add to them.


def _stored(memory: BaseMemory) -> list[ChatMessage]:
    if isinstance(memory, Memory):
        return memory.get_all(status=MessageStatus.ACTIVE)
    return memory.get_all()


async def _astored(memory: BaseMemory) -> list[ChatMessage]:
    if isinstance(memory, Memory):
        return await memory.aget_all(status=MessageStatus.ACTIVE)
    return await memory.aget_all()


def _store(memory: BaseMemory, messages: list[ChatMessage]) -> None:
    if isinstance(memory, Memory):
        asyncio_run(_astore(memory, messages))
    else:
        _settable(memory).set(messages)


async def _astore(memory: BaseMemory, messages: list[ChatMessage]) -> None:
    if isinstance(memory, Memory):
        # Its own `aset` would delete what it archived.
        await memory.sql_store.delete_messages(memory.session_id, status=MessageStatus.ACTIVE)
        await memory.sql_store.add_messages(memory.session_id, messages, status=MessageStatus.ACTIVE)
    else:
        await _settable(memory).aset(messages)


def _settable(memory: BaseMemory) -> BaseMemory:
    """The memory whose messages `get_all` lists; a composed one would hand them on to its other memories once more."""
    return _settable(memory.primary_memory) if isinstance(memory, SimpleComposableMemory) else memory
