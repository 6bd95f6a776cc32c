"""Guards with one fault each, of kinds that have been seen in released guards; every one must fail a contract.

The middleware in front is a sound one, as small as it can be, for the broken ones to be broken from.
"""

# ruff: noqa: A002
from __future__ import annotations

import io
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import TracePolicy, omit_payload
from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableSerializable
from PIL import Image
from pydantic import ConfigDict

from guardalign_guardrails import Guard, GuardSettings, UnsafeContentError
from guardalign_guardrails.content.chat import is_prefix_due
from guardalign_guardrails.content.payload import to_base64
from guardalign_guardrails.guarding.cache import VerdictCache
from guardalign_guardrails.testing.chats import image_block, images_in
from langchain_guardalign import ImageGuard
from langchain_guardalign.rewrite import with_prefix
from langchain_guardalign.screening import ModelInput, ascreen, read_input, screen


class SoundMiddleware(AgentMiddleware):
    trace_policy = TracePolicy(process_inputs=omit_payload, process_outputs=omit_payload)

    def __init__(self, guard: Guard, name: str = "SoundMiddleware") -> None:
        super().__init__()
        self.guard = guard
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def before_model(self, state: Any, runtime: Any) -> Any:
        return self.changes(state["messages"], self.screened(state["messages"]))

    async def abefore_model(self, state: Any, runtime: Any) -> Any:
        return self.changes(state["messages"], await self.ascreened(state["messages"]))

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(self.prefixed(request, self.screened(request.messages)))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(self.prefixed(request, await self.ascreened(request.messages)))

    def screened(self, messages: Sequence[BaseMessage]) -> ModelInput:
        return screen(self.guard, [messages])[0]

    async def ascreened(self, messages: Sequence[BaseMessage]) -> ModelInput:
        return (await ascreen(self.guard, [messages]))[0]

    def changes(self, messages: Sequence[BaseMessage], chat: ModelInput) -> Any:
        changed = [new for old, new in zip(messages, chat.messages, strict=True) if new is not old]
        return {"messages": changed} if changed else None

    def prefixed(self, request: Any, chat: ModelInput) -> Any:
        actions = [
            record["action"] for each in chat.messages for record in each.response_metadata.get("guardalign", [])
        ]
        if not is_prefix_due(self.guard.policy, actions):
            return request
        system = [request.system_message] if request.system_message else []
        return request.override(system_message=with_prefix(system, self.guard.policy.prefix)[0])


# Runnables.


class ChangesItsInput(ImageGuard):
    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        output = super().invoke(input, config)
        for old, new in zip(reversed(input), reversed(output), strict=False):
            old.content = new.content
        return input


class SkipsAsync(ImageGuard):
    async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        return input


class BlocksTheLoop(ImageGuard):
    async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        return self.invoke(input, config)


class SkipsStreams(ImageGuard):
    def transform(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        yield from input

    async def atransform(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        async for item in input:
            yield item


class SkipsBatches(ImageGuard):
    def batch(self, inputs: Any, config: Any = None, *, return_exceptions: bool = False, **kwargs: Any) -> Any:
        return inputs


class ChecksOneByOne(ImageGuard):
    batch = RunnableSerializable.batch


class MixesUpBatches(ImageGuard):
    def batch(self, inputs: Any, config: Any = None, *, return_exceptions: bool = False, **kwargs: Any) -> Any:
        return super().batch(inputs, config, return_exceptions=return_exceptions)[::-1]


class HidesErrorsOfBatches(ImageGuard):
    def batch(self, inputs: Any, config: Any = None, *, return_exceptions: bool = False, **kwargs: Any) -> Any:
        return super().batch(inputs, config, return_exceptions=True)


class Rewrites(ImageGuard):
    """What the others' outputs are made of: new messages in place of the guard's."""

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        return self.rewritten(input, super().invoke(input, config))

    def rewritten(self, value: Any, output: Any) -> Any:
        raise NotImplementedError


class DropsIds(Rewrites):
    def rewritten(self, value: Any, output: Any) -> Any:
        return output if output is value else [type(message)(content=message.content) for message in output]


class AlwaysCopies(Rewrites):
    def rewritten(self, value: Any, output: Any) -> Any:
        return value.model_copy() if hasattr(value, "model_copy") else type(value)(list(output))


class ReturnsLists(Rewrites):
    def rewritten(self, value: Any, output: Any) -> Any:
        return output if output is value else list(getattr(output, "messages", output))


class RepeatsThePrefix(Rewrites):
    def rewritten(self, value: Any, output: Any) -> Any:
        if output is value:
            return output
        return [SystemMessage(self.guard.guard.policy.prefix), *value, *output[-len(value) :]]


class LooksAtTheLastMessage(ImageGuard):
    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        return [*input[:-1], *super().invoke(input[-1:], config)]


class TakesAMaskForSmaller(Rewrites):
    def rewritten(self, value: Any, output: Any) -> Any:
        return value if output is value else _with_images(output, lambda image: image.crop((8, 8, 64, 64)))


class SwapsInAnImage(Rewrites):
    def rewritten(self, value: Any, output: Any) -> Any:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG")
        block = {"type": "image", "base64": to_base64(buffer.getvalue()), "mime_type": "image/jpeg"}
        return value if output is value else [HumanMessage([block])]


class LosesTheWords(Rewrites):
    def rewritten(self, value: Any, output: Any) -> Any:
        kept = [[b for b in message.content if b.get("type") == "image"] for message in value]
        return [message.model_copy(update={"content": content}) for message, content in zip(value, kept, strict=True)]


class LetsFailuresPass(Rewrites):
    def rewritten(self, value: Any, output: Any) -> Any:
        has_failed = any("uninspectable" in r or "failure" in r for m in output for r in _records(m))
        return value if has_failed else output


class ActsInMonitorMode(Rewrites):
    def rewritten(self, value: Any, output: Any) -> Any:
        return [HumanMessage("removed") if _records(message) else message for message in output]


class KeepsItOnItself(ImageGuard):
    model_config = ConfigDict(extra="allow")
    last: Any = None

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        self.last = input
        time.sleep(0.02)
        return super().invoke(self.last, config)


class DropsTheConfig(ImageGuard):
    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        return super().invoke(input)


class AnnouncesTwice(ImageGuard):
    def _reports(self, inputs: Any, at_once: Any = None) -> Any:
        (report,) = reports = super()._reports(inputs, at_once)
        dispatch_custom_event("guardalign.verdict", report.event())
        return reports

    async def _areports(self, inputs: Any, at_once: Any = None) -> Any:
        (report,) = reports = await super()._areports(inputs, at_once)
        await adispatch_custom_event("guardalign.verdict", report.event())
        return reports


class AnnouncesImages(ImageGuard):
    def _reports(self, inputs: Any, at_once: Any = None) -> Any:
        # Not in batches, where there is no run of one input.
        with suppress(RuntimeError):
            dispatch_custom_event("my.event", {"input": repr(inputs[0].value)})
        return super()._reports(inputs, at_once)


class LogsImages(ImageGuard):
    def _reports(self, inputs: Any, at_once: Any = None) -> Any:
        logging.getLogger("broken").debug("checking %s", inputs[0].value)
        return super()._reports(inputs, at_once)


class RaisesWithImages(ImageGuard):
    def _reports(self, inputs: Any, at_once: Any = None) -> Any:
        report = super()._reports(inputs, at_once)[0]
        raise UnsafeContentError(report.verdicts[0]) from ValueError(repr(inputs[0].value))


class ShowsImages(ImageGuard):
    model_config = ConfigDict(extra="allow")
    last: Any = None

    def _reports(self, inputs: Any, at_once: Any = None) -> Any:
        self.last = inputs[0].value
        return super()._reports(inputs, at_once)


class TracesImages(ImageGuard):
    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        return self._call_with_config(super().invoke, input, config)


class ForgetsASetting(ImageGuard):
    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        return [__name__]

    @property
    def lc_attributes(self) -> dict[str, Any]:
        return {**super().lc_attributes, "on_violation": "notice"}


class MakesItsOwnGuard(ImageGuard):
    """A field set per call makes a new runnable; this one's does not take the guard along."""

    def model_post_init(self, context: Any) -> None:
        if self.on_violation == "raise" and self.guard.is_ready_guard:
            other = Guard(self.guard.policy, type(self.guard.guard.detector.encoder)())
            object.__setattr__(self, "guard", GuardSettings.of(other))


class ForgetsWhatItSaw(ImageGuard):
    def _reports(self, inputs: Any, at_once: Any = None) -> Any:
        self.guard.guard.cache = VerdictCache()
        return super()._reports(inputs, at_once)


# Middleware.


class SyncOnly(SoundMiddleware):
    async def abefore_model(self, state: Any, runtime: Any) -> Any:
        return None


class OnlyTheLastMessage(SoundMiddleware):
    def screened(self, messages: Sequence[BaseMessage]) -> ModelInput:
        chat = super().screened(messages[-1:])
        return replace(read_input(messages), messages=[*messages[:-1], *chat.messages])


class OnlyWhatPeopleSay(SoundMiddleware):
    def changes(self, messages: Sequence[BaseMessage], chat: ModelInput) -> Any:
        changes = super().changes(messages, chat)
        return changes and {"messages": [each for each in changes["messages"] if isinstance(each, HumanMessage)]}


class OnlyMessagesWithoutWords(SoundMiddleware):
    def screened(self, messages: Sequence[BaseMessage]) -> ModelInput:
        has_words = any(block["type"] == "text" for block in messages[0].content if isinstance(block, dict))
        return read_input(messages) if has_words else super().screened(messages)


class OnlyOnce(SoundMiddleware):
    def before_model(self, state: Any, runtime: Any) -> Any:
        is_first = not any(isinstance(message, AIMessage) for message in state["messages"])
        return super().before_model(state, runtime) if is_first else None


class NewIds(SoundMiddleware):
    def changes(self, messages: Sequence[BaseMessage], chat: ModelInput) -> Any:
        changes = super().changes(messages, chat)
        return changes and {"messages": [each.model_copy(update={"id": None}) for each in changes["messages"]]}


class DoesNotPersist(SoundMiddleware):
    def before_model(self, state: Any, runtime: Any) -> Any:
        return None

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        chat = self.screened(request.messages)
        return super().wrap_model_call(request.override(messages=chat.messages), handler)


class PrefixInTheState(SoundMiddleware):
    def changes(self, messages: Sequence[BaseMessage], chat: ModelInput) -> Any:
        return {"messages": [*chat.messages, SystemMessage(self.guard.policy.prefix)]}


class GivesThePrefixTwice(SoundMiddleware):
    def prefixed(self, request: Any, chat: ModelInput) -> Any:
        request = super().prefixed(request, chat)
        return request.override(messages=[SystemMessage(self.guard.policy.prefix), *request.messages])


class TracesItsInput(SoundMiddleware):
    trace_policy = TracePolicy()


class TracesItsRequest(SoundMiddleware):
    """Keeps the node's trace clean and forgets that of the wrapper."""

    trace_policy = TracePolicy(
        process_inputs=lambda value: value if "request" in value else {}, process_outputs=omit_payload
    )


class TellsImages(SoundMiddleware):
    def before_model(self, state: Any, runtime: Any) -> Any:
        dispatch_custom_event("my.event", {"messages": repr(state["messages"])})
        runtime.stream_writer({"messages": repr(state["messages"])})
        return super().before_model(state, runtime)


class OneName(SoundMiddleware):
    @property
    def name(self) -> str:
        return "OneName"


class NamedByItsPolicy(SoundMiddleware):
    @property
    def name(self) -> str:
        return f"NamedByItsPolicy-{self.guard.policy.fingerprint[:8]}"


class RaisesEachTime(SoundMiddleware):
    def changes(self, messages: Sequence[BaseMessage], chat: ModelInput) -> Any:
        blocked = [verdict for verdict in chat.verdicts if verdict.is_blocked]
        if blocked:
            raise UnsafeContentError(blocked[0])
        return super().changes(messages, chat)


class CarriesOver(SoundMiddleware):
    last: Any = None

    def screened(self, messages: Sequence[BaseMessage]) -> ModelInput:
        self.last = self.last or super().screened(messages)
        return self.last


class HoldsTheAnswerBack(SoundMiddleware):
    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return AIMessage("".join(request.model.words))


def _records(message: Any) -> list[Any]:
    return message.response_metadata.get("guardalign", []) if isinstance(message, BaseMessage) else []


def _with_images(messages: Sequence[Any], change: Any) -> list[Any]:
    def changed(block: Any) -> Any:
        images = images_in([block])
        return image_block(change(images[0])) if images else block

    return [
        message.model_copy(update={"content": list(map(changed, message.content))})
        if isinstance(message.content, list)
        else message
        for message in messages
    ]
