"""Filters the HTTP requests of an OpenAI client: rewrites them, or answers in the API's place.

The bytes that are sent are the bytes that were checked, whichever method of the SDK made them. It uses the few members
that requests of httpx and httpx2 share, and sends requests to endpoints that take no images as they are.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from guardalign_guardrails import Guard, GuardAlignError, UnsafeContentError, Verdict
from guardalign_guardrails.content.bodies import Body, BodyRules, Form, ScreenedBody, ascreen_body, screen_body
from guardalign_guardrails.guarding.guard import uninspectable
from guardalign_guardrails.verdict import event_of
from openai_guardalign.edits import Edit, edit_of_form, edit_of_json
from openai_guardalign.refusals import continued, refusal, unknown_id

OnVerdicts = Callable[[tuple[Verdict, ...]], None]
"""Called with the verdicts of one request, in reading order, before it is sent."""

_FORMS: Final[Mapping[Form, re.Pattern[str]]] = {
    "chat": re.compile(r"/(chat/completions|api/chat)$"),
    "responses": re.compile(r"/responses(/input_tokens|/compact)?$"),
    "other": re.compile(
        r"/(agents/sessions(/[^/]+/events)?|conversations(/[^/]+/items)?|decisions|images/generations"
        r"|threads(/runs|/[^/]+/(messages|runs))?"
        # Servers that are compatible with the API take images there too: llama.cpp's, SGLang, vLLM, proxies.
        r"|classify|completions?|embeddings?|encode|generate|infill|pooling|rerank|score)$"
    ),
    # And so do those that speak Anthropic's or Ollama's API besides; a thread's messages are above.
    "messages": re.compile(r"/messages(/count_tokens)?$"),
}
_ANSWERED: Final = re.compile(r"/(chat/completions|responses)$")
# They take images in forms as well.
_EDITS: Final = re.compile(r"/(images/(edits|variations)|videos(/[^/]+(/remix)?)?)$")
_DEPLOYMENT: Final = re.compile(r"(?<=/deployments/)[^/]+")
_HELPER: Final = "x-stainless-helper-method"
_ATTEMPT: Final = "x-stainless-retry-count"
_OF_THE_BODY: Final = ("content-length", "transfer-encoding")


@dataclass(frozen=True)
class RequestFilter:
    """Stands between a client and the API.

    Attributes:
        guard: Checks.
        rules: What the findings mean.
        on_verdicts: Called with the verdicts; None for nothing.
    """

    guard: Guard
    rules: BodyRules
    on_verdicts: OnVerdicts | None

    def passed(self, request: Any) -> Any:
        """Filter a request.

        Args:
            request: Of httpx or httpx2.

        Returns:
            The request to send, the very same object if nothing changed; or a `RefusalResponse` in the API's place.

        Raises:
            UnsafeContentError: An image was blocked, and ``on_violation`` is ``raise`` or a refusal has no form there.
            GuardAlignError: The guard cannot work: no encoder, no profile.
        """
        if (unknown := unknown_id(_path(request))) is not None:
            return unknown
        if (form := _form(request)) is None:
            return request
        request.read()
        if _EDITS.search(_path(request)):
            edit = _edit(request)
            if edit is None:
                return self._reported(request, *self._malformed(request))
            return self._reported(
                request, *_edited(request, edit, screen_body(self.guard, edit.body, form, self.rules))
            )
        return self._reported(request, *self._decided(request, form))

    async def apassed(self, request: Any) -> Any:
        """`passed` without blocking the event loop."""
        if (unknown := unknown_id(_path(request))) is not None:
            return unknown
        if (form := _form(request)) is None:
            return request
        await request.aread()
        if _EDITS.search(_path(request)):
            edit = await asyncio.to_thread(_edit, request)
            if edit is None:
                return self._reported(request, *self._malformed(request))
            screened = await ascreen_body(self.guard, edit.body, form, self.rules)
            return self._reported(request, *await asyncio.to_thread(_edited, request, edit, screened))
        # A call that waits for its turn must not hold one of the loop's threads.
        body = await asyncio.to_thread(self._read, request)
        if isinstance(body, Verdict):
            return self._reported(request, *_unread(request, body))
        screened = await ascreen_body(self.guard, body, form, self.rules)
        outcome = await asyncio.to_thread(self._outcome, request, body, screened, form)
        return self._reported(request, screened.verdicts, outcome)

    def _reported(self, request: Any, verdicts: tuple[Verdict, ...], outcome: Any) -> Any:
        if verdicts and self.on_verdicts is not None and request.headers.get(_ATTEMPT, "0") == "0":
            self.on_verdicts(verdicts)
        if isinstance(outcome, GuardAlignError):
            raise outcome
        return outcome

    def _decided(self, request: Any, form: Form) -> tuple[tuple[Verdict, ...], Any]:
        """The verdicts, and what is sent, what answers, or the error that is raised once they are reported."""
        body = self._read(request)
        if isinstance(body, Verdict):
            return _unread(request, body)
        screened = screen_body(self.guard, body, form, self.rules)
        return screened.verdicts, self._outcome(request, body, screened, form)

    def _read(self, request: Any) -> Body | Verdict:
        """The body of a request; a verdict if it cannot be read."""
        body = _json(request)
        return uninspectable(self.guard, "malformed").verdict if body is None else body

    def _malformed(self, request: Any) -> tuple[tuple[Verdict, ...], Any]:
        return _unread(request, uninspectable(self.guard, "malformed").verdict)

    def _outcome(self, request: Any, before: Body, screened: ScreenedBody, form: Form) -> Any:
        decision, body = screened.decision, continued(screened.body)
        if decision.violation is not None and decision.handled_by in ("refusal", "error"):
            if decision.handled_by == "error" or not _ANSWERED.search(_path(request)):
                return UnsafeContentError(decision.violation)
            text, record = self.guard.policy.refusal_for(decision.violation), event_of(screened.verdicts)
            return refusal(body, form, text, record, is_parsed=_HELPER in request.headers)
        model = self.rules.route_to if decision.handled_by == "route" and "model" in body else None
        if model is not None:
            body = {**body, "model": model}
        return request if body is before else _rewritten(request, body, model)


def _unread(request: Any, verdict: Verdict) -> tuple[tuple[Verdict, ...], Any]:
    """The verdict on a body that cannot be read, and what is sent or the error that is raised."""
    # A mask cannot be drawn in what cannot be read.
    is_passed = verdict.action not in ("mask", "route", "block")
    return (verdict,), request if is_passed else UnsafeContentError(verdict)


def _form(request: Any) -> Form | None:
    """The form of a request that may bring images; None for one that is not inspected."""
    if request.method != "POST":
        return None
    path = _path(request)
    form = next((form for form, pattern in _FORMS.items() if pattern.search(path)), None)
    return "other" if form is None and _EDITS.search(path) else form


def _path(request: Any) -> str:
    """The path in the form in which lenient servers read it."""
    return str(request.url.path).rstrip("/").lower()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys are unique: of two values of one key, a server may take the other."""
    new = dict(pairs)
    if len(new) < len(pairs):
        raise ValueError("an object with two values of one key")
    return new


def _json(request: Any) -> Body | None:
    """The JSON object that is a request's body; None if it is none."""
    try:
        body = json.loads(request.content, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _edit(request: Any) -> Edit | None:
    """A request to edit images or to make a video; None if it cannot be read."""
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/"):
        return edit_of_form(request.content, kind)
    body = _json(request)
    return None if body is None else edit_of_json(body, _encoded)


def _edited(request: Any, edit: Edit, screened: ScreenedBody) -> tuple[tuple[Verdict, ...], Any]:
    """The verdicts, and what is sent or the error that is raised."""
    content = edit.content(screened)
    return screened.verdicts, _with_content(request, content) if isinstance(content, bytes) else content or request


def _rewritten(request: Any, body: Body, model: str | None) -> Any:
    return _with_content(request, _encoded(body), model)


def _with_content(request: Any, content: bytes, model: str | None = None) -> Any:
    """The same request with another body; an error if that would break its signature."""
    headers = [(key, value) for key, value in request.headers.multi_items() if key.lower() not in _OF_THE_BODY]
    if request.headers.get("authorization", "").startswith("AWS4-"):
        return GuardAlignError(
            "The request is signed and must be changed, which would break the signature; give the client an API key "
            "instead of AWS credentials."
        )
    url = request.url
    if model is not None:
        url = url.copy_with(path=_DEPLOYMENT.sub(lambda _: model, url.path))
    return type(request)(request.method, url, headers=headers, content=content, extensions=request.extensions)


def _encoded(body: Body) -> bytes:
    """JSON as the SDK writes it, so that what did not change is the same to the byte."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        # Half a character, which only an escape can be; the error would hold the whole body.
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
