"""The guardrail: LiteLLM's native hook before a call, which may change requests.

LiteLLM's newer hook, ``apply_guardrail``, drops changed images, never sees a message of images alone, and reads no
images of the Responses API. The core decides (`guardalign_guardrails.content.bodies`); this module carries it out.

Outside the proxy LiteLLM calls other hooks, and none that may change a synchronous call, see `library.callbacks`.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from typing import Any, ClassVar, Final, NoReturn

from litellm.exceptions import GuardrailRaisedException
from litellm.integrations.custom_guardrail import CustomGuardrail

from guardalign_guardrails import UnguardedWarning, Verdict
from guardalign_guardrails.content.bodies import ScreenedBody, ascreen_body
from guardalign_guardrails.errors import SettingsError
from litellm_guardalign.calls import body_of, can_refuse, changes, kind_of
from litellm_guardalign.library.callbacks import ascreen_call, refuse_what_cannot_be_changed, warn_of_what_was_sent
from litellm_guardalign.record import name_in_answer, put, record_of
from litellm_guardalign.settings import GuardrailSettings, faults_of, gaps_of

logger = logging.getLogger(__name__)

_BLOCKED: Final = 400
_UNCHECKED: Final = 503


class ImageGuardrail(CustomGuardrail):  # type: ignore[misc]  # LiteLLM may not be here when types are checked
    """Checks the images of requests to a LiteLLM proxy before any model is called.

    Images are masked in place, whichever of the APIs a client speaks; models get the safety prefix, routed requests
    another model, and blocked ones no model at all.

    Args:
        guardalign: The settings, see `GuardrailSettings`.
        params: What LiteLLM hands to guardrails: name, mode, ``default_on`` and keys of other guardrails.

    Raises:
        GuardAlignError: The settings are wrong, or the guard cannot work. LiteLLM does not start then.
    """

    use_native_lifecycle_hooks: ClassVar[bool] = True

    def __init__(self, *, guardalign: object = None, **params: Any) -> None:
        self.settings = GuardrailSettings.read(guardalign, params)
        self.guard = self.settings.guard
        for gap in gaps_of(params):
            text = f"GuardAlign's guardrail does not guard every request. {gap}"
            # The proxy shows no warnings.
            logger.warning(text)
            warnings.warn(text, UnguardedWarning, stacklevel=2)
        self.guard.prepare()
        super().__init__(**params)

    def apply_stream_scope(self, stream_scope: object) -> None:
        """Refuse a scope that leaves requests unguarded; LiteLLM hands it over after the guardrail was made.

        Raises:
            SettingsError: The scope leaves out streams or whole answers.
        """
        if faults := faults_of({"event_hook": "pre_call", "stream_scope": stream_scope}):
            raise SettingsError("; ".join(faults))
        # Older versions have no scopes.
        if hasattr(CustomGuardrail, "apply_stream_scope"):
            super().apply_stream_scope(stream_scope)

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Sanitise a request, in place as LiteLLM expects it.

        Raises:
            GuardrailRaisedException: An image was blocked, or could not be checked and must not pass unchecked.
            ModifyResponseException: The refusal, which LiteLLM answers with.
        """
        kind = kind_of(call_type)
        if kind is None:
            return data
        started, body = time.time(), body_of(data)
        rules = self.settings.rules(can_refuse=can_refuse(kind, data))
        screened = await ascreen_body(self.guard, body, kind.form, rules)
        put(data, changes(data, body, screened.body))
        self._log(data, screened, started)
        self._carry_out(data, screened)
        return data

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """Sanitise an asynchronous call of the library; for the proxy, whose hook is the one above, do as LiteLLM does.

        Raises:
            UnsafeContentError: An image was blocked. A hook cannot answer in a model's place, so that a refusal is
                raised too.
            SettingsError: The content was not given by name, and cannot be changed here.
        """
        if self._is_of_the_proxy:
            result: dict[str, Any] | None = await super().async_pre_call_deployment_hook(kwargs, call_type)
            return result
        return await ascreen_call(self.guard, self.settings, kwargs, str(getattr(call_type, "value", call_type)))

    def log_pre_api_call(self, model: Any, messages: Any, kwargs: dict[str, Any]) -> None:
        """Stop a call of the library that no hook could change, if the policy asks for a change.

        Raises:
            UnguardedCall: It does.
        """
        if not self._is_of_the_proxy:
            refuse_what_cannot_be_changed(self.guard, messages, kwargs, self.settings.placement)

    def log_success_event(self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Warn of a call of the library that no hook before it has seen."""
        if not self._is_of_the_proxy:
            warn_of_what_was_sent(kwargs)

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Warn of a call of the library that no hook before it has seen."""
        self.log_success_event(kwargs, response_obj, start_time, end_time)

    @property
    def _is_of_the_proxy(self) -> bool:
        """Whether the proxy made this guardrail, and calls the hook before a call whenever its config says so."""
        # Nothing of a request may decide this: an app may hand on what its own clients send.
        registry = sys.modules.get("litellm.proxy.guardrails.guardrail_registry")
        handler = getattr(registry, "IN_MEMORY_GUARDRAIL_HANDLER", None)
        made = getattr(handler, "guardrail_id_to_custom_guardrail", {})
        return any(guardrail is self for guardrail in made.values())

    def _carry_out(self, data: dict[str, Any], screened: ScreenedBody) -> None:
        decision = screened.decision
        if decision.handled_by == "route":
            data["model"] = self.settings.route_to
        elif decision.handled_by == "refusal" and decision.violation is not None:
            self.raise_passthrough_exception(self.guard.policy.refusal_for(decision.violation), data)
        elif decision.violation is not None and decision.handled_by == "error":
            self._raise(decision.violation)

    def _raise(self, verdict: Verdict) -> NoReturn:
        is_failure = verdict.failure is not None
        error = GuardrailRaisedException(
            guardrail_name=self.guardrail_name, message=_message(verdict), should_wrap_with_default_message=False
        )
        # Not arguments: older versions know neither, but answer with the one.
        error.status_code = _UNCHECKED if is_failure else _BLOCKED
        error.blocked_content = not is_failure
        raise error

    def _log(self, data: dict[str, Any], screened: ScreenedBody, started: float) -> None:
        ended = time.time()
        self.add_standard_logging_guardrail_information_to_request_data(
            request_data=data,
            start_time=started,
            end_time=ended,
            duration=ended - started,
            **record_of(self.guard.policy, screened.verdicts),
        )
        name_in_answer(data, self.guardrail_name)


def _message(verdict: Verdict) -> str:
    """The message for a client. It names no category, which would help to probe the policy; logs have it."""
    # What could not be opened has no digest.
    where = f"of this request (digest {verdict.digest[:12]})" if verdict.digest else "of this request"
    if verdict.failure is not None:
        return f"GuardAlign could not check content {where}; try again."
    if verdict.uninspectable is not None:
        reason = f"{verdict.uninspectable}. Send images inline, as base64 or data URLs."
        return f"GuardAlign could not open content {where}: {reason}"
    return f"The safety policy blocked an image {where}."
