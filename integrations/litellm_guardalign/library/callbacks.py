"""What the guardrail can do among ``litellm.callbacks``, where LiteLLM is a library and no proxy runs.

Before an asynchronous call LiteLLM asks its callbacks for changes: the call is guarded there. Before a synchronous one,
and for callbacks of one call alone, it only reports what it is about to send, and swallows every exception of a
callback. The call is stopped there, by an exception that is none of these, if the policy asks for any change.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Final

from guardalign_guardrails.content.bodies import BodyRules, ascreen_body, screen_body
from guardalign_guardrails.content.bodies.prefix import content_for_prefix
from guardalign_guardrails.content.chat import Placement, PlacementSetting, headed, placement_for
from guardalign_guardrails.errors import SettingsError, UnguardedWarning, UnsafeContentError
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.verdict import Verdict
from litellm_guardalign.calls import body_of, changes, kind_of
from litellm_guardalign.library.functions import UnguardedCall, as_data, plain
from litellm_guardalign.record import put
from litellm_guardalign.settings import GuardrailSettings

# Where a call has its content; given without a name, it is not seen by a hook.
_CONTENT: Final[Mapping[str, str]] = {
    "acompletion": "messages",
    "aembedding": "input",
    "agenerate_content": "contents",
    "agenerate_content_stream": "contents",
    "aimage_edit": "image",
    "aimage_variation": "image",
    "anthropic_messages": "messages",
    "aresponses": "input",
    "atext_completion": "prompt",
}
# What these send is all in the report that LiteLLM makes of it; of others, files are not.
_REPORTED: Final = frozenset({"acompletion", "aembedding", "anthropic_messages", "aresponses", "atext_completion"}) | {
    "completion",
    "embedding",
    "responses",
    "text_completion",
}
_MARK: Final = "guardalign"
_REMEDY: Final = "Guard LiteLLM's function itself: litellm_guardalign.guarded(litellm.completion)."


class _CheckedMark(str):
    """Marks a call as checked, by being this very object; no caller can give it."""

    __slots__ = ()


_CHECKED: Final = _CheckedMark("checked")


async def ascreen_call(guard: Guard, settings: GuardrailSettings, call: dict[str, Any], name: str) -> dict[str, Any]:
    """An asynchronous call, sanitised.

    Args:
        guard: Checks.
        settings: Of the guardrail. A route counts as a block, since a call's keys and addresses are its model's.
        call: Arguments by name.
        name: LiteLLM's word for the call.

    Raises:
        UnsafeContentError: An image was blocked.
        SettingsError: The content was not given by name.
    """
    kind = kind_of(name)
    log = call.get("litellm_logging_obj")
    if kind is None:
        return call
    if _CONTENT.get(name, "model") not in call and getattr(log, "messages", None):
        raise SettingsError(f"Give {name} its {_CONTENT.get(name, 'content')} by name; else no callback sees it.")
    data = as_data(call)
    body = body_of(data)
    screened = await ascreen_body(
        guard, body, kind.form, BodyRules(settings.rules(can_refuse=False).on_violation, None, settings.placement)
    )
    put(data, changes(data, body, screened.body))
    if screened.decision.handled_by == "error" and screened.decision.violation is not None:
        raise UnsafeContentError(screened.decision.violation)
    if log is not None:
        log.model_call_details[_MARK] = _CHECKED
    return data


def refuse_what_cannot_be_changed(
    guard: Guard, messages: Any, report: Mapping[str, Any], placement: PlacementSetting = "auto"
) -> None:
    """Stop a call that is about to be sent and was not checked before, if the policy asks for any change in it.

    Args:
        guard: Checks.
        messages: Content of the call.
        report: What LiteLLM is about to send.
        placement: Where the safety prefix has to stand, if it is due.

    Raises:
        UnguardedCall: It does.
    """
    name = str(report.get("call_type"))
    if report.get(_MARK) is _CHECKED or kind_of(name) is None:
        return
    warnings.warn(
        f"LiteLLM lets no callback change this call ({name}); what the policy asks a change for is not sent. {_REMEDY}",
        UnguardedWarning,
        stacklevel=2,
    )
    if name not in _REPORTED:
        raise UnguardedCall(f"What {name} sends cannot be checked by a callback. {_REMEDY}")
    more = report.get("additional_args")
    sent = plain(_parsed(more.get("complete_input_dict") if isinstance(more, Mapping) else None))
    is_headed = _is_headed(sent, guard.policy.prefix.strip(), placement_for(str(report.get("model")), placement))
    said, is_said_sound = _checked(guard, plain(messages), is_headed=is_headed)
    shown, is_sent_sound = _checked(guard, sent, is_headed=is_headed)
    # What is about to be sent differs from the call where a hook has changed it: each image of the call shows there.
    is_changed_already = 0 < len(said) <= len(shown)
    if not is_sent_sound or not (is_said_sound or is_changed_already):
        raise UnguardedCall(f"{_what([*said, *shown])} {_REMEDY}")
    if isinstance(report, MutableMapping):
        report[_MARK] = _CHECKED


def warn_of_what_was_sent(report: Mapping[str, Any]) -> None:
    """Warn of a call that was answered and that no hook has seen: the guardrail is among the wrong callbacks.

    Args:
        report: What LiteLLM says of the call.
    """
    name = str(report.get("call_type"))
    if report.get(_MARK) is not _CHECKED and kind_of(name) is not None:
        warnings.warn(
            f"A call ({name}) was sent unchecked: the guardrail is not among litellm.callbacks. {_REMEDY}",
            UnguardedWarning,
            stacklevel=2,
        )


def _checked(guard: Guard, content: Any, *, is_headed: bool) -> tuple[tuple[Verdict, ...], bool]:
    """The verdicts on some content, and whether the policy lets it be sent as it is, with or without the prefix."""
    body = {"content": content}
    screened = screen_body(guard, body, "other")
    is_prefix_missing = screened.decision.is_prefix_due and not is_headed
    is_same = screened.body is body and screened.decision.handled_by == "model"
    return screened.verdicts, is_same and not is_prefix_missing


def _parsed(sent: Any) -> Any:
    if not isinstance(sent, str | bytes):
        return sent
    try:
        return json.loads(sent)
    except ValueError:
        return sent


def _is_headed(sent: Any, prefix: str, placement: Placement) -> bool:
    """Whether a body has the prefix at the head of an app's instructions: what a chat says may hold it elsewhere."""
    if not isinstance(sent, Mapping):
        return False
    # LiteLLM writes Gemini's name in both spellings.
    of_gemini = sent.get("system_instruction") or sent.get("systemInstruction")
    parts = of_gemini.get("parts") if isinstance(of_gemini, Mapping) else None
    system = (sent.get("system"), sent.get("instructions"), parts) if placement == "system" else ()
    contents = [*system, *(content_for_prefix(sent.get(key), placement) for key in ("messages", "input"))]
    return any(content and headed(content, prefix) is content for content in contents)


def _what(verdicts: Sequence[Verdict]) -> str:
    found = [verdict for verdict in verdicts if verdict.action not in ("allow", "flag") and verdict.digest]
    digests = ", ".join(dict.fromkeys(verdict.digest[:12] for verdict in found))
    where = f" (digest {digests})" if digests else ""
    return f"The safety policy asks for a change of this call{where}, which LiteLLM lets no callback make."
