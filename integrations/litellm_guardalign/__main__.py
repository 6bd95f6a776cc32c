"""Checks the config of a LiteLLM proxy, or starts a guarded proxy.

    python -m litellm_guardalign check config.yaml
    python -m litellm_guardalign start config.yaml --port 4000
    python -m litellm_guardalign start --upstream http://127.0.0.1:8000/v1 --model llava --port 4000

LiteLLM's own proxy runs: with a config that passes the check, or with one made from the options for an
OpenAI-compatible server. Without a command the options are those of ``start``.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, get_args
from urllib.parse import urlsplit

from guardalign_guardrails import GuardAlignError
from guardalign_guardrails.content.chat import OnViolation, PlacementSetting
from guardalign_guardrails.detection.encoders.registry import FORMS
from guardalign_guardrails.errors import SettingsError
from litellm_guardalign.check import read_config, report_of
from litellm_guardalign.config import config_of, write
from litellm_guardalign.settings import GuardrailSettings

_KEY: Final = "LITELLM_MASTER_KEY"
_COMMANDS: Final = ("check", "start")
# Options that make a config, and have no place beside one.
_OF_A_SERVER: Final = ("upstream", "model", "api_key_env", "write", *GuardrailSettings.model_fields)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status, 1 if a config lets images pass unchecked."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Before there were commands the options stood alone.
    is_bare = bool(given) and given[0] not in (*_COMMANDS, "-h", "--help")
    options = _parser().parse_args(["start", *given] if is_bare else given)
    try:
        # fastapi comes with LiteLLM's proxy only.
        if find_spec("litellm") is None or find_spec("fastapi") is None:
            raise SettingsError("LiteLLM's proxy is not installed; run: pip install 'guardalign-guardrails[litellm]'")
        return _check(options.config, options.accept) if options.command == "check" else _start(options)
    except GuardAlignError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _check(path: Path, accepted: Sequence[str]) -> int:
    report = report_of(read_config(path), path.parent)
    for way in report.ways_in:
        print(way)
    meant = [fault for fault in report.faults if fault.startswith(tuple(accepted))]
    faults = [fault for fault in report.faults if fault not in meant]
    for fault in meant:
        print(f"accepted: {fault}")
    for fault in faults:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _start(options: argparse.Namespace) -> int:
    if options.config is not None:
        if beside := [name for name in _OF_A_SERVER if getattr(options, name) is not None]:
            raise SettingsError(f"--{beside[0].replace('_', '-')}: leave it out; the config says it.")
        return _check(options.config, options.accept) or _run(options.config, options.host, options.port)
    if options.upstream is None or options.model is None:
        raise SettingsError("start: give a config, or a server with --upstream and --model.")
    config = config_of(options.upstream, options.model, _api_key(options.api_key_env), _settings(options))
    if options.write is not None:
        print(f"Wrote {write(config, options.write)}; start it with: litellm --config {options.write}/config.yaml")
        return 0
    with tempfile.TemporaryDirectory(prefix="guardalign-proxy-") as folder:
        return _serve(write(config, Path(folder)), options.host, options.port)


def _parser() -> argparse.ArgumentParser:
    first, *_ = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(prog="python -m litellm_guardalign", description=first)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check", help="say what a proxy's config lets pass unchecked; exit status 1 if anything"
    )
    check.add_argument("config", type=Path)
    start = commands.add_parser("start", help="start a guarded proxy; the command if none is named")
    start.add_argument("config", type=Path, nargs="?", help="a config, which is checked before; or give --upstream")
    for command in (check, start):
        command.add_argument(
            "--accept",
            action="append",
            default=[],
            metavar="PLACE",
            help="faults that are meant so: those that begin like this; may be repeated",
        )
    start.add_argument("--upstream", type=_url, help="base URL of the server, such as https://host/v1")
    start.add_argument("--model", action="append", help="a model of the server; may be repeated")
    start.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable with the server's key, if it wants one"
    )
    start.add_argument("--host", default="127.0.0.1")
    start.add_argument("--port", type=int, default=4000)
    start.add_argument("--write", type=Path, metavar="FOLDER", help="write the config into a folder and stop")
    guard = start.add_argument_group("guard")
    guard.add_argument("--policy", type=Path, help="policy file; default: the one that ships with the package")
    guard.add_argument("--encoder", help=f"default: offline; {FORMS}")
    guard.add_argument("--profile", type=Path, help="calibration profile; default: one that fits")
    guard.add_argument("--cache-dir", type=Path, help="folder for anchor features")
    guard.add_argument("--on-violation", choices=get_args(OnViolation), help="default: refuse")
    guard.add_argument("--route-to", metavar="MODEL", help="one of the models, for requests that are to be routed")
    guard.add_argument("--placement", choices=get_args(PlacementSetting), help="default: auto")
    return parser


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError("must be a URL such as https://host/v1")
    return text


def _api_key(variable: str | None) -> str:
    if variable is None:
        # LiteLLM wants one even for servers that do not.
        return "none"
    if not os.environ.get(variable):
        raise SettingsError(f"--api-key-env: {variable} is not set.")
    return f"os.environ/{variable}"


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, as they are written into the config; they are read once, to find faults."""
    if options.route_to is not None and options.route_to not in options.model:
        raise SettingsError(f"--route-to: name the model with --model {options.route_to} as well.")
    given = {name: getattr(options, name) for name in GuardrailSettings.model_fields}
    # The proxy may be started from another folder.
    settings = {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in given.items() if v is not None}
    GuardrailSettings.read(settings, {"event_hook": "pre_call"})
    return settings


def _serve(config: Path, host: str, port: int) -> int:
    if not os.environ.get(_KEY):
        os.environ[_KEY] = f"sk-{secrets.token_urlsafe(24)}"
        print(f"{_KEY} is not set; for this run clients use the key {os.environ[_KEY]}", flush=True)
    return _run(config, host, port)


def _run(config: Path, host: str, port: int) -> int:
    # Its price list comes with it; by default it asks the network for a newer one at every start.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from litellm.proxy.proxy_cli import run_server

    arguments = ["--config", str(config), "--host", host, "--port", str(port), "--telemetry", "False"]
    run_server.main(args=arguments, prog_name="litellm", standalone_mode=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
