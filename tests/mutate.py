"""Changes the code in small ways, one at a time, and lists the changes that no test notices.

    python -m tests.mutate scissorhands_jax/masks.py scissorhands_jax/projection.py --sample 40 --out survivors.txt

A change ("mutant") is one of those that people make by mistake: a comparison with another boundary or the opposite
sense, `and` for `or`, another operation or constant, a statement left out, two arguments swapped, nothing returned. Of
each module a seeded sample is tried. The tests of a module are those in TESTS, or those that mirror it, or else all
that import it; `--tests` names others. They run in a forked child of a process that has imported JAX and the other
packages already, and that reads the changed code in place of the file, which stays as it is. A mutant is killed if a
test fails, or if the tests take much more CPU time than on the code as it is, or wait for very long. Continuous
integration does not run this: a module takes minutes.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import itertools
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "deletion/entries.py": ("tests/deletion/documents_test.py", "tests/deletion/ledger_test.py"),
    "deletion/judging.py": (
        *("tests/deletion/running_test.py", "tests/deletion/utility_test.py", "tests/deletion/audits_test.py"),
    ),
    "deletion/record_page.py": ("tests/deletion/records_test.py",),
    "deletion/recorded_runs.py": ("tests/deletion/contents_test.py", "tests/deletion/running_test.py"),
    "deletion/records.py": ("tests/deletion/records_test.py", "tests/deletion/verifying_test.py"),
    "deletion/tidying.py": ("tests/deletion/contents_test.py", "tests/deletion/running_test.py"),
    "deletion/trusted_keys.py": ("tests/deletion/audits_test.py",),
    "deletion/verifying.py": ("tests/deletion/verifying_test.py", "tests/deletion/exporting_test.py"),
    "language/aggregates.py": ("tests/language/aggregates_test.py", "tests/language/judging_test.py"),
    "language/truth_ratios.py": ("tests/language/judging_test.py",),
    "models/layouts.py": ("tests/models/layouts_test.py", "tests/jobs/loading_test.py"),
    "reinit.py": ("tests/reinit_test.py", "tests/training/sharding_test.py"),
    "torch_weights/pickles.py": ("tests/torch_weights/state_dicts_test.py",),
    "torch_weights/pickle_globals.py": ("tests/torch_weights/state_dicts_test.py",),
    "torch_weights/tensors.py": ("tests/torch_weights/state_dicts_test.py",),
    "torch_weights/torch_files.py": ("tests/torch_weights/state_dicts_test.py",),
    "torch_weights/weight_files.py": ("tests/torch_weights/state_dicts_test.py",),
    "training/distributed.py": ("tests/meetings_test.py", "tests/training/distributed_test.py::TestStart"),
    "training/sharding.py": ("tests/training/sharding_test.py::TestLayout",),
}
"""The tests of modules that none mirrors, or whose mirror is not enough, or takes minutes for each mutant."""

_COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATIONS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_COMMUTATIVE = {"min", "max", "minimum", "maximum", "add", "logical_and", "logical_or", "gcd"}
_PATIENCE = 40  # how much longer tests may last than the CPU time that they may take
_SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "type_params"}


class Mutant(NamedTuple):
    """A changed module, and what was changed."""

    tree: ast.Module
    line: int
    before: str
    after: str


def mutants(source: str, sample: int, seed: int) -> tuple[list[Mutant], int]:
    """Makes a sample of the mutants of a module, in the order of its tree, and counts all that could be made."""
    places = [
        (place, change)
        for place, node in enumerate(ast.walk(_marked(source)))
        for change in range(0 if node.skipped else len(_changes(node)))  # type: ignore[attr-defined]
    ]
    # Some change nothing, such as two equal arguments that are swapped.
    shuffled = random.Random(seed).sample(places, len(places))
    made = ((place, _mutant(source, *place)) for place in shuffled)
    different = (
        (place, mutant) for place, mutant in made if ast.unparse(mutant.tree) != ast.unparse(ast.parse(source))
    )
    chosen = sorted(itertools.islice(different, sample), key=lambda pair: pair[0])
    return [mutant for _, mutant in chosen], len(places)


def _mutant(source: str, place: int, change: int) -> Mutant:
    tree = _marked(source)
    target = next(itertools.islice(ast.walk(tree), place, None))
    statement = target
    while not isinstance(statement, ast.stmt):
        statement = statement.parent  # type: ignore[attr-defined]
    before = _shown(statement)
    _changes(target)[change]()
    left_out = statement is target and statement not in ast.walk(tree)
    return Mutant(ast.fix_missing_locations(tree), statement.lineno, before, "" if left_out else _shown(statement))


def _marked(source: str) -> ast.Module:
    """A tree whose nodes know their parent, and whether their change would only change a message or a type."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        skipped = getattr(node, "skipped", False) or isinstance(node, ast.JoinedStr | ast.Assert)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped = True
        if isinstance(node, ast.Expr) and "_logger" in ast.unparse(node):
            skipped = True
        if isinstance(node, ast.keyword) and node.arg == "strict":  # which only guards against mistakes elsewhere
            skipped = True
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    child.parent = node  # type: ignore[attr-defined]
                    inside_raise = isinstance(node, ast.Raise)
                    child.skipped = skipped or inside_raise or field in _SKIPPED_FIELDS  # type: ignore[attr-defined]
        node.skipped = skipped  # type: ignore[attr-defined]
    return tree


def _shown(statement: ast.stmt) -> str:
    """The first line of a statement, as the mutant's description shows it."""
    return ast.unparse(statement).split("\n")[0][:200]


def _changes(node: ast.AST) -> list[Callable[[], object]]:
    """The changes of one node. Calling one makes it."""
    changes: list[Callable[[], object]] = []

    def put(field: str, value: object) -> None:
        changes.append(lambda: setattr(node, field, value))

    def become(other: ast.AST) -> None:
        changes.append(lambda: _replace(node, other))

    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for kind in _COMPARISONS.get(type(node.ops[0]), ()):
            put("ops", [kind()])
    elif isinstance(node, ast.BoolOp):
        put("op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for number in range(len(node.values)):
            put("values", [value for other, value in enumerate(node.values) if other != number])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        become(node.operand)
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _OPERATIONS:
        put("op", _OPERATIONS[type(node.op)]())
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        put("value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        put("value", node.value + 1)
        put("value", node.value - 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        put("value", node.value * 2 if node.value else 1.0)
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        put("test", ast.UnaryOp(ast.Not(), node.test))
    elif (
        isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom)
    ) or isinstance(node, ast.Raise):
        become(ast.Pass())
    elif isinstance(node, ast.Continue | ast.Break):
        become(ast.Break() if isinstance(node, ast.Continue) else ast.Continue())
    elif isinstance(node, ast.Return) and node.value is not None:
        put("value", ast.Constant(None))
    elif isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        if (
            len(node.args) > 1
            and name not in _COMMUTATIVE
            and not any(isinstance(argument, ast.Starred) for argument in node.args[:2])
        ):
            put("args", [node.args[1], node.args[0], *node.args[2:]])
        for number, left_out in enumerate(node.keywords):
            if left_out.arg != "strict":
                put("keywords", [keyword for other, keyword in enumerate(node.keywords) if other != number])
    return changes


def _replace(node: ast.AST, other: ast.AST) -> None:
    parent = node.parent  # type: ignore[attr-defined]
    for field, value in ast.iter_fields(parent):
        if value is node:
            setattr(parent, field, ast.copy_location(other, node))
        elif isinstance(value, list):
            setattr(parent, field, [ast.copy_location(other, node) if item is node else item for item in value])


_CUSTOMIZE = """
import importlib.abc, importlib.util, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        return importlib.util.spec_from_file_location(fullname, {file!r}) if fullname == {name!r} else None

sys.meta_path.insert(0, Finder())
"""
"""Loads one module from another file, also in the processes that tests start, for which it is `sitecustomize`."""


def run_tests(path: Path, tree: ast.Module, tests: Sequence[str], limit: float) -> tuple[str, float]:
    """Runs tests in a child with a module's code replaced.

    Args:
      path: The module.
      tree: Its code.
      tests: The test files.
      limit: How many seconds of CPU time a process may take. The tests may last forty times as long on a busy machine.

    Returns:
      "passed", "failed" or "timeout", and the CPU seconds that it took.
    """
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 1))
        _child(path, tree, tests)
    ended = 0
    while not ended and time.monotonic() - started < _PATIENCE * limit:
        time.sleep(0.05)
        ended, status, used = os.wait4(child, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        _, status, used = os.wait4(child, 0)
    slow = not ended or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL))
    return "timeout" if slow else "passed" if status == 0 else "failed", used.ru_utime + used.ru_stime


def _child(path: Path, tree: ast.Module, tests: Sequence[str]) -> None:
    status = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if not os.environ.get("MUTATE_VERBOSE"):
            for descriptor in (0, 1, 2):
                os.dup2(nowhere, descriptor)
        folder = Path(tempfile.mkdtemp(dir=os.environ["JAX_COMPILATION_CACHE_DIR"]))
        (folder / "mutant.py").write_text(ast.unparse(tree), encoding="utf-8")
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        customize = _CUSTOMIZE.format(file=str(folder / "mutant.py"), name=name)
        (folder / "sitecustomize.py").write_text(customize, encoding="utf-8")
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"
        exec(customize, {})
        import pytest

        status = int(pytest.main(["-x", "-n0", "-q", "-p", "no:cacheprovider", "--durations=0", *tests]))
    finally:
        os._exit(status)


def _preload() -> None:
    """Imports what tests need and what is never mutated; no device is used, so that children can be forked."""
    for name in (
        *("cryptography.hazmat.primitives.serialization", "flax.linen", "hypothesis.extra.numpy", "jax.numpy", "optax"),
        *("orbax.checkpoint", "pytest", "scipy.special", "scipy.stats", "sklearn.svm"),
    ):
        importlib.import_module(name)


def tests_of(path: Path) -> tuple[str, ...]:
    """The test files of a module of the package: those in TESTS, the one that mirrors it, or all that import it.

    If there are none, they are those of the modules that import it.

    Raises:
      SystemExit: There are none either.
    """
    name = path.relative_to(ROOT / "scissorhands_jax").with_suffix("")
    mirror = f"tests/{name.as_posix()}_test.py"
    found = TESTS.get(f"{name.as_posix()}.py", (mirror,) if (ROOT / mirror).is_file() else ())
    if not found:
        module = ".".join(("scissorhands_jax", *name.parts)).removesuffix(".__init__")
        using = [file for file in sorted((ROOT / "tests").rglob("*_test.py")) if module in _imported(file)]
        found = tuple(file.relative_to(ROOT).as_posix() for file in using)
    if not found:
        package = sorted((ROOT / "scissorhands_jax").rglob("*.py"))
        found = tuple({test: None for file in package if module in _imported(file) for test in tests_of(file)})
    if not found:
        raise SystemExit(f"no test is called {mirror}, and none imports {name}; name its tests with --tests")
    return found


def _imported(file: Path) -> set[str]:
    """Everything that a file names in its imports, with the modules that it comes from."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries mutants of the named modules, and returns 1 if any survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="+", type=Path, metavar="FILE", help="modules of scissorhands_jax")
    parser.add_argument("--sample", type=int, default=40, metavar="N", help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where survivors are appended; by default the output")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="the tests to run, instead of the module's own")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    survived = tried = 0
    with tempfile.TemporaryDirectory(prefix="compiled-") as cache, contextlib.ExitStack() as stack:
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
        }
        _preload()
        out = stack.enter_context(options.out.open("a", encoding="utf-8")) if options.out else sys.stdout
        for path in map(Path.absolute, options.modules):
            tests, source = options.tests or tests_of(path), path.read_text(encoding="utf-8")
            first, seconds = run_tests(path, ast.parse(source), tests, 900)  # which compiles, so it is a bound
            if first != "passed":
                raise SystemExit(f"the tests {' '.join(tests)} do not pass on the code as it is ({first})")
            chosen, possible = mutants(source, options.sample, options.seed)
            alive = slow = 0
            for mutant in chosen:
                result, _ = run_tests(path, mutant.tree, tests, 20 + 3 * seconds)
                slow += result == "timeout"
                if result == "passed":
                    alive += 1
                    place = f"{path.relative_to(ROOT)}:{mutant.line}"
                    print(f"{place}\n- {mutant.before}\n+ {mutant.after}\n", file=out, flush=True)
            survived, tried = survived + alive, tried + len(chosen)
            report = f"{path.relative_to(ROOT)}: {alive} of {len(chosen)} mutants survive, of {possible} possible"
            details = f"{slow} took too long; seed {options.seed}; the tests take {seconds:.0f} s of CPU time"
            print(f"# {report}; {details}", file=out, flush=True)
    print(f"{survived} of {tried} mutants survive")
    return int(survived > 0)


if __name__ == "__main__":
    raise SystemExit(main())
