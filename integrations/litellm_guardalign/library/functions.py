"""LiteLLM as a library: its functions, guarded.

A callback is not enough there: LiteLLM has no hook that may change a synchronous call, and none at all for
``callbacks=[...]`` of one call. So the function itself is wrapped. What `ImageGuardrail` among ``litellm.callbacks``
can do is in `callbacks`.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel

from guardalign_guardrails.content.bodies import BodyRules, ScreenedBody, ascreen_body, screen_body
from guardalign_guardrails.content.chat import OnViolation, PlacementSetting
from guardalign_guardrails.errors import SettingsError, UnsafeContentError
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.verdict import event_of
from litellm_guardalign.calls import RequestKind, body_of, changes, kind_of

CallT = TypeVar("CallT", bound=Callable[..., Any])

# The functions whose answer has a place for a refusal, and the form of their answer.
_REFUSING: Final[Mapping[str, str]] = {
    "acompletion": "chat",
    "anthropic_messages": "messages",
    "aresponses": "responses",
    "atext_completion": "text",
    "completion": "chat",
    "responses": "responses",
    "text_completion": "text",
}
_OTHERS: Final = frozenset(
    {
        "aembedding",
        "agenerate_content",
        "agenerate_content_stream",
        "aimage_edit",
        "aimage_generation",
        "aimage_variation",
        "aocr",
        "arerank",
        "avideo_generation",
        "embedding",
        "generate_content",
        "generate_content_stream",
        "image_edit",
        "image_generation",
        "image_variation",
        "ocr",
        "rerank",
        "video_generation",
    }
)
# Where callers may put objects of LiteLLM and OpenAI, such as the message of the last answer.
_OF_OBJECTS: Final = frozenset({"contents", "extra_body", "fallbacks", "input", "messages", "prompt", "system"})


class UnguardedCall(BaseException):
    """A call of LiteLLM was stopped: the policy asks for a change, and LiteLLM lets no callback change this call.

    It is no `Exception`, since LiteLLM swallows those of its callbacks and would send the images.
    """


def guarded(
    call: CallT,
    guard: GuardLike = None,
    *,
    call_type: str | None = None,
    on_violation: OnViolation = "refuse",
    route_to: str | None = None,
    placement: PlacementSetting = "auto",
) -> CallT:
    """Guard a function of LiteLLM: no model that it asks sees an image that the policy blocks.

    Args:
        call: ``litellm.completion``, ``acompletion``, ``responses``, ``embedding``, ``image_edit``, ..., or the method
            of a ``Router`` of that name. Synchronous or not, in a stream or not.
        guard: A guard, or what makes one: a policy, the path of a policy file, settings, None for the shipped policy.
        call_type: LiteLLM's word for the call, such as ``aresponses``; needed if the function has another name, as
            some methods of a ``Router`` have.
        on_violation: What a blocked image of the current user turn means: ``refuse`` returns the policy's refusal as
            if a model had said it, and raises `UnsafeContentError` where an answer has no place for it (embeddings,
            images); ``notice`` lets the model answer, with a notice in the image's place; ``raise`` raises
            `UnsafeContentError`.
        route_to: Name of the model for calls whose severest action is ``route``, given in ``model``'s place; without
            it they count as blocked.
        placement: Where the safety prefix goes; ``auto`` follows the name of the model that answers.

    Returns:
        A function that takes and returns what ``call`` does.

    Raises:
        PolicyError: The policy file cannot be read.
        SettingsError: ``guard`` is nothing that makes a guard, or it cannot be told which call this is.
    """
    settings = GuardSettings.of(guard)
    name = _name_of(call, call_type)
    kind = cast("RequestKind", kind_of(name))
    signature = inspect.signature(call)
    rules = BodyRules(on_violation, route_to, placement)

    if inspect.iscoroutinefunction(call):

        @functools.wraps(call)
        async def acall(*args: Any, **kwargs: Any) -> Any:
            given = arguments(signature, args, kwargs)
            body = body_of(given)
            screened = await ascreen_body(settings.guard, body, kind.form, _rules(rules, name, given))
            answer = _answer(settings.guard.policy, name, given, screened)
            return await call(**_sent(given, body, screened, route_to)) if answer is None else answer

        return cast("CallT", acall)

    @functools.wraps(call)
    def guarded_call(*args: Any, **kwargs: Any) -> Any:
        given = arguments(signature, args, kwargs)
        body = body_of(given)
        screened = screen_body(settings.guard, body, kind.form, _rules(rules, name, given))
        answer = _answer(settings.guard.policy, name, given, screened)
        return call(**_sent(given, body, screened, route_to)) if answer is None else answer

    return cast("CallT", guarded_call)


def arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by name, as data that can be screened.

    Raises:
        SettingsError: The function does not say the names of arguments that were given without one.
    """
    given: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise SettingsError("Give this function of LiteLLM its arguments by name: input=..., model=....")
        given.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return as_data(given)


def as_data(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as data that can be screened.

    Objects of LiteLLM and OpenAI become plain data. Files and paths become what is in them now: they could hold
    something else by the time they are sent.
    """
    return {name: plain(value) if name in _OF_OBJECTS else _read(value) for name, value in given.items()}


def plain(value: Any) -> Any:
    """A value with pydantic objects as mappings and other iterables as lists; the very same object if there are none.

    OpenAI's client takes any iterable for messages, such as a deque, and an iterator only once.
    """
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_none=True)
    if isinstance(value, Mapping):
        new = {key: plain(each) for key, each in value.items()}
        return new if any(new[key] is not value[key] for key in new) else value
    if isinstance(value, list | tuple):
        items = [plain(each) for each in value]
        return items if any(one is not other for one, other in zip(items, value, strict=True)) else value
    is_iterable = isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray)
    return [plain(each) for each in value] if is_iterable else value


def _name_of(call: Callable[..., Any], call_type: str | None) -> str:
    # What a partial holds is not seen here.
    name = call_type or (None if isinstance(call, functools.partial) else getattr(call, "__name__", None))
    if isinstance(call, functools.partial) or name not in _REFUSING.keys() | _OTHERS:
        raise SettingsError(
            "Give a function of LiteLLM that sends images to models, such as litellm.completion; for a Router's method "
            "of another name say which with call_type='aresponses'. Partials are made of the guarded function."
        )
    return cast("str", name)


def _rules(rules: BodyRules, name: str, given: Mapping[str, Any]) -> BodyRules:
    """The rules of one call: where its answer has no place for a refusal, an error is raised."""
    form = _REFUSING.get(name)
    has_place = form is not None and not (form == "text" and given.get("stream"))
    return replace(rules, on_violation="raise") if rules.on_violation == "refuse" and not has_place else rules


def _answer(policy: Policy, name: str, given: Mapping[str, Any], screened: ScreenedBody) -> Any:
    """The refusal; None if a model is to be asked."""
    violation, handled_by = screened.decision.violation, screened.decision.handled_by
    if violation is None or handled_by in ("model", "route"):
        return None
    if handled_by == "error":
        raise UnsafeContentError(violation)
    # LiteLLM takes seconds to import; its callers have done so.
    from litellm_guardalign.library.refusals import refusal

    return refusal(_REFUSING[name], given, policy.refusal_for(violation), event_of(screened.verdicts))


def _sent(
    given: Mapping[str, Any], body: Mapping[str, Any], screened: ScreenedBody, route_to: str | None
) -> dict[str, Any]:
    """The arguments for LiteLLM."""
    sent = {**given, **changes(given, body, screened.body)}
    return {**sent, "model": route_to} if screened.decision.handled_by == "route" else sent


def _read(value: Any) -> Any:
    """A file, or a path to one, as its content in memory."""
    if isinstance(value, list) and any(_is_file(each) for each in value):
        return [_read(each) for each in value]
    if isinstance(value, tuple) and len(value) > 1 and (_is_file(value[1]) or isinstance(value[1], bytes)):
        return _in_memory(value[1] if isinstance(value[1], bytes) else _content(value[1]), value[0])
    if not _is_file(value) or isinstance(value, tuple):
        return value
    return _in_memory(_content(value), getattr(value, "name", None))


def _is_file(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) > 1 and (isinstance(value[1], bytes) or _is_file(value[1]))
    return isinstance(value, os.PathLike | io.IOBase) or callable(getattr(value, "read", None))


def _content(file: Any) -> bytes:
    data = Path(file).read_bytes() if isinstance(file, os.PathLike) else file.read()
    return data.encode() if isinstance(data, str) else bytes(data)


def _in_memory(data: bytes, name: Any) -> io.BytesIO:
    file = io.BytesIO(data)
    # LiteLLM reads a file's type from its name.
    file.name = Path(str(name)).name if name else "image"
    return file
