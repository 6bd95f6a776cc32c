"""How many calls a guard works on at once, how many wait, and what becomes of those that it cannot take."""

from __future__ import annotations

import asyncio
import io
import pickle
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from guardalign_guardrails import Guard, GuardAlignError
from guardalign_guardrails.content.screen import Turn, ascreen, screen
from guardalign_guardrails.content.screened_chat import ascreen_chats, screen_chats
from guardalign_guardrails.guarding.admission import AdmissionQueue, Allowance
from guardalign_guardrails.guarding.cache import UnderWay
from guardalign_guardrails.guarding.steps import HeldSteps, Wait, afinish, finish
from guardalign_guardrails.images import decode, encode_png
from guardalign_guardrails.testing.chats import image_block
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard, colour_policy, painted

SOON = 20
"""Seconds after which a test that waits in vain fails; none waits as long."""

CROPS = 17
"""What one image is for the encoder: sixteen cells and the whole."""


class Gate:
    """Work that stands still until it may go on, and says how much of it runs at once."""

    def __init__(self):
        self.open = threading.Event()
        self.begun = threading.Semaphore(0)
        self.running = self.most = self.runs = 0
        self._lock = threading.Lock()

    def pass_through(self):
        with self._lock:
            self.running += 1
            self.runs += 1
            self.most = max(self.most, self.running)
        self.begun.release()
        assert self.open.wait(SOON)
        with self._lock:
            self.running -= 1

    def wait_for(self, count):
        for _ in range(count):
            assert self.begun.acquire(timeout=SOON)


class GatedEncoder(ColourEncoder):
    def __init__(self, gate):
        super().__init__()
        self.gate = gate

    def encode_crops(self, crops):
        self.gate.pass_through()
        return super().encode_crops(crops)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture
def gate(threads):
    """A gate that opens when a test ends, before its threads are waited for."""
    gate = Gate()
    yield gate
    gate.open.set()


def gated(gate, cache_dir, *, max_concurrent=2, **failure):
    policy = colour_policy(failure=failure)
    return Guard(policy, GatedEncoder(gate), cache_dir=cache_dir, max_concurrent=max_concurrent)


def queue_of(places=1, max_waiting=64, max_wait_s=SOON, timeout_s=None):
    return AdmissionQueue(places, max_waiting=max_waiting, max_wait_s=max_wait_s, timeout_s=timeout_s)


def until(condition):
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


async def auntil(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


class TestQueue:
    def test_no_more_work_runs_at_once_than_there_are_places(self, gate, threads):
        queue = queue_of(places=3)
        calls = [threads.submit(finish, queue.run(lambda _: gate.pass_through())) for _ in range(9)]
        gate.wait_for(3)
        until(lambda: len(queue._queue) == 6)
        assert gate.running == 3
        gate.open.set()
        assert [call.result(SOON) for call in calls] == [None] * 9
        assert gate.most == 3

    def test_a_full_queue_refuses_at_once(self, gate, threads):
        queue = queue_of(max_waiting=1)
        working = threads.submit(finish, queue.run(lambda _: gate.pass_through()))
        gate.wait_for(1)
        waiting = threads.submit(finish, queue.run(lambda _: gate.pass_through()))
        until(lambda: queue._queue)
        assert finish(queue.run(lambda _: gate.pass_through())) == "overloaded"
        gate.open.set()
        assert [working.result(SOON), waiting.result(SOON)] == [None, None]
        assert gate.runs == 2

    def test_waiting_has_its_own_limit_and_what_waited_never_begins(self, gate, threads):
        queue = queue_of(max_wait_s=0.01)
        working = threads.submit(finish, queue.run(lambda _: gate.pass_through()))
        gate.wait_for(1)
        assert finish(queue.run(lambda _: gate.pass_through())) == "overloaded"
        assert not queue._queue
        gate.open.set()
        assert working.result(SOON) is None
        assert gate.runs == 1

    def test_late_work_keeps_its_place_until_it_ends(self, gate):
        queue = queue_of(max_wait_s=0.01, timeout_s=0.01)
        assert finish(queue.run(lambda _: gate.pass_through())) == "timeout"
        assert finish(queue.run(lambda _: gate.pass_through())) == "overloaded"
        gate.open.set()
        until(lambda: queue._free)
        assert finish(queue.run(lambda _: gate.pass_through())) is None
        assert gate.runs == 2

    def test_time_counts_from_admission(self, gate, threads):
        queue, begun = queue_of(timeout_s=0.5), []
        allowances = []
        working = threads.submit(finish, queue.run(lambda _: gate.pass_through()))
        gate.wait_for(1)
        waiting = threads.submit(finish, queue.run(allowances.append))
        until(lambda: queue._queue)
        assert working.result(SOON) == "timeout"
        begun.append(time.monotonic())
        gate.open.set()
        assert waiting.result(SOON) is None
        assert allowances[0].until >= begun[0] + 0.5

    def test_who_waits_longest_is_next(self, gate, threads):
        queue, order = queue_of(), []
        calls = [threads.submit(finish, queue.run(lambda _: gate.pass_through()))]
        gate.wait_for(1)
        for number in range(5):
            calls.append(threads.submit(finish, queue.run(lambda _, number=number: order.append(number))))
            until(lambda number=number: len(queue._queue) == number + 1)
        gate.open.set()
        assert [call.result(SOON) for call in calls] == [None] * 6
        assert order == [0, 1, 2, 3, 4]

    def test_work_that_fails_gives_its_place_back(self):
        queue = queue_of(max_waiting=0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                finish(queue.run(lambda _: 1 / 0))
        assert finish(queue.run(lambda _: None)) is None

    def test_work_is_told_when_its_caller_has_gone(self, gate):
        queue, allowances = queue_of(timeout_s=0.01), []

        def work(allowance):
            allowances.append(allowance)
            gate.pass_through()

        assert finish(queue.run(work)) == "timeout"
        assert allowances[0].is_over

    def test_a_caller_interrupted_in_the_queue_leaves_it(self, gate, threads):
        queue = queue_of()
        threads.submit(finish, queue.run(lambda _: gate.pass_through()))
        gate.wait_for(1)
        steps = queue.run(lambda _: gate.pass_through())
        next(steps)
        steps.close()
        assert not queue._queue

    def test_a_caller_interrupted_when_it_has_just_been_admitted_passes_its_place_on(self, gate, threads):
        queue = queue_of()
        working = threads.submit(finish, queue.run(lambda _: gate.pass_through()))
        gate.wait_for(1)
        steps = queue.run(lambda _: gate.pass_through())
        admitted = next(steps).future
        gate.open.set()
        assert working.result(SOON) is None
        assert admitted.done()
        steps.close()
        assert queue._free == 1

    def test_a_caller_interrupted_at_work_leaves_the_place_to_the_work(self, gate):
        queue = queue_of()
        allowances = []
        steps = queue.run(lambda allowance: (allowances.append(allowance), gate.pass_through()))
        next(steps)
        gate.wait_for(1)
        steps.close()
        assert queue._free == 0
        assert allowances[0].is_over
        gate.open.set()
        until(lambda: queue._free == 1)

    def test_calls_that_wait_when_it_is_closed_are_an_error_and_places_come_back(self, gate, threads):
        queue = queue_of()
        working = threads.submit(finish, queue.run(lambda _: gate.pass_through()))
        gate.wait_for(1)
        waiting = [threads.submit(finish, queue.run(lambda _: None)) for _ in range(2)]
        until(lambda: len(queue._queue) == 2)
        queue.close()
        gate.open.set()
        assert working.result(SOON) is None
        for call in waiting:
            with pytest.raises(GuardAlignError, match="closed"):
                call.result(SOON)
        assert queue._free == 1

    def test_at_least_one_must_be_able_to_work(self):
        with pytest.raises(ValueError, match="not 0"):
            queue_of(places=0)

    def test_it_has_no_thread_before_the_first_work(self):
        before = threading.active_count()
        queue = queue_of()
        assert threading.active_count() == before
        finish(queue.run(lambda _: None))
        assert threading.active_count() == before + 1
        queue.close()


class TestSteps:
    async def test_waiting_on_a_loop_holds_no_thread_of_its_executor(self):
        future: Future[None] = Future()

        def steps():
            yield Wait(future)
            return threading.current_thread()

        with ThreadPoolExecutor(1) as only:
            asyncio.get_running_loop().set_default_executor(only)
            tasks = [asyncio.create_task(afinish(steps())) for _ in range(20)]
            for _ in range(20):
                assert await asyncio.to_thread(lambda: "free") == "free"
            future.set_result(None)
            assert len(await asyncio.wait_for(asyncio.gather(*tasks), SOON)) == 20

    async def test_steps_run_off_the_loop(self):
        def steps():
            return threading.current_thread()
            yield

        assert await afinish(steps()) is not threading.current_thread()

    @pytest.mark.parametrize("is_async", [False, True])
    def test_waiting_ends_in_time(self, is_async):
        def steps():
            waits = Wait(Future(), time.monotonic() + 0.01)
            yield waits
            return waits.future.done()

        assert (asyncio.run(afinish(steps())) if is_async else finish(steps())) is False

    @pytest.mark.parametrize("is_async", [False, True])
    def test_an_error_of_a_step_is_raised(self, is_async):
        def steps():
            future: Future[None] = Future()
            future.set_exception(KeyError("unasked"))
            yield Wait(future)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            asyncio.run(afinish(steps())) if is_async else finish(steps())

    async def test_a_task_cancelled_while_it_waits_closes_the_steps_at_once(self):
        waits, closed = threading.Event(), []

        class WaitedFor(Future):
            def add_done_callback(self, fn):
                super().add_done_callback(fn)
                waits.set()

        def steps():
            try:
                yield Wait(WaitedFor())
            finally:
                closed.append(True)

        task = asyncio.create_task(afinish(steps()))
        await auntil(waits.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert closed == [True]

    async def test_a_task_cancelled_during_a_step_closes_the_steps_when_it_ends(self):
        begun, go_on, closed = threading.Event(), threading.Event(), threading.Event()

        def steps():
            try:
                begun.set()
                assert go_on.wait(SOON)
                yield Wait(Future())
            finally:
                closed.set()

        held = steps()  # or they would be closed when nobody holds them
        task = asyncio.create_task(afinish(held))
        await asyncio.to_thread(begun.wait, SOON)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not closed.is_set()
        go_on.set()
        assert await asyncio.to_thread(closed.wait, SOON)

    def test_no_step_begins_after_they_were_abandoned(self):
        def steps():
            yield Wait(Future())

        held = HeldSteps(steps())
        held.abandon()
        assert held.advance() is None
        assert held.results == []


class TestUnderWay:
    def test_threads_that_need_each_others_items_do_not_wait_for_ever(self, threads):
        under_way, both = UnderWay(), threading.Barrier(2)

        def work(keys):
            both.wait(SOON)
            return dict.fromkeys(keys, threading.get_ident())

        def ask(first, second):
            one = under_way.run([first], work)
            return {**one, **under_way.run([second], lambda keys: dict.fromkeys(keys, "again"))}

        calls = [threads.submit(ask, "a", "b"), threads.submit(ask, "b", "a")]
        assert [set(call.result(SOON)) for call in calls] == [{"a", "b"}] * 2

    def test_an_item_is_worked_on_once_and_its_other_askers_get_the_result(self, gate, threads):
        under_way = UnderWay()
        working = threads.submit(under_way.run, ["a"], lambda keys: gate.pass_through() or dict.fromkeys(keys, 1))
        gate.wait_for(1)
        joined = threads.submit(under_way.run, ["a"], lambda keys: dict.fromkeys(keys, 2))
        until(lambda: under_way._futures["a"]._waiters)
        gate.open.set()
        assert [working.result(SOON), joined.result(SOON)] == [{"a": 1}] * 2

    def test_waiting_for_another_thread_ends_in_time(self, gate, threads):
        under_way = UnderWay()
        threads.submit(under_way.run, ["a"], lambda keys: gate.pass_through() or dict.fromkeys(keys, 1))
        gate.wait_for(1)
        found = under_way.run(["a", "b"], lambda keys: dict.fromkeys(keys, 2), time.monotonic() + 0.01)
        assert found == {"b": 2}

    def test_what_fails_is_raised_and_forgotten(self):
        under_way = UnderWay()
        with pytest.raises(ZeroDivisionError):
            under_way.run(["a"], lambda _: 1 / 0)
        assert under_way.run(["a"], lambda keys: dict.fromkeys(keys, 3)) == {"a": 3}


class TestOverload:
    @pytest.mark.parametrize("rule", ["block", "mask", "allow"])
    def test_a_call_that_is_not_admitted_is_an_unchecked_finding_by_its_rule(self, gate, threads, tmp_path, rule):
        guard = gated(gate, tmp_path, max_concurrent=1, max_waiting=0, on_overload=rule)
        busy = threads.submit(guard.check, painted("red"))
        gate.wait_for(1)
        data = encode_png(painted("blue"))
        checked = guard.check(data)
        verdict = checked.verdict
        assert (verdict.failure, verdict.finding, verdict.action) == ("overloaded", "unchecked", rule)
        assert verdict.digest
        assert (rule == "allow") == (not checked.is_blocked and checked.output == data)
        gate.open.set()
        assert busy.result(SOON).verdict.action == "mask"
        assert guard.check(data).verdict.action == "block"
        assert guard.check(data).verdict.failure is None, "a failure is never kept"

    def test_the_twin_of_an_overloaded_call_is_overloaded_too(self, gate, threads, tmp_path):
        guard = gated(gate, tmp_path, max_concurrent=1, max_wait_s=0.01)
        threads.submit(guard.check, painted("red"))
        gate.wait_for(1)
        assert asyncio.run(guard.acheck(painted("blue"))).verdict.failure == "overloaded"
        assert guard.check(painted("blue")).verdict.failure == "overloaded"

    def test_known_images_need_no_place(self, gate, threads, tmp_path):
        guard = gated(gate, tmp_path, max_concurrent=1, max_waiting=0)
        known = encode_png(painted("magenta"))
        gate.open.set()
        guard.check(known)
        gate.open.clear()
        threads.submit(guard.check, painted("red"))
        gate.wait_for(2)
        verdicts = [one.verdict for one in guard.check_batch([known, encode_png(painted("blue")), b"", known])]
        assert [verdict.action for verdict in verdicts] == ["flag", "block", "block", "flag"]
        assert [verdict.failure or verdict.uninspectable for verdict in verdicts] == [None, "overloaded", "empty", None]

    @pytest.mark.parametrize("is_async", [False, True])
    def test_no_more_is_decoded_at_once_than_there_are_places(self, gate, threads, tmp_path, monkeypatch, is_async):
        guard, decoding = gated(gate, tmp_path), Gate()
        plain = Guard._open
        monkeypatch.setattr(Guard, "_open", lambda *args: decoding.pass_through() or plain(*args))
        images = [encode_png(painted("magenta", shade=n)) for n in range(8)]

        async def all_of_them():
            return await asyncio.gather(*(guard.acheck(image) for image in images))

        calls = [threads.submit(asyncio.run, all_of_them())] if is_async else []
        calls += [] if is_async else [threads.submit(guard.check, image) for image in images]
        decoding.wait_for(2)
        until(lambda: len(guard._admission._queue) == 6)
        assert decoding.running == 2
        decoding.open.set()
        gate.open.set()
        for call in calls:
            call.result(SOON)
        assert (decoding.runs, decoding.most) == (8, 2)

    def test_time_limits_hold_for_decoding_too(self, tmp_path, monkeypatch):
        guard, decoding = colour_guard(tmp_path, failure={"timeout_s": 0.01}), Gate()
        monkeypatch.setattr(Guard, "_open", lambda *_: decoding.pass_through())
        verdict = guard.check(encode_png(painted("red"))).verdict
        decoding.open.set()
        assert (verdict.failure, verdict.finding, verdict.action) == ("timeout", "unchecked", "block")

    def test_work_that_ends_because_its_time_is_over_is_late_too(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Allowance, "is_over", True)
        guard = colour_guard(tmp_path)
        verdicts = [one.verdict for one in guard.check_batch([painted(), painted("red")])]
        assert [(verdict.failure, verdict.action) for verdict in verdicts] == [("timeout", "block")] * 2
        assert guard.detector.encoder.calls == []

    def test_what_was_found_before_time_was_over_counts(self, gate, tmp_path, monkeypatch):
        monkeypatch.setattr("guardalign_guardrails.guarding.guard._PIXELS_AT_ONCE", 1)
        guard, decoding = colour_guard(tmp_path, failure={"timeout_s": 1.5}), Gate()
        guard.prepare()
        plain = Guard._open

        def second_stands_still(self, read):
            if read.place == 1:
                decoding.pass_through()
            return plain(self, read)

        monkeypatch.setattr(Guard, "_open", second_stands_still)
        images = [encode_png(painted(colour)) for colour in ("magenta", "red", "blue")]
        verdicts = [checked.verdict for checked in guard.check_batch(images)]
        assert [(verdict.failure, verdict.action) for verdict in verdicts] == [
            (None, "flag"),
            ("timeout", "block"),
            ("timeout", "block"),
        ]
        decoding.open.set()
        until(lambda: guard._admission._free == 2)
        assert len(guard.detector.encoder.calls) <= 3, "the third image was not begun: nobody waited for it any more"
        assert guard.check(images[2]).verdict.is_cached is False

    def test_a_cancelled_call_leaves_the_queue_and_never_works(self, gate, threads, tmp_path):
        guard = gated(gate, tmp_path, max_concurrent=1)
        busy = threads.submit(guard.check, painted("red"))
        gate.wait_for(1)

        async def give_up():
            task = asyncio.create_task(guard.acheck(painted("blue")))
            await auntil(lambda: guard._admission._queue)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await auntil(lambda: not guard._admission._queue)

        asyncio.run(give_up())
        gate.open.set()
        busy.result(SOON)
        until(lambda: guard._admission._free == 1)
        assert len(guard.detector.encoder.calls) == 2, "the red image and its mask"

    @pytest.mark.parametrize("way", ["check", "screen"])
    async def test_calls_that_wait_leave_the_loops_executor_free(self, gate, tmp_path, way):
        guard = gated(gate, tmp_path, max_concurrent=1)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))

        def call(n):
            image = painted("magenta", shade=n)
            return guard.acheck(image) if way == "check" else ascreen(guard, [Turn([image_block(image)])])

        tasks = [asyncio.create_task(call(n)) for n in range(10)]
        await auntil(lambda: len(guard._admission._queue) == 9)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), SOON) == "free"
        gate.open.set()
        assert len(await asyncio.wait_for(asyncio.gather(*tasks), SOON)) == 10

    def test_an_overloaded_image_is_withheld_from_a_chat(self, gate, threads, tmp_path):
        guard = gated(gate, tmp_path, max_concurrent=1, max_waiting=0)
        threads.submit(guard.check, painted("red"))
        gate.wait_for(1)
        (screened,) = screen(guard, [Turn([image_block(painted("white"))])])
        assert [verdict.failure for verdict in screened.withheld] == ["overloaded"]

    def test_a_guard_pickles_with_the_number_of_its_places_and_without_its_locks(self, tmp_path):
        guard = Guard(colour_policy(), ColourEncoder(), cache_dir=tmp_path, max_concurrent=5)
        guard.check(painted())
        again = pickle.loads(pickle.dumps(guard))
        assert again._admission is not guard._admission
        assert again._admission._free == 5
        assert again.check(painted("red")).verdict.action == "mask"

    def test_some_call_must_be_able_to_work(self, tmp_path):
        with pytest.raises(ValueError, match="not 0"):
            Guard(colour_policy(), ColourEncoder(), cache_dir=tmp_path, max_concurrent=0)

    @pytest.mark.parametrize(
        "rules",
        [
            {"timeout_s": 0},
            {"timeout_s": float("inf")},
            {"max_wait_s": 0},
            {"max_wait_s": float("nan")},
            {"max_waiting": -1},
            {"max_images": 0},
            {"on_overload": "pass"},
        ],
    )
    def test_rules_that_make_no_sense_are_refused(self, rules):
        with pytest.raises(ValidationError):
            colour_policy(failure=rules)


def shades(count, colour="magenta"):
    return [encode_png(painted(colour, shade=n)) for n in range(count)]


class TestBudgets:
    def test_images_over_the_budget_are_findings_and_are_not_scored(self, tmp_path):
        guard = colour_guard(tmp_path, failure={"max_images": 3})
        results = guard.check_batch(shades(5))
        assert [result.verdict.action for result in results] == ["flag"] * 3 + ["block"] * 2
        assert {result.verdict.uninspectable for result in results[3:]} == {"over_budget"}
        assert {result.verdict.finding for result in results[3:]} == {"unchecked"}
        assert sum(guard.detector.encoder.calls) == 3 * CROPS

    def test_known_images_do_not_count(self, tmp_path):
        guard = colour_guard(tmp_path, failure={"max_images": 3})
        images = shades(8)
        seen = [[one.verdict.uninspectable for one in guard.check_batch(images)].count(None) for _ in range(3)]
        assert seen == [3, 6, 8]

    @pytest.mark.parametrize("keep_pixels", [False, True])
    def test_nor_do_known_images_that_must_be_decoded_again(self, tmp_path, keep_pixels):
        guard = colour_guard(tmp_path, failure={"max_images": 3})
        images = shades(3, "red")
        guard.check_batch(images)
        results = guard.check_batch([*images, *shades(3)], keep_pixels=keep_pixels)
        assert [result.verdict.uninspectable for result in results] == [None] * 6

    def test_the_same_bytes_count_once(self, tmp_path):
        guard = colour_guard(tmp_path, failure={"max_images": 1})
        results = guard.check_batch(shades(1) * 5)
        assert [result.verdict.uninspectable for result in results] == [None] * 5

    def test_what_is_sent_now_comes_before_history_and_late_history_before_early(self, tmp_path):
        guard = colour_guard(tmp_path, failure={"max_images": 3})
        sources = ["history", "history", "history", "user", "tool"]
        results = guard.check_batch(shades(5), source=sources)
        assert [result.verdict.uninspectable for result in results] == ["over_budget"] * 2 + [None] * 3

    def test_the_budget_holds_for_all_turns_of_a_chat_together(self, tmp_path):
        guard = colour_guard(tmp_path, failure={"max_images": 2})
        turns = [Turn([image_block(painted(shade=n))], "history") for n in range(4)]
        screened = screen(guard, turns)
        assert [bool(turn.withheld) for turn in screened] == [True, True, False, False]

    @pytest.mark.parametrize("is_async", [False, True])
    def test_no_chat_is_over_the_budget_because_of_another(self, tmp_path, is_async):
        guard = colour_guard(tmp_path, failure={"max_images": 3})
        images = iter(range(99))
        sizes = (2, 1, 2, 1, 4, 1, 0, 1)
        chats = [[Turn([image_block(painted(shade=next(images)))]) for _ in range(size)] for size in sizes]
        screened = asyncio.run(ascreen_chats(guard, chats)) if is_async else screen_chats(guard, chats)
        withheld = [[turn.withheld for turn in chat.turns if turn.withheld] for chat in screened]
        assert [len(chat) for chat in withheld] == [0, 0, 0, 0, 1, 0, 0, 0]
        assert [len(chat.verdicts) for chat in screened] == list(sizes)
        assert guard.detector.encoder.calls == [3 * CROPS, 3 * CROPS, 3 * CROPS, 2 * CROPS]

    @pytest.mark.parametrize(("rule", "is_passed"), [("allow", True), ("mask", False), ("block", False)])
    def test_the_rule_for_what_cannot_be_inspected_decides(self, tmp_path, rule, is_passed):
        guard = colour_guard(tmp_path, failure={"max_images": 1, "uninspectable": rule})
        images = shades(2)
        result = guard.check_batch(images)[1]
        assert result.verdict.action == rule
        assert (not result.is_blocked and result.output == images[1]) == is_passed

    def test_without_a_budget_all_are_checked(self, tmp_path):
        guard = colour_guard(tmp_path, failure={"max_images": None})
        assert {one.verdict.uninspectable for one in guard.check_batch(shades(70))} == {None}

    def test_a_chunk_is_closed_when_the_pixels_held_reach_their_budget(self, tmp_path, monkeypatch):
        monkeypatch.setattr("guardalign_guardrails.guarding.guard._PIXELS_AT_ONCE", 3 * 64 * 64)
        guard = colour_guard(tmp_path)
        results = guard.check_batch(shades(8))
        assert guard.detector.encoder.calls == [3 * CROPS, 3 * CROPS, 2 * CROPS]
        assert {result.verdict.action for result in results} == {"flag"}

    def test_images_are_decoded_one_after_another_and_let_go_with_their_chunk(self, tmp_path, monkeypatch):
        import gc
        import weakref

        monkeypatch.setattr("guardalign_guardrails.guarding.guard._PIXELS_AT_ONCE", 2 * 64 * 64)
        guard, alive, most = colour_guard(tmp_path), weakref.WeakSet(), []
        plain = Guard._open

        def watched(self, read):
            gc.collect()
            most.append(len(alive))
            opened = plain(self, read)
            alive.add(opened)
            return opened

        monkeypatch.setattr(Guard, "_open", watched)
        guard.check_batch(shades(6))
        assert most == [0, 1, 0, 1, 0, 1]

    @pytest.mark.parametrize("keep_pixels", [False, True])
    def test_results_of_many_canonical_images_hold_no_pixels_unless_asked(self, tmp_path, keep_pixels):
        guard = colour_guard(tmp_path, delivery="canonical")
        kept, lazy = guard.check_batch(shades(2), keep_pixels=keep_pixels)
        assert [result.verdict.delivery for result in (kept, lazy)] == ["canonical"] * 2
        held = [value for value in vars(kept).values() if isinstance(value, Image.Image)]
        assert len(held) == keep_pixels
        assert kept.pixels.tobytes() == decode(kept.output).flattened.tobytes()

    def test_identical_images_of_one_call_are_scored_once_also_across_chunks(self, tmp_path, monkeypatch):
        guard = colour_guard(tmp_path)
        png, pixels = encode_png(painted("magenta")), np.asarray(painted("magenta"))
        monkeypatch.setattr("guardalign_guardrails.guarding.guard._PIXELS_AT_ONCE", 2 * 64 * 64)
        results = guard.check_batch([png, pixels, painted("magenta"), png, pixels])
        assert {result.verdict.action for result in results} == {"flag"}
        assert guard.detector.encoder.calls == [CROPS]

    def test_identical_views_of_an_image_are_scored_once(self, tmp_path):
        frames = [painted("magenta"), painted("magenta"), painted("green"), painted("magenta")]
        file = io.BytesIO()
        frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], duration=[100, 200, 100, 200])
        guard = colour_guard(tmp_path)
        guard.check(file.getvalue())
        assert guard.detector.encoder.calls == [2 * CROPS]


def test_an_allowance_without_a_limit_is_over_when_it_is_abandoned():
    allowance = Allowance(None)
    assert not allowance.is_over
    allowance.abandon()
    assert allowance.is_over


def test_an_allowance_is_over_when_its_time_is():
    assert Allowance(0.0).is_over
    assert not Allowance(SOON).is_over
