"""``guardalign chat``: a conversation with a local model in a terminal, or with prompts from a pipe.

On a terminal an error is one line and the conversation goes on. From a pipe the first error ends it.
Answers go to standard output, all else to standard error.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from guardalign_guardrails.cli.console import CommandError, report
from guardalign_guardrails.cli.local_model import (
    ModelDeviceOption,
    ModelOption,
    Placement,
    Queries,
    band,
    chosen_model,
    target,
)
from guardalign_guardrails.cli.options import ENCODER_FORMS, chosen_guard
from guardalign_guardrails.errors import GuardAlignError

if TYPE_CHECKING:
    from guardalign_guardrails.decoding.chat.answer import Answer
    from guardalign_guardrails.decoding.chat.messages import Message
    from guardalign_guardrails.decoding.lvlm import CalibratedLVLM

HELP: Final = "/image FILE attaches an image, /reset forgets the conversation, /quit leaves; Ctrl-C stops an answer."
_COMMAND: Final = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


def chat(
    model: ModelOption = "smollm2",
    gamma: Annotated[
        float | None,
        typer.Option(
            "--gamma",
            min=0,
            metavar="G",
            help="A fixed strength of calibration; with --target the largest one it may take.",
        ),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option("--target", metavar="SHARE", help="The share of attention to reach for the prefix, or 'shallow'."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", metavar="LOW-HIGH", help="The band of calibrated layers, as fractions of the depth."),
    ] = None,
    queries: Annotated[
        Queries | None, typer.Option("--queries", help="The tokens whose attention is calibrated.")
    ] = None,
    no_calibration: Annotated[
        bool, typer.Option("--no-calibration", help="Keep the prefix and leave attention as it is.")
    ] = False,
    prefix: Annotated[
        str | None, typer.Option("--prefix", metavar="TEXT", help="The safety prefix, in place of the default one.")
    ] = None,
    no_prefix: Annotated[bool, typer.Option("--no-prefix", help="Use no safety prefix and no calibration.")] = False,
    placement: Annotated[Placement | None, typer.Option("--placement", help="The place of the prefix.")] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="Attach an image to the first message; repeatable."),
    ] = None,
    is_guarded: Annotated[bool, typer.Option("--guard", help="Check images before the model sees them.")] = False,
    policy: Annotated[Path | None, typer.Option("--policy", metavar="FILE", help="The guard's policy.")] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", metavar="NAME", help=f"The guard's encoder: {ENCODER_FORMS}")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="The guard's reference profile.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer.")] = 512,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", min=0, help="0 takes the likeliest token; the default is the model's own."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Make sampling repeatable.")] = None,
    once: Annotated[str | None, typer.Option("--once", metavar="PROMPT", help="Answer one prompt and exit.")] = None,
    is_reported: Annotated[
        bool,
        typer.Option("--report", help="After each answer, report its speed, its calibration and the guard's verdicts."),
    ] = False,
    device: ModelDeviceOption = None,
) -> None:
    """Talk to a local model with the safety prefix and calibrated attention; prompts may come from a pipe."""
    if not is_guarded and (policy or encoder or profile):
        raise CommandError("--policy, --encoder and --profile are the guard's; give --guard too.")
    for flag, value in (("--gamma", gamma), ("--temperature", temperature)):
        if value is not None and not math.isfinite(value):
            raise CommandError(f"{flag} takes finite numbers.")
    safety = _safety(
        prefix=prefix,
        placement=placement,
        has_prefix=not no_prefix,
        gamma=gamma,
        share=share,
        layers=layers,
        queries=queries,
        is_calibrated=not (no_calibration or no_prefix),
    )
    from guardalign_guardrails.decoding.chat.settings import GenerationSettings

    guard = chosen_guard(encoder or "offline", policy, profile, None, device) if is_guarded else None
    settings = GenerationSettings(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    ready = chosen_model(model, device, guard=guard, settings=settings, **safety)
    conversation = Conversation(ready, is_reported=is_reported)
    for file in image or ():
        conversation.attach(file)
    if once is not None:
        conversation.say(once)
    elif sys.stdin is not None and sys.stdin.isatty():
        _talk(conversation)
    else:
        for line in _piped():
            if line.strip() and not conversation.take(line.strip()):
                break


def _safety(
    *,
    prefix: str | None,
    placement: Placement | None,
    has_prefix: bool,
    gamma: float | None,
    share: str | None,
    layers: str | None,
    queries: Queries | None,
    is_calibrated: bool,
) -> dict[str, Any]:
    """Prefix and calibration by the flags given, with defaults for the rest."""
    contradicts = not is_calibrated and any(value is not None for value in (gamma, share, layers, queries))
    if contradicts or (not has_prefix and (prefix is not None or placement is not None)):
        raise CommandError("A flag says how and another that not at all; leave one of them out.")
    text = {"text": prefix if has_prefix else "", "placement": placement}
    calibration = {
        "gamma": gamma,
        "target": None if share is None else target(share),
        "layers": None if layers is None else band(layers),
        "queries": queries,
    }
    from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix

    # A gamma alone is the paper's mode.
    configured = CalibrationConfig if gamma is None or share is not None else CalibrationConfig.fixed
    return {
        "prefix": SafetyPrefix(**_given(text)),
        "calibration": configured(**_given(calibration)) if is_calibrated else None,
    }


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


@dataclass
class Conversation:
    """A chat with its history.

    Attributes:
        model: Answers.
        is_reported: Whether each answer is followed by a report.
        messages: The messages so far.
        images: Image blocks for the next prompt.
    """

    model: CalibratedLVLM
    is_reported: bool = False
    messages: list[Message] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)

    def take(self, line: str) -> bool:
        """Run a command or answer a prompt; False if the command is to leave.

        Raises:
            GuardAlignError: It cannot be done.
            KeyboardInterrupt: The answer was stopped; the part that was written belongs to the conversation.
        """
        found = _COMMAND.fullmatch(line)
        command, argument = found.groups() if found else (None, None)
        if command == "quit":
            return False
        if command == "reset":
            self.reset()
        elif command == "image" and argument:
            self.attach(Path(argument.strip()).expanduser())
        elif command is not None:
            raise CommandError(f"There is no such command. {HELP}")
        else:
            self.say(line)
        return True

    def reset(self) -> None:
        """Forget all messages and images."""
        self.messages.clear()
        self.images.clear()

    def attach(self, file: Path) -> None:
        """Add an image to the next prompt.

        Raises:
            CommandError: The model reads text only.
            ImageDecodeError: It cannot be opened.
        """
        if not self.model.is_multimodal:
            raise CommandError(f"The model '{self.model.name}' reads text only; it cannot be given images.")
        from guardalign_guardrails.content.payload import to_data_url
        from guardalign_guardrails.images import decode

        # Opened now, so that a bad file is reported before a prompt is typed; the guard checks all frames, so it gets
        # the file as it is.
        kind = decode(file, self.model.limits).format.lower()
        self.images.append({"type": "image_url", "image_url": {"url": to_data_url(file.read_bytes(), f"image/{kind}")}})

    def say(self, text: str) -> None:
        """Send a prompt with the images attached, and write the answer as it comes.

        Raises:
            GuardAlignError: There is no answer; the conversation is as it was.
            KeyboardInterrupt: The answer was stopped; the part that was written belongs to the conversation.
        """
        from guardalign_guardrails.decoding.chat.messages import Message

        turn = Message("user", [*self.images, {"type": "text", "text": text}] if self.images else text)
        shown: list[str] = []
        answer: Answer | None = None
        began = time.perf_counter()
        chunks = self.model.stream([*self.messages, turn], is_reported=self.is_reported)
        try:
            # Closing frees the model, also when Ctrl-C comes in between.
            with contextlib.closing(cast("Any", chunks)):
                for chunk in chunks:
                    shown.append(chunk.text)
                    _write(chunk.text)
                    answer = chunk.answer or answer
        finally:
            if shown:
                _write("\n")
            if "".join(shown).strip():
                self.messages += [turn, Message("assistant", "".join(shown))]
                self.images.clear()
        if answer is not None:
            self._report(answer, time.perf_counter() - began)

    def _report(self, answer: Answer, seconds: float) -> None:
        if self.is_reported:
            for line in _report_lines(answer, seconds):
                report(line)
        elif answer.finish_reason == "length":
            report("The answer was cut off; allow more with --max-new-tokens.")


def _talk(conversation: Conversation) -> None:
    """Take lines from a terminal until it is left."""
    with contextlib.suppress(ImportError):
        # Line editing and history; not there on every system.
        import readline  # noqa: F401
    model = conversation.model
    report(f"{model.name}, {_described(model)}. {HELP}")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            _write("\n")
            return
        try:
            if line and not conversation.take(line):
                return
        except KeyboardInterrupt:
            report("Stopped.")
        except GuardAlignError as error:
            report(error)


def _piped() -> Iterator[str]:
    """Lines of standard input; there is none where a caller closed it."""
    if sys.stdin is None:
        return
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    yield from sys.stdin


def _described(model: CalibratedLVLM) -> str:
    """Safety settings in one line."""
    if not model.prefix.text.strip():
        return "no safety prefix"
    calibration = model.calibration
    if calibration is None:
        return f"safety prefix in place '{model.prefix.placement}', not calibrated"
    dose = f"gamma {calibration.gamma:g}" if calibration.target is None else f"target {calibration.target}"
    low, high = calibration.layers
    return f"safety prefix in place '{model.prefix.placement}', calibrated with {dose} in layers {low:.2g}-{high:.2g}"


def _report_lines(answer: Answer, seconds: float) -> Iterator[str]:
    """Lines of an answer's report."""
    for number, verdict in enumerate(answer.verdicts, 1):
        unchecked = verdict.uninspectable or verdict.failure
        why = f"could not be checked: {unchecked}" if unchecked else verdict.category or "nothing found"
        yield f"image {number}: {verdict.action} ({why})"
    tokens = answer.usage.completion_tokens
    if answer.finish_reason == "refusal":
        yield "refused by the policy; the model was not asked"
        return
    yield (
        f"{answer.usage.prompt_tokens} tokens in, {tokens} out in {seconds:.1f} s "
        f"({tokens / seconds if seconds else 0:.1f} a second), end: {answer.finish_reason}"
    )
    found = answer.calibration
    if found is not None and found.after:
        before, after = _mean(found.before.values()), _mean(found.after.values())
        strengths = [strength for layer in found.gamma.values() for strength in layer]
        strength = f"{min(strengths):.2g}" if len(set(strengths)) == 1 else f"{min(strengths):.2g}-{max(strengths):.2g}"
        yield (
            f"share of the prompt's attention on the prefix {before:.3f} -> {after:.3f} in {len(found.after)} layers, "
            f"gamma {strength}"
        )


def _mean(rows: Any) -> float:
    values: Sequence[float] = [value for row in rows for value in row]
    return sum(values) / len(values)


def _write(text: str) -> None:
    """Text as it comes; a model cannot move the cursor or change the terminal."""
    shown = (
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )
    sys.stdout.write("".join(shown))
    sys.stdout.flush()
