"""From the text of a policy file to checked data, with errors a person can act on.

Apart from the models in `guardalign_guardrails.policy.model` because it knows YAML and wording, and they do not.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from guardalign_guardrails.errors import PolicyError

M = TypeVar("M", bound=BaseModel)


def parse(text: str, model: type[M], default: Callable[[], dict[str, Any]]) -> M:
    """Read YAML or JSON text as a model.

    A mapping whose ``extends`` is ``default`` is laid over the default first: mappings key by key; lists and
    ``thresholds``, whose entries make sense only together, as a whole.

    Args:
        text: YAML or JSON (which is YAML).
        model: What it should be.
        default: Makes the data that ``extends: default`` stands for.

    Returns:
        The checked model.

    Raises:
        PolicyError: In one line, naming each field at fault.
    """
    data = _mapping(text)
    base = data.pop("extends", None)
    if base not in (None, "default"):
        raise PolicyError(f"extends: only 'default' can be extended, got {base!r}.")
    try:
        return model.model_validate(_merged(default(), data) if base else data)
    except ValidationError as error:
        raise PolicyError(_explain(error, model)) from error


def hint(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """``, did you mean 'x'?`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _mapping(text: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise PolicyError(f"The policy is not valid YAML{where}: {problem}.") from error
    if not isinstance(data, dict):
        raise PolicyError("A policy is a mapping with keys such as 'categories' and 'benign'.")
    return data


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """``change`` laid over ``base``, mappings but ``thresholds`` key by key; neither is altered."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if key != "thresholds" and isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merged(old, value)
        else:
            merged[key] = value
    return merged


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for each field at fault, with the nearest known name for a misspelt one."""
    lines = []
    for item in error.errors(include_input=False, include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "policy"
        if item["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key{hint(str(item['loc'][-1]), _known_keys(model, item['loc'][:-1]))}")
        elif item["type"] == "missing":
            lines.append(f"{where}: missing (start from the shipped policy with 'extends: default')")
        else:
            lines.append(f"{where}: {item['msg'].removeprefix('Value error, ')}")
    return "The policy is not valid: " + "; ".join(lines)


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names that may stand at ``path``, from the JSON schema."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    node: dict[str, Any] = schema
    for part in path:
        options = [node, *node.get("anyOf", [])]
        found: dict[str, Any] = next(
            (o for o in options if part in o.get("properties", {}) or "additionalProperties" in o), {}
        )
        node = found.get("properties", {}).get(part) or found.get("additionalProperties") or {}
        node = node if isinstance(node, dict) else {}
        refs = [node.get("$ref"), *(o.get("$ref") for o in [*node.get("anyOf", []), *node.get("allOf", [])])]
        ref = next((r for r in refs if r), None)
        if ref:
            node = definitions[ref.rsplit("/", 1)[-1]]
    return list(node.get("properties", {}))
