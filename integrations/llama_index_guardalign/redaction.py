"""Traces without images: handlers of LlamaIndex's instrumentation are told a few words in their place.

LlamaIndex hands whatever its spans and events are about to every handler: the messages an agent was given, the nodes a
retriever found, what a tool returned. What this package's own components tell needs no redaction.
"""

from __future__ import annotations

import inspect
from typing import Any

from llama_index.core.base.llms.types import BaseContentBlock, ChatMessage
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.schema import BaseNode
from llama_index_instrumentation import root_manager
from llama_index_instrumentation.dispatcher import Dispatcher
from llama_index_instrumentation.event_handlers import NullEventHandler
from llama_index_instrumentation.span_handlers import NullSpanHandler
from pydantic import PrivateAttr

from guardalign_guardrails.content.redaction import OMITTED
from llama_index_guardalign.chat.blocks import without_media
from llama_index_guardalign.chat.messages import without_images
from llama_index_guardalign.nodes.images import without_all_images
from llama_index_guardalign.nodes.leaves import mapped


def redacted(value: Any) -> Any:
    """A value with a few words in place of every image in it, checked or not; itself if there is none.

    Args:
        value: What a span or an event tells: messages, blocks, nodes, tool outputs, responses, within anything.
    """
    return mapped(value, _without)


def redact_traces(dispatcher: Dispatcher | None = None) -> None:
    """Let all handlers that listen now be told of no image; those that are added later are told all.

    Args:
        dispatcher: Whose handlers; None for those of all dispatchers.
    """
    for each in root_manager.dispatchers.values() if dispatcher is None else [dispatcher]:
        each.event_handlers = [_quiet_events(handler) for handler in each.event_handlers]
        each.span_handlers = [_quiet_spans(handler) for handler in each.span_handlers]


class RedactingEventHandler(BaseEventHandler):
    """Hands events on to another handler without images.

    Args:
        handler: The other one.
    """

    _handler: BaseEventHandler = PrivateAttr()

    def __init__(self, handler: BaseEventHandler) -> None:
        super().__init__()
        self._handler = handler

    @classmethod
    def class_name(cls) -> str:
        """The handler's name."""
        return "RedactingEventHandler"

    def handle(self, event: BaseEvent, **kwargs: Any) -> Any:
        """Hand an event on."""
        return self._handler.handle(redacted(event), **kwargs)

    async def ahandle(self, event: BaseEvent, **kwargs: Any) -> Any:
        """Hand an event on, async."""
        return await self._handler.ahandle(redacted(event), **kwargs)


class RedactingSpanHandler(BaseSpanHandler[Any]):
    """Hands spans on to another handler without images in their arguments and results.

    Args:
        handler: The other one. Its open, completed and dropped spans are its own.
    """

    _handler: BaseSpanHandler[Any] = PrivateAttr()

    def __init__(self, handler: BaseSpanHandler[Any]) -> None:
        super().__init__()
        self._handler = handler
        self.open_spans = handler.open_spans

    @classmethod
    def class_name(cls) -> str:
        """The handler's name."""
        return "RedactingSpanHandler"

    def span_enter(self, id_: str, bound_args: inspect.BoundArguments, *args: Any, **kwargs: Any) -> None:
        """Hand the beginning of a span on."""
        self._handler.span_enter(id_, _quiet(bound_args), *args, **kwargs)

    def span_exit(self, id_: str, bound_args: inspect.BoundArguments, *args: Any, **kwargs: Any) -> None:
        """Hand the end of a span on."""
        if "result" in kwargs:
            kwargs["result"] = redacted(kwargs["result"])
        self._handler.span_exit(id_, _quiet(bound_args), *args, **kwargs)

    def span_drop(self, id_: str, bound_args: inspect.BoundArguments, *args: Any, **kwargs: Any) -> None:
        """Hand the end of a span that failed on."""
        self._handler.span_drop(id_, _quiet(bound_args), *args, **kwargs)

    def capture_propagation_context(self) -> dict[str, Any]:
        """The other handler's."""
        return self._handler.capture_propagation_context()

    def restore_propagation_context(self, context: dict[str, Any]) -> None:
        """The other handler's."""
        self._handler.restore_propagation_context(context)

    def close(self) -> None:
        """Close the other handler."""
        self._handler.close()

    def new_span(self, *args: Any, **kwargs: Any) -> Any:
        """The other handler's."""
        return self._handler.new_span(*args, **kwargs)

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> Any:
        """The other handler's."""
        return self._handler.prepare_to_exit_span(*args, **kwargs)

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> Any:
        """The other handler's."""
        return self._handler.prepare_to_drop_span(*args, **kwargs)


def _without(leaf: Any) -> Any:
    if isinstance(leaf, ChatMessage):
        return without_images([leaf])[0]
    if isinstance(leaf, BaseContentBlock):
        return without_media(leaf, OMITTED)
    return without_all_images(leaf, OMITTED) if isinstance(leaf, BaseNode) else OMITTED


def _quiet(bound: inspect.BoundArguments) -> inspect.BoundArguments:
    arguments = redacted(bound.arguments)
    if arguments is bound.arguments:
        return bound
    return inspect.BoundArguments(bound.signature, arguments)


def _quiet_events(handler: BaseEventHandler) -> BaseEventHandler:
    is_quiet = isinstance(handler, RedactingEventHandler | NullEventHandler)
    return handler if is_quiet else RedactingEventHandler(handler)


def _quiet_spans(handler: BaseSpanHandler[Any]) -> BaseSpanHandler[Any]:
    is_quiet = isinstance(handler, RedactingSpanHandler | NullSpanHandler)
    return handler if is_quiet else RedactingSpanHandler(handler)
