"""Reads a proxy's config and says what of it lets images pass unchecked.

LiteLLM serves without a guardrail whose keys are wrong, and never asks one that stands in the wrong place. No code of
this package runs then, so that only the config can show it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from guardalign_guardrails import GuardAlignError
from guardalign_guardrails.errors import SettingsError
from litellm_guardalign.settings import KEY, GuardrailSettings, faults_of, gaps_of

_PACKAGE: Final = "litellm_guardalign"
_CLASS: Final = "ImageGuardrail"
_CLASSES: Final = frozenset({f"{_PACKAGE}.{_CLASS}", f"{_PACKAGE}.guardrail.{_CLASS}"})
_LIKE_OURS: Final = re.compile(rf"{_PACKAGE}(\.\w+)*\.[A-Z]\w*\Z")
_DOTTED: Final = re.compile(r"\w+(\.\w+)+\Z")
_FALLBACKS: Final = ("fallbacks", "default_fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
# With either of them, keys and teams leave out guardrails that are on by default.
_OPT_OUTS: Final = ("disable_global_guardrails", "opted_out_global_guardrails")


@dataclass(frozen=True)
class ConfigReport:
    """What a config guards.

    Attributes:
        ways_in: One line for each model and endpoint.
        faults: One line for each thing that lets images pass unchecked.
    """

    ways_in: tuple[str, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """An entry of ``guardrails`` that is ours, or is meant to be."""

    place: str
    name: object
    params: Mapping[str, Any]
    is_class_found: bool

    @property
    def hook_params(self) -> dict[str, Any]:
        """What LiteLLM would hand to the guardrail."""
        rest = {key: value for key, value in self.params.items() if key not in ("guardrail", "mode", KEY)}
        return {**rest, "event_hook": self.params.get("mode")}


def read_config(path: Path) -> dict[str, Any]:
    """A proxy's config with the files that it includes, as LiteLLM puts them together.

    Raises:
        SettingsError: A file is missing or is no mapping.
    """
    config = _mapping_of(path)
    pending = [(include, path) for include in config.pop("include", None) or ()]
    seen: set[Path] = set()
    while pending:
        include, declared_in = pending.pop(0)
        file = next((f for f in (declared_in.parent / include, path.parent / include) if f.exists()), None)
        if file is None:
            raise SettingsError(f"{path}: the included file {include} is missing.")
        if file.resolve() not in seen:
            seen.add(file.resolve())
            included = _mapping_of(file)
            pending += [(each, file) for each in included.pop("include", None) or ()]
            for key, value in included.items():
                both = isinstance(value, list) and isinstance(config.get(key), list)
                config[key] = [*config[key], *value] if both else value
    return config


def report_of(config: Mapping[str, Any], folder: Path) -> ConfigReport:
    """What a config guards, and what it does not.

    Args:
        config: The config.
        folder: Where its file is; LiteLLM looks there for a guardrail's module.
    """
    entries = list(_entries(config, folder))
    broken = {entry.place: list(_faults_in(entry)) for entry in entries}
    working = [entry for entry in entries if not broken[entry.place]]
    faults = [
        *_of_place(config, folder, entries),
        *(fault for each in broken.values() for fault in each),
        *(fault for entry in working for fault in _faults_around(entry, config)),
        *_of_models(config),
        *_of_ways_around(config),
    ]
    return ConfigReport(tuple(_ways_in(config, working)), tuple(faults))


def _ways_in(config: Mapping[str, Any], working: Sequence[_Entry]) -> Iterator[str]:
    """One line for each model and endpoint."""
    always = [str(entry.name) for entry in working if not gaps_of(entry.hook_params)]
    state = f"guarded by {', '.join(always)}" if always else "NOT guarded"
    models: dict[str, str] = {}
    for model in map(_as_mapping, _listed(config, "model_list")):
        own = _listed(_as_mapping(model.get("litellm_params")), "guardrails")
        named = [str(entry.name) for entry in working if entry.name in own]
        by_name = f"guarded by {', '.join(named)}, which it names" if named and not always else state
        models.setdefault(str(model.get("model_name")), by_name)
    yield from (f"model {name}: {each}" for name, each in models.items())
    for endpoint in map(_as_mapping, _listed(_as_mapping(config.get("general_settings")), "pass_through_endpoints")):
        yield f"endpoint {endpoint.get('path')}: {f'JSON {state}, forms NOT guarded' if always else state}"
    yield "WebSockets (realtime, Responses) and assistants: NOT guarded, whatever the config says"


def _entries(config: Mapping[str, Any], folder: Path) -> Iterator[_Entry]:
    for index, entry in enumerate(map(_as_mapping, _listed(config, "guardrails"))):
        params = _as_mapping(entry.get("litellm_params"))
        name = params.get("guardrail")
        is_found = _is_ours(name, folder)
        if is_found or KEY in params or _LIKE_OURS.match(str(name)):
            yield _Entry(f"guardrails[{index}]", entry.get("guardrail_name"), params, is_found)


def _is_ours(name: object, folder: Path) -> bool:
    """Whether a dotted name is that of our class: in this package, or handed on by a module beside the config."""
    if not isinstance(name, str) or not _DOTTED.match(name):
        return False
    module, _, attribute = name.rpartition(".")
    beside = folder.joinpath(*module.split(".")).with_suffix(".py")
    if not beside.is_file():
        return name in _CLASSES
    try:
        tree = ast.parse(beside.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return False
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return any(
        (alias.asname or alias.name) == attribute and f"{node.module}.{alias.name}" in _CLASSES
        for node in imports
        for alias in node.names
    )


def _of_place(config: Mapping[str, Any], folder: Path, entries: Sequence[_Entry]) -> Iterator[str]:
    """Faults of a guardrail that is not there, or where LiteLLM does not look for it."""
    if "guardrails" in config and not isinstance(config["guardrails"], list):
        yield "guardrails: must be a list."
    if not entries:
        yield f"guardrails: no entry has 'guardrail: {_PACKAGE}.{_CLASS}'; nothing is checked."
    known = {f"{entry.place}.litellm_params.guardrail" for entry in entries}
    for place, value in _values(config):
        is_named = isinstance(value, str) and (_LIKE_OURS.match(value) or _is_ours(value, folder))
        if is_named and place not in known:
            yield f"{place}: LiteLLM does not look for a guardrail here; put it into 'guardrails', see docs/litellm.md."
        if place.rpartition(".")[2] in _OPT_OUTS and value:
            yield f"{place}: requests of these keys or teams are not checked."


def _faults_in(entry: _Entry) -> Iterator[str]:
    """Faults of an entry with which LiteLLM does not start, or serves without the guardrail."""
    place = f"{entry.place}.litellm_params"
    if not entry.name or not isinstance(entry.name, str):
        yield f"{entry.place}.guardrail_name: is missing."
    if not entry.is_class_found:
        yield f"{place}.guardrail: {entry.params.get('guardrail')} is not there; write '{_PACKAGE}.{_CLASS}'."
    if "mode" not in entry.params:
        yield f"{place}.mode: is missing; LiteLLM skips the guardrail then and serves without it."
    faults = [*faults_of(entry.hook_params), *GuardrailSettings.misplaced(entry.hook_params), *_of_litellm(entry)]
    yield from (f"{place}.{fault}" for fault in faults if "mode" in entry.params or not fault.startswith("mode:"))
    try:
        GuardrailSettings.read(entry.params.get(KEY), {"event_hook": "pre_call"})
    except GuardAlignError as error:
        yield f"{place}.{KEY}: {error}"


def _faults_around(entry: _Entry, config: Mapping[str, Any]) -> Iterator[str]:
    """Faults by which an entry that works does not see every request, or hands requests to nobody."""
    place = f"{entry.place}.litellm_params"
    yield from (f"{place}.{gap}" for gap in gaps_of(entry.hook_params))
    same = [e for e in map(_as_mapping, _listed(config, "guardrails")) if e.get("guardrail_name") == entry.name]
    if any(_as_mapping(each.get("litellm_params")).get("guardrail") != entry.params["guardrail"] for each in same):
        yield f"{entry.place}.guardrail_name: another guardrail has it too; LiteLLM asks one of them at a time."
    route_to = _as_mapping(entry.params.get(KEY)).get("route_to")
    if route_to is not None and route_to not in _groups(config):
        yield f"{place}.{KEY}.route_to: {route_to} is no model of model_list."
    for name, policy in _as_mapping(config.get("policies")).items():
        steps = _listed(_as_mapping(_as_mapping(policy).get("pipeline")), "steps")
        if any(_as_mapping(step).get("guardrail") == entry.name for step in steps):
            yield f"policies.{name}.pipeline: decides whether what {entry.name} finds counts."


def _of_litellm(entry: _Entry) -> Iterator[str]:
    """Faults for which LiteLLM itself skips a guardrail."""
    # It takes seconds to import.
    from litellm.types.guardrails import LitellmParams

    try:
        LitellmParams(**entry.params)
    except (ValidationError, TypeError) as error:
        details = error.errors() if isinstance(error, ValidationError) else [{"loc": (), "msg": "cannot be read"}]
        for detail in details:
            where = ".".join(map(str, detail["loc"])) or "keys"
            if where != "mode":
                yield f"{where}: {detail['msg']}; LiteLLM skips the guardrail then and serves without it."


def _of_models(config: Mapping[str, Any]) -> Iterator[str]:
    """Faults of models that no guardrail sees, or whose requests may go where nobody can say."""
    names = [_as_mapping(entry).get("guardrail_name") for entry in _listed(config, "guardrails")]
    for index, model in enumerate(map(_as_mapping, _listed(config, "model_list"))):
        for name in _listed(_as_mapping(model.get("litellm_params")), "guardrails"):
            if name not in names:
                yield f"model_list[{index}].litellm_params.guardrails: {name} is no guardrail of this config."
        if _as_mapping(model.get("model_info")).get("mode") == "realtime":
            yield f"model_list[{index}]: images of realtime sessions are not checked."
    known = _groups(config)
    for section in ("router_settings", "litellm_settings"):
        for key in _FALLBACKS:
            for target in _targets(_as_mapping(config.get(section)).get(key)):
                if target not in known and "*" not in "".join(known):
                    yield f"{section}.{key}: {target} is no model of model_list."


def _groups(config: Mapping[str, Any]) -> set[str]:
    """The names by which clients ask for models."""
    models = {str(_as_mapping(model).get("model_name")) for model in _listed(config, "model_list")}
    return models | set(_as_mapping(_as_mapping(config.get("router_settings")).get("model_group_alias")))


def _of_ways_around(config: Mapping[str, Any]) -> Iterator[str]:
    """Ways in that LiteLLM's hooks before a call do not see, or see in part."""
    for endpoint in _listed(_as_mapping(config.get("general_settings")), "pass_through_endpoints"):
        path = _as_mapping(endpoint).get("path")
        yield f"general_settings.pass_through_endpoints: files in forms sent to {path} are not checked."
    if config.get("mcp_servers"):
        yield "mcp_servers: images in results of tools that LiteLLM itself runs are not checked."
    if config.get("assistant_settings"):
        yield "assistant_settings: the assistants API is not checked."


def _targets(fallbacks: object) -> Iterator[str]:
    if isinstance(fallbacks, str):
        yield fallbacks
    elif isinstance(fallbacks, list):
        for each in fallbacks:
            yield from _targets(each)
    elif isinstance(fallbacks, Mapping):
        # One fallback may be a whole deployment.
        for value in fallbacks.values() if "model" not in fallbacks else [fallbacks["model"]]:
            yield from _targets(value)


def _values(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Everything in a config with where it stands."""
    if place:
        yield place, value
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _values(each, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _values(each, f"{place}[{index}]")


def _mapping_of(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: cannot be read ({type(error).__name__}).") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: is no mapping of settings.")
    return data


def _as_mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(mapping: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = mapping.get(key)
    return value if isinstance(value, list) else ()
