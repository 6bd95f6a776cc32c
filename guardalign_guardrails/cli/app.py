"""The commands under one roof, and how they fail: one line on standard error and an exit code, never a traceback.

Errors are turned into lines inside the command group, not around it, so that tests which run the group see what a shell
sees.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import typer
from typer.core import TyperGroup

from guardalign_guardrails.cli.chat import chat
from guardalign_guardrails.cli.console import PROGRAM, report
from guardalign_guardrails.cli.evaluate import evaluations
from guardalign_guardrails.cli.explain import explain
from guardalign_guardrails.cli.policy import policies
from guardalign_guardrails.cli.reference import reference
from guardalign_guardrails.cli.scan import scan
from guardalign_guardrails.cli.verdict import verdicts
from guardalign_guardrails.errors import GuardAlignError

FAILED: Final = 2
INTERRUPTED: Final = 130
READER_GONE: Final = 141


class _Commands(TyperGroup):
    """A command group whose expected errors are one line each."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except GuardAlignError as error:
            report(error)
            code = FAILED
        except (KeyboardInterrupt, typer.Abort):
            report("Interrupted.")
            code = INTERRUPTED
        except Exception as error:
            # Typer has carried its own copy of Click since 0.2x, so usage errors have no class that all versions share.
            describe = getattr(error, "format_message", None)
            if describe is None:
                raise
            context = getattr(error, "ctx", None)
            report(f"{describe().rstrip('.')}. Try '{context.command_path if context else PROGRAM} --help'.")
            code = FAILED
        code = code if isinstance(code, int) else 0
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError as error:
            _forget_standard_output()
            raise typer.Exit(READER_GONE) from error
        except OSError as error:
            # A full disk or a closed descriptor: nothing that a traceback would explain better.
            report(f"{error.filename or 'output'}: {(error.strerror or type(error).__name__).lower()}.")
            _forget_standard_output()
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt as error:
            # Older versions of Click print "Aborted!" on their way and exit with 1.
            report("Interrupted.")
            raise typer.Exit(INTERRUPTED) from error
        return result


app = typer.Typer(
    name=PROGRAM,
    cls=_Commands,
    help="Find, mask or route unsafe image regions before a vision-language model sees them.",
    epilog="Exit codes: 0 nothing acted on, 1 something acted on, 2 error, 130 interrupted, 141 the reader went away.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(scan)
app.command()(explain)
app.command()(reference)
# Its name in 0.1; calibration now is of attention alone.
app.command("calibrate", hidden=True)(reference)
app.command()(chat)
app.add_typer(evaluations, name="evaluate")
app.add_typer(policies, name="policy")
app.add_typer(verdicts, name="verdict")


def main() -> None:
    """Entry point of the ``guardalign`` command."""
    for stream in (sys.stdout, sys.stderr):
        # A path may hold what the terminal's encoding cannot.
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _quiet_libraries()
    app(prog_name=PROGRAM)


def _quiet_libraries() -> None:
    """Let our own warnings through, one line each; what model libraries say on the way to an error, we say better."""
    logging.basicConfig(level=logging.CRITICAL, format=f"{PROGRAM}: %(message)s")
    logging.getLogger("guardalign_guardrails").setLevel(logging.WARNING)
    # Commands say of each file why it could not be checked.
    logging.getLogger("guardalign_guardrails.guarding.report").setLevel(logging.ERROR)
    # Read when the library is imported.
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")


def _forget_standard_output() -> None:
    """Let what is still buffered go nowhere; Python would complain about it on its way out."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
