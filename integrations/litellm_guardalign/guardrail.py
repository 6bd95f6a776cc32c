"""The guardrail: LiteLLM's native hook before a call, which may change requests.

LiteLLM's newer hook, ``apply_guardrail``, drops changed images, never sees a message of images alone, and reads no
images of the Responses API. The core decides (`guardalign_guardrails.content.bodies`); this module carries it out.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, Final, NoReturn

from litellm.exceptions import GuardrailRaisedException
from litellm.integrations.custom_guardrail import CustomGuardrail

from guardalign_guardrails import Verdict
from guardalign_guardrails.content.bodies import ScreenedBody, ascreen_body
from litellm_guardalign.calls import body_of, can_refuse, changes, kind_of
from litellm_guardalign.record import name_in_answer, put, record_of
from litellm_guardalign.settings import GuardrailSettings

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
        self.guard.prepare()
        super().__init__(**params)

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
