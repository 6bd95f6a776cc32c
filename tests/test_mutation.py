"""The driver of `make mutate`: what it draws, leaves out, runs and reports. No mutant is tested here."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("mutation", ROOT / "benchmarks" / "mutation.py")
mutation = importlib.util.module_from_spec(_spec)
sys.modules["mutation"] = mutation
_spec.loader.exec_module(mutation)

SOURCE = '''"""Words about a module."""
import logging
from dataclasses import dataclass
logger = logging.getLogger("m")
LIMIT: int = 3
@dataclass(frozen=True)
class Record:
    """Words about a class."""
    size: int | None = 1
def step(x: int | str, y: int = 2) -> int | None:
    """Words about a function."""
    logger.info("stepping %s", x)
    if x < LIMIT:
        raise ValueError("too small")
    return x + y
'''


def mutants(module, count):
    return [
        mutation.Mutant(module, "own/Any", number, number + 1, f"-{number}", f"{number}") for number in range(count)
    ]


def test_every_module_and_every_test_file_of_the_table_is_there():
    for module, tests in mutation.TARGETS.items():
        assert (ROOT / module).is_file(), module
        assert tests
        for path in tests:
            assert (ROOT / path).is_file(), path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Words about a module", "Other words"),
        ("Words about a class", "Other words"),
        ("Words about a function", "Other words"),
        ("x: int | str", "x: int & str"),
        ("-> int | None", "-> int"),
        ("LIMIT: int =", "LIMIT: str ="),
        ("size: int | None", "size: int"),
        ("frozen=True", "frozen=False"),
        ("too small", "XXtoo small"),
        ('logger.info("stepping %s", x)', "pass"),
    ],
)
def test_a_change_of_words_annotations_and_logging_is_no_change_of_behaviour(old, new):
    assert old in SOURCE
    assert mutation.behaviour(SOURCE.replace(old, new)) == mutation.behaviour(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [("= 3", "= 4"), ("= 1", "= 2"), ("x < LIMIT", "x <= LIMIT"), ("x + y", "x - y"), ("y: int = 2", "y: int = 3")],
)
def test_a_change_of_a_value_or_an_operator_is_one(old, new):
    assert old in SOURCE
    assert mutation.behaviour(SOURCE.replace(old, new)) != mutation.behaviour(SOURCE)


@pytest.mark.parametrize(
    ("operator", "is_wanted"),
    [
        ("core/AddNot", True),
        ("core/NumberReplacer", True),
        ("core/ReplaceBinaryOperator_Add_Sub", True),
        ("core/ReplaceBinaryOperator_Mod_Mul", True),
        ("core/ReplaceBinaryOperator_Add_LShift", False),
        ("core/ReplaceBinaryOperator_BitAnd_BitOr", True),
        ("core/ReplaceBinaryOperator_BitAnd_Add", False),
        ("core/ReplaceComparisonOperator_Lt_LtE", True),
        ("core/ReplaceComparisonOperator_Is_IsNot", True),
        ("core/ReplaceComparisonOperator_Eq_Is", False),
        ("core/ReplaceUnaryOperator_Delete_Not", True),
        ("core/ReplaceUnaryOperator_USub_Invert", False),
    ],
)
def test_operators_that_make_only_type_errors_or_the_same_again_are_left_out(operator, is_wanted):
    assert mutation.is_wanted(operator) == is_wanted


def test_the_same_seed_draws_the_same_mutants_and_another_one_others():
    found = {"a": mutants("a", 90), "b": mutants("b", 50)}
    assert mutation.in_order(found, 1) == mutation.in_order(found, 1)
    assert mutation.in_order(found, 1)[:40] != mutation.in_order(found, 2)[:40]
    assert sorted(m.key for m in mutation.in_order(found, 1)) == sorted(m.key for own in found.values() for m in own)


def test_forty_of_each_module_come_before_all_others():
    order = mutation.in_order({"a": mutants("a", 300), "b": mutants("b", 45), "c": mutants("c", 7)}, 0)
    first = [mutant.module for mutant in order[:87]]
    assert {module: first.count(module) for module in "abc"} == {"a": 40, "b": 40, "c": 7}
    few = mutation.in_order({"a": mutants("a", 300), "b": mutants("b", 3)}, 0, most=5)
    assert [mutant.module for mutant in few] == ["a"] * 5 + ["b"] * 3


def test_what_is_drawn_of_one_module_does_not_depend_on_the_others():
    alone = mutation.in_order({"a": mutants("a", 90)}, 3, most=40)
    beside = mutation.in_order({"a": mutants("a", 90), "b": mutants("b", 90)}, 3, most=40)
    assert alone == beside[:40]


def test_hangs_are_counted_apart_and_not_in_the_share():
    tested = [
        mutation.Tested(mutant, result, 1.0)
        for mutant, result in zip(mutants("a", 5), ["killed", "killed", "survived", "hung", "killed"], strict=True)
    ]
    one, none, everything = mutation.summary(tested, {"a": 9, "b": 4})
    assert one == {"module": "a", "mutants": 9, "tested": 5, "killed": 3, "survived": 1, "hung": 1, "share": 0.75}
    assert none["share"] is None
    assert (everything["mutants"], everything["tested"], everything["share"]) == (13, 5, 0.75)
    table = mutation.as_table([one, none, everything]).splitlines()
    assert table[1].split() == ["a", "9", "5", "3", "1", "1", "75.0%"]
    assert table[2].split() == ["b", "4", "0", "0", "0", "0", "-"]
    assert len({len(line) for line in table}) == 1


def test_a_diff_shows_the_changed_line_and_nothing_else():
    assert mutation.changed_lines("a\nb\nc\n", "a\nb\nd\n") == "-c\n+d"


def test_a_report_lists_survivors_by_line_with_their_diffs_and_they_can_be_had_again(tmp_path):
    later, earlier, killed = mutants("a", 3)[1], mutants("a", 3)[0], mutants("a", 3)[2]
    tested = [mutation.Tested(later, "survived", 1.0), mutation.Tested(killed, "killed", 1.0)]
    found = mutation.listed([*tested, mutation.Tested(earlier, "survived", 1.0)], "survived")
    assert [(each["line"], each["diff"]) for each in found] == [(1, "-0"), (2, "-1")]
    (tmp_path / "report.json").write_text(json.dumps({"survived": found}))
    assert mutation.survivors_in(tmp_path / "report.json") == {earlier.key, later.key}


TEST = "from module import VALUE\n\ndef test_it():\n    assert VALUE == 1\n"


@pytest.mark.slow
class TestWorkplace:
    """Tests of a small repository of its own."""

    @pytest.fixture
    def workplace(self, tmp_path, monkeypatch):
        root = tmp_path / "root"
        (root / "tests").mkdir(parents=True)
        (root / ".venv").mkdir()
        (root / "module.py").write_text("VALUE = 1\n")
        (root / "tests" / "test_it.py").write_text(
            "from module import VALUE\n\ndef test_it():\n    assert VALUE == 1\n"
        )
        (root / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
        monkeypatch.setattr(mutation, "TARGETS", {"module.py": ("tests/test_it.py",)})
        return mutation.Workplace(tmp_path / "copy", root)

    def test_a_mutant_is_killed_or_survives_or_hangs_and_the_repository_stays_as_it_is(self, workplace, tmp_path):
        assert workplace.test("module.py", "VALUE = 2\n", 60) == "killed"
        assert workplace.test("module.py", "VALUE = 1.0\n", 60) == "survived"
        started = time.monotonic()
        assert workplace.test("module.py", "while True: pass\n", 3) == "hung"
        assert time.monotonic() - started < 30
        assert (workplace.folder / "module.py").read_text() == "VALUE = 1\n"
        assert (tmp_path / "root" / "module.py").read_text() == "VALUE = 1\n"
        assert not (workplace.folder / ".venv").exists()

    def test_tests_that_fail_anyway_or_pass_whatever_the_module_is_are_no_measure(self, workplace):
        assert mutation.time_limit(workplace, "module.py") > 10
        test = workplace.folder / "tests" / "test_it.py"
        test.write_text("def test_it():\n    pass\n")
        with pytest.raises(RuntimeError, match="pass without module"):
            mutation.time_limit(workplace, "module.py")
        test.write_text("def test_it():\n    assert False\n")
        with pytest.raises(RuntimeError, match="must pass before"):
            mutation.time_limit(workplace, "module.py")

    def test_a_workplace_that_was_stopped_tests_nothing_more(self, workplace):
        workplace.stop()
        with pytest.raises(InterruptedError):
            workplace.test("module.py", None, 60)
