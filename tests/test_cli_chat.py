"""``guardalign chat``: prompts from a flag, a pipe and a terminal, and what becomes of them."""

from __future__ import annotations

import builtins
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from decoding.scripted_model import ScriptedModel
from decoding.seeing_smollm2 import seeing
from guardalign_guardrails import Guard
from guardalign_guardrails.cli import app
from guardalign_guardrails.cli import chat as chats
from guardalign_guardrails.cli.chat import Conversation
from guardalign_guardrails.decoding import loading
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.testing.colours import ColourEncoder, colour_policy, painted

ROOT = Path(__file__).parent.parent
RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*args, **options):
    return RUNNER.invoke(app, ["chat", *map(str, args)], **options)


def fails_with(result, *words):
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def loaded(monkeypatch, smollm2):
    """Has a model loaded whatever name is asked for; the tokenizer is SmolLM2's unless another comes with it."""

    def use(model, processor=smollm2.processor):
        monkeypatch.setattr(loading, "load", lambda name, **_: loading.Loaded(model, processor, name))
        return model

    return use


@pytest.fixture
def scripted(loaded, smollm2):
    return lambda *texts: loaded(ScriptedModel.writing(smollm2.processor, *texts))


def read(model, processor):
    """What each prompt says."""
    return [processor.decode(ids) for ids in model.prompts]


class TestOnce:
    def test_one_prompt_is_answered_by_the_real_model_and_only_that_is_on_standard_output(self, loaded, smollm2):
        loaded(smollm2.model)
        result = run("--once", "What is the capital of France?", "--no-prefix", "--temperature", 0)
        assert result.exit_code == 0, result.output
        assert result.stdout == "The capital of France is Paris.\n"
        assert result.stderr == ""

    def test_a_report_says_what_calibration_did(self, loaded, smollm2):
        loaded(smollm2.model)
        result = run("--once", "Tell me a joke.", "--gamma", 1, "--report", "--temperature", 0, "--max-new-tokens", 4)
        assert result.exit_code == 0, result.output
        tokens, share = result.stderr.splitlines()
        assert "4 out" in tokens
        assert "end: length" in tokens
        before, after = (float(part.split()[0]) for part in share.split("prefix ")[1].split(" -> "))
        assert 0 < before < after < 1
        assert "gamma 1" in share

    def test_an_answer_that_was_cut_off_is_said_to_be(self, scripted):
        scripted("one two three four five six seven eight nine ten")
        result = run("--once", "Count.", "--max-new-tokens", 3)
        assert "--max-new-tokens" in result.stderr

    def test_a_model_cannot_move_the_cursor(self, scripted):
        scripted("see \x1b[2J\x07 this\tand\nthat")
        result = run("--once", "Show me.")
        assert result.stdout == "see \\x1b[2J\\x07 this\tand\nthat\n"


class TestPipe:
    def test_lines_are_one_conversation(self, scripted, smollm2):
        model = scripted("First answer.", "Second answer.")
        result = run("--no-prefix", input="One question.\n\n  \nAnother question.\n")
        assert result.exit_code == 0, result.output
        assert result.stdout == "First answer.\nSecond answer.\n"
        _, second = read(model, smollm2.processor)
        assert second.index("One question.") < second.index("First answer.") < second.index("Another question.")

    def test_a_reset_forgets_and_a_quit_leaves_the_rest_unread(self, scripted, smollm2):
        model = scripted("First answer.", "Second answer.")
        result = run(input="One question.\n/reset\nAnother question.\n/quit\nA third question.\n")
        assert result.stdout == "First answer.\nSecond answer.\n"
        assert "One question." not in read(model, smollm2.processor)[1]

    def test_words_after_a_slash_that_are_a_path_are_words(self, scripted, smollm2):
        model = scripted("A file of users.")
        assert run(input="/etc/passwd is what?\n").exit_code == 0
        assert "/etc/passwd is what?" in read(model, smollm2.processor)[0]

    @pytest.mark.parametrize("line", ["/imagine", "/image"])
    def test_an_unknown_command_ends_a_pipe(self, scripted, line):
        model = scripted("An answer.")
        fails_with(run(input=f"{line}\nHello.\n"), "no such command", "/image FILE")
        assert model.prompts == []

    def test_the_prefix_goes_where_it_is_told_and_is_not_in_the_history(self, scripted, smollm2):
        model = scripted("An answer.")
        run("--prefix", "Mind the gap.", "--placement", "user", "--gamma", 0.7, input="One.\nTwo.\n")
        assert [prompt.count("Mind the gap.") for prompt in read(model, smollm2.processor)] == [1, 1]
        assert "Mind the gap.\n\nTwo." in read(model, smollm2.processor)[1]

    def test_a_prefix_at_the_start_of_answers_is_shown(self, scripted):
        scripted(" Here you are.")
        result = run("--prefix", "As an AI assistant,", "--placement", "response", input="One.\n")
        assert result.stdout == "As an AI assistant, Here you are.\n"

    def test_bytes_that_are_no_text_are_taken_as_such(self, scripted):
        scripted("An answer.")
        assert run(input=b"caf\xe9?\n").exit_code == 0


class TestFlags:
    @pytest.mark.parametrize(
        ("flags", "prefix", "calibration"),
        [
            ({}, SafetyPrefix(), CalibrationConfig()),
            ({"gamma": 1.5}, SafetyPrefix(), CalibrationConfig.fixed(1.5)),
            (
                {"share": "0.3", "queries": "instruction"},
                SafetyPrefix(),
                CalibrationConfig(target=0.3, gamma=4, queries="instruction"),
            ),
            ({"share": "shallow", "gamma": 2}, SafetyPrefix(), CalibrationConfig(target="shallow", gamma=2)),
            ({"layers": "1/2-0.75"}, SafetyPrefix(), CalibrationConfig(layers=(0.5, 0.75))),
            (
                {"prefix": "Be kind.", "placement": "system"},
                SafetyPrefix(text="Be kind.", placement="system"),
                CalibrationConfig(),
            ),
            ({"is_calibrated": False}, SafetyPrefix(), None),
            ({"has_prefix": False, "is_calibrated": False}, SafetyPrefix(text=""), None),
        ],
    )
    def test_flags_are_prefix_and_calibration(self, flags, prefix, calibration):
        nothing = dict.fromkeys(("prefix", "placement", "gamma", "share", "layers", "queries"))
        found = chats._safety(**{**nothing, "has_prefix": True, "is_calibrated": True, **flags})
        assert found == {"prefix": prefix, "calibration": calibration}

    @pytest.mark.parametrize(
        ("args", "word"),
        [
            (["--gamma", "-1"], "--gamma"),
            (["--gamma", "nan"], "--gamma"),
            (["--gamma", "inf"], "--gamma"),
            (["--temperature", "inf"], "--temperature"),
            (["--target", "much"], "--target"),
            (["--layers", "middle"], "--layers"),
            (["--no-calibration", "--gamma", "1"], "leave one"),
            (["--no-prefix", "--target", "0.2"], "leave one"),
            (["--no-prefix", "--prefix", "Hi"], "leave one"),
            (["--placement", "middle"], "--placement"),
            (["--policy", "p.yaml"], "--guard"),
            (["--encoder", "offline"], "--guard"),
            (["--max-new-tokens", "0"], "--max-new-tokens"),
            (["--device", "toaster"], "--device toaster"),
            (["--model", "missing.gguf"], "missing.gguf"),
            (["--layers", "0.999-1", "--gamma", "1"], "layer"),
        ],
    )
    def test_bad_flags_are_one_line_and_exit_code_2(self, args, word, request, smollm2):
        if "missing.gguf" not in args:
            request.getfixturevalue("loaded")(smollm2.model)
        result = run("--once", "Hi.", *args)
        fails_with(result, word)
        assert result.stdout == ""


class TestImages:
    @pytest.fixture
    def sees(self, loaded, smollm2):
        model, processor = seeing(smollm2.model, smollm2.processor)
        return loaded(model, processor)

    @pytest.fixture
    def guard(self, monkeypatch, cache_dir):
        guard = Guard(colour_policy(), ColourEncoder(), cache_dir=cache_dir)
        monkeypatch.setattr(chats, "chosen_guard", lambda *_: guard)

    @pytest.fixture
    def image(self, tmp_path):
        def save(colour):
            painted(colour).save(tmp_path / f"{colour}.png")
            return f"{colour}.png"

        return save

    def test_a_model_of_text_only_is_given_no_image(self, scripted, image):
        scripted("An answer.")
        fails_with(run("--image", image("white"), "--once", "Hi."), "text only")
        fails_with(run(input=f"/image {image('white')}\n"), "text only")

    def test_a_file_that_is_no_image_is_one_line(self, sees):
        Path("notes.png").write_text("nothing to see")
        fails_with(run("--image", "notes.png", "--once", "Hi."))
        fails_with(run(input="/image missing.png\nHi.\n"))

    def test_an_image_goes_with_the_next_words_and_stays_in_the_conversation(self, sees, smollm2, image):
        settings = GenerationSettings(max_new_tokens=3)
        conversation = Conversation(CalibratedLVLM(sees, loading.load("it").processor, settings=settings))
        assert conversation.take(f"/image {image('white')}")
        assert conversation.take("What is this?")
        assert conversation.images == []
        assert conversation.take("And why?")
        first, *others = conversation.messages
        assert [part["type"] for part in first.content] == ["image_url", "text"]
        assert [message.role for message in others] == ["assistant", "user", "assistant"]

    def test_a_blocked_image_is_refused_by_the_policy_and_reported(self, sees, guard, image):
        result = run("--guard", "--image", image("blue"), "--once", "What is this?", "--report")
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == colour_policy().refusal
        first, second = result.stderr.splitlines()
        assert first.startswith("guardalign: image 1: block (blue_things")
        assert "not asked" in second


class TestTerminal:
    @pytest.fixture
    def conversation(self, smollm2):
        def make(*texts):
            model = ScriptedModel.writing(smollm2.processor, *texts)
            return Conversation(CalibratedLVLM(model, smollm2.processor))

        return make

    @pytest.fixture
    def typed(self, monkeypatch):
        """Lines that are typed; exceptions are raised at the prompt."""

        def use(*lines):
            remaining = iter(lines)

            def ask(_):
                line = next(remaining)
                if isinstance(line, type):
                    raise line
                return line() if callable(line) else line

            monkeypatch.setattr(builtins, "input", ask)

        return use

    def test_a_mistake_is_a_line_and_the_conversation_goes_on(self, conversation, typed, capsys):
        typed("/nonsense", "", "/image missing.png", "Hello.", EOFError)
        chats._talk(conversation("Good day."))
        out, err = capsys.readouterr()
        assert out == "Good day.\n\n"
        assert "no such command" in err
        assert "text only" in err

    def test_the_first_line_says_what_holds(self, conversation, typed, capsys):
        typed("/quit")
        chats._talk(conversation("Good day."))
        assert "safety prefix in place 'user', calibrated with" in capsys.readouterr().err

    def test_an_interruption_at_the_prompt_leaves(self, conversation, typed):
        typed(KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            chats._talk(conversation("Good day."))

    @pytest.fixture
    def interruptible(self):
        """Interruptions, also where the tests were started in the background of a shell, which ignores them."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    @pytest.mark.usefixtures("interruptible")
    def test_an_interruption_stops_the_answer_frees_the_model_and_keeps_what_was_heard(
        self, conversation, typed, capsys, smollm2
    ):
        talk = conversation("One two three four five six seven eight nine ten.", "Well.")
        model = talk.model.model
        model.gate = threading.Event()

        def interrupted():
            def interrupt():
                assert model.started.wait(20)
                # The first token is out; the gate holds the model at the second.
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.3)
                model.gate.set()

            threading.Thread(target=interrupt).start()
            return "Count."

        typed(interrupted, "Go on.", "/quit")
        chats._talk(talk)
        out, err = capsys.readouterr()
        assert out.splitlines()[0].strip() == "One"
        assert out.splitlines()[1] == "Well."
        assert "Stopped." in err
        assert [(m.role, m.content) for m in talk.messages] == [
            ("user", "Count."),
            ("assistant", "One"),
            ("user", "Go on."),
            ("assistant", "Well."),
        ]
        # Two prompts, two tokens of the first answer at most, and the whole second one.
        assert model.steps <= 2 + 2 + 3

    @pytest.mark.slow
    def test_in_a_real_terminal_an_interruption_comes_back_to_the_prompt_and_another_leaves(self, request, smollm2):
        import pty

        (folder,) = (one for one in request.config.cache.mkdir("guardalign-models").rglob("SmolLM2*") if one.is_dir())
        master, slave = pty.openpty()
        command = [
            sys.executable,
            "-m",
            "guardalign_guardrails.cli",
            "chat",
            "--model",
            str(folder),
            "--temperature",
            "0",
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        seen = ""

        def wait_for(words, seconds=120):
            nonlocal seen
            end = time.monotonic() + seconds
            while words not in seen:
                assert time.monotonic() < end, seen
                if select.select([master], [], [], 0.2)[0]:
                    seen += os.read(master, 4096).decode(errors="replace")
            seen = seen.split(words, 1)[1]

        try:
            wait_for("> ")
            os.write(master, b"Write a long story about a dog and a cat.\n")
            wait_for("cat.")
            wait_for(" ")
            process.send_signal(signal.SIGINT)
            wait_for("Stopped.")
            wait_for("> ")
            # Python's readline misses an interruption between the prompt and its wait for keys.
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            wait_for("Interrupted.")
            assert process.wait(60) == 130
        finally:
            process.kill()
            os.close(master)
