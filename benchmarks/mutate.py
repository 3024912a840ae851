"""R23: mutation testing. Change one thing in a copy of a module, run its tests; a mutant that passes them survived.

Tools for this start an interpreter and all imports anew for each mutant, or wrap each function, which Numba cannot
compile. Here the libraries are imported once, and each mutant is tested in a fork.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# The tests of each module, the quickest killers first.
MODULES = {
    "kernels/counter.py": ("kernels/test_counter",),
    "loaders/pairs.py": ("loaders/test_pairs",),
    "loaders/plan.py": ("loaders/test_plan",),
    "loaders/files.py": ("loaders/test_files",),
    "loaders/stream.py": ("loaders/test_stream",),
    "loaders/index.py": ("loaders/test_index", "loaders/test_stream"),
    "loaders/index_form.py": ("loaders/test_index_form", "loaders/test_index", "loaders/test_verify"),
    "loaders/shard_file.py": ("loaders/test_shard_file", "loaders/test_verify", "loaders/test_stream"),
    "loaders/shard_parse.py": ("loaders/test_shard_parse", "loaders/test_shard_file"),
    "loaders/apart.py": ("loaders/test_apart", "loaders/test_shard_file"),
    "loaders/verify.py": ("loaders/test_verify",),
}
# What the tests import but the modules under test.
LIBRARIES = (
    "h5py", "mpi4py", "numba", "numpy.random", "polars", "pydantic", "pytest", "scipy.signal",
    "scipy.stats", "tqdm",
)  # fmt: skip
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.Pow: ast.Mult,
}  # fmt: skip


def _of_messages(tree):
    """Return the nodes that are no behaviour: what is raised or logged, docstrings, types, f-strings."""
    skipped = set()

    def skip(node):
        skipped.update(map(id, ast.walk(node)))

    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            skip(node.exc)
        elif isinstance(node, ast.AnnAssign):
            skip(node.annotation)
        elif (
            (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            or isinstance(node, ast.JoinedStr)
            or ast.unparse(node).startswith(("log.", "__all__"))
        ):
            skip(node)
    return skipped


def mutants(source):
    """Yield (line, what was changed, changed source) of every mutant of a module."""
    tree = ast.parse(source)
    skipped = _of_messages(tree)
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in skipped or isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        for change in _changes(node):
            changed = copy.deepcopy(tree)
            other = next(one for n, one in enumerate(ast.walk(changed)) if n == number)
            before = ast.unparse(other).splitlines()[0]
            after = change(other, changed)
            yield node.lineno, f"{before[:70]}  ->  {after}", ast.unparse(ast.fix_missing_locations(changed))


def _changes(node):
    """Return the functions that change a node in place and say what it became."""
    if isinstance(node, ast.Compare):
        return [lambda n, _, i=i: _swap(n, n.ops, i) for i, op in enumerate(node.ops) if type(op) in SWAPS]
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS:
        return [_swap_operator]
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int)):
        return [_change_constant]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        return [_without_sign]
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        return [_negate]
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        return [_return_none]
    if isinstance(node, (ast.Expr, ast.Assign, ast.Raise, ast.Delete, ast.Continue, ast.Break)):
        return [_remove]
    return []


def _swap(node, ops, i):
    ops[i] = SWAPS[type(ops[i])]()
    return ast.unparse(node)


def _swap_operator(node, _):
    node.op = SWAPS[type(node.op)]()
    return ast.unparse(node)


def _change_constant(node, _):
    node.value = not node.value if isinstance(node.value, bool) else node.value + (1 if node.col_offset % 2 else -1)
    return ast.unparse(node)


def _without_sign(node, _):
    # Plus instead of minus; a condition without its "not" is the condition negated.
    if isinstance(node.op, ast.USub):
        node.op = ast.UAdd()
    else:
        node.op = ast.Not()
        node.operand = ast.UnaryOp(ast.Not(), node.operand)
    return ast.unparse(node)


def _negate(node, _):
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return f"if {ast.unparse(node.test)}"[:70]


def _return_none(node, _):
    node.value = None
    return "return"


def _remove(node, tree):
    for parent in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(parent, name, None)
            if isinstance(statements, list) and node in statements:
                statements[statements.index(node)] = ast.Pass()
    return "pass"


def run_tests(copied, tests):
    """Run the tests on the copy, in silence; return pytest's exit status."""
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(quiet, descriptor)
    sys.path.insert(0, str(copied))
    os.environ |= {"PYTHONPATH": str(copied), "PYTHONDONTWRITEBYTECODE": "1"}
    os.chdir(copied)
    import pytest

    # The whole of R13 takes half a minute; its cases are there one by one too.
    options = ["-x", "-q", "-p", "no:cacheprovider", "--basetemp", str(copied / "tmp"), "-k", "not within_its_means"]
    status = pytest.main([*options, *(f"tests/{test}.py" for test in tests)])
    with contextlib.suppress(Exception):
        from anyecg.loaders.apart import end_children

        end_children()
    return int(status)


def survives(copied, tests, seconds):
    """Say whether the tests pass in a fork of this process; None when they took too long."""
    child = os.fork()
    if not child:
        status = 1
        try:
            status = run_tests(copied, tests)
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main():
    """Print the survivors and the share killed of each module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="module", help=f"some of {', '.join(MODULES)}; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="test a random share of the mutants")
    parser.add_argument("--seconds", type=float, default=60, help="a mutant whose tests take longer is killed")
    arguments = parser.parse_args()
    for library in LIBRARIES:
        importlib.import_module(library)
    sys.dont_write_bytecode = True
    totals = []
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder).resolve()
        (copied / "anyecg").mkdir()
        for room in ("kernels", "loaders", "train", "slurm", "app"):
            shutil.copytree(REPOSITORY / room, copied / "anyecg" / room, ignore=shutil.ignore_patterns("records"))
        shutil.copytree(REPOSITORY / "tests", copied / "tests")
        shutil.copy(REPOSITORY / "pyproject.toml", copied)
        for module in arguments.modules or MODULES:
            source = (REPOSITORY / module).read_text(encoding="utf-8")
            target = copied / "anyecg" / module
            target.write_text(ast.unparse(ast.parse(source)), encoding="utf-8")
            if not survives(copied, MODULES[module], 10 * arguments.seconds):
                raise SystemExit(f"{module}: its tests fail without a change")
            found = [one for one in mutants(source) if random.Random(f"{module} {one[:2]}").random() < arguments.share]
            n_killed = 0
            for line, what, changed in found:
                target.write_text(changed, encoding="utf-8")
                survived = survives(copied, MODULES[module], arguments.seconds)
                n_killed += not survived
                if survived:
                    print(f"{module}:{line}: {what}", flush=True)
            target.write_text(source, encoding="utf-8")
            totals.append((module, n_killed, len(found)))
            print(f"{module}: {n_killed} of {len(found)} killed, {n_killed / max(1, len(found)):.1%}", flush=True)
    n_killed, n_all = (sum(total[column] for total in totals) for column in (1, 2))
    print(f"all: {n_killed} of {n_all} mutants killed, {n_killed / max(1, n_all):.1%}")


if __name__ == "__main__":
    main()
