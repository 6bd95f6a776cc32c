"""What LlamaIndex shows to whom: images that a processor is given, and all that tracers are told."""

from __future__ import annotations

from typing import Any

import numpy as np
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from PIL import Image
from pydantic import Field


class Seen(list[Image.Image]):
    """The images that processors of a class are given, call by call."""

    def __init__(self, monkeypatch: Any, kind: type) -> None:
        super().__init__()
        real = kind.__call__

        def recorded(processor: Any, *args: Any, **kwargs: Any) -> Any:
            for own in kwargs.get("images") or ():
                self.extend(own)
            return real(processor, *args, **kwargs)

        monkeypatch.setattr(kind, "__call__", recorded)


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))


class _Spans(BaseSpanHandler[BaseSpan]):
    """Keeps the names of spans, and all that is told of them as text: objects may change after they were told."""

    names: list[str] = Field(default_factory=list)
    told: list[str] = Field(default_factory=list)

    def new_span(self, id_, bound_args, instance=None, parent_span_id=None, tags=None, **kwargs):
        self.names.append(id_)
        self.told.append(repr((dict(bound_args.arguments), tags)))
        return BaseSpan(id_=id_, parent_id=parent_span_id)

    def prepare_to_exit_span(self, id_, bound_args, instance=None, result=None, **kwargs):
        self.told.append(repr((dict(bound_args.arguments), result)))
        return self.open_spans.get(id_)

    def prepare_to_drop_span(self, id_, bound_args, instance=None, err=None, **kwargs):
        self.told.append(repr((dict(bound_args.arguments), err)))
        return self.open_spans.get(id_)


class _Events(BaseEventHandler):
    events: list[Any] = Field(default_factory=list)
    told: list[str] = Field(default_factory=list)

    def handle(self, event, **kwargs):
        self.events.append(event)
        self.told.append(repr(event))


class _Callbacks(BaseCallbackHandler):
    def __init__(self):
        super().__init__([], [])
        self.told: list[str] = []

    def on_event_start(self, event_type, payload=None, event_id="", parent_id="", **kwargs):
        self.told.append(repr((event_type, payload)))
        return event_id

    def on_event_end(self, event_type, payload=None, event_id="", **kwargs):
        self.told.append(repr((event_type, payload)))

    def start_trace(self, trace_id=None):
        pass

    def end_trace(self, trace_id=None, trace_map=None):
        pass


def _unwrapped(handler: Any) -> Any:
    """The handler itself, if it is told of no image by now."""
    return getattr(handler, "_handler", handler)


class Tracer:
    """Listens to spans and events of everything, and to callbacks of components that are given ``callbacks``.

    As a context manager, so that no test listens to another.
    """

    def __init__(self) -> None:
        self._spans, self._events = _Spans(), _Events()
        self.callbacks = _Callbacks()

    def __enter__(self) -> Tracer:
        root = get_dispatcher()
        root.add_span_handler(self._spans)
        root.add_event_handler(self._events)
        return self

    def __exit__(self, *_: object) -> None:
        root = get_dispatcher()
        root.span_handlers = [one for one in map(_unwrapped, root.span_handlers) if one is not self._spans]
        root.event_handlers = [one for one in map(_unwrapped, root.event_handlers) if one is not self._events]

    @property
    def spans(self) -> list[str]:
        """Names of the spans, as they were opened."""
        return [name.rsplit("-", 5)[0] for name in self._spans.names]

    def of(self, kind: type) -> list[Any]:
        """The events of a class, in order."""
        return [event for event in self._events.events if isinstance(event, kind)]

    @property
    def said(self) -> str:
        """Everything that was told, as text."""
        return "\n".join([*self._spans.told, *self._events.told, *self.callbacks.told])
