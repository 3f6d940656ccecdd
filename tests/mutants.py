"""Break the mathematics in one place at a time and count how often the tests notice.

    python tests/mutants.py
    python tests/mutants.py --only guidance/noise

A mutant is one module with one change: a constant, a sign, a comparison, a factor left out, two
functions exchanged. The tests that guard the module run against it; the mutant is killed if one of
them fails or if they take far longer than without it. Mutants are drawn at random, the same ones
for the same seed, about as many from a module as it has places to break.

`tests/mutants.toml` says which tests guard a module, and lists the mutants that no test can tell
from the code as it is, each with the reason.
"""

import ast
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
GUARDS = ROOT / "tests" / "mutants.toml"

BINARY = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*"}
BITWISE = {ast.BitAnd: "|", ast.BitOr: "&"}
COMPARE = {
    ast.Lt: ">=",
    ast.LtE: ">",
    ast.Gt: "<=",
    ast.GtE: "<",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
}
EXCHANGED = {
    "minimum": "maximum",
    "maximum": "minimum",
    "sin": "cos",
    "cos": "sin",
    "sum": "mean",
    "mean": "sum",
    "expm1": "exp",
    "log1p": "log",
    "min": "max",
    "max": "min",
}
LEAST = 4  # mutants of a module
LEFT_OUT = {"sqrt", "log", "exp", "flip", "abs", "cumsum", "square"}  # f(x) becomes x


class Mutant(NamedTuple):
    """One change of one module: `old`, at `line`, becomes `new`."""

    module: str
    line: int
    old: str
    new: str
    source: str

    @property
    def name(self) -> str:
        """What the change is, in one line."""
        return f"{self.module}:{self.line}: {self.old} -> {self.new}"

    @property
    def key(self) -> str:
        """Names the change without its line number, which other changes move."""
        line = (ROOT / self.module).read_text().splitlines()[self.line - 1].strip()
        return f"{self.module}: {line} [{self.old} -> {self.new}]"


class Verdict(NamedTuple):
    """Whether the tests noticed a mutant, and after how many seconds."""

    mutant: Mutant
    killed: bool
    seconds: float


def mutants(module: str) -> Iterator[Mutant]:
    """Find every change that can be made to a module, given by its path from the root."""
    text = (ROOT / module).read_text()
    lines = [line.encode() for line in text.splitlines(keepends=True)]
    starts = np.concatenate([[0], np.cumsum([len(line) for line in lines])])
    whole = text.encode()

    def span(node: ast.AST) -> tuple[int, int]:
        return (
            int(starts[node.lineno - 1]) + node.col_offset,
            int(starts[node.end_lineno - 1]) + node.end_col_offset,
        )

    def written(node: ast.AST) -> str:
        start, stop = span(node)
        return whole[start:stop].decode()

    for node in _code(ast.parse(text)):
        start, stop = span(node)
        for new in _changes(node, written):
            source = (whole[:start] + new.encode() + whole[stop:]).decode()
            old = " ".join(written(node).split())
            yield Mutant(module, node.lineno, old, " ".join(new.split()), source)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Walk over what is computed: no annotations, decorators, error messages or `__all__`."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
        return
    if isinstance(node, ast.expr):
        yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _code(child)


def _changes(node: ast.AST, written) -> Iterator[str]:
    """Write what may stand in the place of a node."""
    match node:
        case ast.Constant(value=bool() | str() | bytes() | None):
            return
        case ast.Constant(value=int(value)):
            yield str(value + 1 if value < 4 else round(1.5 * value))
        case ast.Constant(value=float(value)):
            yield repr(1.5 * value if value else 1.0)
        case ast.BinOp(left, op, right) if type(op) in BINARY:
            a, b = written(left), written(right)
            yield f"({a}) {BINARY[type(op)]} ({b})"
            if isinstance(op, ast.Mult | ast.Div):
                yield f"({a})"
            if isinstance(op, ast.Mult):
                yield f"({b})"
        case ast.BinOp(left, op, right) if type(op) in BITWISE:
            yield f"({written(left)}) {BITWISE[type(op)]} ({written(right)})"
        case ast.UnaryOp(ast.USub() | ast.Not() | ast.Invert(), operand):
            yield f"({written(operand)})"
        case ast.Compare(left, [op], [right]) if type(op) in COMPARE:
            yield f"{written(left)} {COMPARE[type(op)]} {written(right)}"
        case ast.BoolOp(op, values):
            joint = " or " if isinstance(op, ast.And) else " and "
            yield joint.join(f"({written(value)})" for value in values)
        case ast.Call(ast.Attribute(owner, attr), args):
            if attr in EXCHANGED:
                inside = written(node)[len(written(node.func)) :]
                yield f"{written(owner)}.{EXCHANGED[attr]}{inside}"
            if attr in LEFT_OUT and args:
                yield f"({written(args[0])})"
            if attr == "where" and len(args) == 3:
                condition, yes, no = map(written, args)
                yield f"{written(node.func)}({condition}, {no}, {yes})"


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from other source."""

    def __init__(self, mutant: Mutant):
        self.name = mutant.module.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        self.mutant = mutant

    def find_spec(self, fullname, path, target=None):
        if fullname != self.name:
            return None
        return importlib.util.spec_from_loader(
            fullname, self, origin=str(ROOT / self.mutant.module)
        )

    def get_filename(self, fullname):
        return str(ROOT / self.mutant.module)

    def get_data(self, path):
        return self.mutant.source.encode()


class _Shortest:
    """Plugin of pytest: within each file the tests that took least time without a mutant go first.

    Most mutants are killed by tests that take no time.
    """

    def __init__(self, notes: Path, *, write: bool):
        self.notes, self.write = notes, write
        self.seconds = json.loads(notes.read_text()) if notes.exists() else {}

    def pytest_collection_modifyitems(self, items):
        """Sort the tests of each file."""
        files = list(dict.fromkeys(item.path for item in items))
        items.sort(key=lambda item: (files.index(item.path), self.seconds.get(item.nodeid, 0)))

    def pytest_runtest_logreport(self, report):
        """Note how long a test took."""
        if self.write and report.when == "call":
            self.seconds[report.nodeid] = report.duration

    def pytest_sessionfinish(self):
        """Keep what was noted for the runs that follow."""
        if self.write:
            self.notes.write_text(json.dumps(self.seconds))


def run(mutant: Mutant | None, tests: list[str], limit: float, notes: Path) -> tuple[bool, float]:
    """Whether `tests` fail on a mutant (None for the code as it is), and in how many seconds.

    They run in a fork of this process, which has imported the libraries but nothing of dgjax. The
    file `notes` has the time of each test, and a run without a mutant writes it.
    """
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        import pytest

        if mutant is not None:
            sys.meta_path.insert(0, _Finder(mutant))
        options = ["-x", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist"]
        order = _Shortest(notes, write=mutant is None)
        os._exit(int(pytest.main([*options, *tests], plugins=[order])))
    while time.perf_counter() - began < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) != 0, time.perf_counter() - began
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True, limit


def draw(module: str, share: float, seed: int) -> list[Mutant]:
    """Draw a share of the mutants of a module, in the order of its lines."""
    found = list(mutants(module))
    rng = np.random.default_rng([seed, *module.encode()])
    chosen = rng.permutation(len(found))[: max(round(share * len(found)), LEAST)]
    return [found[i] for i in np.sort(chosen)]


def main(
    share: Annotated[float, typer.Option(help="Of all mutants, in (0, 1].")] = 0.21,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
    only: Annotated[str, typer.Option(help="Only modules whose path has this in it.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Mutants tested at once.")] = 2,
) -> None:
    """Break the mathematics in one place at a time and count how often the tests notice."""
    guards = tomllib.loads(GUARDS.read_text())
    equivalent = guards.get("equivalent", {})
    modules = guards["tests"]
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="dgjax-mutants-") as cache:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        _test(modules, equivalent, share, seed, only, jobs, Path(cache) / "seconds.json")


def _test(modules, equivalent, share, seed, only, jobs, notes) -> None:
    for library in ("jax", "flax.nnx", "diffrax", "optax", "optimistix", "orbax.checkpoint"):
        importlib.import_module(library)  # once, before the forks; no device is touched yet
    for library in ("chex", "scipy.stats", "scipy.interpolate", "pytest", "matplotlib.figure"):
        importlib.import_module(library)
    console = Console(stderr=True)
    names = [module for module in modules if only in module]
    chosen = [mutant for module in names for mutant in draw(module, share, seed)]
    limits = {}
    for module in track(sorted({m.module for m in chosen}), "unbroken", console=console):
        failed, seconds = run(None, modules[module], 3600, notes)
        if failed:
            raise typer.BadParameter(f"the tests of {module} fail on the code as it is")
        limits[module] = 60 + 10 * seconds

    def judge(mutant: Mutant) -> Verdict:
        limit = limits[mutant.module]
        return Verdict(mutant, *run(mutant, modules[mutant.module], limit, notes))

    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(judge, chosen)
        verdicts = list(track(results, "mutants", total=len(chosen), console=console))
    _report(verdicts, equivalent)


def _report(verdicts: list[Verdict], equivalent: dict[str, str]) -> None:
    table = Table(title=f"{len(verdicts)} mutants", title_justify="left")
    for name in ("module", "mutants", "equivalent", "killed", "share"):
        table.add_column(name, justify="left" if name == "module" else "right")
    by_module: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_module.setdefault(verdict.mutant.module, []).append(verdict)
    rows = {**by_module, "all": verdicts}
    for module, found in rows.items():
        same = sum(not v.killed and v.mutant.key in equivalent for v in found)
        killed, real = sum(v.killed for v in found), len(found) - same
        table.add_row(
            module, str(len(found)), str(same), str(killed), f"{killed / max(real, 1):.1%}"
        )
    Console().print(table)
    for verdict in verdicts:
        if not verdict.killed:
            reason = equivalent.get(verdict.mutant.key, "SURVIVED")
            print(f"{verdict.mutant.key}  # {reason}")


if __name__ == "__main__":
    typer.run(main)
