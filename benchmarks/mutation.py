"""Change one thing at a time in the modules that must not be wrong, and see whether a test fails: `make mutate`.

A test suite is worth what it notices. Each mutant is tested in a fresh process, by the tests that are about its module,
in a temporary copy of the repository: the working tree is never changed. Mutants come from cosmic-ray's operators and
two of our own; which of them are left out, and why, is in docs/development/mutation.md.

    python benchmarks/mutation.py --minutes 45
    python benchmarks/mutation.py --module mask --again     only what survived the last time
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

ROOT: Final = Path(__file__).resolve().parents[1]
REPORT: Final = ROOT / "out" / "mutation.json"

TARGETS: Final[Mapping[str, tuple[str, ...]]] = {
    "guardalign_guardrails/guarding/decide.py": ("tests/test_decision.py",),
    "guardalign_guardrails/guarding/cache.py": ("tests/guarding/test_verdict_cache.py",),
    "guardalign_guardrails/images/mask.py": ("tests/images/test_mask.py",),
    "guardalign_guardrails/content/rewrite.py": ("tests/content/test_rewrite.py",),
    "guardalign_guardrails/detection/transport.py": ("tests/detection/test_transport.py",),
    "guardalign_guardrails/decoding/attention/correction.py": ("tests/decoding/test_correction.py",),
}
"""Each module with the tests that are about it."""

LEAST: Final = 40
"""Mutants of each module that come first, if there is no time for all."""

# Plugins of other packages take longer to load than most mutants live.
_PLUGINS: Final = ("xdist.plugin", "pytest_asyncio.plugin", "pytest_socket", "_hypothesis_pytestplugin")
_PYTEST: Final = (
    *("-x", "-q", "-n", "0", "--hypothesis-seed=0", "-m", "not slow", "-p", "no:cacheprovider"),
    *(option for plugin in _PLUGINS for option in ("-p", plugin)),
)
_NOT_COPIED: Final = shutil.ignore_patterns(".*", "out", "build", "dist", "__pycache__")
_SUMS: Final = frozenset({"Add", "Sub", "Mul", "Div"})
_BITS: Final = frozenset({"BitOr", "BitAnd", "BitXor"})
_IDENTITY: Final = frozenset({"Is", "IsNot"})

Result = Literal["killed", "survived", "hung"]


@dataclass(frozen=True)
class Mutant:
    """One change to one module.

    Attributes:
        module: Path of the module, from the root of the repository.
        operator: What was changed.
        occurrence: Which of the places in the module where the operator applies.
        line: Line of the change, from 1.
        diff: The changed lines.
        source: The module's source with the change.
    """

    module: str
    operator: str
    occurrence: int
    line: int
    diff: str
    source: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from others as long as the module stays as it is."""
        return self.module, self.operator, self.occurrence


class RemoveStatement:
    """Replaces a statement that is there for its effect by ``pass``: a call, an update, a write to an attribute."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Where it applies; see `cosmic_ray.operators.operator.Operator`."""
        if node.type == "simple_stmt" and _has_effect(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """The statement without its effect."""
        from parso.python.tree import Keyword

        first = node.children[0]
        node.children[0] = Keyword("pass", first.start_pos, first.get_first_leaf().prefix)
        return node


class ChangeString:
    """Makes a string another one."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Where it applies; see `cosmic_ray.operators.operator.Operator`."""
        if node.type == "string":
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """The string with two letters more."""
        quote = min(at for mark in ("'", '"') if (at := node.value.find(mark)) >= 0)
        start = quote + (3 if node.value[quote : quote + 3] in ("'''", '"""') else 1)
        node.value = f"{node.value[:start]}XX{node.value[start:]}"
        return node


def _has_effect(statement: Any) -> bool:
    if statement.type == "atom_expr":
        return bool(statement.children[-1].get_first_leaf().value == "(")
    if statement.type != "expr_stmt":
        return False
    target, operator = statement.children[0], statement.children[1]
    # Without a first assignment to a plain name everything fails, which is no news.
    return operator.type in ("augassign", "operator") and (operator.get_code().strip() != "=" or _is_place(target))


def _is_place(target: Any) -> bool:
    return target.type == "atom_expr" and target.children[-1].get_first_leaf().value in (".", "[")


def is_wanted(operator: str) -> bool:
    """Whether mutants of an operator of cosmic-ray say something about tests.

    Those that make type errors of sums do not, nor those that Python takes for the same: "is" for "==".
    """
    kind, _, change = operator.rpartition("/")[2].partition("_")
    before, _, after = change.partition("_")
    if kind == "ReplaceBinaryOperator":
        return after in (_BITS if before in _BITS else _SUMS)
    if kind == "ReplaceUnaryOperator":
        return before == "Delete"
    if kind == "ReplaceComparisonOperator":
        return (before in _IDENTITY) == (after in _IDENTITY)
    return True


def behaviour(source: str) -> str:
    """What of a module's source can change what it does, in a form to compare.

    Left out are annotations, docstrings, the texts of errors and log records, and what dataclass decorators, `Literal`,
    `TypeVar` and ``Final`` say for type checkers.
    """
    return ast.dump(_Behaviour().visit(ast.parse(source)))


class _Behaviour(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.decorator_list = [
            each.func if isinstance(each, ast.Call) and _name(each.func) == "dataclass" else each
            for each in node.decorator_list
        ]
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc.args = [each for each in node.exc.args if not isinstance(each, ast.Constant | ast.JoinedStr)]
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        called = node.value.func if isinstance(node.value, ast.Call) else None
        is_log = isinstance(called, ast.Attribute) and _name(called.value) == "logger"
        if is_log or isinstance(node.value, ast.Constant):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return ast.Constant(None) if _name(node.value) == "Literal" else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return ast.Constant(None) if _name(node.func) == "TypeVar" else self.generic_visit(node)


def changed_lines(before: str, after: str) -> str:
    """What differs between two sources, as in a unified diff without context."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def _sorts_words(source: str) -> bool:
    """Whether text is compared by its place in the alphabet, which nobody does but an operator."""
    return any(
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
        and any(
            isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (node.left, *node.comparators)
        )
        for node in ast.walk(ast.parse(source))
    )


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def mutants_of(module: str, root: Path = ROOT) -> list[Mutant]:
    """All mutants of a module that compile and differ from it, and from each other, in what they do."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source = (root / module).read_text(encoding="utf-8")
    kinds = {name: get_operator(name) for name in operator_names() if is_wanted(name)}
    operators: dict[str, Any] = {name: kind() for name, kind in kinds.items() if not kind.arguments()}
    operators |= {"own/RemoveStatement": RemoveStatement(), "own/ChangeString": ChangeString()}
    nodes = list(ast_nodes(get_ast(source)))
    known, found = {behaviour(source)}, []
    for name, operator in operators.items():
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, ((line, _), _) in enumerate(places):
            mutated = mutate_code(source, operator, occurrence)
            try:
                new = behaviour(mutated)
            except SyntaxError:
                continue
            if new not in known and not _sorts_words(mutated):
                known.add(new)
                found.append(Mutant(module, name, occurrence, line, changed_lines(source, mutated), mutated))
    return found


def in_order(mutants: Mapping[str, Sequence[Mutant]], seed: int, most: int | None = None) -> list[Mutant]:
    """The order in which mutants are tested: `LEAST` of each module, then the others, each drawn at random.

    Args:
        mutants: By module.
        seed: The same gives the same order.
        most: How many of each module at most; None for all.
    """
    drawn = [random.Random(f"{seed} {module}").sample(own, len(own))[:most] for module, own in mutants.items()]
    first = [mutant for own in drawn for mutant in own[:LEAST]]
    rest = [mutant for own in drawn for mutant in own[LEAST:]]
    return first + random.Random(seed).sample(rest, len(rest))


class Workplace:
    """A copy of the repository in which one mutant at a time is tested.

    Args:
        folder: Where to put it; made if it is not there.
        root: The repository.

    Attributes:
        folder: The copy.
        output: What the last tests printed.
    """

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        self.folder = folder / "repository"
        self.output = folder / "output.txt"
        shutil.copytree(root, self.folder, ignore=_NOT_COPIED)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def test(self, module: str, source: str | None, timeout: float) -> Result:
        """Run a module's tests.

        Args:
            module: The module.
            source: What to put in its place; None for what it is.
            timeout: Seconds after which it counts as hung.
        """
        original = (self.folder / module).read_bytes()
        # Else an example that Hypothesis found for one mutant would be tried first on all others.
        shutil.rmtree(self.folder / ".hypothesis", ignore_errors=True)
        try:
            if source is not None:
                (self.folder / module).write_text(source, encoding="utf-8")
            return self._run(TARGETS[module], timeout)
        finally:
            (self.folder / module).write_bytes(original)

    def stop(self) -> None:
        """End what is running, and start nothing more."""
        self._is_stopped = True
        if self._process is not None:
            _end(self._process)

    def _run(self, tests: Sequence[str], timeout: float) -> Result:
        if self._is_stopped:
            raise InterruptedError
        own = {
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(self.folder / "integrations")]),
            # Files change within a second, which is as long as Python takes compiled ones for current.
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": "1",
        }
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *_PYTEST, f"--basetemp={self.folder.parent / 'pytest'}", *tests],
                cwd=self.folder,
                env={**os.environ, **own},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return "hung"
        finally:
            _end(self._process)
        if self._is_stopped:
            raise InterruptedError
        return "killed" if code else "survived"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class Tested:
    """What became of a mutant, and how many seconds it took."""

    mutant: Mutant
    result: Result
    seconds: float


def time_limit(workplace: Workplace, module: str) -> float:
    """Seconds after which tests of a mutant of a module have hung.

    Raises:
        RuntimeError: The module's tests fail as it is, or pass whatever it is.
    """
    started = time.monotonic()
    if workplace.test(module, None, 600) != "survived":
        said = workplace.output.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(TARGETS[module])} must pass before mutants of {module} can be tested\n{said}")
    took = time.monotonic() - started
    if workplace.test(module, "raise RuntimeError('nothing works')\n", 600) != "killed":
        raise RuntimeError(f"{' '.join(TARGETS[module])} pass without {module}")
    return 3 * took + 10


def run(modules: Sequence[str], wanted: Sequence[Mutant], deadline: float, workers: int) -> list[Tested]:
    """Test mutants until all are done, time is up by the monotonic clock, or the user ends it."""
    waiting, tested, lock = deque(wanted), list[Tested](), threading.Lock()
    with tempfile.TemporaryDirectory(prefix="guardalign-mutation-") as folder, ThreadPoolExecutor(workers) as pool:
        workplaces = [Workplace(Path(folder) / str(number)) for number in range(workers)]

        def limits_of(workplace: Workplace, own: Iterable[str]) -> dict[str, float]:
            return {module: time_limit(workplace, module) for module in own}

        def work(workplace: Workplace) -> None:
            while True:
                with lock:
                    if not waiting or time.monotonic() > deadline:
                        return
                    mutant = waiting.popleft()
                started = time.monotonic()
                result = workplace.test(mutant.module, mutant.source, limits[mutant.module])
                with lock:
                    tested.append(Tested(mutant, result, time.monotonic() - started))
                    print(f"{len(tested)}/{len(wanted)} {result:8} {mutant.module}:{mutant.line}", flush=True)

        try:
            shares = [modules[number::workers] for number in range(workers)]
            limits = {name: limit for part in pool.map(limits_of, workplaces, shares) for name, limit in part.items()}
            list(pool.map(work, workplaces))
        except KeyboardInterrupt:
            print("ended early")
        finally:
            for workplace in workplaces:
                workplace.stop()
    return tested


def summary(tested: Sequence[Tested], mutants: Mapping[str, int]) -> list[dict[str, Any]]:
    """Figures of each module, then of all together.

    Args:
        tested: All that was tested.
        mutants: How many there are of each module.

    Returns:
        ``module``, ``mutants``, ``tested``, ``killed``, ``survived``, ``hung`` and ``share``: of those that did not
        hang, how many were killed; None if there are none.
    """
    rows = [_figures(module, [t for t in tested if t.mutant.module == module], mutants[module]) for module in mutants]
    return [*rows, _figures("all", tested, sum(mutants.values()))]


def _figures(module: str, tested: Sequence[Tested], mutants: int) -> dict[str, Any]:
    counts = {result: sum(each.result == result for each in tested) for result in ("killed", "survived", "hung")}
    ended = counts["killed"] + counts["survived"]
    share = counts["killed"] / ended if ended else None
    return {"module": module, "mutants": mutants, "tested": len(tested), **counts, "share": share}


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Figures to read."""
    names = ("module", "mutants", "tested", "killed", "survived", "hung", "share")
    cells = [names, *(tuple(_cell(row[name]) for name in names) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return "\n".join(
        "  ".join(text.rjust(width) if column else text.ljust(width) for column, (text, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if isinstance(value, float) else str(value)


def listed(tested: Sequence[Tested], result: Result) -> list[dict[str, Any]]:
    """The mutants of one result, in the order of their lines, for the report."""
    found = sorted((each.mutant for each in tested if each.result == result), key=lambda each: (each.module, each.line))
    return [{name: value for name, value in asdict(mutant).items() if name != "source"} for mutant in found]


def survivors_in(report: Path) -> set[tuple[str, str, int]]:
    """The keys of the mutants that survived in a report.

    Raises:
        FileNotFoundError: There is no report yet.
    """
    data = json.loads(report.read_text(encoding="utf-8"))
    return {(each["module"], each["operator"], each["occurrence"]) for each in data["survived"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=43, help="start no mutant after so many (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="how many at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which mutants are drawn")
    parser.add_argument("--module", action="append", default=[], help="only modules with this in their path")
    parser.add_argument("--most", type=int, help="at most so many mutants of each module")
    parser.add_argument("--again", action="store_true", help="only what survived in the report that is there")
    parser.add_argument("--out", type=Path, default=REPORT, help="the report (default: %(default)s)")
    options = parser.parse_args()

    # A run that is ended leaves no processes and no copies behind, and reports what it has tested.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.default_int_handler)
    started = time.monotonic()
    modules = [name for name in TARGETS if not options.module or any(part in name for part in options.module)]
    mutants = {module: mutants_of(module) for module in modules}
    if options.again:
        left = survivors_in(options.out)
        mutants = {module: [mutant for mutant in own if mutant.key in left] for module, own in mutants.items()}
    wanted = in_order(mutants, options.seed, options.most)
    tested = run(modules, wanted, started + 60 * options.minutes, options.workers)
    rows = summary(tested, {module: len(own) for module, own in mutants.items()})
    report = {"survived": listed(tested, "survived"), "hung": listed(tested, "hung")}
    for result, group in report.items():
        for each in group:
            print(f"\n{result}: {each['module']}:{each['line']}  {each['operator']}\n{each['diff']}")
    took = (time.monotonic() - started) / 60
    print(f"\n{as_table(rows)}\n\n{took:.1f} minutes, {options.workers} at once, seed {options.seed}")
    for row in rows[:-1]:
        if row["tested"] < min(LEAST, row["mutants"], LEAST if options.most is None else options.most):
            print(f"Too little time for {LEAST} mutants of {row['module']}: give more --minutes or --workers.")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"seed": options.seed, "minutes": took, "figures": rows, **report}, indent=1)
    options.out.write_text(f"{text}\n", encoding="utf-8")
    print(f"report: {options.out}")


if __name__ == "__main__":
    main()
