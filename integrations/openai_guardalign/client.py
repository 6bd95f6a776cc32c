"""A guarded OpenAI client: the SDK's own class, whose HTTP client lets no forbidden image through."""

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

from openai import AsyncOpenAI, OpenAI

from guardalign_guardrails import Guard, Policy
from guardalign_guardrails.content.bodies import BodyRules
from guardalign_guardrails.content.chat import OnViolation, Placement
from openai_guardalign.http import GuardFailure, guarded_http
from openai_guardalign.request_filter import OnVerdicts, RequestFilter

ClientT = TypeVar("ClientT", bound=OpenAI | AsyncOpenAI)

# WebSockets go past the HTTP client. Connecting to this is an error that quotes the port.
_NO_SOCKETS: Final = "wss://openai.invalid:websockets-are-not-guarded"


def guard(
    client: ClientT,
    guard: Guard | Policy | None = None,
    *,
    on_violation: OnViolation = "refuse",
    route_to: str | None = None,
    placement: Placement = "system",
    on_verdicts: OnVerdicts | None = None,
) -> ClientT:
    """A client like the given one, whose models never see what the policy forbids.

    Args:
        client: `openai.OpenAI`, `openai.AsyncOpenAI`, or their Azure kinds. It stays as it is, and shares its
            connections with the new one.
        guard: What checks; a policy for a guard under it, None for one under the shipped policy.
        on_violation: What a blocked image of the current user turn means: ``refuse`` answers with the policy's refusal,
            and nothing is sent; ``notice`` lets the model answer, with a notice in the image's place; ``raise`` raises
            `UnsafeContentError`.
        route_to: Name of the model (on Azure, of the deployment) that answers requests whose severest action is
            ``route``; without it they count as blocked.
        placement: Where the safety prefix goes: ``system``, or ``user`` for models that know no system message.
        on_verdicts: Called with the verdicts of each request that has images, before it is sent, in the caller's own
            context; not again for a retry.

    Returns:
        A client of the same class; copies of it (``with_options``) are guarded too.
    """
    checks = guard if isinstance(guard, Guard) else Guard(guard)
    rules = BodyRules(on_violation, can_route=route_to is not None, placement=placement)
    request_filter = RequestFilter(checks, rules, route_to, on_verdicts)
    http = guarded_http(client._client, request_filter)  # noqa: SLF001  there is no public way to a client's HTTP client
    fresh: ClientT = cast("Any", client).copy(http_client=http)
    return _kept(fresh, request_filter)


def _kept(client: ClientT, request_filter: RequestFilter) -> ClientT:
    """The client, of which every copy is guarded, also one with another HTTP client."""
    plain: Any = client.copy
    ask: Any = client.request
    # Not an argument of the copy: one that chooses a region would lose it.
    client.websocket_base_url = _NO_SOCKETS

    def copy(*, http_client: Any = None, **options: Any) -> ClientT:
        http = None if http_client is None else guarded_http(http_client, request_filter)
        fresh: ClientT = plain(http_client=http, **options)
        return _kept(fresh, request_filter)

    def request(*args: Any, **options: Any) -> Any:
        try:
            return ask(*args, **options)
        except GuardFailure as failure:
            error = failure.error
        # Out here it keeps the cause and the context that it has.
        raise error

    async def arequest(*args: Any, **options: Any) -> Any:
        try:
            return await ask(*args, **options)
        except GuardFailure as failure:
            error = failure.error
        raise error

    # On the object, so that its class stays the SDK's own.
    client.copy = client.with_options = copy  # type: ignore[method-assign, assignment]
    client.request = arequest if isinstance(client, AsyncOpenAI) else request  # type: ignore[method-assign]
    return client
