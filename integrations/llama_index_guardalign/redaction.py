"""Traces without images: handlers of LlamaIndex's instrumentation are given a short text in their place.

LlamaIndex hands whatever its spans and events are about to every handler: the messages an agent was given, the nodes a
retriever found, what a tool returned. What this package's own components report needs no redaction.
"""

from __future__ import annotations

import inspect
from typing import Any

from llama_index.core.base.llms.types import BaseContentBlock
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
from guardalign_guardrails.content.walk import find_loose
from llama_index_guardalign.chat.blocks import without_media
from llama_index_guardalign.leaves import mapped
from llama_index_guardalign.nodes.images import without_all_images


def redact_traces(dispatcher: Dispatcher | None = None) -> None:
    """Give all handlers that listen now no image any more; those that are added later are given all.

    Args:
        dispatcher: Whose handlers; None for those of all dispatchers.
    """
    for each in root_manager.dispatchers.values() if dispatcher is None else [dispatcher]:
        each.event_handlers = [
            one if isinstance(one, _RedactingEventHandler | NullEventHandler) else _RedactingEventHandler(one)
            for one in each.event_handlers
        ]
        each.span_handlers = [
            one if isinstance(one, _RedactingSpanHandler | NullSpanHandler) else _RedactingSpanHandler(one)
            for one in each.span_handlers
        ]


def redacted(value: Any) -> Any:
    """A value with a short text in place of every image in it, checked or not; itself if there is none.

    Args:
        value: What a span or an event reports: messages, blocks, nodes, tool outputs, responses, within anything.
    """
    return mapped(value, _without_image)


class _RedactingEventHandler(BaseEventHandler):
    """Hands events on to another handler without images."""

    _handler: BaseEventHandler = PrivateAttr()

    def __init__(self, handler: BaseEventHandler) -> None:
        super().__init__()
        self._handler = handler

    @classmethod
    def class_name(cls) -> str:
        return "RedactingEventHandler"

    def handle(self, event: BaseEvent, **kwargs: Any) -> Any:
        return self._handler.handle(redacted(event), **kwargs)

    async def ahandle(self, event: BaseEvent, **kwargs: Any) -> Any:
        return await self._handler.ahandle(redacted(event), **kwargs)


def _handed_on(name: str) -> Any:
    """A method that calls the other handler's."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._handler, name)(*args, **kwargs)

    return method


class _RedactingSpanHandler(BaseSpanHandler[Any]):
    """Hands spans on to another handler without images in their arguments and results.

    The open, completed and dropped spans are the other handler's own.
    """

    _handler: BaseSpanHandler[Any] = PrivateAttr()

    def __init__(self, handler: BaseSpanHandler[Any]) -> None:
        super().__init__()
        self._handler = handler
        self.open_spans = handler.open_spans

    @classmethod
    def class_name(cls) -> str:
        return "RedactingSpanHandler"

    def span_enter(self, id_: str, bound_args: inspect.BoundArguments, *args: Any, **kwargs: Any) -> None:
        self._handler.span_enter(id_, _redacted_arguments(bound_args), *args, **kwargs)

    def span_exit(self, id_: str, bound_args: inspect.BoundArguments, *args: Any, **kwargs: Any) -> None:
        if "result" in kwargs:
            kwargs["result"] = redacted(kwargs["result"])
        self._handler.span_exit(id_, _redacted_arguments(bound_args), *args, **kwargs)

    def span_drop(self, id_: str, bound_args: inspect.BoundArguments, *args: Any, **kwargs: Any) -> None:
        self._handler.span_drop(id_, _redacted_arguments(bound_args), *args, **kwargs)

    capture_propagation_context = _handed_on("capture_propagation_context")
    restore_propagation_context = _handed_on("restore_propagation_context")
    close = _handed_on("close")
    new_span = _handed_on("new_span")
    prepare_to_exit_span = _handed_on("prepare_to_exit_span")
    prepare_to_drop_span = _handed_on("prepare_to_drop_span")


def _without_image(leaf: Any) -> Any:
    if isinstance(leaf, BaseContentBlock):
        return without_media(leaf, OMITTED)
    if isinstance(leaf, BaseNode):
        return without_all_images(leaf, OMITTED)
    return OMITTED if find_loose(leaf) else leaf


def _redacted_arguments(bound: inspect.BoundArguments) -> inspect.BoundArguments:
    arguments = redacted(bound.arguments)
    return bound if arguments is bound.arguments else inspect.BoundArguments(bound.signature, arguments)
