"""A guard's life: threads, processes, forks, copies."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import pickle
import subprocess
import sys
import threading
import time

import pytest

from guardalign_guardrails import (
    Guard,
    GuardAlignError,
    GuardSettings,
    ImageDecodeError,
    NotPicklable,
    Policy,
    SettingsError,
    UnsafeContentError,
)
from guardalign_guardrails.detection.encoders.offline import OfflineEncoder
from guardalign_guardrails.errors import ContextOverflow, FetchRefused, ForkedProcessError
from guardalign_guardrails.fetch import Fetcher, FetchRules
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard, colour_policy, painted


class Gated(ColourEncoder):
    """Stands still until it may go on."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()

    def encode_crops(self, crops):
        self.gate.wait(30)
        return super().encode_crops(crops)


def gated_guard(tmp_path, **failure):
    encoder = Gated()
    policy = colour_policy(failure={"timeout_s": 0.02, **failure})
    return Guard(policy, encoder, cache_dir=tmp_path), encoder


class TestTimeouts:
    def test_two_hundred_of_them_pile_up_neither_threads_nor_work(self, tmp_path):
        guard, encoder = gated_guard(tmp_path, max_wait_s=0.001)
        guard.prepare()
        before = set(threading.enumerate())
        failures = {guard.check(painted("red", shade=index)).verdict.failure for index in range(200)}
        started = set(threading.enumerate()) - before
        assert failures == {"timeout", "overloaded"}
        assert len(started) == 2, "one for each place"
        encoder.gate.set()
        guard.close()
        for thread in started:
            thread.join()
        assert len(encoder.calls) == 4, "one pass and one of the mask for each of the two that were admitted"

    def test_the_result_of_abandoned_work_is_kept_for_the_next_call(self, tmp_path):
        guard, encoder = gated_guard(tmp_path)
        assert guard.check(painted("magenta")).verdict.failure == "timeout"
        encoder.gate.set()
        deadline = time.monotonic() + 10
        while (verdict := guard.check(painted("magenta")).verdict).failure and time.monotonic() < deadline:
            time.sleep(0.01)
        assert verdict.action == "flag"
        assert len(encoder.calls) == 1

    def test_who_asks_again_waits_for_the_work_under_way(self, tmp_path):
        guard, encoder = gated_guard(tmp_path, timeout_s=5)
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(guard.check(painted("magenta")).verdict.action))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        while not guard._under_way._futures:
            time.sleep(0.01)
        encoder.gate.set()
        for thread in threads:
            thread.join()
        assert answers == ["flag"] * 4
        assert len(encoder.calls) == 1


class TestClosing:
    def test_a_closed_guard_says_so(self, tmp_path):
        with colour_guard(tmp_path) as guard:
            assert guard.check(painted()).verdict.action == "allow"
        with pytest.raises(GuardAlignError, match="closed"):
            guard.check(painted())

    def test_its_threads_end(self, tmp_path):
        guard, encoder = gated_guard(tmp_path)
        encoder.gate.set()
        before = threading.active_count()
        guard.check(painted())
        guard.close()
        deadline = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() == before


class Unpicklable(ColourEncoder):
    def __reduce__(self):
        raise TypeError("no")


class TestPickling:
    @pytest.mark.parametrize("is_used", [False, True])
    def test_a_guard_comes_back_and_finds_the_same(self, tmp_path, is_used):
        guard = colour_guard(tmp_path, sources={"tool": {"at_least": "route"}})
        if is_used:
            guard.check(painted("red"))
        again = pickle.loads(pickle.dumps(guard))
        assert again.policy == guard.policy
        assert again.check(painted("magenta"), source="tool").verdict.action == "route"
        assert len(again.cache) == 1, "what was found stays where it was found"

    def test_one_with_the_offline_encoder_leaves_the_weights_behind(self, offline_guard):
        offline_guard.check(painted())
        data = pickle.dumps(offline_guard)
        assert len(data) < 200_000
        assert isinstance(pickle.loads(data).detector.encoder, OfflineEncoder)

    def test_a_member_that_cannot_be_pickled_is_named(self, tmp_path):
        for guard, member in [
            (Guard(colour_policy(), Unpicklable(), cache_dir=tmp_path), "encoder"),
            (Guard(colour_policy(), ColourEncoder(), fetcher=Fetcher(FetchRules())), "fetcher"),
        ]:
            with pytest.raises(NotPicklable, match=f"The {member}") as error:
                pickle.dumps(guard)
            assert error.value.member == member

    def test_a_spawned_process_checks_with_it(self, tmp_path):
        guard = colour_guard(tmp_path)
        guard.check(painted("red"))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            (verdict,) = pool.map(_action_of_a_red_image, [guard])
        assert verdict == "mask"

    def test_copies_are_the_guard_itself(self, tmp_path):
        guard = colour_guard(tmp_path)
        assert copy.copy(guard) is guard
        assert copy.deepcopy({"guard": guard})["guard"] is guard

    def test_a_policy_survives_pickling_and_copying(self):
        policy = Policy.default()
        assert pickle.loads(pickle.dumps(policy)) == policy
        assert copy.deepcopy(policy) == policy

    def test_errors_do_so_too(self, tmp_path):
        verdict = colour_guard(tmp_path).check(painted("blue")).verdict
        assert pickle.loads(pickle.dumps(UnsafeContentError(verdict))).verdict == verdict
        for error in (ImageDecodeError("empty", "x"), FetchRefused("url_host", "x"), ContextOverflow(2, 1)):
            again = pickle.loads(pickle.dumps(error))
            assert (str(again), vars(again)) == (str(error), vars(error))
        assert isinstance(pickle.loads(pickle.dumps(ForkedProcessError())), ForkedProcessError)


def _action_of_a_red_image(guard):
    return guard.check(painted("red")).verdict.action


FORKED = """
import os, sys
from pathlib import Path
from guardalign_guardrails.errors import ForkedProcessError
from guardalign_guardrails.testing.colours import colour_guard, painted
guard, other = colour_guard(Path(sys.argv[1])), colour_guard(Path(sys.argv[1]))
if sys.argv[2] == "used":
    guard.check(painted("red"))
if os.fork() == 0:
    try:
        said = {guard.check(painted("red")).verdict.action, other.check(painted("red")).verdict.action}
        os._exit(10 if said == {"mask"} else 12)
    except ForkedProcessError:
        os._exit(11)
os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize(("state", "code"), [("used", 11), ("fresh", 10)])
def test_after_a_fork_a_used_guard_is_an_error_and_a_fresh_one_works(tmp_path, state, code):
    ended = subprocess.run([sys.executable, "-c", FORKED, str(tmp_path), state], timeout=60, check=False)
    assert ended.returncode == code


class TestSettings:
    def test_everything_that_stands_for_a_guard_is_taken(self, tmp_path):
        path = tmp_path / "policy.yaml"
        path.write_text(colour_policy().to_yaml())
        guard = colour_guard(tmp_path)
        for given in (path, str(path), colour_policy(), guard, GuardSettings(policy=path), GuardSettings.of(guard)):
            assert GuardSettings.of(given).policy == colour_policy()
        assert GuardSettings.of(guard).guard is guard
        assert GuardSettings.of(None).policy == Policy.default()

    def test_anything_else_is_an_error_that_names_its_type_only(self):
        with pytest.raises(SettingsError, match="not as int"):
            GuardSettings.of(7)

    def test_equal_settings_share_one_guard(self, tmp_path):
        first = GuardSettings(policy=colour_policy(), cache_dir=tmp_path)
        assert first.guard is GuardSettings(policy=colour_policy(), cache_dir=tmp_path).guard

    def test_a_ready_guard_goes_along_when_they_are_pickled(self, tmp_path):
        settings = pickle.loads(pickle.dumps(GuardSettings.of(colour_guard(tmp_path))))
        assert settings.guard.check(painted("red")).verdict.action == "mask"

    def test_one_that_cannot_is_an_error_and_never_a_copy_with_another_guard(self, tmp_path):
        settings = GuardSettings.of(Guard(colour_policy(), Unpicklable(), cache_dir=tmp_path))
        with pytest.raises(NotPicklable, match="encoder"):
            pickle.dumps(settings)

    def test_dumps_are_read_back(self, tmp_path):
        settings = GuardSettings(policy=colour_policy(), cache_dir=tmp_path)
        assert GuardSettings.model_validate_json(settings.model_dump_json()) == settings

    def test_a_policy_is_given_by_its_path_as_text(self, tmp_path):
        path = tmp_path / "policy.yaml"
        path.write_text(colour_policy().to_yaml())
        assert Guard(str(path)).policy == colour_policy()


def test_no_log_tells_of_what_was_checked(tmp_path, caplog):
    guard = colour_guard(tmp_path)
    with caplog.at_level(logging.DEBUG):
        guard.check(encode_png(painted("blue")))
    assert "blue" not in caplog.text
