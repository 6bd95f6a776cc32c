"""An HTTP client that sends only what a filter lets through.

Whichever of its methods is called, the SDK hands finished bytes to its HTTP client, so none of them can go around the
filter by accident. The wrapped client does the sending, and keeps its settings, connections and lifetime.
"""

from __future__ import annotations

import datetime
from functools import lru_cache
from importlib import import_module
from typing import Any, NoReturn

from guardalign_guardrails import NotPicklable
from openai_guardalign.refusals import RefusalResponse
from openai_guardalign.request_filter import RequestFilter


def guarded_http(inner: Any, request_filter: RequestFilter) -> Any:
    """Put a filter in front of an HTTP client.

    Args:
        inner: A ``Client`` or ``AsyncClient`` of httpx or httpx2.
        request_filter: Decides on each request.

    Returns:
        A client of the same kind, which sends by ``inner``.
    """
    return _kind(_base(type(inner)))(inner, request_filter)


class GuardFailure(BaseException):
    """Carries an error of the guard past the SDK.

    Before openai 3.16 the SDK takes every `Exception` of its HTTP client for a lost connection: it would ask again, and
    raise an error of its own. The guarded client's ``request`` raises the error that is carried.

    Attributes:
        error: What the request filter raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _Guarded:
    """The shared part of the sync and the async client, mixed into a class that the SDK takes for an HTTP client."""

    def __init__(self, inner: Any, request_filter: RequestFilter) -> None:
        self._inner, self._filter = inner, request_filter
        self._httpx = import_module(_base(type(inner)).__module__.partition(".")[0])
        is_async = isinstance(inner, self._httpx.AsyncClient)
        # It sends nothing itself, and a transport of its own would load certificates.
        transport = self._httpx.AsyncBaseTransport() if is_async else self._httpx.BaseTransport()
        options: dict[str, Any] = {"transport": transport, "timeout": inner.timeout, "trust_env": False}
        super().__init__(**options)

    def __reduce__(self) -> NoReturn:
        # Without connections there is no client, and one with new connections could be one without a guard.
        raise NotPicklable("client", type(self._inner).__name__)

    @property
    def is_closed(self) -> bool:
        return bool(self._inner.is_closed)

    @property
    def event_hooks(self) -> Any:
        return self._inner.event_hooks

    @event_hooks.setter
    def event_hooks(self, hooks: Any) -> None:
        self._inner.event_hooks = hooks

    def build_request(self, *args: Any, **options: Any) -> Any:
        return self._inner.build_request(*args, **options)

    def _response(self, answer: RefusalResponse, request: Any) -> Any:
        headers = {"content-type": answer.media_type}
        response = self._httpx.Response(answer.status, headers=headers, content=answer.data, request=request)
        response.elapsed = datetime.timedelta(0)
        return response


class _GuardedClient(_Guarded):
    def send(self, request: Any, **options: Any) -> Any:
        try:
            passed = self._filter.passed(request)
        except Exception as error:  # noqa: BLE001  raised again by the guarded client
            raise GuardFailure(error) from None
        return (
            self._response(passed, request)
            if isinstance(passed, RefusalResponse)
            else self._inner.send(passed, **options)
        )

    def close(self) -> None:
        self._inner.close()


class _GuardedAsyncClient(_Guarded):
    async def send(self, request: Any, **options: Any) -> Any:
        try:
            passed = await self._filter.apassed(request)
        except Exception as error:  # noqa: BLE001  raised again by the guarded client
            raise GuardFailure(error) from None
        if isinstance(passed, RefusalResponse):
            return self._response(passed, request)
        return await self._inner.send(passed, **options)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _base(kind: type) -> type:
    """The client class of httpx or httpx2 that a class derives from."""
    is_base = ((each.__module__.partition(".")[0] in ("httpx", "httpx2")) for each in kind.__mro__)
    found = next((each for each, fits in zip(kind.__mro__, is_base, strict=True) if fits), None)
    if found is None:
        raise TypeError(f"A guarded client sends by httpx or httpx2, not by a {kind.__name__}.")
    return found


@lru_cache(maxsize=4)
def _kind(base: type) -> type:
    mixin = _GuardedAsyncClient if base.__name__ == "AsyncClient" else _GuardedClient
    return type(f"Guarded{base.__name__}", (mixin, base), {})
