"""A guarded OpenAI client: the SDK's own class, whose HTTP client sends no image that the policy blocks."""

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

from openai import AsyncOpenAI, OpenAI

from guardalign_guardrails.content.bodies import BodyRules
from guardalign_guardrails.content.chat import OnViolation, PlacementSetting
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from openai_guardalign.http import GuardFailure, guarded_http
from openai_guardalign.request_filter import OnVerdicts, RequestFilter

ClientT = TypeVar("ClientT", bound=OpenAI | AsyncOpenAI)

# WebSockets go past the HTTP client. Connecting to this is an error that quotes the port.
_NO_SOCKETS: Final = "wss://openai.invalid:websockets-are-not-guarded"


def guard_client(
    client: ClientT,
    guard: GuardLike = None,
    *,
    on_violation: OnViolation = "refuse",
    route_to: str | None = None,
    placement: PlacementSetting = "auto",
    on_verdicts: OnVerdicts | None = None,
) -> ClientT:
    """Guard a client: its models never see an image that the policy blocks.

    Args:
        client: `openai.OpenAI`, `openai.AsyncOpenAI`, or their Azure kinds. It stays as it is, and shares its
            connections with the new one.
        guard: A guard, or what makes one: a policy, the path of a policy file, settings, None for the shipped policy.
        on_violation: What a blocked image of the current user turn means: ``refuse`` answers with the policy's refusal,
            and nothing is sent; ``notice`` lets the model answer, with a notice in the image's place; ``raise`` raises
            `UnsafeContentError`.
        route_to: Name of the model (on Azure, of the deployment) that answers requests whose severest action is
            ``route``; without it they count as blocked.
        placement: Where the safety prefix goes: ``system``, ``user`` for models that know no system message, or
            ``auto`` for what the name of the model that answers calls for.
        on_verdicts: Called with the verdicts of each request that has images, before it is sent, in the caller's own
            context; not again for a retry.

    Returns:
        A client of the same class; copies of it (``with_options``, ``copy.deepcopy``) are guarded too. It cannot be
        pickled (`NotPicklable`), as no client of the SDK can.

    Raises:
        PolicyError: The policy file cannot be read.
        SettingsError: ``guard`` is nothing that makes a guard.
    """
    rules = BodyRules(on_violation, route_to, placement)
    request_filter = RequestFilter(GuardSettings.of(guard).guard, rules, on_verdicts)
    http = guarded_http(client._client, request_filter)  # noqa: SLF001  there is no public way to a client's HTTP client
    fresh: ClientT = cast("Any", client).copy(http_client=http)
    return _kept(fresh, request_filter)


def _kept(client: ClientT, request_filter: RequestFilter) -> ClientT:
    """Make the copies of a client guarded ones, also a copy with another HTTP client."""
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
    cast("Any", client).__deepcopy__ = lambda memo: copy()
    client.request = arequest if isinstance(client, AsyncOpenAI) else request  # type: ignore[method-assign]
    return client
