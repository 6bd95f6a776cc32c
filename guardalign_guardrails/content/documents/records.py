"""What of a verdict goes into the metadata of a document or node, and under which names.

Vector stores keep text, numbers and booleans, so the records are JSON in one text field, and the action to filter by is
another. They inform people and reports; no filter believes one, because everybody who can write to a store can write
one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from guardalign_guardrails.actions import LADDER, severest
from guardalign_guardrails.verdict import Verdict

RECORD_KEY: Final = "guardalign"
"""Metadata field with the records of a document's images: a JSON list."""

ACTION_KEY: Final = "guardalign_action"
"""Metadata field with the severest action among them."""

_ID_LENGTH: Final = 24
_FINGERPRINT_LENGTH: Final = 16


def verdict_id(verdict: Verdict) -> str:
    """A name for what was found: the same image, source, policy, profile and encoder always give the same one."""
    parts = (
        verdict.digest,
        verdict.source,
        verdict.policy_fingerprint,
        verdict.profile,
        verdict.encoder,
        verdict.uninspectable,
        verdict.failure,
        # Of two files with the same pixels, one may have a second reading.
        *(["canonical"] if verdict.delivery == "canonical" else []),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_ID_LENGTH]


def with_records(metadata: dict[Any, Any], verdicts: Sequence[Verdict]) -> dict[Any, Any]:
    """The metadata with verdicts on record; the very same object if there is nothing to add.

    A harmless image that goes on as it came is put on record only where there is no record yet, so that what was once
    done to a document stays known when its masked or canonical image is found harmless later. One that could not be
    checked is a finding, and always put on record, also where the policy lets it pass.
    """
    known = _records(metadata.get(RECORD_KEY))
    names = {record["id"] for record in known}
    new: dict[str, dict[str, Any]] = {}
    for verdict in verdicts:
        if verdict.finding == "none" and verdict.delivery == "original" and known:
            continue
        if (name := verdict_id(verdict)) not in names:
            new[name] = _record(name, verdict)
    if not new:
        return metadata
    records = [*known, *new.values()]
    return {
        **metadata,
        RECORD_KEY: json.dumps(records, separators=(",", ":")),
        ACTION_KEY: severest(*(record["action"] for record in records)),
    }


def _record(name: str, verdict: Verdict) -> dict[str, Any]:
    record = {
        "id": name,
        "digest": verdict.digest,
        "source": verdict.source,
        "finding": verdict.finding,
        "action": verdict.action,
        "delivery": verdict.delivery if verdict.delivery != "original" else None,
        "proposed": verdict.proposed if verdict.proposed != verdict.action else None,
        "category": verdict.category if verdict.proposed != "allow" else None,
        "reason": verdict.uninspectable or verdict.failure,
        "policy_fingerprint": (verdict.policy_fingerprint or "")[:_FINGERPRINT_LENGTH],
        "encoder": verdict.encoder,
    }
    return {key: value for key, value in record.items() if value is not None}


def _records(text: object) -> list[dict[str, Any]]:
    """The records in a metadata field; none if it holds anything else."""
    try:
        records = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return []
    return records if isinstance(records, list) and all(map(_is_record, records)) else []


def _is_record(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("id"), str) and value.get("action") in LADDER
