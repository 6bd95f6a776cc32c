"""The record of a request's findings in LiteLLM's logs, dashboards and spend records: never pixels.

An image that no model may see must not end up in a log either, so its replacement goes into LiteLLM's own copies of the
request as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from litellm.types.utils import GuardrailStatus

from guardalign_guardrails import Policy, Verdict
from guardalign_guardrails.actions import severest
from guardalign_guardrails.verdict import event_of

PROVIDER: Final = "guardalign"


def record_of(policy: Policy, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Arguments for LiteLLM's ``add_standard_logging_guardrail_information_to_request_data``."""
    action = severest(*(verdict.action for verdict in verdicts))
    # What could not be checked is a finding also where the policy lets it pass.
    found = [verdict for verdict in verdicts if verdict.finding != "none"]
    masked = Counter(_category(verdict) for verdict in verdicts if verdict.action == "mask")
    return {
        "guardrail_json_response": event_of(verdicts),
        "guardrail_status": _status(verdicts, is_found=bool(found), is_changed=action not in ("allow", "flag")),
        "guardrail_provider": PROVIDER,
        "masked_entity_count": dict(masked),
        "tracing_detail": {
            "policy_template": policy.name,
            "guardrail_id": policy.fingerprint,
            "guardrail_action": action,
            "violation_categories": sorted({_category(verdict) for verdict in found}),
        },
    }


def put(data: dict[str, Any], changed: Mapping[str, Any]) -> None:
    """Replace values of a request's data, and of the copies that LiteLLM has made for its logs by now."""
    data.update(changed)
    request = data.get("proxy_server_request")
    body = request.get("body") if isinstance(request, dict) else None
    if isinstance(request, dict) and isinstance(body, Mapping):
        request["body"] = {**body, **{key: value for key, value in changed.items() if key in body}}
    log = data.get("litellm_logging_obj")
    if changed and log is not None:
        # Of a passed-through request it holds the whole body as text.
        logged = changed.get("messages", changed.get("input", []))
        log.update_messages(logged)
        log.model_call_details["input"] = logged


def name_in_answer(data: Mapping[str, Any], name: str | None) -> None:
    """Have LiteLLM name the guardrail in the header ``x-litellm-applied-guardrails`` of its answer.

    Only where the proxy keeps its own notes: LiteLLM's own function makes a ``metadata`` that some providers are sent.
    """
    notes = next((n for key in ("litellm_metadata", "metadata") if isinstance(n := data.get(key), dict)), {})
    applied = notes.setdefault("applied_guardrails", [])
    if name is not None and name not in applied:
        applied.append(name)


def _category(verdict: Verdict) -> str:
    return (verdict.category if verdict.finding == "unsafe" else None) or "unchecked"


def _status(verdicts: Sequence[Verdict], *, is_found: bool, is_changed: bool) -> str:
    if any(verdict.failure is not None for verdict in verdicts):
        return "guardrail_failed_to_respond"
    if is_changed:
        return "guardrail_intervened"
    # LiteLLM before 1.10x has no word for it.
    return "guardrail_flagged" if is_found and "guardrail_flagged" in get_args(GuardrailStatus) else "success"
